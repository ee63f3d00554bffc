"""How do tensors become files that anyone opens, without being in memory together?

The format is that of `hf.tensors`. Its header has the place of every tensor, which follows from shapes and types alone, so that the
numbers can be made one tensor at a time, written and forgotten.
"""

import dataclasses
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from elastic_jax.hf.tensors import DTYPES, INDEX, SINGLE

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclasses.dataclass(frozen=True)
class Entry:
    """A tensor that is to be written, and how its numbers are made."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_tensors(folder: Path, entries: Sequence[Entry], shard_bytes: float) -> list[Path]:
    """`model.safetensors`, or shards of it with an index, in this order.

    Args:
      shard_bytes: what a file holds at most; a tensor that is larger has one to itself.
    """
    shards: list[list[Entry]] = []
    for entry in entries:
        if not shards or sum(e.nbytes for e in shards[-1]) + entry.nbytes > shard_bytes:
            shards.append([])
        shards[-1].append(entry)
    if len(shards) == 1:
        _write(folder / SINGLE, shards[0])
        return [folder / SINGLE]
    names = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        _write(folder / name, shard)
    index = dict(
        metadata=dict(total_size=sum(entry.nbytes for entry in entries)),
        weight_map={entry.name: name for name, shard in zip(names, shards, strict=True) for entry in shard},
    )
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return [folder / name for name in names]


def _write(path: Path, entries: Sequence[Entry]) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}  # transformers asks for it
    place = 0
    for entry in entries:
        header[entry.name] = dict(
            dtype=_NAMES[entry.dtype], shape=list(entry.shape), data_offsets=[place, place + entry.nbytes]
        )
        place += entry.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the numbers begin at a multiple of eight bytes
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for entry in entries:
            array = np.ascontiguousarray(entry.read())
            if array.shape != entry.shape or array.dtype != entry.dtype:
                raise ValueError(f"{entry.name}: {array.dtype}{array.shape}, {entry.dtype}{entry.shape} was announced")
            file.write(array.reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())
