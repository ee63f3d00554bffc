"""How are a few arrays kept in one file that can be made again?"""

import io
import logging
import zipfile
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath

from elastic_jax.data.files import write_bytes
from elastic_jax.errors import first_line

_log = logging.getLogger(__name__)


def write_arrays(path: epath.Path, arrays: Mapping[str, np.ndarray], *, compressed: bool = False) -> None:
    """Writes an `.npz` file at once (`files.write_bytes`)."""
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **dict(arrays))  # type: ignore[arg-type]
    write_bytes(path, buffer.getvalue())


def read_arrays(path: epath.Path, names: Sequence[str] | None = None) -> dict[str, np.ndarray] | None:
    """What `write_arrays` wrote; None where there is no such file, or it is damaged (which is logged).

    Args:
      names: the arrays wanted; without one of them the file is damaged. By default all that it holds.
    """
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
            return {name: stored[name] for name in (stored.files if names is None else names)}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        _log.warning("%s cannot be read (%s); what it held is made again.", path, first_line(error, 200))
        return None
