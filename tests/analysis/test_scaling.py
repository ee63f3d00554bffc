"""Are planted exponents recovered, also where part of the record is missing, and do predictions know how sure they are?"""

import math

import numpy as np
import pytest

from elastic_jax.analysis import rebound, scaling
from elastic_jax.analysis.scaling import Cell

VOLUMES = (100, 200, 400, 800, 1600)


def planted(exponent=-0.5, noise=0.05, seeds=4, seed=0, limit=math.inf):
    rng = np.random.default_rng(seed)
    cells = []
    for s in range(seeds):
        start = 2000 * math.exp(0.2 * rng.normal())
        for volume in VOLUMES:
            y = start * volume**exponent * math.exp(noise * rng.normal())
            cells.append(Cell(volume, s, math.nan, limit) if y > limit else Cell(volume, s, y))
    return cells


def test_without_noise_the_law_comes_back():
    law = scaling.power_law(planted(noise=0.0))
    assert law.exponent.mean == pytest.approx(-0.5) and law.r2 == pytest.approx(1) and law.cells == 20
    assert scaling.power_law(planted(noise=0.0, seeds=1)).levels[0] == pytest.approx(
        2000 * math.exp(0.2 * np.random.default_rng(0).normal())
    )


@pytest.mark.parametrize("limit", [math.inf, 150.0])
def test_intervals_cover_at_their_level_with_and_without_censored_cells(limit):
    laws = [scaling.power_law(planted(seed=seed, limit=limit)) for seed in range(24)]
    assert all((law.exponent.censored > 0) == math.isfinite(limit) for law in laws)
    inside = [law.exponent.low <= -0.5 <= law.exponent.high for law in laws]
    assert sum(inside) >= 20  # of Binomial(24, 0.95), 19 or fewer come once in 150 times
    assert np.mean([law.exponent.mean for law in laws]) == pytest.approx(-0.5, abs=0.02)


def test_leaving_censored_cells_out_would_bend_the_law():
    cells = planted(noise=0.3, seeds=30, limit=130.0)
    naive = scaling.power_law([c for c in cells if c.y > 0])
    assert abs(scaling.power_law(cells).exponent.mean + 0.5) < abs(naive.exponent.mean + 0.5)


def test_one_seed_gets_the_interval_of_its_regression():
    law = scaling.power_law(planted(seeds=1))
    assert law.exponent.low < -0.5 < law.exponent.high and "one regression" in law.exponent.reason


def test_too_little_is_no_law():
    law = scaling.power_law([Cell(100, 0, 5.0), Cell(100, 1, 6.0), Cell(200, 0, math.nan, 9.0)])
    assert math.isnan(law.exponent.mean) and law.exponent.censored == 1 and "needs 3 at 2" in law.exponent.reason


def test_a_left_out_place_is_predicted_as_often_as_stated():
    inside = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        cells = [Cell(v, s, 2000 * v**-0.5 * math.exp(0.1 * rng.normal())) for s in range(3) for v in VOLUMES]
        inside += list(scaling.leave_one_out(cells).inside)
    assert 0.9 <= np.mean(inside) <= 0.99
    bent = [Cell(v, s, 2000 * v**-0.5 * (3 if v == 1600 else 1) * (1 + s / 100)) for s in range(3) for v in VOLUMES]
    assert not scaling.leave_one_out(bent).inside.iloc[-1]


def test_places_that_were_not_reached_are_named():
    rows = scaling.leave_one_out(planted(limit=150.0))
    assert rows.reason.iloc[0].startswith("not reached") and math.isnan(rows.predicted.iloc[0])
    assert rows.reason.iloc[-1] == ""


def test_cells_come_from_the_table_of_quantities(study_of, plant):
    quantities = rebound.per_seed(study_of(plant))
    law = scaling.power_law(scaling.cells_of(quantities, "half_life_examples"))
    assert law.exponent.mean == pytest.approx(-0.5, abs=0.05)  # halved with every fourfold volume
