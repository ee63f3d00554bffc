"""Are the products the same however the compiler is helped?"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elastic_jax.models import products

SHAPES = [((6, 4), (4, 10)), ((2, 3, 12, 4), (2, 3, 4, 5)), ((128, 7), (7, 3)), ((7, 3), (3, 1))]


def factors(shapes, dtype):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_products_are_those_of_numpy(shapes, dtype):
    a, b = factors(shapes, dtype)
    wide_a, wide_b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    # bfloat16 has 8 bits: a result is rounded by 2^-9 of itself at most. float32 sums up to 128 terms.
    tolerance = dict(rtol=2**-8, atol=2**-8) if dtype == jnp.bfloat16 else dict(rtol=1e-5, atol=1e-5)
    expected = wide_a @ wide_b
    assert products.matmul(a, b).dtype == dtype
    np.testing.assert_allclose(np.asarray(products.matmul(a, b), np.float64), expected, **tolerance)
    np.testing.assert_allclose(
        np.asarray(products.matmul_nt(a, jnp.swapaxes(b, -1, -2)), np.float64), expected, **tolerance
    )
    np.testing.assert_allclose(
        np.asarray(products.matmul_tn(jnp.swapaxes(a, -1, -2), b), np.float64), expected, **tolerance
    )
    wide = products.matmul(a, b, jnp.float32)
    assert wide.dtype == jnp.float32
    # Products of bfloat16 are exact in float32, so only the sum rounds.
    np.testing.assert_allclose(wide, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_linear_has_the_gradient_of_a_product(dtype):
    x, w = factors([(128, 6), (6, 10)], dtype)
    grad = factors([(128, 10)], dtype)[0]
    out, pull = jax.vjp(products.linear, x, w)
    wide_x, wide_w, wide_grad = (np.asarray(value, np.float64) for value in (x, w, grad))
    tolerance = dict(rtol=2**-8, atol=2**-6) if dtype == jnp.bfloat16 else dict(rtol=1e-5, atol=1e-4)
    for actual, expected in zip(
        (out, *pull(grad)), (wide_x @ wide_w, wide_grad @ wide_w.T, wide_x.T @ wide_grad), strict=True
    ):
        assert actual.dtype == dtype
        np.testing.assert_allclose(np.asarray(actual, np.float64), expected, **tolerance)


def test_only_bfloat16_is_widened():
    x, w = factors([(8, 4), (4, 6)], jnp.bfloat16)
    cpu = str(jax.make_jaxpr(lambda x, w: products.matmul(x, w))(x, w))
    assert "preferred_element_type=float32" in cpu
    narrow = str(jax.make_jaxpr(lambda x, w: products.matmul(x, w))(x.astype(jnp.float16), w.astype(jnp.float16)))
    assert "preferred_element_type=float16" in narrow
