"""Which tensors does a folder of safetensors hold, and what are their numbers?

The format: eight bytes with the length of a header, the header in JSON (name -> dtype, shape, place), and the numbers behind it in
the order of C. The files are mapped into memory rather than read, so that whoever wants a slice pays for a slice; the pages that
were touched count as resident until they are given back with `release`.
https://github.com/huggingface/safetensors#format
"""

import dataclasses
import json
import math
import mmap
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from elastic_jax.errors import UserError, first_line

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_OTHER_FORMATS = (".gguf", ".h5", ".msgpack", ".onnx", ".npz")
_LONGEST_HEADER = 100_000_000  # of the format itself
_LFS = b"version https://git-lfs"


@dataclasses.dataclass(frozen=True)
class _Entry:
    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int  # in the file
    nbytes: int


class Tensors:
    """The tensors of a folder with one `*.safetensors` file or an index of several, or of one such file.

    Raises:
      UserError: there are none, it is not clear which ones are meant, or a file is damaged.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        files, index = _files(self.folder)
        entries: dict[str, _Entry] = {}
        for file in files:
            for name, entry in _header(file).items():
                if index is None or index.get(name, file.name) == file.name:
                    entries[name] = entry
        if index is not None:
            absent = [f"{name} ({file})" for name, file in index.items() if name not in entries]
            if absent:
                raise UserError(
                    f"{self.folder}: the index names {len(absent)} tensors that the files do not hold: "
                    f"{_some(absent)}.\nIndex and files are of different checkpoints: get the folder again."
                )
        self._entries = entries
        self._maps: dict[Path, mmap.mmap] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors, in the order of the files."""
        return tuple(self._entries)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold them."""
        return tuple(dict.fromkeys(entry.file for entry in self._entries.values()))

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.nbytes for entry in self._entries.values())

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entries[name].shape

    def dtype(self, name: str) -> np.dtype:
        """Raises UserError for a dtype that numpy has no name for."""
        entry = self._entries[name]
        if entry.dtype not in DTYPES:
            raise UserError(
                f"{entry.file}: the tensor {name} has the dtype {entry.dtype}; known: {', '.join(DTYPES)}.\n"
                "Convert the checkpoint to one of them."
            )
        return DTYPES[entry.dtype]

    def file(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self._entries[name].file

    def read(self, name: str) -> np.ndarray:
        """The tensor as a read-only view of its file: numbers are read when they are touched."""
        entry, dtype = self._entries[name], self.dtype(name)
        if sys.byteorder == "big":
            dtype = dtype.newbyteorder("<")
        if not entry.nbytes:  # a place at the end of the file, where nothing can be mapped
            return np.frombuffer(b"", dtype).reshape(entry.shape)
        flat = np.frombuffer(self._map(entry.file), dtype, entry.nbytes // dtype.itemsize, entry.start)
        return flat.reshape(entry.shape)

    def release(self, name: str) -> None:
        """Takes the pages of a tensor out of this process's resident memory; touching them again reads them again."""
        entry = self._entries[name]
        if entry.file in self._maps and entry.nbytes and hasattr(mmap, "MADV_DONTNEED"):
            first = entry.start // mmap.PAGESIZE * mmap.PAGESIZE
            self._maps[entry.file].madvise(mmap.MADV_DONTNEED, first, entry.start + entry.nbytes - first)

    def _map(self, file: Path) -> mmap.mmap:
        if file not in self._maps:
            with _opened(file) as opened:
                self._maps[file] = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        return self._maps[file]


def _files(folder: Path) -> tuple[list[Path], Mapping[str, str] | None]:
    """The files to read, and the index's name -> file."""
    if folder.is_file():
        if folder.suffix != ".safetensors":
            raise UserError(no_weights(folder, [folder.name]))
        return [folder], None
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such folder (looked from {os.getcwd()}). Give a folder with *.safetensors files."
        )
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    single = [name for name in names if name.endswith(".safetensors")]
    indices = [name for name in names if name.endswith(".safetensors.index.json")]
    if INDEX in indices or len(indices) == 1:
        name = INDEX if INDEX in indices else indices[0]
        index = _index(folder / name)
        if SINGLE in single and SINGLE not in index.values():
            raise UserError(
                f"{folder} holds two checkpoints: {SINGLE}, and {name} with {len(set(index.values()))} files. Move one of "
                "them to another folder."
            )
        return [folder / file for file in sorted(set(index.values()))], index
    if indices:
        raise UserError(f"{folder} holds several indices: {', '.join(indices)}. Leave the one that is meant.")
    if SINGLE in single:
        return [folder / SINGLE], None
    if single == ["adapter_model.safetensors"]:
        raise UserError(
            f"{folder} holds an adapter (adapter_model.safetensors), not a model. Merge it into its base model first: with "
            "peft, `model.merge_and_unload().save_pretrained(folder)`."
        )
    if len(single) > 1:
        raise UserError(
            f"{folder} holds {len(single)} safetensors files and no {INDEX} that says what each is: {_some(single)}.\n"
            "Give the path of one file, or the index that belongs to them."
        )
    if not single:
        raise UserError(no_weights(folder, names))
    return [folder / single[0]], None


def no_weights(where: Path, names: Sequence[str]) -> str:
    """Why there is nothing to read in a folder with these files, and what to do."""
    pickles = [name for name in names if name.endswith(_PICKLES)]
    if pickles:
        return (
            f"{where}: only pickle files ({_some(pickles)}). They are not read: unpickling runs whatever program the file "
            "holds.\nUse a revision of the model with *.safetensors, or convert the folder where you trust it: "
            "`AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder, safe_serialization=True)` (of a classifier "
            "`AutoModelForSequenceClassification`)."
        )
    others = [name for name in names if name.endswith(_OTHER_FORMATS)]
    if others:
        return f"{where}: no *.safetensors file; {_some(others)} is of a format that is not read. Convert it to safetensors."
    return f"{where}: no *.safetensors file. It holds: {_some(names) or 'nothing'}. Give the folder with the model's weights."


def _index(path: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(path.read_text("utf-8"))["weight_map"]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}). Get it again.") from error
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} holds no weight_map, which says where each tensor lies. Get it again.") from error
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{path}: its weight_map is {_shown(weight_map)}; tensor names and files were expected.")
    for name, file in weight_map.items():
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            cure = "Pickle files are not read: get the index of safetensors." if str(file).endswith(_PICKLES) else ""
            raise UserError(
                f"{path}: {name} lies in {_shown(file)}; a *.safetensors file beside it was expected. {cure}"
            )
    absent = sorted({file for file in weight_map.values() if not (path.parent / file).is_file()})
    if absent:
        raise UserError(
            f"{path} names {len(absent)} files that are not there: {_some(absent)}.\nThe folder was copied or downloaded in "
            "part: get them as well."
        )
    return weight_map


def _opened(file: Path) -> Any:
    try:
        return open(file, "rb")
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror or error}).") from error


def _header(file: Path) -> dict[str, _Entry]:
    with _opened(file) as opened:
        size = os.fstat(opened.fileno()).st_size
        start = opened.read(8)
        length = int.from_bytes(start, "little")
        if _LFS.startswith(start) or len(start) < 8:
            rest = start + opened.read(len(_LFS))
            if rest.startswith(_LFS):
                raise UserError(f"{file} is a pointer of Git LFS, not the weights. Run `git lfs pull` in its folder.")
            raise UserError(f"{file} is cut short: {size} bytes. Get it again.")
        if length > min(_LONGEST_HEADER, size - 8):
            kind = "is cut short" if length <= _LONGEST_HEADER else "is no safetensors file"
            raise UserError(f"{file} {kind}: {size} bytes, and a header of {length} bytes was announced. Get it again.")
        text = opened.read(length)
    try:
        header = json.loads(text.decode())
        header.pop("__metadata__", None)
        entries = {name: _entry(file, 8 + length, item) for name, item in header.items()}
    except (UnicodeDecodeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: its header is damaged ({first_line(error)}). Get it again.") from error
    end = max((entry.start + entry.nbytes for entry in entries.values()), default=8 + length)
    if end > size:
        raise UserError(f"{file} is cut short: {size} bytes, and its header describes {end}. Get it again.")
    return entries


def _entry(file: Path, base: int, item: Mapping[str, Any]) -> _Entry:
    begin, end = item["data_offsets"]
    shape = tuple(item["shape"])
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in (begin, end, *shape))
    if not whole or end < begin or not isinstance(item["dtype"], str):
        raise ValueError(f"a tensor of {_shown(item)}")
    known = DTYPES.get(item["dtype"])
    if known is not None and end - begin != math.prod(shape) * known.itemsize:
        raise ValueError(f"{end - begin} bytes for a tensor of {_shown(item)}")
    return _Entry(file, item["dtype"], shape, base + begin, end - begin)


def _some(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f", and {len(names) - most} more" if len(names) > most else "")


def _shown(value: Any) -> str:
    return re.sub(r"\s+", " ", repr(value))[:120]
