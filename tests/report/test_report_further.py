"""Does the report show what further judges say, each in its own unit?"""

import matplotlib
import pandas as pd
import planted
import pytest

from elastic_jax import report
from elastic_jax.analysis import claims, rebound, rescored
from elastic_jax.analysis.table import Study, load, select
from elastic_jax.errors import UserError
from elastic_jax.report import figures, style, tables
from elastic_jax.report.findings import Findings

PLANT = planted.Plant(seeds=(0, 1), volumes=(256, 1024))


def with_cost(rows):
    """The cost is 4 - 20 x score: unbounded, and lower is better."""
    scores = rows[rows.measure == "score"]
    cost = scores.assign(measure="score_cost", unit="cost", value=4 - 20 * scores.value, stderr=20 * scores.stderr)
    return pd.concat([rows, cost], ignore_index=True)


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Study:
    rows, metadata = planted.table(PLANT)
    folder = tmp_path_factory.mktemp("further")
    return select(load(planted.write(folder / "measures.parquet", with_cost(rows), metadata)))


def test_quantities_are_those_of_the_score_in_another_unit(study):
    cost, score = rebound.further_per_seed(study), rebound.per_seed(study)
    assert set(cost.measure) == {"score_cost"} and set(score.measure) == {"score", *rebound.DIRECTIONS}
    both = cost.merge(
        score[score.measure == "score"], on=[*rebound.CONDITION, "seed", "quantity"], suffixes=("", "_of_score")
    )
    assert len(both) == len(cost)
    of = dict(list(both.groupby("quantity")))
    assert of["start"].value.to_numpy() == pytest.approx(4 - 20 * of["start"].value_of_score.to_numpy())
    assert set(of["rebound"].unit) == {"cost"}
    for name, scale in (("rebound", 20), ("half_life_examples", 1), ("crossing_examples", 1)):
        wanted = scale * of[name].value_of_score.to_numpy()
        assert of[name].value.to_numpy() == pytest.approx(wanted, nan_ok=True), name


def test_statements_are_about_the_score_alone(study):
    alone = Study(study.name, study.rows[study.rows.measure != "score_cost"], study.info)
    pd.testing.assert_frame_equal(claims.tests(study), claims.tests(alone))


def test_table_and_figure_name_judge_and_unit(study):
    found = Findings(study)
    rows = tables.further_rows(found)
    assert [(row["measure"], row["unit"], row["condition"]) for row in rows] == [
        ("cost", "cost", "256"),
        ("cost", "cost", "1,024"),
        ("cost", "cost", "control"),
    ]
    assert all(cell.value != tables.NONE for row in rows[:2] for cell in row["cells"][:3])
    with matplotlib.rc_context(style.RC):
        drawing = figures.further_scores(found)
    assert drawing is not None and set(drawing.data.measure) == {"score_cost"}
    axis = drawing.figure.axes[0]
    assert axis.get_ylabel() == "cost\n(cost)" and axis.get_ylim()[0] < 0  # not cut to [0, 1]


def test_the_page_has_a_part_for_them(render_of):
    page = render_of(PLANT, with_cost).read_text("utf-8")
    assert "Further scorers" in page and 'id="figure-further_scores"' in page and "in their own units" in page


def test_a_study_without_them_has_no_such_part(rendered):
    page = rendered.read_text("utf-8")
    assert "<summary>Further scorers" not in page and "measures.scorers names none" in page


def with_rate(rows):
    """A refusal rate that is the score halved, beside the cost."""
    scores = rows[rows.measure == "score"]
    rate = scores.assign(measure="score_refusal", unit="fraction", value=scores.value / 2, stderr=scores.stderr / 2)
    return pd.concat([with_cost(rows), rate], ignore_index=True)


def test_another_judge_may_take_the_place_of_the_score(tmp_path):
    rows, metadata = planted.table(PLANT)
    path = planted.write(tmp_path / "measures.parquet", with_rate(rows), metadata)
    study = select(load(path))
    other = rescored.by_scorer(study, "refusal")
    halves = rebound.per_seed(other).query("measure == 'score' and quantity == 'start'")
    starts = rebound.per_seed(study).query("measure == 'score' and quantity == 'start'")
    assert halves.value.to_numpy() == pytest.approx(starts.value.to_numpy() / 2) and set(halves.unit) == {"probability"}
    assert set(rebound.further_units(other)) == {"score_cost", rescored.OWN}
    assert claims.overall(claims.tests(other)) == claims.overall(claims.tests(study))  # half of it says the same
    page = report.render(path, tmp_path / "report", score="score_refusal").read_text("utf-8")
    assert "The score is refusal" in page
    assert report.summary(path, score="refusal") != report.summary(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cost", "--score=cost: its scores are in cost, which has no bounds 0 and 1"),
        ("refusl", "no such scorer. Closest: score_refusal"),
    ],
)
def test_a_judge_that_cannot_take_it(name, message):
    rows, metadata = planted.table(PLANT)
    with pytest.raises(UserError, match=message):
        rescored.by_scorer(Study("planted", with_rate(rows), {}), name)
    with pytest.raises(UserError, match="has no further scorers"):
        rescored.by_scorer(Study("planted", rows, {}), name)
