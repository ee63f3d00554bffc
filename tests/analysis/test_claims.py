"""Do the tests of the paper's statements follow the planted truth, both ways?"""

import planted
import pytest

from elastic_jax.analysis import claims, statistics


def verdicts(study, test):
    found = claims.tests(study)
    return found[found.test == test].set_index("align_volume").verdict.to_dict()


def test_faster_with_more_alignment(study_of):
    found = claims.tests(study_of())
    row = found[found.test == "b.half_life"].iloc[0]
    assert row.verdict == "supported" and row.low < -0.5 < row.high  # one octave earlier per factor of 4


def test_slower_with_more_alignment_is_contradicted(study_of):
    plant = planted.Plant(speed=-0.5)
    assert verdicts(study_of(plant), "b.half_life") == {0: "contradicted"}


def test_final_level(study_of):
    assert set(verdicts(study_of(), "a.final").values()) == {"supported"}
    above = study_of(planted.Plant(points=(16, 32, 64)))
    assert verdicts(above, "a.final")[256] == "contradicted"


def test_reversed_direction_gives_the_same_verdicts(study_of):
    up, down = (claims.tests(study_of(planted.Plant(upside_down=flip))) for flip in (False, True))
    assert up.verdict.tolist() == down.verdict.tolist()
    assert up["mean"].to_numpy() == pytest.approx(down["mean"].to_numpy())


def test_one_seed_decides_nothing(study_of):
    found = claims.tests(study_of(planted.Plant(seeds=(0,))))
    assert set(found.verdict) == {"undecided"} and found.reason.str.contains("one seed").any()
    assert set(claims.overall(found).values()) == {"undecided"}


def test_without_control_the_comparison_is_undecided(study_of):
    found = claims.tests(study_of(planted.Plant(control=False)))
    own = found[found.claim == "c"]
    assert set(own.verdict) == {"undecided"} and own.reason.str.contains("no control").all()


def test_a_censored_seed_keeps_a_trend_open(study_of):
    row = claims.tests(study_of(planted.Plant(points=(16, 32, 64))))
    row = row[row.test == "b.half_life"].iloc[0]
    assert row.verdict == "undecided" and "not reached" in row.reason


def test_one_volume_has_no_trend(study_of):
    assert verdicts(study_of(planted.Plant(volumes=(256,))), "b.speed") == {0: "undecided"}


@pytest.mark.parametrize(
    ("low", "high", "side", "said"),
    [
        (0.1, 0.2, 1, "supported"),
        (0.1, 0.2, -1, "contradicted"),
        (-0.2, -0.1, 1, "contradicted"),
        (-1, 1, 1, "undecided"),
    ],
)
def test_verdict(low, high, side, said):
    estimate = statistics.Estimate((low + high) / 2, low, high, 3)
    assert claims.verdict(estimate, side) == said
    assert claims.verdict(estimate, side, complete=False) == "undecided"
