"""Is the elasticity theorem recovered from rates that follow it, and nothing from rates that do not respond?"""

import math

import numpy as np
import planted
import pytest
from planted_dials import DATA, KS, study

from elastic_jax.analysis import dials, table


def test_the_closed_form_is_recovered():
    values = dials.differences(study(noise=2e-5))
    found = dials.compare(values)
    assert list(found.k) == list(KS) and set(found.verdict) == {"balanced"}
    for row in found.to_dict("records"):
        assert row["ratio_low"] < row["exact_ratio"] < row["ratio_high"] < 0
        # Over a step of l the difference quotient is the derivative half way, up to the third order.
        assert row["exact_ratio"] == pytest.approx(row["closed_form"], rel=0.15 / row["k"] + 0.01)
        assert abs(row["exact_residual"]) < 0.03 and abs(row["residual"] - row["exact_residual"]) < 0.02
    laws = dials.slopes(values).set_index("what")
    assert laws.low["corrected"] < 1 < laws.high["corrected"] and laws.high["corrected"] - laws.low["corrected"] < 0.2
    assert laws.predicted["corrected"] == 1
    assert laws.low["ratio"] < laws.predicted["ratio"] < laws.high["ratio"]


def test_noise_widens_the_interval_around_the_truth():
    narrow, wide = (dials.slopes(dials.differences(study(noise=noise))).iloc[0] for noise in (2e-5, 2e-4))
    assert narrow.low < narrow.predicted < narrow.high and wide.low < wide.predicted < wide.high
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_rates_that_do_not_respond_have_no_slope():
    values, rng = dials.differences(study()), np.random.default_rng(3)
    for role in (*dials.ROLES, "residual", "share"):
        values[role] = rng.normal(scale=0.01, size=len(values))
    laws = dials.slopes(values)
    assert laws.low.eq(-math.inf).all() and laws.high.eq(math.inf).all() and laws["mean"].isna().all()
    assert laws.reason.str.contains("within their noise").all()
    assert list(dials.compare(values).verdict).count("undecided") >= 3  # of four, at 95 %


def test_forces_that_do_not_cancel_are_seen_in_sequential_training():
    one_way = dials.compare(dials.differences(study(forces=dict(pretrain=0.2, align=0.9, perturb=-1.0))))
    sequential = one_way[one_way.protocol == dials.SEQUENTIAL]
    assert list(sequential.k) == list(KS) and set(sequential.verdict) == {"unbalanced"}
    for row in sequential.to_dict("records"):
        assert row["ratio"] == pytest.approx(4.5, rel=1e-3)
        assert row["residual"] == pytest.approx(0.2 * row["k"] + 0.9 - 0.125, rel=1e-3)
    laws = dials.slopes(dials.differences(study(forces=dict(pretrain=-0.2, align=0.9, perturb=-1.0))))
    flat = laws[laws.protocol == dials.SEQUENTIAL].iloc[0]
    assert flat.low < 0 < flat.high < 0.1 and math.isnan(flat.predicted)  # the ratio is the same at every k


@pytest.mark.parametrize("what", ["seed", "k"])
def test_too_little_for_a_slope_says_so(what):
    few = study(seeds=(0,)) if what == "seed" else study(ks=(2.0,))
    laws = dials.slopes(dials.differences(few))
    assert laws["mean"].isna().all() and laws.reason.str.startswith(f"one {what}").all()


def test_the_exact_response_is_that_of_the_samples():
    """Against expectations over fresh texts, without any surrogate."""
    from elastic_jax.data.universe import Mixture, Universe

    universe, roles = Universe(1, "small"), [Mixture(review=2 / 3), *map(Mixture.reviews, (1.0, 0.0))]
    for role, mixture in zip(dials.ROLES, roles, strict=True):
        texts = universe.sample(mixture, 20_000, 77)
        log_p = np.stack([universe.log_prob(texts, other) for other in roles])
        before = np.logaddexp(log_p[0] + math.log(2.0), log_p[1]) - math.log(3.0)
        after = np.logaddexp.reduce([log_p[0] + math.log(2.0), log_p[1], log_p[2] + math.log(0.25)], axis=0) - math.log(
            3.25
        )
        change = before - after
        error = change.std() / math.sqrt(len(change))
        assert dials.exact(DATA, 2.0, 0.0, 0.25).change[role] == pytest.approx(change.mean(), abs=4 * error + 1e-9)


def test_other_studies_have_no_dials():
    rows, metadata = planted.table(planted.Plant())
    info = metadata["studies"]["planted"]
    assert not dials.has_dials(table.Study("planted", rows, info))
    assert dials.differences(table.Study("planted", rows, info)).empty
