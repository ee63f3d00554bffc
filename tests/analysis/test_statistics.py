"""Do intervals cover what they promise, and is nothing said where nothing is known?"""

import math

import numpy as np
import pytest

from elastic_jax.analysis import statistics


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_coverage(n):
    rng = np.random.default_rng(n)
    draws = rng.normal(1.7, 3.0, size=(4000, n))
    hits = np.mean([e.low <= 1.7 <= e.high for e in map(statistics.mean_interval, draws)])
    assert abs(hits - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 4000)


def test_narrower_level_covers_less():
    rng = np.random.default_rng(0)
    found = [statistics.mean_interval(x, 0.5) for x in rng.normal(size=(4000, 4))]
    assert abs(np.mean([e.low <= 0 <= e.high for e in found]) - 0.5) < 0.035


def test_one_seed_gets_no_interval():
    estimate = statistics.mean_interval(np.array([0.3]))
    assert estimate.mean == 0.3 and math.isnan(estimate.low) and math.isnan(estimate.high)
    assert estimate.reason == "one seed: no interval"


def test_no_value_gets_no_mean():
    estimate = statistics.mean_interval(np.array([np.nan, np.nan]))
    assert math.isnan(estimate.mean) and estimate.n == 0 and estimate.reason


def test_censored_seeds_leave_a_bound_and_a_median_only():
    values = np.array([10.0, 20.0, np.nan])
    estimate = statistics.censored_interval(values, np.array([np.nan, np.nan, 64.0]))
    assert math.isnan(estimate.mean) and math.isnan(estimate.low)
    assert estimate.median == 20 and estimate.bound == pytest.approx(94 / 3) and estimate.censored == 1
    most = statistics.censored_interval(np.array([10.0, np.nan, np.nan]), np.array([np.nan, 64.0, 64.0]))
    assert math.isnan(most.median)


def test_median_is_withheld_when_a_bound_lies_below_it():
    estimate = statistics.censored_interval(np.array([10.0, 50.0, np.nan]), np.array([np.nan, np.nan, 20.0]))
    assert math.isnan(estimate.median)


def test_pairs_remove_what_seeds_share():
    rng = np.random.default_rng(5)
    shared = rng.normal(0, 10, size=6)
    first = {s: shared[s] + 1 + 0.01 * rng.normal() for s in range(6)}
    second = {s: shared[s] for s in range(1, 8 - 2)}
    paired = statistics.paired_difference(first, second)
    assert paired.n == 5 and paired.low > 0.9 and paired.high < 1.1
    assert math.isnan(statistics.paired_difference({0: 1.0}, {1: 1.0}).mean)


def test_bootstrap_is_seeded_and_covers():
    rng = np.random.default_rng(1)
    data = rng.exponential(2.0, size=60)
    again = [statistics.bootstrap_interval(data, np.median, seed=4) for _ in range(2)]
    assert again[0] == again[1]
    hits = [
        e.low <= 2.0 <= e.high
        for e in (statistics.bootstrap_interval(x, resamples=200) for x in rng.exponential(2.0, size=(300, 60)))
    ]
    assert 0.88 < np.mean(hits) < 0.98


def test_log_slope():
    assert statistics.log_slope(np.array([1, 2, 8]), np.array([3.0, 5.0, 9.0])) == pytest.approx(2)
    assert math.isnan(statistics.log_slope(np.array([4, 4]), np.array([1.0, 2.0])))


def test_bootstrap_of_seeds_and_texts_covers_and_widens_with_the_noise_of_texts():
    rng = np.random.default_rng(2)
    hits = []
    for _ in range(200):
        values = rng.normal(0.5, 0.05, size=12) + rng.normal(0, 0.1, size=12)  # between seeds, and within
        hits.append(statistics.bootstrap_seeds_and_texts(values, np.full(12, 0.1), resamples=400))
    assert np.mean([e.low <= 0.5 <= e.high for e in hits]) >= 0.93  # both levels are drawn: it errs on the wide side
    same = np.full(3, 0.5)  # three seeds that happen to agree are not certainty
    narrow, wide = (statistics.bootstrap_seeds_and_texts(same, np.full(3, e)) for e in (0.01, 0.1))
    assert 0 < narrow.high - narrow.low < (wide.high - wide.low) / 5
    assert "too narrow" in wide.reason and math.isnan(statistics.bootstrap_seeds_and_texts(same * np.nan, same).mean)


def test_a_redrawn_number_that_is_not_there_could_be_anything():
    rng = np.random.default_rng(4)
    draws = 1 + 0.1 * rng.standard_normal((3, 2000))
    whole = statistics.bootstrap_seeds_and_draws(np.ones(3), draws)
    by_errors = statistics.bootstrap_seeds_and_texts(np.ones(3), np.full(3, 0.1))
    assert (whole.low, whole.high) == pytest.approx((by_errors.low, by_errors.high), abs=0.02)
    few, many = (np.where(rng.random(draws.shape) < share, np.nan, draws) for share in (0.003, 0.1))
    few, many = (statistics.bootstrap_seeds_and_draws(np.ones(3), one) for one in (few, many))
    assert few.low < whole.low < whole.high < few.high < 2  # counted at both ends
    assert many.low == -math.inf and many.high == math.inf and many.mean == 1
    assert math.isnan(statistics.bootstrap_seeds_and_draws(np.ones(0), np.ones((0, 5))).mean)


def test_signs_are_flipped_exactly():
    assert statistics.sign_flip(np.array([1.0, 1.0, 1.0, -1.0])) == (10 / 16, 1 / 8)
    rng = np.random.default_rng(3)
    p_values = np.array([statistics.sign_flip(rng.normal(size=8))[0] for _ in range(1000)])
    # No effect: p is uniform on its 128 values.
    assert np.mean(p_values <= 0.05) == pytest.approx(0.0469, abs=0.02)
    assert statistics.sign_flip(rng.normal(3, 1, size=8))[0] == pytest.approx(2 / 256)
    assert all(math.isnan(value) for value in statistics.sign_flip(np.array([np.nan])))
    with pytest.raises(ValueError, match="20 pairs at most"):
        statistics.sign_flip(np.ones(21))
