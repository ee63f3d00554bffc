"""Does attention weigh what it should, by the formula and nothing else?"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import plain
import pytest

from elastic_jax.models.attention import Cache, Caches, View, attend, attend_cache, causal_mask, rotate
from elastic_jax.models.attention.reference import attend_masked
from elastic_jax.models.attention.rotary import plain as frequencies

B, T, K, G, H = 2, 6, 2, 3, 8


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(("softcap", "scale"), [(0.0, 0.0), (0.5, 0.0), (0.5, 1.1)])
@pytest.mark.parametrize(("window", "segments"), [(0, None), (2, None), (0, [0, 0, 1, 1, 1, 2])])
def test_attention_is_the_softmax_of_each_head(softcap, scale, window, segments):
    q, k, v = draw(B, T, K, G, H), draw(B, T, K, H, seed=1), draw(B, T, K, H, seed=2)
    rows = None if segments is None else jnp.asarray([segments] * B)
    options = dict(window=window, softcap=softcap, scale=scale)
    out = jax.jit(attend, static_argnames=tuple(options))(q, k, v, View(rows), **options)
    seen = plain.visible(T, window, segments)
    for b, j, i in np.ndindex(B, K, G):
        expected = plain.head(*(np.float64(x) for x in (q[b, :, j, i], k[b, :, j], v[b, :, j])), seen, softcap, scale)
        np.testing.assert_allclose(out[b, :, j, i], expected, rtol=1e-5, atol=1e-6)


def test_attention_is_that_of_jax_nn():
    q, k, v = draw(B, T, K, G, H), draw(B, T, K, H, seed=1), draw(B, T, K, H, seed=2)
    out = attend(q, k, v, View())
    expected = jax.nn.dot_product_attention(q.reshape(B, T, K * G, H), k, v, is_causal=True)
    np.testing.assert_allclose(out.reshape(B, T, K * G, H), expected, rtol=1e-5, atol=1e-6)


def test_huge_scores_and_rows_without_a_key_give_no_nan():
    q, k, v = 1e4 * draw(1, T, 1, 1, H), 1e4 * draw(1, T, 1, H, seed=1), draw(1, T, 1, H, seed=2)
    nothing = jnp.zeros((1, T, T), bool)
    for mask in (causal_mask(jnp.arange(T), jnp.arange(T)), nothing):
        value, gradient = jax.value_and_grad(lambda q, mask=mask: jnp.sum(attend_masked(q, k, v, mask)))(q)
        assert np.isfinite(value) and np.isfinite(gradient).all()


@pytest.mark.parametrize(("window", "softcap", "scale"), [(0, 0.0, 0.0), (3, 0.5, 1.1)])
def test_a_cache_gives_what_the_whole_row_gives(window, softcap, scale):
    """Rows that begin in columns 0 and 2, written in two parts into a cache with room to spare."""
    q, k, v = draw(B, T, K, G, H), draw(B, T, K, H, seed=1), draw(B, T, K, H, seed=2)
    options, first = dict(window=window, softcap=softcap, scale=scale), np.array([0, 2])
    caches = Caches({"0": Cache(jnp.zeros((B, K, H, 9)), jnp.zeros((B, K, 9, H)))}, jnp.asarray(0), jnp.asarray(first))
    for begin, end in ((0, 4), (4, T)):
        layer = caches.layers["0"].append(k[:, begin:end], v[:, begin:end], caches.length)
        caches = Caches({"0": layer}, jnp.asarray(begin), caches.first_b)
        got = attend_cache(q[:, begin:end], layer, caches.view, **options)
        np.testing.assert_array_equal(caches.positions(end - begin)[1], np.maximum(np.arange(begin, end) - 2, 0))
        for row, column in enumerate(first):
            alone = attend(*(x[row : row + 1, column:] for x in (q, k, v)), View(), **options)[0]
            expected = alone[max(begin - column, 0) : end - column]
            np.testing.assert_allclose(got[row, -len(expected) :], expected, rtol=1e-5, atol=1e-6)
        caches = dataclasses.replace(caches, length=jnp.asarray(end))
    assert caches.columns == 9 and caches.grown(12).columns == 12
    np.testing.assert_array_equal(caches.grown(12).layers["0"].keys[..., :9], caches.layers["0"].keys)


def test_the_mask_counts_queries_from_where_the_cache_ends():
    got = causal_mask(jnp.array([3, 4]), jnp.arange(6), window=3)[0]
    np.testing.assert_array_equal(got, [[0, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 0]])


@pytest.mark.parametrize("dims", [0, 2, 6, 8])
def test_rotary_is_a_complex_rotation(dims):
    x, positions = draw(B, T, K, G, H), np.random.default_rng(0).integers(0, 500, (B, T)).astype(np.int32)
    out = jax.jit(lambda x, at: rotate(x, at, frequencies(1e4, dims)))(x, positions)
    for b, j, i in np.ndindex(B, K, G):
        expected = plain.rotary(np.float64(x[b, :, j, i]), positions[b], 1e4, dims)
        # An angle of 500 radians is good to 500 x 2^-24 in float32.
        np.testing.assert_allclose(out[b, :, j, i], expected, atol=2e-4)
    np.testing.assert_array_equal(out[..., dims:], x[..., dims:])
    np.testing.assert_allclose(np.linalg.norm(out, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5)


def test_rotary_scores_depend_on_the_difference_of_positions():
    q, k = draw(1, 1, 1, H), draw(1, 1, 1, H, seed=1)

    def score(at, other):
        turned = [rotate(x, jnp.full((1, 1), p), frequencies(1e4, H)) for x, p in ((q, at), (k, other))]
        return float(np.sum(np.asarray(turned[0]) * np.asarray(turned[1])))

    for shift in (1, 17, 400):
        assert score(9 + shift, 4 + shift) == pytest.approx(score(9, 4), abs=3e-4)
    assert abs(score(9, 4) - score(9, 5)) > 0.01
    assert score(0, 0) == pytest.approx(float(np.sum(q * k)), rel=1e-6)


def test_bfloat16_queries_turn_by_float32_angles():
    x = jnp.ones((1, 2, 1, 2), jnp.bfloat16)
    first, second = rotate(x, jnp.array([[256, 257]]), frequencies(1e4, 2))[
        0, :, 0
    ]  # one radian apart, equal in bfloat16
    assert first.dtype == jnp.bfloat16 and np.abs(np.float32(first - second)).max() > 0.3
