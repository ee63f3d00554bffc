"""What do studies make of volumes that are no whole number of batches?"""

import itertools
import json

import jax
import numpy as np
import pandas as pd
import pytest
import small_studies
from test_tree import notes, runs

from elastic_jax import config as config_lib
from elastic_jax.analysis import rebound, table
from elastic_jax.data import pipeline
from elastic_jax.errors import UserError
from elastic_jax.objectives import sft
from elastic_jax.study import execute
from elastic_jax.train import optim
from elastic_jax.train import state as state_lib
from elastic_jax.train.step import make_train_step

DROP = {"perturb.last_batch": "drop", "perturb.volumes": (3, 8, 12, 24)}
FLUSH = {"perturb.last_batch": "flush", "perturb.volumes": (3, 12)}
PAD = {"perturb.last_batch": "pad", "perturb.volumes": (3, 12)}


def test_drop_is_the_run_of_the_floor_volume():
    plain, dropped = runs({"perturb.volumes": (8, 24)}), runs(DROP)
    assert {name: run.identity for name, run in dropped.items()} == {name: run.identity for name, run in plain.items()}
    run = dropped["control-s0"]
    assert run.nominal == ((3, 0), (12, 1)) and run.checkpoints == {0, 1, 3} and run.last_rows == 0
    assert run.describe()["examples"] == 24 and run.describe()["nominal"] == [[3, 0], [12, 1]]


@pytest.mark.parametrize("overrides", [FLUSH, PAD])
def test_volumes_that_are_not_whole_are_runs_of_their_own(overrides):
    found, how = runs(overrides), overrides["perturb.last_batch"]
    run = found["control-s0-p12"]
    assert (run.updates, run.last_rows, run.last_batch) == (2, 4, how)
    assert [run.examples_at(n) for n in (0, 1, 2)] == [0, 8, 12] and run.describe()["points"] == [12]
    assert len({r.identity for r in found.values()}) == len(found)
    other = runs(PAD if how == "flush" else FLUSH)["control-s0-p12"]
    assert other.identity != run.identity and other.parent.identity == run.parent.identity
    whole = runs({"perturb.last_batch": how, "perturb.volumes": (12, 16)})["control-s0-p16"]
    assert whole.identity == runs()["control-s0"].identity  # nothing is different where every batch is whole


def test_alignment_may_flush_as_well():
    found = runs({"align.last_batch": "flush", "align.volumes": (12, 16)})
    assert found["perturb-s0-a12"].parent_updates == 2 and found["perturb-s0-a12"].parent.last_rows == 4
    assert found["perturb-s0-a12"].describe()["parent_examples"] == 12
    dropped = runs({"align.last_batch": "drop", "align.volumes": (3, 12)})
    assert [dropped[f"perturb-s0-a{v}"].parent_updates for v in (3, 12)] == [0, 1]


def test_the_notes_say_which_volumes_train_nothing():
    found = "\n".join(notes(overrides=DROP))
    assert "perturb.last_batch=drop, batches of 8: the rest is not trained on" in found
    assert "3 makes 0, 8 makes 1, 12 makes 1, 24 makes 3" in found
    assert "perturb volumes 3 make no update at all" in found
    assert "a run each, since the last batch may not be whole" in "\n".join(notes(overrides=FLUSH))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"perturb.last_batch": "keep"}, "perturb.last_batch='keep': expected one of whole, drop, flush, pad"),
        ({"perturb.last_batch": "drop"}, "perturb.last_batch=drop has no effect"),
        (
            {"perturb.last_batch": "drop", "perturb.volumes": (3, 7)},
            "none of perturb.volumes=.3, 7. fills a batch of 8",
        ),
        ({**FLUSH, "data.pack.perturb": "best_fit"}, "perturb.last_batch=flush with data.pack.perturb='best_fit'"),
        ({"perturb.volumes": (12,)}, "perturb.last_batch what becomes of the rest"),
        (
            {**small_studies.CROSSED, "align.last_batch": "drop", "align.volumes": (12, 32)},
            "resistance.slices with align.last_batch=drop",
        ),
    ],
)
def test_what_cannot_be_is_said(overrides, message):
    with pytest.raises(UserError, match=message):
        config_lib.validate(small_studies.load("", overrides))


def control(workdir, study):
    """Rows of the control arm of a finished study, without texts."""
    rows = small_studies.table(workdir, study.config.name)
    return rows[(rows.arm == "control") & (rows.measure != "sample")]


def test_a_dropped_rest_shows_as_a_flat_start(with_data):
    workdir = with_data("drop")
    study = small_studies.run(workdir, overrides=DROP)
    rows = control(workdir, study)
    bits = rows[(rows.measure == "bits_per_token") & (rows.split == "perturb")].set_index("examples").value
    assert sorted(bits.index) == [0, 3, 8, 12, 16, 24]
    assert bits[3] == bits[0] and bits[12] == bits[8] and bits[8] != bits[0]
    assert all(status.done for status in study.status())
    plain = small_studies.run(with_data("plain"), overrides={"perturb.volumes": (8, 24)})
    there = control(plain.workdir.path, plain).set_index(["examples", "measure", "split"])
    shared = rows[rows.examples.isin([0, 8, 16, 24])].set_index(["examples", "measure", "split"])
    pd.testing.assert_series_equal(shared.value.sort_index(), there.value.sort_index(), check_exact=True)


@pytest.mark.parametrize("how", ["flush", "pad"])
def test_a_study_trains_the_rest_as_the_update_on_it_alone(with_data, how):
    workdir = with_data(how)
    study = small_studies.run(workdir, overrides=FLUSH | {"perturb.last_batch": how})
    run = next(r for r in study.runs if r.name == "control-s0-p12")
    rows = control(workdir, study)
    assert sorted(set(rows[rows.run == run.key].examples)) == [12]
    whole = table.select(table.load(workdir / "measures.parquet"), study.config.name)
    curve = next(path for path in rebound.trajectories(whole) if path.arm == "control")
    assert curve.points["examples"].tolist() == [0, 3, 12] and curve.start == curve.base
    written = json.loads((workdir / "runs" / run.key / "run.json").read_text())
    assert written["last_rows"] == 4 and written["examples"] == 12
    # The same by hand: one whole batch, then the four examples that are left, as a batch of their own.
    prepared = study.data.train["perturb"]
    order = itertools.islice(pipeline.batches(prepared, batch_size=8, seed=execute.order_seed(run)), 2)
    first, second = ({k: v for k, v in batch.items() if k != "row"} for batch in order)
    second = {name: rows[:4] for name, rows in second.items()}
    tx = optim.make(run.optim, run.updates)
    state = state_lib.creator(study.model, tx, study.mesh)(study.params_at(run.parent, run.parent_updates))
    step = make_train_step(study.model, sft(), tx, study.mesh)
    for batch in (first, second):
        state, _ = step(state, batch, execute.stage_key(run))
    differences = jax.tree.map(
        lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max(), study.params_at(run, run.updates), state.params
    )
    largest = max(jax.tree.leaves(differences))
    # Adam turns rounding errors of a gradient near zero into steps of their own size; a padded update has other moments.
    assert largest < 1e-4 if how == "flush" else largest > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("how", ["drop", "flush", "pad"])
def test_runs_trained_together_are_the_same(with_data, how):
    """Lanes of whole and of incomplete batches, and runs of no updates."""
    overrides = {
        "perturb.last_batch": how,
        "perturb.volumes": (3, 12, 16),
        "align.last_batch": how,
        "align.volumes": (3, 20),
    }
    tables = []
    for width in ("off", "3"):
        workdir = with_data(f"{how}-{width}")
        study = small_studies.run(workdir, overrides=overrides | {"population": width})
        assert all(status.done for status in study.status())
        tables.append(small_studies.table(workdir, study.config.name))
    small_studies.assert_same(*tables)
