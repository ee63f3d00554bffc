"""How does a file appear all at once, on a disk or in a bucket, and how do we know that it is still the same?

Paths are local, or `gs://bucket/...`. A bucket has objects and nothing else: an object is put as a whole or not at all and seen
by whoever lists next, but it cannot be appended to or renamed, and a folder is there when something is in it.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from etils import epath

from elastic_jax.errors import UserError

CACHE_VARIABLE = "ELASTIC_DATA_CACHE"
_log = logging.getLogger(__name__)
_TEMPORARY = re.compile(r"\.tmp-[0-9a-f]{12}$")


def is_remote(path: str | os.PathLike) -> bool:
    """Whether `path` lies in an object store."""
    return "://" in os.fspath(path)


def to_path(path: str | os.PathLike) -> epath.Path:
    """`path` with `~` expanded, or the place in a bucket that it names.

    Raises:
      UserError: a store that is not supported, no bucket in the path, or the package for it is not installed.
    """
    text = os.fspath(path)
    if not is_remote(text):
        return epath.Path(text).expanduser()
    scheme, _, rest = text.partition("://")
    if scheme != "gs":
        raise UserError(
            f"{text}: {scheme}:// is not supported; folders and gs:// are. Mount that bucket as a folder and give the folder."
        )
    if not rest.strip("/"):
        raise UserError(f"{text}: expected gs://BUCKET/FOLDER.")
    _connect(text)
    return epath.Path(text)


def absolute(path: epath.Path) -> epath.Path:
    """`path` from the root; what lies in a bucket is so already."""
    return path if is_remote(path) else path.absolute()


def _connect(text: str) -> None:
    import fsspec
    from fsspec import config

    try:
        fsspec.get_filesystem_class("gcs")
    except ImportError as error:
        raise UserError(f"{text}: reading and writing gs:// needs gcsfs: pip install 'elastic_jax[gcs]'.") from error
    # Others write there too (tensorstore, other hosts): a remembered listing would be wrong.
    config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)


def cache_folder() -> Path:
    """Where this machine keeps prepared data of workdirs that lie in a bucket: `ELASTIC_DATA_CACHE`, or the user's cache."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen).expanduser()
    return user_cache() / "data"


def user_cache(environ: Mapping[str, str] = os.environ) -> Path:
    """The folder of this package among the user's caches. Raises RuntimeError for a user without a home."""
    return Path(environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "elastic_jax"


def beside(path: Path) -> Path:
    """A name in the same folder that no other process, on this host or another, writes to."""
    return path.with_name(f"{path.name}.tmp-{uuid.uuid4().hex[:12]}")


def is_temporary(name: str) -> bool:
    """Whether a name is one that `beside` gave."""
    return _TEMPORARY.search(name) is not None


def sweep(folders: Iterable[os.PathLike], older: float = 0.0) -> None:
    """Removes what killed processes left under temporary names in local folders.

    Args:
      folders: where the caller knows that no process is writing, or
      older: seconds after which none can be.
    """
    for folder in map(Path, folders):
        for path in folder.iterdir() if folder.is_dir() else ():
            if not is_temporary(path.name):
                continue
            with contextlib.suppress(OSError):  # another process removed or finished it
                newest = max(part.stat().st_mtime for part in (path, *path.rglob("*")))
                if time.time() - newest < older:
                    continue
                _log.info("Removing what an interrupted process left: %s", path)
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()


def write_bytes(path: Path | epath.Path, content: bytes) -> None:
    """Writes a file so that a reader sees the old one or the whole new one."""
    if is_remote(path):
        epath.Path(path).write_bytes(content)
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(path)
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_text(path: Path | epath.Path, text: str) -> None:
    """`write_bytes` for text in UTF-8."""
    write_bytes(path, text.encode())


def sha256_of_file(path: str | os.PathLike) -> str:
    """SHA-256 of a local file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys."""
    digest = hashlib.sha256()
    for part in _written(value, 2):
        digest.update(part.encode())
    return digest.hexdigest()


def _written(value: Any, depth: int) -> Iterator[str]:
    """`json.dumps` in pieces: lists item by item down to `depth`, so that a million texts are not held a second time."""
    if depth and isinstance(value, list | tuple) and value:
        for number, item in enumerate(value):
            yield ", " if number else "["
            yield from _written(item, depth - 1)
        yield "]"
    else:
        yield json.dumps(value, sort_keys=True, default=str)
