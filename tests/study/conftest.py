"""One finished small study for all tests of a session, whichever worker needs it first."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from shared import once


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, cpu_devices: list) -> Path:
    """A workdir with the small study done on one device; only to be read."""
    import small_studies  # imports jax, which tests/conftest.py prepares first

    return once(tmp_path_factory, "finished", lambda folder: small_studies.run(folder, page=True))


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same by the command in a process of its own. XLA cuts its work by the number of threads, which depends on the number
    of fake devices, so the last bits differ from those of `finished`."""
    import small_studies

    def make(folder: Path) -> None:
        done = small_studies.shell(folder)
        assert done.returncode == 0, done.stderr

    return once(tmp_path_factory, "uninterrupted", make)


@pytest.fixture(scope="session")
def crossed(tmp_path_factory: pytest.TempPathFactory, finished: Path) -> Path:
    """The finished small study with the resistance experiment on top of it, and which runs that trained; only to be read."""
    import small_studies

    def make(folder: Path) -> None:
        shutil.copytree(finished, folder)
        with small_studies.watched() as trained:
            small_studies.run(folder, overrides=small_studies.CROSSED)
        (folder / "trained.json").write_text(json.dumps(sorted(each.run for each in trained)))

    return once(tmp_path_factory, "crossed", make)


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
