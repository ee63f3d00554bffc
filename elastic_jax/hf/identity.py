"""Are these the weights of before?

By content: a copy of a checkpoint has the identity of the checkpoint, whatever its folder is called.
"""

import concurrent.futures
import contextlib
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from elastic_jax.data.files import cache_folder, digest_of, sha256_of_file, write_text
from elastic_jax.errors import UserError

_log = logging.getLogger(__name__)
_LARGE = 1 << 30  # bytes whose reading is worth a line in the log
# Keys of a config.json that say who wrote it, not what the model is.
_BOOKKEEPING = frozenset(("_name_or_path", "transformers_version", "use_cache", "torch_dtype", "dtype"))


def digest(hf_config: Mapping[str, Any], files: Sequence[Path]) -> str:
    """SHA-256 of what a model's config says and of its files of weights, whatever they are called.

    A file that has been read before, with the size and time that it has now, is not read again.

    Raises:
      UserError: a file cannot be read.
    """
    config = {key: value for key, value in hf_config.items() if key not in _BOOKKEEPING}
    with concurrent.futures.ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        return digest_of([config, sorted(pool.map(sha256, files))])


def sha256(path: Path) -> str:
    """SHA-256 of a file: as it was noted when the file was last read, or as the hub's cache names it."""
    real = path.resolve()
    if real.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", real.name):
        return real.name
    try:
        status = real.stat()
        stamp = dict(path=str(real), size=status.st_size, mtime_ns=status.st_mtime_ns)
        note = cache_folder().parent / "digests" / f"{digest_of(str(real))}.json"
        with contextlib.suppress(OSError, ValueError):  # without a note the file is read
            noted = json.loads(note.read_text())
            if isinstance(noted, dict) and isinstance(noted.get("sha256"), str) and noted == noted | stamp:
                return noted["sha256"]
        if status.st_size > _LARGE:
            _log.info("Reading %s (%.1f GB) for its identity; this is remembered.", path, status.st_size / 1e9)
        found = sha256_of_file(real)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}).") from error
    with contextlib.suppress(OSError):
        write_text(note, json.dumps(dict(stamp, sha256=found)))
    return found
