"""How does a checkpoint of a study become a folder that transformers opens?

The folder holds config.json, safetensors, the tokenizer and a README.md with lineage and measures. The family is that of the
published model that the study began with; a model of our own is written as the first family that expresses it exactly. Adapters
are merged. The numbers are those of the checkpoint, bit for bit, and rows that pad the tables stay behind.

One parameter at a time becomes tensors on disk. Everything is written beside the folder and renamed at the end.
"""

import dataclasses
import json
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from elastic_jax.data import files, tokenizers
from elastic_jax.data.tokenizers import Tokenizer
from elastic_jax.errors import UserError, closest
from elastic_jax.hf import card
from elastic_jax.hf.source import open_source
from elastic_jax.hf.write import Entry, write_tensors
from elastic_jax.models.adapted import Adapted, merged_weight
from elastic_jax.models.config import ModelConfig
from elastic_jax.models.families import Family, Piece, family_for, family_of
from elastic_jax.models.lora import TARGETS, LoraConfig
from elastic_jax.models.transformer import Decoder, Params
from elastic_jax.parallel.mesh import make_mesh
from elastic_jax.study.workdir import Workdir
from elastic_jax.train.checkpoint import Checkpoints, Damaged
from elastic_jax.train.last_batch import examples_after

log = logging.getLogger(__name__)

SHARD_GB = 5.0
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


def export(
    workdir: os.PathLike | str,
    run: str,
    out: os.PathLike | str,
    updates: int | None = None,
    *,
    study: str | None = None,
    shard_gb: float = SHARD_GB,
    overwrite: bool = False,
) -> Path:
    """Write a checkpoint of a study as a folder of Hugging Face; returns the folder.

    Args:
      workdir: of the study; only read.
      run: its key, or its name where that is enough, as `python -m elastic_jax.status` prints them.
      out: the new folder.
      updates: which of the run's checkpoints; by default the last.
      study: one of several in the workdir; by default the latest.
      shard_gb: gigabytes (10^9 bytes) of a file at most.
      overwrite: replace `out` where it exists.

    Raises:
      UserError: there is no such run or checkpoint, it is damaged, no family of Hugging Face expresses the model (with the fields
        that stand in the way), or `out` exists or cannot be written. Nothing is left behind then.
    """
    if not shard_gb > 0:
        raise UserError(f"--shard_gb={shard_gb:g}: expected a positive number of gigabytes.")
    target = _target(out, overwrite)
    opened = Workdir(workdir)
    opened.open(create=False)
    entry = opened.study(study)
    point = _Point.find(opened, entry, run, updates)
    family = point.family
    config = _config(family, point)
    tokenizer = _tokenizer(opened, point.facts["tokenizer"])
    if tokenizer.vocab_size > config["vocab_size"]:
        raise ValueError(f"{tokenizer.vocab_size} tokens for tables of {config['vocab_size']} rows")
    _check_room(target, family, point.model)
    params, meta = point.params()

    temporary = files.beside(target)
    try:
        temporary.mkdir(parents=True)
        config |= _special_ids(tokenizer, point.facts["hf_config"])
        names = write_model(temporary, params.get, point.model, family, config, shard_gb=shard_gb)
        tokenizer.save(temporary)
        _write_json(temporary / "generation_config.json", _generation(tokenizer))
        text = card.text(opened, entry, point.chain, point.updates, meta, family.title, point.lora)
        (temporary / "README.md").write_text(text, "utf-8")
        _put(temporary, target)
    except OSError as error:
        raise UserError(
            f"--out={target}: cannot be written ({error.strerror or error}). Nothing was left there."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    size = sum(path.stat().st_size for path in target.iterdir())
    log.info(
        "%s after update %d as %s, %d file%s of weights, %.2f GB: %s",
        point.run["run"], point.updates, family.title, len(names), "s" if len(names) > 1 else "", size / 1e9, target,
    )  # fmt: skip
    return target


def write_model(
    folder: Path,
    params: Params | Callable[[tuple[str, ...]], np.ndarray],
    c: ModelConfig,
    family: Family | None = None,
    config: Mapping[str, Any] | None = None,
    *,
    shard_gb: float = SHARD_GB,
) -> list[Path]:
    """config.json and weights of a model in a folder that exists; returns the files of weights.

    Args:
      params: of layout "unroll", in `c.param_dtype`; or a function of their paths that makes one of them.
      family: by default the first that expresses the model.
      config: by default that of the family, without the numbers of special tokens.

    Raises:
      UserError: the family does not express the model.
    """
    family = family_for(c) if family is None else family
    config = family.hf_config(c) if config is None else config
    get = params if callable(params) else _Params(params, None, None).get
    names = write_tensors(folder, _entries(get, family.pieces(c), c), shard_gb * 1e9)
    _write_json(folder / "config.json", config)
    return names


def _target(out: os.PathLike | str, overwrite: bool) -> Path:
    if files.is_remote(out):
        raise UserError(f"--out={os.fspath(out)}: expected a folder on this machine. Copy it from there.")
    target = Path(out).expanduser().absolute()
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise UserError(f"--out={target}: this is no folder. Give a new one.")
    if target.exists() and not overwrite:
        raise UserError(f"--out={target}: exists already. Give a new folder, or --overwrite to replace it.")
    if target.exists() and any(target.iterdir()) and not (target / "config.json").is_file():
        raise UserError(f"--out={target}: holds other things than a model (no config.json), and is not replaced.")
    return target


@dataclasses.dataclass(frozen=True)
class _Point:
    """One checkpoint of a study.

    Attributes:
      chain: the run and those that it descends from, as the study recorded them, the root last.
      facts: what the study recorded for this purpose.
    """

    workdir: Workdir
    entry: Mapping[str, Any]
    chain: tuple[dict[str, Any], ...]
    updates: int
    facts: Mapping[str, Any]

    @classmethod
    def find(cls, workdir: Workdir, entry: Mapping[str, Any], name: str, updates: int | None) -> "_Point":
        if "export" not in entry:
            raise UserError(
                f"{workdir.path}: this study was recorded by an earlier version, which did not note what an export needs. Run the "
                "command of the study again (nothing is computed twice), then export."
            )
        runs = {run["run"]: run for run in entry["runs"]}
        found = [key for key, run in runs.items() if name in (key, run["name"])]
        if not found:
            raise UserError(f"--run={name}: no such run in this study. {closest(name, runs)}")
        chain = [runs[found[0]]]
        while chain[-1]["parent"]:
            chain.append(runs[chain[-1]["parent"]])
        point = cls(workdir, entry, tuple(chain), 0, entry["export"])
        return dataclasses.replace(point, updates=point._chosen(updates))

    @property
    def run(self) -> dict[str, Any]:
        return self.chain[0]

    @property
    def lora(self) -> LoraConfig | None:
        section = self.run.get("lora")
        return LoraConfig(**{**section, "targets": tuple(section["targets"])}) if section else None

    @property
    def model(self) -> ModelConfig:
        """As it lies on disk; how it was computed makes no difference."""
        fields = dict(self.facts["model"], layout="unroll", remat="none", attention="reference")
        return ModelConfig(**fields)

    @property
    def family(self) -> Family:
        """Raises UserError where none expresses the model."""
        given = self.facts["hf_config"]
        return family_for(self.model) if given is None else family_of(given)

    def _chosen(self, updates: int | None) -> int:
        if self._imported(self.run):
            if updates:
                raise UserError(
                    f"--updates={updates}: {self.run['run']} is a base, which nothing was trained of. Leave it out."
                )
            return 0
        with self._checkpoints(self.run, None) as checkpoints:
            there = checkpoints.updates()
        if not there:
            raise UserError(f"--run={self.run['run']}: it has no checkpoint yet. Run the study first.")
        if updates is None:
            return there[-1]
        if updates not in there:
            size, last, rows = self.run["batch_size"], self.run["updates"], self.run.get("last_rows", 0)
            known = ", ".join(f"{n:,} ({examples_after(n, size, last, rows):,} examples)" for n in there)
            raise UserError(f"--updates={updates}: {self.run['run']} has checkpoints after {known} updates.")
        return updates

    def _imported(self, run: Mapping[str, Any]) -> bool:
        return self.facts["hf_config"] is not None and not run["parent"]

    def _checkpoints(self, run: Mapping[str, Any], lora: LoraConfig | None) -> "_Opened":
        model = Decoder(self.model) if lora is None else Adapted(self.model, lora)
        return _Opened(self.workdir.run(run["run"]) / "checkpoints", model, _host())

    def params(self) -> tuple["_Params", dict[str, Any]]:
        """The parameters, and what the checkpoint says of itself."""
        if self._imported(self.run):
            return _Params(self._source(), None, None), {}
        if self.lora is None:
            params, meta = self._restored(self.run, self.updates, None)
            return _Params(params, None, None), meta
        adapters, meta = self._restored(self.run, self.updates, self.lora)
        root = self.chain[-1]
        base = self._source() if self._imported(root) else self._restored(root, root["updates"], None)[0]
        return _Params(base, adapters, self.lora), meta

    def _restored(self, run: Mapping[str, Any], updates: int, lora: LoraConfig | None) -> tuple[Params, dict[str, Any]]:
        with self._checkpoints(run, lora) as checkpoints:
            if updates not in checkpoints.updates():
                raise UserError(
                    f"{run['run']} has no checkpoint after {updates} updates. Run the study, which makes it again."
                )
            try:
                return checkpoints.restore_params(updates)
            except Damaged as error:
                raise UserError(f"{error} Run the study, which trains that part again, then export.") from error

    def _source(self) -> Params:
        """The parameters of the published model at the root. Raises UserError where they are not those of the study."""
        label = self.chain[-1]["model"]
        base = next(base for base in self.entry["bases"] if base["label"] == label)
        source = open_source(base["hf"], base["revision"])
        if source.digest != base["digest"]:
            raise UserError(
                f"base.hf={base['hf']}: the weights are not those that the study began with (then {base['digest'][:12]}, now "
                f"{source.digest[:12]}). Put the old ones back."
            )
        return source.load_params(Decoder(self.model), _host())


class _Opened(Checkpoints):
    """Checkpoints that are only read, for a `with` statement."""

    def __init__(self, folder: Any, model: Any, mesh: Mesh):
        if not folder.is_dir():
            raise UserError(f"{folder}: no checkpoints there yet. Run the study first.")
        super().__init__(folder, model, mesh, read_only=True)

    def __enter__(self) -> "_Opened":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def _host() -> Mesh:
    """One device, in the memory of the host where jax has a CPU."""
    try:
        devices = jax.local_devices(backend="cpu")
    except RuntimeError:  # jax was told to use an accelerator alone
        devices = jax.local_devices()
    return make_mesh(devices=devices[:1])


@dataclasses.dataclass(frozen=True)
class _Params:
    """Parameters by path; those with an adapter are merged when they are asked for."""

    base: Params
    adapters: Params | None
    lora: LoraConfig | None

    def get(self, path: tuple[str, ...]) -> np.ndarray:
        node: Any = self.base
        for name in path:
            node = node[name]
        *where, name = path
        if self.lora is None or self.adapters is None or name not in self.lora.targets or where[:1] != ["layers"]:
            return np.asarray(node)
        if where[2:] != [TARGETS[name][0]]:
            return np.asarray(node)
        pair = self.adapters["layers"][where[1]][name]
        return np.asarray(merged_weight(node, pair["a"], pair["b"], self.lora.scale))


def _entries(params: Callable[[tuple[str, ...]], np.ndarray], pieces: Sequence[Piece], c: ModelConfig) -> list[Entry]:
    """The tensors in the order of our parameters, so that each of these is made once."""
    last: list[Any] = [None, None]

    def read(piece: Piece) -> np.ndarray:
        if last[0] != piece.path:
            last[:] = piece.path, params(piece.path)
        return piece.from_ours(last[1])

    def order(piece: Piece) -> tuple[Any, ...]:
        layer = (
            int(piece.path[1])
            if piece.path[0] == "layers"
            else -1
            if piece.path[0] in ("embedding", "positions")
            else c.layers
        )
        return layer, piece.path

    dtype = np.dtype(jax.numpy.dtype(c.param_dtype))
    return [
        Entry(piece.name, piece.shape, dtype, lambda piece=piece: read(piece)) for piece in sorted(pieces, key=order)
    ]


def _config(family: Family, point: _Point) -> dict[str, Any]:
    given = point.facts["hf_config"] or {}
    longest = next((given[key] for key in ("max_position_embeddings", "n_positions") if key in given), 0)
    return family.hf_config(point.model, length=longest)


def _special_ids(tokenizer: Tokenizer, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Those of the published model; for one of our own, the tokenizer's."""
    if given is not None:
        return {key: given[key] for key in _SPECIAL if key in given}
    ends = list(tokenizer.eos_ids)
    ids = dict(bos_token_id=tokenizer.bos_id, eos_token_id=ends[0] if len(ends) == 1 else ends)
    return ids | dict(pad_token_id=tokenizer.pad_id)


def _generation(tokenizer: Tokenizer) -> dict[str, Any]:
    """What `generate` of transformers does unless it is told otherwise: as this package samples."""
    ends = list(tokenizer.eos_ids)
    config: dict[str, Any] = dict(eos_token_id=ends[0] if len(ends) == 1 else ends, pad_token_id=tokenizer.pad_id)
    if tokenizer.bos_id is not None:
        config["bos_token_id"] = tokenizer.bos_id
    if tokenizer.never:
        config["suppress_tokens"] = list(tokenizer.never)
    return config


def _tokenizer(workdir: Workdir, digest: str) -> Tokenizer:
    """The study's, of the prepared data."""
    for folder in _tokenizer_folders(workdir.data):
        try:
            found = tokenizers.load(folder)
        except UserError as error:
            log.warning("%s", error)
            continue
        if found.digest == digest:
            return found
    raise UserError(
        f"{workdir.data}: the tokenizer of the study is not there. Run the command of the study on this machine, which makes it again."
    )


def _tokenizer_folders(data: Path) -> Iterator[Path]:
    return (
        folder for folder in sorted(data.glob("tokenizer-*")) if folder.is_dir() and not files.is_temporary(folder.name)
    )


def _check_room(target: Path, family: Family, c: ModelConfig) -> None:
    """Raises UserError before anything is read where the disk is too small."""
    numbers = sum(math.prod(piece.shape) for piece in family.pieces(c))
    needed = numbers * np.dtype(jax.numpy.dtype(c.param_dtype)).itemsize
    parent = next(folder for folder in target.parents if folder.exists())
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise UserError(f"--out={target}: {needed / 1e9:.1f} GB are needed, and {free / 1e9:.1f} GB are free there.")


def _put(temporary: Path, target: Path) -> None:
    """Everything at once: whoever looks sees the old folder, none for a moment, or the new one."""
    if not target.exists():
        os.replace(temporary, target)
        return
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as old:
        os.replace(target, Path(old) / target.name)
        try:
            os.replace(temporary, target)
        except OSError:
            os.replace(Path(old) / target.name, target)
            raise


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(dict(content), indent=2) + "\n", "utf-8")
