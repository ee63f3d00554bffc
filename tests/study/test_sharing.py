"""Is what two studies, or two volumes, have in common computed once, and is it exactly what each would have computed alone?"""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
import small_studies
from small_studies import Trained

from elastic_jax.analysis import table as table_lib

LARGER = {"seeds": (0, 1), "align.volumes": (16, 32, 48), "perturb.volumes": (8, 24, 40)}


def test_a_larger_study_extends_the_runs_of_the_first(copied: Path, with_data: Callable[[str], Path]) -> None:
    with small_studies.watched() as trained:
        small_studies.run(copied, overrides=LARGER)
    old = {
        each
        for each in trained
        if each.run in ("pretrain-s0", "control-s0", "align-s0", "perturb-s0-a16", "perturb-s0-a32")
    }
    assert old == {
        Trained("control-s0", 3, 5),
        Trained("align-s0", 4, 6),
        Trained("perturb-s0-a16", 3, 5),
        Trained("perturb-s0-a32", 3, 5),
    }
    fresh = with_data("fresh")
    small_studies.run(fresh, overrides=LARGER)
    small_studies.assert_same(small_studies.table(copied), small_studies.table(fresh))
    assert small_studies.losses(copied) == small_studies.losses(fresh)

    with small_studies.watched() as trained:  # and back: all of the smaller one is there
        small_studies.run(copied)
    assert trained == []


def test_a_smaller_volume_may_be_asked_for_later(finished: Path, with_data: Callable[[str], Path]) -> None:
    workdir = with_data("later")
    small_studies.run(workdir, overrides={"align.volumes": (32,), "perturb.volumes": (24,)})
    small_studies.run(workdir)
    small_studies.assert_same(small_studies.table(workdir, "small"), small_studies.table(finished))


def test_two_studies_in_one_workdir_share_their_common_runs(copied: Path, finished: Path) -> None:
    other = {"name": "other", "perturb.optim.lr": 0.01}
    with small_studies.watched() as trained:
        study = small_studies.run(copied, overrides=other)
    assert [each.run for each in trained] == ["control-s0", "perturb-s0-a16", "perturb-s0-a32"]
    small_studies.assert_same(small_studies.table(copied, "small"), small_studies.table(finished))
    both = table_lib.load(copied / "measures.parquet")
    assert set(both.studies) == {"small", "other"}
    mine = small_studies.table(copied, "other")
    assert set(mine.run) - {""} == {run.key for run in study.runs}
    shared = ["pretrain", "align"]
    theirs = small_studies.table(finished)
    small_studies.assert_same(
        mine[mine.stage.isin(shared)].drop(columns="study").reset_index(drop=True),
        theirs[theirs.stage.isin(shared)].drop(columns="study").reset_index(drop=True),
    )
    with pytest.raises(table_lib.UserError, match="small.*other|other.*small"):
        table_lib.select(both)


def points(study: small_studies.Study, stage: str) -> dict[tuple[str, int, int], dict[str, np.ndarray]]:
    """Parameters of every kept point, by arm, volume behind it and examples."""
    found = {}
    for run in study.runs:
        for updates in run.checkpoints if run.stage == stage else ():
            params = jax.device_get(study._executor.params_at(run, updates))
            flat = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
            found[run.arm, run.align_volume, updates * run.batch_size] = flat
    return found


def test_volumes_that_share_a_run_equal_volumes_trained_alone(finished: Path, with_data: Callable[[str], Path]) -> None:
    with small_studies.on_devices(1):
        together = small_studies.Study(small_studies.load(), finished)
    whole = small_studies.table(finished)
    for align, perturb in ((16, 24), (32, 8)):
        workdir = with_data(f"{align}-{perturb}")
        alone = small_studies.run(workdir, overrides={"align.volumes": (align,), "perturb.volumes": (perturb,)})
        for stage in ("align", "perturb"):
            shared = points(together, stage)
            for point, params in points(alone, stage).items():
                assert params.keys() == shared[point].keys()
                for name, value in params.items():
                    np.testing.assert_array_equal(value, shared[point][name], err_msg=f"{point} {name}")
        rows = small_studies.table(workdir)
        rows = rows[rows.stage != "data"].reset_index(drop=True)
        at = whole.merge(rows[["run", "updates"]].drop_duplicates(), on=["run", "updates"])[whole.columns]
        small_studies.assert_same(
            rows.sort_values([*small_studies.POINT, "text"], ignore_index=True),
            at.sort_values([*small_studies.POINT, "text"], ignore_index=True),
        )
        assert set(rows[rows.stage == "align"].align_volume) >= {align}


def test_a_decaying_schedule_trains_every_volume_to_its_own_end(with_data: Callable[[str], Path]) -> None:
    study = small_studies.run(with_data("w"), "decay", stage="align")
    lengths = [(run.name, run.updates) for run in study.runs if run.stage == "align"]
    assert lengths == [("align-s0-v16", 2), ("align-s0-v32", 4)]
    kept = points(study, "align")
    first, second = kept["aligned", 0, 16], kept["aligned", 0, 32]
    assert any((first[name] != second[name]).any() for name in first)
    losses = small_studies.losses(study.workdir.path)
    # The first update has the same rate in both, the second has not: so the losses part at the third.
    assert losses["align-s0-v16"] == losses["align-s0-v32"][:2]
