"""Is the model the one of the papers, and does a token see exactly what it may see?"""

import jax
import jax.numpy as jnp
import numpy as np
import plain
import pytest
import tiny

from elastic_jax.models.transformer import stack, unstack

SEGMENTS = np.array([0] * 5 + [1] * 4 + [2] * 3, np.int32)
POSITIONS = np.concatenate([np.arange(n) for n in (5, 4, 3)]).astype(np.int32)
UNUSED = tiny.VOCAB - 1  # never an input: its logit depends on the inputs alone, also where head = embedding


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_logits_are_those_of_the_formulas(family):
    model = tiny.decoder(family)
    params, tokens = tiny.random_params(model), tiny.tokens(3)
    wide = jax.tree.map(np.float64, params)
    expected = np.stack([plain.logits(model.config, wide, row) for row in tokens])
    assert expected.std() > 0.3
    np.testing.assert_allclose(tiny.forward(model, params, tokens), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_packed_rows_are_the_unpacked_ones(family):
    model = tiny.decoder(family)
    params, packed = tiny.random_params(model), tiny.tokens(1)
    got = tiny.forward(model, params, packed, SEGMENTS[None], POSITIONS[None])[0]
    rows = np.zeros((3, tiny.LENGTH), np.int32)  # padding behind a document is in nobody's past
    for number, row in enumerate(rows):
        document = packed[0, number == SEGMENTS]
        row[: len(document)] = document
    alone = tiny.forward(model, params, rows)
    expected = np.concatenate([alone[number, : np.sum(number == SEGMENTS)] for number in range(3)])
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=2e-6)
    unseparated = tiny.forward(model, params, packed)[0]
    assert np.abs(unseparated - expected).max() > 0.01


def influence(model, segments=None, positions=None):
    """[t, s]: by how much the logits at t change with the embedding of the token at s."""
    tokens = np.random.default_rng(3).permutation(tiny.LENGTH).astype(np.int32)  # every token is one position

    def unused_logits(embedding, params):
        options = dict(
            segments_bt=None if segments is None else segments[None],
            positions_bt=None if positions is None else positions[None],
        )
        return model({**params, "embedding": embedding}, tokens[None], **options)[0, :, UNUSED]

    params = tiny.random_params(model)
    jacobian = jax.jit(jax.jacrev(unused_logits))(jnp.asarray(params["embedding"]), params)
    return np.abs(np.asarray(jacobian)[:, tokens]).max(-1)


@pytest.mark.parametrize(("layout", "remat"), [("unroll", "none"), ("scan", "full")])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_no_token_sees_a_later_one(family, layout, remat):
    model = tiny.decoder(family, layout=layout, remat=remat)
    t, s = np.indices((tiny.LENGTH, tiny.LENGTH))
    reach = model.config.layers * (model.config.window - 1) if model.config.window else tiny.LENGTH
    seen = (s <= t) & (t - s <= reach)
    assert (~seen & (s < t)).any() == (family == "gemma")
    np.testing.assert_array_equal(influence(model) > 0, seen)


@pytest.mark.parametrize("window", [1, 3])
def test_one_layer_sees_its_window_and_nothing_before_it(window):
    t, s = np.indices((tiny.LENGTH, tiny.LENGTH))
    got = influence(tiny.decoder("llama", layers=1, window=window))
    np.testing.assert_array_equal(got > 0, (s <= t) & (t - s < window))


@pytest.mark.parametrize("fields", [dict(), dict(window=3, layout="scan")], ids=["all", "window"])
def test_no_token_sees_another_document(fields):
    model = tiny.decoder("qwen", **fields)
    t, s = np.indices((tiny.LENGTH, tiny.LENGTH))
    reach = 2 * (model.config.window - 1) if model.config.window else tiny.LENGTH
    seen = (s <= t) & (t - s <= reach) & (SEGMENTS[t] == SEGMENTS[s])
    np.testing.assert_array_equal(influence(model, SEGMENTS, POSITIONS) > 0, seen)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_only_differences_of_positions_count(family):
    model = tiny.decoder(family)
    params, tokens = tiny.random_params(model), tiny.tokens(2)
    positions = np.broadcast_to(np.arange(tiny.LENGTH, dtype=np.int32), tokens.shape)
    here = tiny.forward(model, params, tokens, None, positions)
    there = tiny.forward(model, params, tokens, None, positions + 100)
    # float32 angles of 100 radians are good to 100 x 2^-24 = 6e-6.
    np.testing.assert_allclose(there, here, rtol=1e-3, atol=2e-4)
    stretched = tiny.forward(model, params, tokens, None, positions * 2)
    assert np.abs(stretched - here).max() > 0.01


def loss_and_gradient(model, params):
    tokens = tiny.tokens(4)
    aim = np.random.default_rng(9).standard_normal((4, tiny.LENGTH, tiny.VOCAB)).astype(np.float32)
    return jax.jit(jax.value_and_grad(lambda params: jnp.sum(model(params, tokens) * aim)))(params)


OTHERS = {
    "llama": [("scan", "none"), ("scan", "full"), ("unroll", "dots")],
    "qwen": [("scan", "save_qkv_attn_mlp_in")],
    "gemma": [("scan", "full")],
    "neox": [("scan", "save_dot_with_context_except_mlp")],
}


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_layout_and_remat_change_no_number(family):
    model = tiny.decoder(family)
    params = tiny.random_params(model)
    value, gradient = loss_and_gradient(model, params)
    for layout, remat in OTHERS[family]:
        other = tiny.decoder(family, layout=layout, remat=remat)
        other_value, other_gradient = loss_and_gradient(other, tiny.random_params(other))
        if layout == "scan":
            other_gradient = unstack(other_gradient, model.config.layers)
        np.testing.assert_allclose(other_value, value, rtol=1e-5)
        tiny.assert_trees_close(other_gradient, gradient, rtol=1e-4, atol=1e-4)


def test_init_is_the_same_in_both_layouts_and_on_every_mesh():
    key = jax.random.key(7)
    alone = tiny.decoder("neox").init(key, tiny.mesh())
    # The random bits are the same; jax 0.12 on CPU rounds a few normals made of them otherwise in another fusion, by 2 ulp.
    tolerance = dict(rtol=2 * np.finfo(np.float32).eps, atol=0)
    tiny.assert_trees_close(tiny.decoder("neox").init(key, tiny.mesh(2, 2, 2)), alone, **tolerance)
    scanned = tiny.decoder("neox", layout="scan").init(key, tiny.mesh(1, 8))
    tiny.assert_trees_close(unstack(scanned, 2), alone, **tolerance)


def test_init_is_small_noise_and_norms_and_biases_without_effect():
    model = tiny.decoder("gemma", qkv_bias=True, layers=3, embed=64, mlp=256)
    params = model.init(jax.random.key(0), tiny.mesh())
    layer = params["layers"]["0"]
    residual = 0.02 / np.sqrt(2 * 3)
    for weight, std in (
        (params["embedding"], 0.02),
        (layer["attention"]["qkv"], 0.02),
        (layer["mlp"]["up"], 0.02),
        (layer["attention"]["out"], residual),
        (layer["mlp"]["down"], residual),
    ):
        # The sample deviation of n draws is off by 1/sqrt(2n); four of those.
        assert np.std(weight) == pytest.approx(std, rel=4 / np.sqrt(2 * weight.size))
    np.testing.assert_array_equal(layer["mlp_norm"]["scale"], 0.0)  # norm_offset 1 is added to it
    np.testing.assert_array_equal(layer["attention"]["qkv_bias"], 0.0)
    first, second = layer["mlp"]["up"], params["layers"]["1"]["mlp"]["up"]
    assert abs(np.corrcoef(np.ravel(first), np.ravel(second))[0, 1]) < 0.05
    other = model.init(jax.random.key(1), tiny.mesh())
    assert not np.array_equal(other["embedding"], params["embedding"])


def test_stack_and_unstack_are_inverse():
    params = tiny.random_params(tiny.decoder("neox"))
    tiny.assert_trees_equal(unstack(stack(params), 2), params)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_bfloat16_is_near_and_its_logits_are_float32(family):
    exact, rough = tiny.decoder(family), tiny.decoder(family, dtype="bfloat16")
    params, tokens = tiny.random_params(exact, std=0.1), tiny.tokens(4)
    expected, got = tiny.forward(exact, params, tokens), tiny.forward(rough, params, tokens)
    assert got.dtype == jnp.float32
    error = np.asarray(got) - np.asarray(expected)
    # 8 bits of mantissa are 0.4 percent per rounding, and a dozen roundings lie on the way.
    assert 0 < np.sqrt(np.mean(error**2)) < 0.02 * np.std(expected)


def test_gradients_have_the_dtype_of_the_parameters():
    model = tiny.decoder("qwen", dtype="bfloat16")
    _, gradient = loss_and_gradient(model, tiny.random_params(model))
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype("float32")}


def test_dims_name_every_dim_of_every_parameter():
    for family in tiny.FAMILIES:
        for layout in ("unroll", "scan"):
            model = tiny.decoder(family, layout=layout)
            pairs = jax.tree.map(
                lambda dims, leaf: (dims, leaf.shape),
                model.dims,
                model.shapes,
                is_leaf=lambda node: isinstance(node, tuple),
            )
            flat = jax.tree.leaves(pairs, is_leaf=lambda node: isinstance(node, tuple))
            sizes = dict(vocab=40, embed=16, kv_heads=2, head_dim=8, mlp=32, layers=2)
            for dims, shape in flat:
                assert len(dims) == len(shape)
                assert all(sizes.get(dim, size) == size for dim, size in zip(dims, shape, strict=True))
