"""Does a study that was stopped anywhere end where one ends that was never stopped?"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import small_studies
from small_studies import stopping

from elastic_jax import study as study_lib
from elastic_jax.study import execute
from elastic_jax.study.workdir import Workdir
from elastic_jax.train import metrics
from elastic_jax.train.checkpoint import Checkpoints

# In the order in which an advancing study meets them.
STOPS = [
    (study_lib, "build", 1, False),
    (study_lib, "build", 1, True),
    (Workdir, "record_study", 1, False),
    (Workdir, "record_study", 1, True),
    (Workdir, "write_run", 1, True),
    (Workdir, "add_rows", 1, False),
    (Workdir, "add_rows", 1, True),
    (Workdir, "add_rows", 2, True),
    (Checkpoints, "save", 2, False),
    (Checkpoints, "save", 2, True),
    (Checkpoints, "_delete_complete", 2, False),
    (Checkpoints, "_delete_complete", 2, True),
    (Workdir, "write_run", 2, False),  # the DONE of pre-training
    (Workdir, "write_run", 2, True),
    (Checkpoints, "save", 3, True),
    (Workdir, "write_run", 3, True),
    (Workdir, "add_rows", 4, False),
    (Checkpoints, "wait", 2, True),
    (small_studies, "_no_figures", 1, False),
    (small_studies, "_no_figures", 1, True),
]


def test_stopped_everywhere_it_ends_with_the_same_table(tmp_path: Path, finished: Path) -> None:
    every_update = {"checkpoint_seconds": 1e-9}  # a temporary checkpoint after each
    for owner, name, call, after in STOPS:
        with stopping(owner, name, call, after):
            small_studies.run(tmp_path / "w", overrides=every_update)
    study = small_studies.run(tmp_path / "w", overrides=every_update)
    small_studies.assert_same(small_studies.table(tmp_path / "w"), small_studies.table(finished))
    assert small_studies.losses(tmp_path / "w") == small_studies.losses(finished)
    for run in study.runs:
        folder = tmp_path / "w" / "runs" / run.key
        steps = {int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit()}
        assert steps == run.checkpoints, f"{run.key}: a temporary checkpoint was left behind, or a kept one deleted"
        recorded = [row["updates"] for row in metrics.read(folder / "metrics.jsonl") if row["kind"] == "measure"]
        assert sorted(recorded) == sorted(run.measures), f"{run.key}: measures in metrics.jsonl"


def test_the_same_command_computes_nothing_and_says_so(copied: Path, capsys: pytest.CaptureFixture) -> None:
    from elastic_jax.run import main

    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*") if path.is_file()}
    with small_studies.watched() as trained, small_studies.on_devices(1):
        assert main([f"--config={small_studies.CONFIG}", f"--workdir={copied}"]) == 0
    assert trained == []
    out = capsys.readouterr().out
    assert "5 runs (5 done)" in out and "All runs were done already; nothing was computed." in out
    changed = {path.name for path, stamp in before.items() if path.stat().st_mtime_ns != stamp}
    assert changed <= {"study.json", "config.json", "environment.json", ".lock"}


def test_a_stopped_report_is_written_by_the_next_command(copied: Path) -> None:
    page = copied / "report" / "index.html"
    small_studies.run(copied, stage="pretrain")
    with stopping(study_lib.Study, "write_report", 1, False):
        small_studies.run(copied, overrides={"perturb.volumes": (8, 24, 32)})
    page.write_text("old")
    small_studies.run(copied, overrides={"perturb.volumes": (8, 24, 32)})
    assert page.read_text() != "old"


def test_stopped_before_the_report_of_a_longer_stage(with_data: Callable[[str], Path], finished: Path) -> None:
    """A report of the first stage is there, with the config's own stamp: the full one must still be written."""
    workdir = with_data("w")
    small_studies.run(workdir, stage="pretrain")
    with stopping(study_lib.Study, "write_report", 1, False):
        small_studies.run(workdir)
    small_studies.run(workdir)
    small_studies.assert_same(small_studies.table(workdir), small_studies.table(finished))


def test_the_table_follows_the_stages(with_data: Callable[[str], Path], finished: Path) -> None:
    workdir = with_data("w")
    stages = []
    for stage in ("pretrain", "align", "perturb"):
        with small_studies.watched() as trained:
            small_studies.run(workdir, stage=stage)
        stages.append([each.run for each in trained])
        assert set(small_studies.table(workdir).stage) <= {"data", "pretrain", "align", "perturb"}
    assert stages == [["pretrain-s0"], ["align-s0"], ["control-s0", "perturb-s0-a16", "perturb-s0-a32"]]
    small_studies.assert_same(small_studies.table(workdir), small_studies.table(finished))


def damage_newest(workdir: Path, run: str) -> int:
    """Cuts the largest file of the newest checkpoint in half; returns the checkpoint's number."""
    (folder,) = (workdir / "runs").glob(f"{run}-*")
    newest = max(int(p.name) for p in (folder / "checkpoints").iterdir() if p.name.isdigit())
    files = [p for p in (folder / "checkpoints" / str(newest) / "params").rglob("*") if p.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    return newest


def test_a_damaged_checkpoint_is_given_up_for_the_one_before(
    copied: Path, with_data: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    larger = {"align.volumes": (16, 32, 48)}
    damaged = damage_newest(copied, "align-s0")
    with small_studies.watched() as trained:
        small_studies.run(copied, overrides=larger)
    assert f"checkpoints/{damaged} cannot be read" in caplog.text and "Going back" in caplog.text
    assert small_studies.Trained("align-s0", 2, 6) in trained  # damaged at 4, continued from 2
    fresh = with_data("fresh")
    small_studies.run(fresh, overrides=larger)
    small_studies.assert_same(small_studies.table(copied), small_studies.table(fresh))
    assert small_studies.losses(copied) == small_studies.losses(fresh)


def test_a_damaged_parent_is_trained_again(
    copied: Path, with_data: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    """All of pre-training's only checkpoint is gone, and a new control run needs it."""
    damage_newest(copied, "pretrain-s0")
    longer = {"perturb.optim.lr": 0.01}  # other perturb runs from the same parents
    with small_studies.watched() as trained:
        small_studies.run(copied, overrides=longer)
    assert "cannot be read" in caplog.text
    assert [each.run for each in trained].count("pretrain-s0") == 1
    fresh = with_data("fresh")
    small_studies.run(fresh, overrides=longer)
    small_studies.assert_same(small_studies.table(copied), small_studies.table(fresh))
    assert small_studies.losses(copied)["pretrain-s0"] == small_studies.losses(fresh)["pretrain-s0"]


def test_a_repaired_point_keeps_the_record_of_what_follows(copied: Path, finished: Path) -> None:
    """A point in the middle of a run is lost: the part up to it is trained again, the losses after it stay recorded."""
    (folder,) = (copied / "runs").glob("align-s0-*")
    for path in sorted((folder / "checkpoints" / "2").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (folder / "checkpoints" / "2").rmdir()
    (folder / "DONE").unlink()
    with small_studies.watched() as trained:
        small_studies.run(copied)
    assert trained == [small_studies.Trained("align-s0", 0, 2)]
    small_studies.assert_same(small_studies.table(copied), small_studies.table(finished))
    assert (folder / "metrics.jsonl").read_text() == (finished / "runs" / folder.name / "metrics.jsonl").read_text()


@pytest.mark.parametrize("name", ["run.json", "DONE", "metrics.jsonl"])
def test_a_torn_file_is_tolerated(copied: Path, finished: Path, name: str) -> None:
    (folder,) = (copied / "runs").glob("align-s0-*")
    whole = (folder / name).read_text()
    (folder / name).write_text(whole[: -len(whole.splitlines()[-1]) // 2 - 1])
    with small_studies.watched() as trained:
        small_studies.run(copied)
    assert trained == []
    small_studies.assert_same(small_studies.table(copied), small_studies.table(finished))
    if name == "DONE":
        assert json.loads((folder / name).read_text())["checkpoints"] == [2, 4]


def test_a_torn_line_of_metrics_is_written_again(copied: Path, with_data: Callable[[str], Path]) -> None:
    larger = {"align.volumes": (16, 32, 48)}
    (folder,) = (copied / "runs").glob("align-s0-*")
    whole = (folder / "metrics.jsonl").read_bytes()
    (folder / "metrics.jsonl").write_bytes(whole[:-20])
    small_studies.run(copied, overrides=larger)
    fresh = with_data("fresh")
    small_studies.run(fresh, overrides=larger)
    assert small_studies.losses(copied) == small_studies.losses(fresh)


def test_a_temporary_checkpoint_that_becomes_a_wanted_point_is_kept(with_data: Callable[[str], Path]) -> None:
    """Stopped with a temporary checkpoint after update 3, and continued by a study for which 3 is a volume."""
    workdir, fresh = with_data("w"), with_data("fresh")
    small_studies.run(workdir, stage="pretrain")
    with stopping(Checkpoints, "save", 4, False):  # 1, 2 (kept), 3; not 4
        small_studies.run(workdir, overrides={"checkpoint_seconds": 1e-9}, stage="align")
    for folder in (workdir, fresh):
        study = small_studies.run(folder, overrides={"align.volumes": (24, 32)})
    align = next(run for run in study.runs if run.stage == "align")
    there = {int(p.name) for p in (workdir / "runs" / align.key / "checkpoints").iterdir() if p.name.isdigit()}
    assert there == {2, 3, 4}  # 2 was asked for by the first study
    small_studies.assert_same(small_studies.table(workdir), small_studies.table(fresh))


def test_a_loss_that_is_not_finite_stops_the_study_and_leaves_the_rest(copied: Path, finished: Path) -> None:
    with pytest.raises(
        execute.loop.NotFinite, match=r"update \d+: loss .*not finite[\s\S]*rows \[[\s\S]*Last good checkpoint: "
    ):
        small_studies.run(
            copied, overrides={"perturb.optim.lr": 999.0, "perturb.optim.name": "sgd", "perturb.optim.clip": 0.0}
        )
    small_studies.run(copied)
    small_studies.assert_same(small_studies.table(copied), small_studies.table(finished))
