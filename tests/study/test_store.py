"""Does a study whose workdir is a bucket give the numbers that it gives on a disk, also when it is killed?

`fake_gcs.serve` answers as Google Cloud Storage does, without a network, so that tensorstore, the locks and (in the last test, where
they are installed) gcsfs and google-cloud-storage do what they do there. Elsewhere `fake_gcs.Objects` is epath's way to the same store.
"""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import fake_gcs
import fsspec
import pandas as pd
import pytest
import small_studies
from etils import epath
from small_studies import stopping

from elastic_jax import status
from elastic_jax.analysis import table
from elastic_jax.data import files
from elastic_jax.errors import UserError
from elastic_jax.report import __main__ as report
from elastic_jax.study.lock import STUDY
from elastic_jax.study.workdir import Workdir
from elastic_jax.train import metrics
from elastic_jax.train.checkpoint import Checkpoints

PLACE = "gs://bucket/studies/w"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One for all tests here: tensorstore reads its address once."""
    with fake_gcs.serve() as store, pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment().items():
            patch.setenv(name, value)
        yield store


@pytest.fixture
def bucket(server, tmp_path, monkeypatch):
    """An empty store that epath sees as `gs://`; nothing was copied or renamed in it when the test ends."""
    from etils.epath import backend
    from orbax.checkpoint._src.path import gcs_utils

    monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, "gcs", fake_gcs.Objects)
    backend.fsspec_backend._get_filesystem.cache_clear()
    # It asks google-cloud-storage, which comes with gcsfs.
    monkeypatch.setattr(gcs_utils, "is_hierarchical_namespace_enabled", lambda path: False)
    monkeypatch.setenv(files.CACHE_VARIABLE, str(tmp_path / "cache"))
    server.objects.clear()
    server.puts.clear()
    yield server
    assert server.refused == []
    backend.fsspec_backend._get_filesystem.cache_clear()


def test_the_small_files_of_a_workdir(bucket, tmp_path):
    workdir = Workdir(PLACE)
    with pytest.raises(UserError, match="no study here"):
        workdir.open(create=False)
    workdir.open(create=True)
    workdir.open(create=False)
    assert bucket.names("bucket") == ["studies/w/study.json"]
    with workdir.lock(["a-1"]):
        workdir.write_run("a-1", "DONE", dict(checkpoints=[2]))
        workdir.add_rows("a-1", [dict(updates=1, measure="nll", value=1.5)])
        workdir.add_rows("a-1", [dict(updates=2, measure="nll", value=0.5)])
        assert workdir.holders()["a-1"].pid == os.getpid()
    assert workdir.read_run("a-1", "DONE") == dict(checkpoints=[2]) and workdir.read_run("a-1", "run.json") == {}
    assert list(workdir.rows("a-1").value) == [1.5, 0.5] and not len(workdir.rows("b-2"))
    assert workdir.reached("a-1") == 0
    assert workdir.data == tmp_path / "cache"
    other = epath.Path("gs://bucket/other")
    (other / "x").write_text("")
    with pytest.raises(UserError, match="not one of ours"):
        Workdir(other).open(create=True)


def test_an_uncommitted_checkpoint_does_not_count(bucket):
    workdir = Workdir(PLACE)
    for name in ("4/commit_success.txt", "4/params/x", "9/params/x", "notes/x"):
        (workdir.run("a-1") / "checkpoints" / name).write_text("x")
    assert workdir.reached("a-1") == 4


def test_metrics_are_written_at_intervals_and_as_wholes(bucket, monkeypatch):
    path = epath.Path(PLACE) / metrics.FILE
    writer = metrics.JsonLines(path)
    for updates in range(1, 100):
        writer.write(updates, {"loss": float(updates)})
    assert bucket.puts == []
    writer.flush()
    writer.flush()
    assert len(bucket.puts) == 1 and len(metrics.read(path)) == 99
    writer.write(100, {"loss": 1.0})
    writer.truncate(50)
    monkeypatch.setattr(metrics, "_REMOTE_SECONDS", -1.0)
    monkeypatch.setattr(metrics, "_REMOTE_BYTES_PER_SECOND", float("inf"))
    again = metrics.JsonLines(path)
    again.write(51, {"loss": 0.5})
    assert [row["updates"] for row in metrics.read(path)] == list(range(1, 52))
    again.close()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("s3://bucket/w", "s3:// is not supported"),
        ("gs://", "expected gs://BUCKET/FOLDER"),
        ("gs:///", "expected gs://BUCKET/FOLDER"),
    ],
)
def test_a_store_that_does_not_work_is_refused(bucket, path, message):
    with pytest.raises(UserError, match=message):
        Workdir(path)


def test_the_package_for_a_store_is_named(capsys):
    missing = mock.patch.object(fsspec, "get_filesystem_class", side_effect=ImportError("Please install gcsfs"))
    with missing:
        assert status.main([f"--workdir={PLACE}"]) == 2
    assert "pip install 'elastic_jax[gcs]'" in capsys.readouterr().err


def test_a_bucket_that_cannot_be_reached_is_named(bucket, capsys):
    with mock.patch.object(fake_gcs.Objects, "exists", side_effect=RuntimeError("403 forbidden")):
        assert status.main([f"--workdir={PLACE}"]) == 2
    error = capsys.readouterr().err
    assert "403 forbidden" in error and "permissions" in error


def whole_table(path) -> pd.DataFrame:
    return table.load(path).rows.drop(columns="commit")


def test_a_stopped_study_ends_with_the_numbers_of_a_disk(bucket, finished: Path, tmp_path: Path, capsys):
    shutil.copytree(finished / "data", tmp_path / "cache")
    with stopping(Checkpoints, "save", 2, True):
        small_studies.run(PLACE, overrides={"checkpoint_seconds": 1e-9})
    with small_studies.watched() as trained:
        study = small_studies.run(PLACE)
    assert trained[0].run == "pretrain-s0" and trained[0].start >= 1
    pd.testing.assert_frame_equal(
        whole_table(study.workdir.table), whole_table(finished / "measures.parquet"), check_exact=True
    )
    for run in study.runs:
        found, wanted = (metrics.read(w / "runs" / run.key / metrics.FILE) for w in (study.workdir.path, finished))
        assert [row["loss"] for row in found if row["kind"] == "train"] == [
            row["loss"] for row in wanted if row["kind"] == "train"
        ]
        assert study.workdir.reached(run.key) == run.updates
    assert "/.locks/" not in " ".join(bucket.names("bucket"))
    # A run that another job works on, and a table that jobs of one run each have not written.
    study.workdir.table.unlink()
    with study.workdir.lock([study.runs[0].key]):
        assert status.main([f"--workdir={PLACE}"]) == 0
    out = capsys.readouterr().out
    assert "runs " in out and f"run by process {os.getpid()} on" in out and "last sign of life" in out
    assert "5 of 5 runs done" in out
    assert report.main([f"--workdir={PLACE}", "--summary=markdown"]) == 0
    assert "control" in capsys.readouterr().out and study.workdir.table.exists()


def the_command(module: str, *words: str, without_gcsfs: bool = False) -> list[str]:
    start = [str(Path(fake_gcs.__file__))] if without_gcsfs else ["-m"]
    return [sys.executable, *start, f"elastic_jax.{module}", f"--workdir={PLACE}", *words]


def assert_killed_twice_and_continued(store: fake_gcs.Store, folder: Path, uninterrupted: Path, without_gcsfs: bool):
    """Processes of their own, killed while they hold the lock and write a checkpoint, which the store lets wait until they are dead."""
    env = small_studies.environment() | store.environment() | {files.CACHE_VARIABLE: str(folder / "cache")}
    run = the_command("run", f"--config={small_studies.CONFIG}", without_gcsfs=without_gcsfs)

    def lock() -> dict[str, Any]:
        return json.loads(store.objects["bucket", f"studies/w/.locks/{STUDY}"][0])

    def kill_at(pattern: str) -> None:
        with (
            store.stopping_at(pattern) as stopped,
            subprocess.Popen(run, env=env, cwd=small_studies.ROOT, stdout=subprocess.DEVNULL) as process,
        ):
            try:
                deadline = time.monotonic() + 240
                while not stopped.wait(0.05):
                    assert process.poll() is None and time.monotonic() < deadline
                assert lock()["pid"] == process.pid  # the second has taken it over from the first
            finally:
                process.kill()  # SIGKILL
        assert process.returncode == -signal.SIGKILL

    def updates_of(run: str) -> list[int]:
        found = (re.search(rf"/runs/{run}-[^/]*/checkpoints/(\d+)/", name) for name in store.puts)
        return sorted({int(match[1]) for match in found if match})

    kill_at("/runs/align-.*/checkpoints/2/commit_success")  # complete but for the mark, while updates 3 and 4 are made
    assert updates_of("align-s0") == [2]
    store.puts.clear()
    kill_at("/runs/perturb-s0-a16-.*/checkpoints/3/params/")  # some of the arrays, or none
    assert updates_of("pretrain-s0") == updates_of("control-s0") == []
    assert updates_of("align-s0") == [2, 4]  # what has no mark does not count
    store.puts.clear()
    done = subprocess.run(run, env=env, cwd=small_studies.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"report: {PLACE}/report/index.html" in done.stdout
    assert updates_of("align-s0") == [] and updates_of("perturb-s0-a16") == [3]  # from the checkpoint before it
    assert store.refused == [] and not any("/.locks/" in name for name in store.names("bucket"))
    status_command = the_command("status", without_gcsfs=without_gcsfs)
    said = subprocess.run(status_command, env=env, cwd=small_studies.ROOT, capture_output=True, text=True)
    assert "5 of 5 runs done" in said.stdout, said.stderr
    for name in store.names("bucket"):
        if name.endswith(("metrics.jsonl", "measures.parquet")):
            files.write_bytes(folder / name, store.objects["bucket", name][0])
    small_studies.assert_same(small_studies.table(folder / "studies/w"), small_studies.table(uninterrupted))
    assert small_studies.losses(folder / "studies/w") == small_studies.losses(uninterrupted)
    assert json.loads(store.objects["bucket", "studies/w/study.json"][0])["latest"] == "small"


@pytest.mark.slow
def test_a_killed_study_in_a_bucket_ends_with_the_numbers_of_a_disk(tmp_path: Path, uninterrupted: Path):
    with fake_gcs.serve() as store:
        assert_killed_twice_and_continued(store, tmp_path, uninterrupted, without_gcsfs=True)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("gcsfs") is None, reason="gcsfs is not installed (extra gcs)")
def test_a_killed_study_on_google_cloud_storage_ends_with_the_numbers_of_a_disk(tmp_path: Path, uninterrupted: Path):
    """With the clients of users."""
    with fake_gcs.serve() as store:
        assert_killed_twice_and_continued(store, tmp_path, uninterrupted, without_gcsfs=False)
