"""Is planted truth recovered, and is what the record does not hold left open?"""

import math

import numpy as np
import pandas as pd
import planted
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elastic_jax.analysis import rebound

EXACT = planted.Plant(noise=0.0)


def quantity(values, name, volume, measure="score", split=None):
    rows = values[(values.quantity == name) & (values.align_volume == volume) & (values.measure == measure)]
    return rows if split is None else rows[rows.split == split]


@pytest.mark.parametrize("upside_down", [False, True])
def test_planted_positions_are_recovered_exactly(study_of, upside_down):
    plant = planted.Plant(noise=0.0, upside_down=upside_down)
    values = rebound.per_seed(study_of(plant))
    for volume in plant.volumes:
        for axis, scale in (("examples", 1), ("updates", 1 / planted.BATCH), ("tokens", planted.ROW_TOKENS)):
            half = quantity(values, f"half_life_{axis}", volume).value
            cross = quantity(values, f"crossing_{axis}", volume).value
            assert half.to_numpy() == pytest.approx(np.full(3, plant.half_at(volume) * scale))
            assert cross.to_numpy() == pytest.approx(np.full(3, plant.crossing(volume) * scale))
        final = plant.score(volume, 1024)
        assert quantity(values, "rebound", volume).value.to_numpy() == pytest.approx(plant.aligned(volume) - plant.base)
        assert quantity(values, "overshoot", volume).value.to_numpy() == pytest.approx(plant.base - final)


def test_planted_half_life_lies_in_the_interval_with_noise(study_of):
    plant = planted.Plant(seeds=tuple(range(6)), noise=0.05)
    table = rebound.aggregate(rebound.per_seed(study_of(plant)))
    for volume in plant.volumes:
        row = quantity(table, "half_life_examples", volume).iloc[0]
        assert row.n == 6 and row.low < plant.half_at(volume) < row.high
        assert row["mean"] == pytest.approx(plant.half_at(volume), rel=0.1)


def test_many_curves_are_read_as_each_by_itself():
    rng, x = np.random.default_rng(6), np.array([0.0, 16.0, 64.0, 256.0, 1024.0])
    y = np.concatenate(
        [rng.normal(size=(200, 5)), [[-1.0] * 5, [0.0, 0.5, 0.5, 2.0, 0.0], [0.0, np.nan, 2.0, 2.0, 2.0]]]
    )
    for sign in (1.0, -1.0):
        found = rebound.first_reach_of(x, y, 0.5, sign)
        each = [rebound.first_reach(x, one, 0.5, sign).at for one in y[:-1]]
        np.testing.assert_allclose(found, [*each, np.nan])
        assert 0 < np.isnan(found).sum() < len(y) / 2


def test_elasticity_ratio_and_kl_minimum(study_of):
    values = rebound.per_seed(study_of(EXACT), eps=0.01)
    for volume in EXACT.volumes:
        # KL(base || model) is the planted V itself: 0.03 per octave above a floor of 0.004.
        reached = EXACT.crossing(volume) * 2 ** (-(0.01 - EXACT.kl_floor) / 0.03)
        start = EXACT.kl(volume, 0)
        if start - 0.03 * 1 > 0.01:
            found = quantity(values, "elasticity_examples", volume, "kl_base_model", "pretrain").value.to_numpy()
            assert found == pytest.approx(np.full(3, reached))
        ratio = quantity(values, "elasticity_ratio", volume, "kl_base_model", "pretrain").value.to_numpy()
        assert ratio == pytest.approx(np.full(3, reached / volume))
        where = quantity(values, "kl_minimum_examples", volume, "kl_base_model", "pretrain").value
        assert set(where) == {EXACT.crossing(volume)}
        lowest = quantity(values, "kl_minimum", volume, "kl_base_model", "pretrain").value.to_numpy()
        assert lowest == pytest.approx(np.full(3, EXACT.kl_floor))


def test_unreached_levels_are_censored_at_the_end_of_the_record(study_of):
    plant = planted.Plant(noise=0.0, points=(16, 32, 64))
    values = rebound.per_seed(study_of(plant))
    half = quantity(values, "half_life_examples", 256)
    assert (
        half.value.isna().all() and set(half.bound) == {64.0} and set(half.reason) == {"not reached within the record"}
    )
    row = quantity(rebound.aggregate(values), "half_life_examples", 256).iloc[0]
    assert math.isnan(row["mean"]) and math.isnan(row.low) and row.censored == 3 and row.bound == 64
    reached = quantity(values, "half_life_examples", 4096).value.to_numpy()
    assert reached == pytest.approx(np.full(3, 32.0))


def test_kl_that_never_nears_the_base_is_censored(study_of):
    row = quantity(rebound.per_seed(study_of(EXACT), eps=0.001), "elasticity_ratio", 256, "kl_base_model", "pretrain")
    assert row.value.isna().all() and set(row.bound) == {1024 / 256}


def test_alignment_inside_the_neighbourhood_has_no_ratio(study_of):
    row = quantity(rebound.per_seed(study_of(EXACT), eps=0.5), "elasticity_ratio", 256, "kl_base_model", "pretrain")
    assert row.value.isna().all() and row.bound.isna().all() and all("stayed within" in r for r in row.reason)


def test_alignment_that_moved_nothing_has_no_half_life(study_of):
    def flat(rows):
        score = (rows.measure == "score") & (rows.examples == 0) & (rows.arm == "aligned") & (rows.stage == "perturb")
        return rows.assign(value=rows.value.where(~score, 0.505))

    values = quantity(rebound.per_seed(study_of(EXACT, flat)), "half_life_examples", 256)
    assert values.value.isna().all() and values.bound.isna().all() and all("did not move" in r for r in values.reason)


def test_row_order_does_not_matter(study_of):
    straight = rebound.aggregate(rebound.per_seed(study_of()))
    mixed = rebound.aggregate(rebound.per_seed(study_of(change=lambda rows: rows.sample(frac=1, random_state=0))))
    pd.testing.assert_frame_equal(straight, mixed)


def test_one_run_per_budget_is_the_same_curve(study_of):
    """A schedule that depends on the total: every volume of one condition is a run of its own."""

    def separate(rows):
        perturb = rows[rows.stage == "perturb"]
        starts = perturb[perturb.examples == 0]
        ends = perturb[(perturb.examples > 0) & (perturb.measure != "sample")]
        runs = [starts.assign(run=starts.run + str(n)) for n in EXACT.points]
        return pd.concat([rows[rows.stage != "perturb"], *runs, ends.assign(run=ends.run + ends.examples.astype(str))])

    together, apart = study_of(EXACT), study_of(EXACT, separate)
    columns = ["quantity", "align_volume", "seed", "value"]
    pd.testing.assert_frame_equal(rebound.per_seed(together)[columns], rebound.per_seed(apart)[columns])
    assert not rebound.ambiguities(apart)


def test_seeds_that_are_not_finished_do_not_enter(study_of):
    short = study_of(change=lambda rows: rows[~((rows.stage == "perturb") & (rows.seed == 2) & (rows.examples > 64))])
    curve = rebound.curves(rebound.trajectories(short))
    assert set(curve.n) == {2} and curve.examples.max() == 1024


def test_starting_point_comes_from_the_parent_when_not_measured_again(study_of):
    cut = study_of(EXACT, lambda rows: rows[~((rows.stage == "perturb") & (rows.examples == 0))])
    for path in rebound.trajectories(cut):
        expected = EXACT.aligned(path.align_volume) if path.arm == "aligned" else EXACT.base
        assert path.start == pytest.approx(expected)


def test_against_control_pairs_equal_updates(study_of):
    gaps = rebound.against_control(rebound.trajectories(study_of(EXACT)))
    for row in gaps.itertuples():
        n = row.updates * planted.BATCH
        assert row.difference == pytest.approx(EXACT.score(row.align_volume, n) - EXACT.score(0, n))
    assert rebound.against_control(rebound.trajectories(study_of(planted.Plant(control=False)))).empty


numbers = st.floats(-5, 5, allow_nan=False).map(lambda x: round(x, 3))


@settings(max_examples=200, deadline=None)
@given(numbers, numbers, numbers)
def test_the_split_adds_up_to_the_way(start, base, final):
    towards, beyond = rebound.split_way(start, base, final)
    sign = math.copysign(1, start - base)
    assert towards + beyond == pytest.approx(sign * (start - final), abs=1e-9)
    assert beyond >= 0 and towards <= abs(start - base) + 1e-9


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=3, max_size=8), st.floats(0.01, 0.99), st.floats(0.1, 50))
def test_first_reach_lies_between_its_neighbours_and_scales_with_the_axis(y, level, scale):
    x, y = np.array([0.0, *2.0 ** np.arange(len(y) - 1)]), np.array(y)
    found = rebound.first_reach(x, y, level)
    if not (y >= level).any():
        assert math.isnan(found.at) and found.bound == x[-1]
        return
    i = int(np.argmax(y >= level))
    assert x[max(i - 1, 0)] - 1e-9 <= found.at <= x[i] * (1 + 1e-9)
    assert rebound.first_reach(x * scale, y, level).at == pytest.approx(found.at * scale)


def test_initial_slope_over_several_intervals():
    x = np.array([0.0, 1.0, 2.0, 4.0])
    assert rebound.initial_slope(x, 3 - 0.5 * x, 3) == pytest.approx(-0.5)
    assert rebound.initial_slope(x, np.array([1.0, 0.0, 5.0, 5.0])) == pytest.approx(-1.0)
    assert math.isnan(rebound.initial_slope(x[:1], x[:1]))
