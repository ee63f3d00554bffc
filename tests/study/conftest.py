"""One finished small study for all tests of a session, whichever worker needs it first."""

import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, cpu_devices: list) -> Path:
    """A workdir with the small study done on one device; only to be read."""
    import small_studies  # imports jax, which tests/conftest.py prepares first

    base = tmp_path_factory.getbasetemp()
    if base.name.startswith("popen-"):  # a worker of xdist: the folder above is the session's
        base = base.parent
    folder = base / "small_study_finished"
    with open(base / "small_study_finished.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            small_studies.run(folder, page=True)
            (folder / "complete").touch()
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished workdir, to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "copied"))


@pytest.fixture
def with_data(finished: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A new workdir that has the prepared data of the small study and nothing else."""

    def make(name: str) -> Path:
        workdir = tmp_path / name
        workdir.mkdir()
        shutil.copytree(finished / "data", workdir / "data")
        shutil.copy(finished / "study.json", workdir / "study.json")
        return workdir

    return make
