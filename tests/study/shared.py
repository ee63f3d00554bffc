"""How do the workers of a session share what takes long to make?"""

import fcntl
from collections.abc import Callable
from pathlib import Path

import pytest


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that the first worker to need it fills, and the others wait for."""
    base = factory.getbasetemp()
    if base.name.startswith("popen-"):  # a worker of xdist: the folder above is the session's
        base = base.parent
    with open(base / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (base / f"{name}.complete").exists():
            make(base / name)
            (base / f"{name}.complete").touch()
    return base / name
