"""Are planted time constants recovered, and is one rate told from two?"""

import math

import numpy as np
import pytest

from elastic_jax.analysis import decay
from elastic_jax.analysis.decay import Curve

X = np.concatenate([[0.0], 16 * 2 ** np.arange(0, 7.5, 0.5)])


def one_rate(x):
    return 0.2 + 0.6 * np.exp(-x / 150)


def two_rates(x):
    return 0.1 + 0.4 * np.exp(-x / 40) + 0.3 * np.exp(-x / 900)


def seeds(shape, noise, count=3, seed=0):
    rng = np.random.default_rng(seed)
    return [Curve(X, shape(X) + 0.05 * rng.normal() + noise * rng.normal(size=len(X))) for _ in range(count)]


def test_without_noise_the_planted_curve_comes_back():
    found = decay.compare([Curve(X, two_rates(X)), Curve(X, two_rates(X) + 0.1)])
    assert found.verdict == "two rates" and found.evidence > 100
    assert found.two.times == pytest.approx((40, 900), rel=1e-3)
    assert found.two.amplitudes == pytest.approx((0.4, 0.3), rel=1e-3)
    assert found.two.offsets == pytest.approx((0.1, 0.2), abs=1e-3)
    assert found.two.r2 > 1 - 1e-9


def test_with_noise_intervals_cover_at_their_level():
    inside = []
    for seed in range(20):
        found = decay.compare(seeds(one_rate, 0.01, seed=seed))
        inside.append(found.one.low[0] <= 150 <= found.one.high[0])
    assert sum(inside) >= 17  # of Binomial(20, 0.95), 16 or fewer come once in 60 times


def test_one_rate_and_two_rates_are_told_apart():
    found = [decay.compare(seeds(two_rates, 0.01, seed=seed)) for seed in range(5)]
    assert all(one.verdict == "two rates" for one in found)
    assert all(one.two.low[0] < one.two.times[0] < one.two.high[0] for one in found)
    single = [decay.compare(seeds(one_rate, 0.01, seed=seed)).verdict for seed in range(12)]
    assert single.count("two rates") <= 2 and single.count("one rate") >= 6


def test_an_overshoot_is_not_called_fast_then_slow():
    falls_then_rises = lambda x: 0.5 + np.exp(-x / 60) - 0.8 * np.exp(-x / 1500)  # noqa: E731
    found = decay.compare([Curve(X, falls_then_rises(X))])
    assert np.prod(found.two.amplitudes) >= 0


def test_what_cannot_be_fitted_says_why():
    assert "need 8" in decay.compare([Curve(X[:5], one_rate(X[:5]))]).reason
    flat = decay.compare([Curve(X, np.ones_like(X))])
    assert flat.verdict == "undecided" and "does not change" in flat.reason and math.isnan(flat.evidence)
    holes = np.where(np.arange(len(X)) == 3, np.nan, two_rates(X))
    assert decay.compare([Curve(X, holes)]).two.points == len(X) - 1
    assert decay.compare([]).verdict == "undecided"
