"""Is a stage without volumes left out of the tree, the plan, the run and the report?"""

import pytest
import small_studies

from elastic_jax import config as config_lib
from elastic_jax import report
from elastic_jax.analysis import table
from elastic_jax.errors import UserError
from elastic_jax.study import Study, planning

NONE = {"align.volumes": (), "perturb.volumes": ()}


def study(workdir, **overrides):
    return Study(small_studies.load(overrides={name.replace("__", "."): v for name, v in overrides.items()}), workdir)


def test_a_study_of_pretraining_alone_is_run_and_reported(with_data):
    made = Study(small_studies.load(overrides=NONE), with_data("alone"))
    assert [run.name for run in made.runs] == ["pretrain-s0"]
    for stage in ("align", "perturb"):
        assert f"{stage}: not run, since {stage}.volumes is empty" in made.notes
    page = made.run()
    assert page is not None and "Nothing is perturbed in this study." in page.read_text()
    found = table.select(table.load(made.workdir.table))
    assert set(found.rows.stage) == {"data", "pretrain"} and found.progress() == (1, 1)
    assert "Nothing is perturbed in this study." in report.summary(made.workdir.table)
    assert made.run(stage="align") == page  # nothing to do


def test_runs_are_those_of_the_whole_study(finished, with_data):
    known = {run.key for run in study(finished).runs}
    for overrides in (NONE, {"perturb.volumes": ()}, {"align.volumes": ()}):
        made = Study(small_studies.load(overrides=overrides), finished)
        assert {run.key for run in made.runs} < known and all(status.done for status in made.status())
    assert [run.name for run in made.runs] == ["pretrain-s0", "control-s0"]  # align.volumes=()
    aligned = study(finished, perturb__volumes=())
    assert [run.name for run in aligned.runs] == ["pretrain-s0", "align-s0"]


@pytest.mark.parametrize("topology", [None, "cpu:1"])
def test_the_plan_has_the_stages_that_are_run(with_data, topology):
    made = Study(small_studies.load(overrides={"perturb.volumes": ()}), with_data("plan"))
    found = planning.plan(made, **(dict(topology=topology) if topology else dict(timed=False)))
    assert [cost.stage for cost in found.stages] == ["pretrain", "align"]
    with pytest.raises(UserError, match="--stage=perturb: perturb.volumes is empty.* Plan pretrain or align"):
        planning.plan(made, topology="cpu:1", stages=("perturb",))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"align.volumes": (), "perturb.control": False}, "there is no model to perturb"),
        (
            {"align.volumes": (), "resistance.slices": (0.5, 1.0)},
            "resistance.slices are shares of the largest of align.volumes",
        ),
    ],
)
def test_what_has_nothing_to_start_from_is_named(overrides, message):
    with pytest.raises(UserError, match=message):
        config_lib.validate(small_studies.load(overrides=overrides))
