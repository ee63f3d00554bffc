"""Is DPO the published loss?"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elastic_jax.objectives import preference

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden" / "golden_losses.json"


@pytest.fixture(scope="module")
def golden():
    if not GOLDEN.is_file():
        pytest.skip(f"no verified numbers at {GOLDEN}")
    return json.loads(GOLDEN.read_text())


@pytest.mark.parametrize(("key", "label_smoothing"), [("dpo", 0.0), ("cdpo", 0.1)])
def test_losses_are_the_verified_ones(golden, key, label_smoothing):
    names = ("chosen", "rejected", "ref_chosen", "ref_rejected")
    for dtype, tolerance in ((jnp.float32, 1e-6), (jnp.float64, 1e-12)):
        with jax.enable_x64(dtype is jnp.float64):
            four = [jnp.asarray(golden["inputs"][name], dtype) for name in names]
            got = preference.dpo(*four, beta=golden["inputs"]["beta"], label_smoothing=label_smoothing)
            assert got.dtype == dtype
            for source in ("ours", "oracle"):
                if key in golden[source]:
                    np.testing.assert_allclose(got, golden[source][key], rtol=tolerance)


def loss(margin, **settings):
    """With log-ratios whose difference is `margin`."""
    chosen = jnp.full((1,), -20.0) + margin
    return preference.dpo(chosen, jnp.full((1,), -9.0), jnp.full((1,), -20.0), jnp.full((1,), -9.0), **settings)[0]


@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
def test_no_preference_costs_one_bit(label_smoothing):
    assert float(loss(0.0, beta=0.7, label_smoothing=label_smoothing)) == pytest.approx(np.log(2), rel=1e-6)


def test_the_loss_falls_with_the_margin_and_has_no_overflow():
    losses = np.array([loss(margin, beta=0.5) for margin in (-1e4, -8.0, -1.0, 0.0, 1.0, 8.0, 1e4)])
    assert (np.diff(losses) < 0).all()
    assert losses[0] == pytest.approx(5e3, rel=1e-4) and losses[-1] == pytest.approx(0.0, abs=1e-30)


@pytest.mark.parametrize("margin", [-3.0, 0.0, 2.5])
def test_the_gradient_is_beta_times_the_probability_of_the_wrong_order(margin):
    beta = 0.4
    got = float(jax.grad(lambda m: loss(m, beta=beta))(margin))
    assert got == pytest.approx(-beta / (1 + np.exp(beta * margin)), rel=1e-5)


def test_smoothing_mixes_the_two_orders_and_its_optimum_is_finite():
    beta, e = 0.5, 0.2
    for margin in (-2.0, 0.5, 3.0):
        mixed = (1 - e) * loss(margin, beta=beta) + e * loss(-margin, beta=beta)
        assert float(loss(margin, beta=beta, label_smoothing=e)) == pytest.approx(float(mixed), rel=1e-6)
    best = np.log((1 - e) / e) / beta
    assert float(jax.grad(lambda m: loss(m, beta=beta, label_smoothing=e))(best)) == pytest.approx(0.0, abs=1e-7)


def test_swapping_the_answers_swaps_the_sign_of_the_margin():
    rng = np.random.default_rng(0)
    chosen, rejected, ref_chosen, ref_rejected = rng.normal(-20, 5, (4, 16)).astype(np.float32)
    one = preference.dpo(chosen, rejected, ref_chosen, ref_rejected, beta=0.3)
    two = preference.dpo(rejected, chosen, ref_rejected, ref_chosen, beta=0.3)
    margin = 0.3 * ((chosen - ref_chosen) - (rejected - ref_rejected))
    np.testing.assert_allclose(two - one, margin, rtol=1e-4, atol=1e-5)  # log sigmoid(x) - log sigmoid(-x) = x
    won = preference.preferred(chosen, rejected, ref_chosen, ref_rejected)
    np.testing.assert_array_equal(won, margin > 0)
    np.testing.assert_array_equal(won + preference.preferred(rejected, chosen, ref_rejected, ref_chosen), 1.0)
