"""Is this data set already prepared on disk, and is it undamaged?

Layout: `<root>/<name>-<key>/{data.array_record, ids.json, manifest.json}`. A record of the ArrayRecord file
is one row: its fields' bytes one after the other, in the order and with the shapes of the manifest.
"""

import dataclasses
import functools
import hashlib
import json
import logging
import os
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from elastic_jax.data import files
from elastic_jax.data.examples import Kind, TokenRows
from elastic_jax.data.files import beside, digest_of, sha256_of_file, write_text
from elastic_jax.errors import UserError

FORMAT = 1
_DATA, _IDS, _MANIFEST = "data.array_record", "ids.json", "manifest.json"
# Below this size a data set is kept in memory: random access is then a single gather.
IN_MEMORY_BYTES = 256 << 20
# Records are compressed in groups, and reading one record unpacks its whole group.
_GROUP_BYTES = 16 << 10
_ROWS_AT_ONCE = 4096
_ABANDONED_SECONDS = 24 * 3600.0
_log = logging.getLogger(__name__)
_checked: dict[tuple, str] = {}


class Damaged(Exception):
    """A prepared data set whose files are not what its manifest says."""


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
    """A prepared data set; equal content has an equal `digest`, wherever and whenever it was written."""

    folder: Path
    manifest: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """SHA-256 of the rows, the fields and the kind."""
        return self.manifest["digest"]

    @property
    def rows(self) -> int:
        """Number of token rows."""
        return self.manifest["rows"]

    @property
    def kind(self) -> Kind:
        """Of the rows: "text" or "pair"."""
        return self.manifest["kind"]

    @property
    def seq_len(self) -> int:
        """T, the length of the model's input; token rows have T+1 tokens."""
        return self.manifest["seq_len"]

    @property
    def counts(self) -> dict[str, int]:
        """See `elastic_jax.data.examples.TokenRows`."""
        return dict(self.manifest["counts"])

    @property
    def tokenizer_digest(self) -> str:
        """Digest of the tokenizer that wrote the tokens."""
        return self.manifest["tokenizer"]

    @functools.cached_property
    def ids(self) -> tuple[str, ...]:
        """Ids of the rows, or of the documents when rows are cut from joined documents."""
        return tuple(json.loads((self.folder / _IDS).read_text("utf-8")))

    @property
    def packed(self) -> bool:
        """Whether a row holds several documents that do not see each other."""
        return any(field["name"] == "segments" for field in self.manifest["fields"])

    @functools.cached_property
    def sizes(self) -> np.ndarray:
        """Inputs that each row's document takes when it is packed, [rows] int64.

        They are all before the last target that the loss counts, and that target too where the next document does not begin with it.
        """
        sizes = np.empty(self.rows, np.int64)
        for begin in range(0, self.rows, _ROWS_AT_ONCE):
            part = self._source.take(slice(begin, min(begin + _ROWS_AT_ONCE, self.rows)))["mask"]
            sizes[begin : begin + len(part)] = self.seq_len - np.argmax(part[:, ::-1] != 0, axis=1)
        return sizes if self.manifest.get("joined", True) else np.minimum(sizes + 1, self.seq_len)

    def source(self) -> "RowSource":
        """A random-access source of rows for grain."""
        return self._source

    def arrays(self, limit: int | None = None) -> dict[str, np.ndarray]:
        """The first `limit` rows (all of them by default) as one array per field; do not write into them."""
        return self._source.take(slice(0, self.rows if limit is None else min(limit, self.rows)))

    @functools.cached_property
    def _source(self) -> "RowSource":
        return RowSource(self.folder / _DATA, self.manifest["fields"], self.rows)


class RowSource:
    """Rows by number: from memory when they fit, otherwise from the ArrayRecord file."""

    def __init__(self, path: Path, fields: Sequence[Mapping[str, Any]], rows: int):
        self._path, self._rows = path, rows
        self._dtype = np.dtype([(f["name"], f["dtype"], tuple(f["shape"])) for f in fields])
        self._lock = threading.Lock()
        self._reader: Any = None
        self._arrays: dict[str, np.ndarray] | None = None

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, index: SupportsIndex) -> dict[str, np.ndarray]:
        index = range(self._rows)[index]
        return {name: column[0] for name, column in self.take(np.array([index])).items()}

    def __repr__(self) -> str:
        return f"RowSource({self._path})"

    @property
    def in_memory(self) -> bool:
        """Whether rows are served from memory."""
        return self._rows * self._dtype.itemsize <= IN_MEMORY_BYTES

    def take(self, index: np.ndarray | slice) -> dict[str, np.ndarray]:
        """The rows with these numbers, [len(index), ...] per field."""
        if self.in_memory:
            arrays = self._arrays if self._arrays is not None else self._read_all()
            return {name: column[index] for name, column in arrays.items()}
        if isinstance(index, slice):
            index = np.arange(self._rows)[index]
        return self._decode(self._open().read([int(i) for i in index]))

    def _open(self) -> Any:
        with self._lock:
            if self._reader is None:
                self._reader = array_record_module.ArrayRecordReader(str(self._path))
            return self._reader

    def _read_all(self) -> dict[str, np.ndarray]:
        with self._lock:
            if self._arrays is None:
                reader = array_record_module.ArrayRecordReader(str(self._path))
                self._arrays = self._decode(reader.read_all())
                reader.close()
            return self._arrays

    def _decode(self, records: Sequence[bytes]) -> dict[str, np.ndarray]:
        structured = np.frombuffer(b"".join(records), self._dtype)
        return {name: np.ascontiguousarray(structured[name]) for name in self._dtype.names or ()}


def write(folder: Path, rows: TokenRows, *, tokenizer_digest: str) -> Prepared:
    """Writes `rows` to a folder beside `folder` and renames it; an existing `folder` wins the race.

    Raises:
      UserError: `folder` is not on a local or mounted disk.
    """
    folder = local_path(folder)
    arrays = {name: np.ascontiguousarray(array) for name, array in rows.arrays.items()}
    count = rows.counts["rows"]
    fields = [dict(name=n, dtype=a.dtype.str, shape=list(a.shape[1:])) for n, a in arrays.items()]
    content = hashlib.sha256(json.dumps([FORMAT, rows.kind, rows.seq_len, count, fields], sort_keys=True).encode())
    for array in arrays.values():
        content.update(array.data)
    temporary = beside(folder)
    temporary.mkdir(parents=True)
    try:
        _write_records(temporary / _DATA, arrays, count)
        write_text(temporary / _IDS, json.dumps(list(rows.ids)))
        manifest = dict(
            format=FORMAT,
            kind=rows.kind,
            seq_len=rows.seq_len,
            fields=fields,
            rows=count,
            counts=rows.counts,
            tokenizer=tokenizer_digest,
            digest=content.hexdigest(),
            bytes=(temporary / _DATA).stat().st_size,
            sha256=sha256_of_file(temporary / _DATA),
            ids_sha256=sha256_of_file(temporary / _IDS),
            first_id=rows.ids[0] if rows.ids else "",
            last_id=rows.ids[-1] if rows.ids else "",
        )
        if not rows.joined:
            manifest["joined"] = False
        manifest["manifest_sha256"] = digest_of(manifest)
        write_text(temporary / _MANIFEST, json.dumps(manifest, indent=1))
        _sync(temporary)
        try:
            os.rename(temporary, folder)
        except OSError:
            # Another process of the same job was faster; what it wrote is checked like any other.
            if not (folder / _MANIFEST).is_file():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return open_prepared(folder)


def open_prepared(folder: Path) -> Prepared:
    """The data set in `folder`, its files checked once per process.

    Raises:
      Damaged: a file is missing, has another size or another checksum.
    """
    folder = local_path(folder)
    try:
        manifest = json.loads((folder / _MANIFEST).read_text("utf-8"))
        stated = manifest.pop("manifest_sha256")
        state = tuple((name, *_stamp(folder / name)) for name in (_DATA, _IDS))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{folder}: {_MANIFEST} or a file it names cannot be read ({error!r})") from error
    if stated != digest_of(manifest):
        raise Damaged(f"{folder / _MANIFEST}: the manifest was changed after it was written")
    if manifest["format"] != FORMAT:
        raise Damaged(f"{folder}: format {manifest['format']}, but {FORMAT} is current")
    if state[0][1] != manifest["bytes"]:
        raise Damaged(f"{folder / _DATA}: {state[0][1]} bytes, the manifest says {manifest['bytes']}")
    if _checked.get((str(folder), *state)) != stated:
        for name, expected in ((_DATA, manifest["sha256"]), (_IDS, manifest["ids_sha256"])):
            if sha256_of_file(folder / name) != expected:
                raise Damaged(f"{folder / name}: its SHA-256 is not the one in {_MANIFEST}")
        _checked[(str(folder), *state)] = stated
    return Prepared(folder, manifest)


def prepare(root: Path, name: str, key: str, make: Callable[[], TokenRows], *, tokenizer_digest: str) -> Prepared:
    """The data set `<root>/<name>-<key>`: opened when it is there and whole, otherwise made and written."""
    folder = local_path(root) / f"{name}-{key[:12]}"
    if folder.exists():
        try:
            return open_prepared(folder)
        except Damaged as damage:
            _log.warning("Prepared data is damaged and will be rebuilt: %s", damage)
            shutil.rmtree(folder)
    return write(folder, make(), tokenizer_digest=tokenizer_digest)


def sweep(root: Path) -> None:
    """Removes what processes that were killed left half written in `root`: names that `files.beside` makes, unchanged for a day."""
    if root.is_dir():
        files.sweep([root, *(path for path in root.iterdir() if path.is_dir())], _ABANDONED_SECONDS)


def local_path(path: str | os.PathLike) -> Path:
    """`path` as a local path.

    Raises:
      UserError: it is a bucket.
    """
    if "://" in os.fspath(path):
        raise UserError(
            f"{os.fspath(path)}: prepared data must lie on a local or mounted disk. "
            "Mount the bucket, or give a --workdir that is a folder."
        )
    return Path(path)


def _write_records(path: Path, arrays: Mapping[str, np.ndarray], count: int) -> None:
    dtype = np.dtype([(name, array.dtype, array.shape[1:]) for name, array in arrays.items()])
    group = int(np.clip(_GROUP_BYTES // max(dtype.itemsize, 1), 1, 256))
    writer = array_record_module.ArrayRecordWriter(str(path), f"group_size:{group}")
    for begin in range(0, count, _ROWS_AT_ONCE):
        part = np.empty(min(_ROWS_AT_ONCE, count - begin), dtype)
        for name, array in arrays.items():
            part[name] = array[begin : begin + len(part)]
        whole, size = part.tobytes(), dtype.itemsize
        for row in range(len(part)):
            writer.write(whole[row * size : (row + 1) * size])
    writer.close()


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _sync(folder: Path) -> None:
    for path in (*folder.iterdir(), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
