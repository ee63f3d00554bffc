"""Do the norms and the feed-forward compute their formulas, in float32 where it matters?"""

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from elastic_jax.models.layers import ACTIVATIONS, Norm, contract


def norm(family, scale, bias=None):
    layer = Norm(tiny.decoder(family).config, len(scale), nnx.Rngs(0))
    layer.scale[...] = jnp.asarray(scale, jnp.float32)
    if bias is not None:
        layer.bias[...] = jnp.asarray(bias, jnp.float32)
    return layer


X = np.random.default_rng(0).normal(3.0, 2.0, (4, 5, 8))
SCALE, BIAS = np.linspace(-1, 2, 8), np.linspace(3, -1, 8)


@pytest.mark.parametrize(("family", "offset"), [("llama", 0.0), ("gemma", 1.0)])
def test_rms_norm(family, offset):
    expected = X / np.sqrt(np.mean(X**2, axis=-1, keepdims=True) + 1e-6) * (SCALE + offset)
    np.testing.assert_allclose(norm(family, SCALE)(jnp.asarray(X, jnp.float32)), expected, rtol=1e-5, atol=1e-6)


def test_layer_norm():
    expected = (X - X.mean(-1, keepdims=True)) / np.sqrt(X.var(-1, keepdims=True) + 1e-5) * SCALE + BIAS
    got = norm("neox", SCALE, BIAS)(jnp.asarray(X, jnp.float32))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_norms_of_bfloat16_are_computed_in_float32():
    # In bfloat16 1024 + 1 is 1024: a sum of squares would lose all but its largest terms.
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 1, 4096)), jnp.bfloat16)
    got = norm("llama", np.ones(4096))(x)
    wide = np.float64(x)
    expected = wide / np.sqrt(np.mean(wide**2) + 1e-6)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float64(got), expected, rtol=2**-8)


def test_a_norm_of_zeros_is_finite():
    np.testing.assert_array_equal(norm("llama", np.ones(8))(jnp.zeros((1, 1, 8))), 0.0)


@pytest.mark.parametrize("count", [1, 2])
def test_contract_takes_the_last_dims_with_the_first(count):
    x = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)
    weight = np.random.default_rng(1).standard_normal((*x.shape[3 - count :], 2, 6)).astype(np.float32)
    np.testing.assert_allclose(contract(x, weight, count), np.tensordot(x, weight, count), rtol=1e-5, atol=1e-6)


def test_gelu_is_the_exact_one_unless_tanh_is_asked_for():
    x = jnp.float32(1.5)
    assert float(ACTIVATIONS["gelu"](x)) == pytest.approx(1.399789, abs=1e-5)  # x Phi(x)
    assert float(ACTIVATIONS["gelu_tanh"](x)) == pytest.approx(1.399572, abs=1e-5)
