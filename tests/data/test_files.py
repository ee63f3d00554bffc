"""Is a file whole whenever it is there, and is nothing removed that is not ours?"""

import os

import pytest
from etils import epath

from elastic_jax.data import files
from elastic_jax.data.prepared import sweep
from elastic_jax.study.workdir import Workdir


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path):
    workdir = Workdir(tmp_path / "w")
    workdir.open(create=True)
    ours = ["study.json.tmp-0123456789ab", "runs/a-1/DONE.tmp-0123456789ab", "report/index.html.tmp-abcdef012345"]
    others = ["notes.tmp-1", "runs/a-1/mine.tmp", "runs/a-1/x.tmp-0123456789ab.csv", "data/set.tmp-0123456789ab/x"]
    for name in (*ours, *others):
        (tmp_path / "w" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "w" / name).write_text("x")
    with workdir.lock(["b-2"]):  # another run: it is not known who writes to a-1
        assert all((tmp_path / "w" / name).exists() for name in ours)
    with workdir.lock():
        assert not any((tmp_path / "w" / name).exists() for name in ours)
        assert all((tmp_path / "w" / name).exists() for name in others)
    half = tmp_path / "w" / "data" / "set.tmp-0123456789ab"
    os.utime(half, (0, 0))
    sweep(tmp_path / "w" / "data")
    assert half.exists()  # something in it is new: perhaps its writer lives
    os.utime(half / "x", (0, 0))  # no process takes days to prepare data
    os.utime(half, (0, 0))
    sweep(tmp_path / "w" / "data")
    assert not half.exists()


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = epath.Path(tmp_path) / "a.json"
    files.write_text(path, "old")

    def full(handle: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir() if not files.is_temporary(p.name)] == ["a.json"]


def test_the_cache_of_prepared_data_is_chosen(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(files.CACHE_VARIABLE, raising=False)
    assert files.cache_folder() == tmp_path / "elastic_jax" / "data"
    monkeypatch.setenv(files.CACHE_VARIABLE, "~/prepared")
    assert files.cache_folder().parts[-1] == "prepared" and files.cache_folder().is_absolute()
    assert Workdir(tmp_path).data == tmp_path / "data"


def test_paths_of_disks_and_buckets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert files.absolute(files.to_path("w")) == epath.Path(tmp_path / "w")
    assert files.absolute(epath.Path("gs://bucket/w")) == epath.Path("gs://bucket/w")
    assert files.is_remote("gs://bucket/w") and not files.is_remote(tmp_path)
    assert files.to_path("~/w").is_absolute()
