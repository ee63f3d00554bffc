"""Where do compiled programs stay until the next time?

jax keeps them where it is told to, under a key of program, versions and flags. Around that, here: a folder of its own for every
kind of processor, because XLA compiles for the instructions and the number of cores it finds; entries that appear all at once
and carry a checksum, because a torn or rotten one must never be run; a ceiling for their size; and several processes use it
only when all see the same folder, because a program that some take from the cache and others compile may never start.
"""

import contextlib
import hashlib
import logging
import os
import platform
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path

import jax

from elastic_jax.data import files
from elastic_jax.errors import UserError
from elastic_jax.parallel import distributed, hardware

_log = logging.getLogger(__name__)

VARIABLE = "ELASTIC_COMPILE_CACHE"  # a folder, or "off"
CEILING = "ELASTIC_COMPILE_CACHE_GB"
_DEFAULT_GB = 10.0
_MAGIC = b"elastic_jax 1\n"
_DIGEST = 32  # bytes of SHA-256
_SUFFIX = ".program"
_REQUEST, _HIT = "/jax/compilation_cache/compile_requests_use_cache", "/jax/compilation_cache/cache_hits"


class Cache:
    """Programs by key, in a local folder; what jax asks of a cache (`get` and `put`). Errors of the disk are never raised."""

    def __init__(self, folder: Path, ceiling: int):
        self.folder, self.ceiling = folder, ceiling
        self._path = folder  # jax reads it for its messages
        self._size = sum(size for _, size, _ in self._entries())

    def get(self, key: str) -> bytes | None:
        """None where there is no entry, or its checksum is wrong."""
        path = self._entry(key)
        try:
            stored = path.read_bytes()
            os.utime(path)  # the ceiling takes what was not used for longest
        except OSError:
            return None
        head = len(_MAGIC) + _DIGEST
        if stored[:head] == _MAGIC + hashlib.sha256(stored[head:]).digest():
            return stored[head:]
        _log.info("compile cache: %s is damaged; compiling it again.", path)
        with contextlib.suppress(OSError):
            path.unlink()
        return None

    def put(self, key: str, value: bytes) -> None:
        path = self._entry(key)
        temporary = path.with_name(f"{uuid.uuid4().hex[:12]}.tmp")
        try:
            temporary.write_bytes(_MAGIC + hashlib.sha256(value).digest() + value)
            os.replace(temporary, path)
        except OSError as error:
            _log.debug("compile cache: %s cannot be written (%s)", path, error)
            with contextlib.suppress(OSError):
                temporary.unlink()
            return
        self._size += len(_MAGIC) + _DIGEST + len(value)
        if self._size > self.ceiling:
            self._shrink()

    def clear(self) -> None:
        """jax calls it with `reset_cache`; the entries stay."""

    def _entry(self, key: str) -> Path:
        return self.folder / f"{key}{_SUFFIX}"

    def _entries(self) -> list[tuple[float, int, Path]]:
        """Last use, bytes and path."""
        found = []
        for path in self.folder.glob("*"):
            with contextlib.suppress(OSError):  # another process removed it
                if path.suffix in (_SUFFIX, ".tmp"):
                    state = path.stat()
                    found.append((state.st_mtime, state.st_size, path))
        return found

    def _shrink(self) -> None:
        """Remove what was not used for longest, down to nine tenths of the ceiling."""
        entries = sorted(self._entries())
        self._size = sum(size for _, size, _ in entries)
        for _, size, path in entries:
            if self._size <= 0.9 * self.ceiling:
                break
            with contextlib.suppress(OSError):
                path.unlink()
            self._size -= size


class Counter:
    """How many programs were asked for, and how many of them were there already."""

    def __init__(self, folder: str):
        self.folder, self.requests, self.hits = folder, 0, 0

    def __call__(self, event: str, **_: object) -> None:
        self.requests += event == _REQUEST
        self.hits += event == _HIT

    def __str__(self) -> str:
        return f"compile cache {self.folder}: {self.hits} of {self.requests} programs were there"


def user_folder(environ: Mapping[str, str] = os.environ) -> Path | None:
    """Where what was compiled or tried on this machine is kept; None where the user switched it off.

    Raises:
      UserError: it is no local folder.
    """
    given = environ.get(VARIABLE, "")
    if given.lower() in ("off", "0", "false", "no"):
        return None
    if "://" in given:
        raise UserError(
            f"{VARIABLE}={given}: expected a local folder (or one that all hosts mount), or off. A cache in a bucket switches off "
            "XLA's own cache of what it tuned; set JAX_COMPILATION_CACHE_DIR for one all the same."
        )
    if given:
        return Path(given).expanduser()
    try:
        return files.user_cache(environ)
    except RuntimeError:  # a user without a home
        return None


def enable(environ: Mapping[str, str] = os.environ) -> Counter | None:
    """Switches the cache on; to be called when the processes have met, and before anything is compiled.

    A cache that the user chose with JAX_COMPILATION_CACHE_DIR stays as it is.

    Returns:
      What counts its hits; None where there is no cache.
    """
    if chosen := jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        return _counted(str(chosen))
    base = user_folder(environ)
    gigabytes = _gigabytes(environ)
    if base is None or not jax.config.jax_enable_compilation_cache:  # type: ignore[attr-defined]
        return None
    folder = base / "programs" / _processor()
    if not _everyone_sees(folder):
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # Many small programs take as long as a large one.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    from jax._src import compilation_cache  # a cache of one's own has no public door

    compilation_cache.reset_cache()
    if hasattr(compilation_cache, "_cache") and hasattr(compilation_cache, "_cache_initialized"):
        compilation_cache._cache = Cache(folder, int(gigabytes * 1e9))  # type: ignore[assignment]
        compilation_cache._cache_initialized = True
    return _counted(str(folder))


def _counted(folder: str) -> Counter:
    counter = Counter(folder)
    jax.monitoring.register_event_listener(counter)
    return counter


def _gigabytes(environ: Mapping[str, str]) -> float:
    text = environ.get(CEILING, "") or str(_DEFAULT_GB)
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if value <= 0:
        raise UserError(f"{CEILING}={text}: expected gigabytes above 0; {VARIABLE}=off switches the cache off.")
    return value


def _everyone_sees(folder: Path) -> bool:
    """Whether every process can use `folder`, and it is the same one for all."""
    probe = distributed.broadcast_text(f"{uuid.uuid4().hex[:12]}.seen")
    reason = ""
    if distributed.is_main():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / probe).touch()
        except OSError as error:
            reason = f"{folder}: {error.strerror or error}"
    distributed.barrier("compile cache")
    if not distributed.is_main() and not os.path.exists(folder / probe):
        reason = f"it does not see {folder} of process 0"
    found = distributed.gather(reason)
    if distributed.is_main():
        with contextlib.suppress(OSError):
            (folder / probe).unlink(missing_ok=True)
    wrong = {process: text for process, text in enumerate(found) if text}
    if wrong and distributed.is_main():
        process, text = next(iter(wrong.items()))
        more = f"process {process}: " if len(found) > 1 else ""
        _log.warning(
            "no compile cache (%s%s). %s=FOLDER chooses another, one that all hosts share.", more, text, VARIABLE
        )
    return not wrong


def _processor() -> str:
    """What compiled code may depend on and the key of jax does not name for sure: instructions, and the threads for each device,
    by which XLA cuts sums into parts."""
    features = ""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "flags", "Features", "CPU part")) and line not in features:
                features += line
    digest = hashlib.sha256(
        f"{features or platform.processor()} {hardware.host_cores()} {jax.local_device_count()}".encode()
    ).hexdigest()
    return f"{platform.machine()}-{sys.platform}-{digest[:12]}"
