"""Does every switch do what its formula says, in both layouts, packed, cached, sharded and counted?"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import plain
import pytest
import tiny

from elastic_jax.errors import UserError
from elastic_jax.models import flops
from elastic_jax.models.attention import rotary
from elastic_jax.models.config import ModelConfig
from elastic_jax.models.remat import POLICIES
from elastic_jax.models.transformer import Decoder, periods, unstack
from elastic_jax.study import estimate

SEGMENTS = np.array([0] * 5 + [1] * 4 + [2] * 3, np.int32)
POSITIONS = np.concatenate([np.arange(n) for n in (5, 4, 3)]).astype(np.int32)


def test_every_switch_is_set_in_some_model():
    """What all models leave at its default is tested by none of them."""
    execution = {"layout", "remat", "attention", "loss_chunk", "dtype", "param_dtype", "used_vocab", "init_std"}
    elsewhere = {"rope_low_freq", "rope_beta_fast", "rope_beta_slow", "rope_attention_factor", "rope_truncate"}
    models = [tiny.decoder(name).config for name in (*tiny.FAMILIES, *tiny.RELATIVES)]
    for field in dataclasses.fields(ModelConfig):
        if field.default is not dataclasses.MISSING and field.name not in execution | elsewhere:
            assert any(getattr(model, field.name) != field.default for model in models), field.name


@pytest.mark.parametrize("family", tiny.RELATIVES)
def test_logits_are_those_of_the_formulas(family):
    model = tiny.decoder(family)
    params, tokens = tiny.random_params(model), tiny.tokens(2)
    wide = jax.tree.map(np.float64, params)
    expected = np.stack([plain.logits(model.config, wide, row) for row in tokens])
    assert expected.std() > 0.3
    np.testing.assert_allclose(tiny.forward(model, params, tokens), expected, rtol=1e-4, atol=2e-5)
    packed = plain.logits(model.config, wide, tokens[0], POSITIONS, SEGMENTS)
    got = tiny.forward(model, params, tokens[:1], SEGMENTS[None], POSITIONS[None])[0]
    np.testing.assert_allclose(got, packed, rtol=1e-4, atol=2e-5)


ROPES = {
    "linear": dict(rope_type="linear", rope_factor=3.5),
    "dynamic": dict(rope_type="dynamic", rope_factor=2.0, rope_original_len=5),
    "dynamic, not needed": dict(rope_type="dynamic", rope_factor=2.0, rope_original_len=500),
    "llama3": dict(rope_type="llama3", rope_factor=8.0, rope_original_len=100, rope_low_freq=2.0, rope_high_freq=9.0),
    "yarn": dict(rope_type="yarn", rope_factor=4.0, rope_original_len=2000),
    "yarn, all set": dict(
        rope_type="yarn",
        rope_factor=4.0,
        rope_original_len=2000,
        rope_beta_fast=12.0,
        rope_beta_slow=0.5,
        rope_attention_factor=1.5,
    ),
    "yarn, a step": dict(
        rope_type="yarn", rope_factor=4.0, rope_original_len=25, rope_beta_fast=9.0, rope_beta_slow=4.0
    ),
}


@pytest.mark.parametrize("name", ROPES)
@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_frequencies_are_those_of_the_papers(name, fraction):
    c = tiny.decoder("llama", head_dim=64, rotary_fraction=fraction, **ROPES[name]).config
    got, expected = rotary(c), plain.frequencies(c, False)
    assert got.frequencies.dtype == np.float32
    np.testing.assert_allclose(got.frequencies, expected[0], rtol=1e-6)
    assert got.factor == pytest.approx(expected[1], rel=1e-12)
    unchanged = plain.frequencies(tiny.decoder("llama", head_dim=64, rotary_fraction=fraction).config, False)[0]
    assert np.allclose(got.frequencies, unchanged, rtol=1e-6) == (name == "dynamic, not needed")


def test_a_ramp_that_is_not_truncated_begins_between_two_pairs():
    fields = dict(head_dim=64, rope_type="yarn", rope_factor=4.0, rope_original_len=2000)
    whole, exact = (rotary(tiny.decoder("llama", **fields, rope_truncate=t).config).frequencies for t in (True, False))
    assert not np.array_equal(whole, exact)
    first, last = (64 * np.log(2000 / (2 * np.pi * turns)) / (2 * np.log(1e4)) for turns in (32, 1))
    ramp = np.clip((np.arange(32) - first) / (last - first), 0, 1)
    np.testing.assert_allclose(exact, 1e4 ** (-np.arange(32) / 32) * (1 - ramp + ramp / 4), rtol=1e-6)


def test_dynamic_frequencies_are_the_same_for_every_token_of_the_model():
    """Rows of any length, packed or not: what follows or stands beside a token changes nothing about it."""
    model = tiny.decoder("olmo2")
    params, tokens = tiny.random_params(model), tiny.tokens(2)
    whole, short = tiny.forward(model, params, tokens), tiny.forward(model, params, tokens[:, :5])
    np.testing.assert_allclose(whole[:, :5], short, rtol=1e-5, atol=2e-6)
    other = tiny.decoder("olmo2", seq_len=2 * tiny.LENGTH)
    assert np.abs(tiny.forward(other, params, tokens) - whole).max() > 0.01


def test_windows_belong_to_layers():
    c = tiny.decoder("gemma3", layers=6, global_every=3, window_from=1).config
    assert c.windowed == (False, True, False, True, True, False)
    assert tiny.decoder("llama", window=3).config.windowed == (True, True)
    assert tiny.decoder("llama").config.windowed == (False, False)
    assert c.uniform(2, windowed=True).windowed == (True, True) and c.uniform(2).windowed == (False, False)
    for windowed in (True, False):
        np.testing.assert_array_equal(
            rotary(c.uniform(1, windowed), windowed).frequencies, rotary(c, windowed).frequencies
        )
    assert not np.array_equal(rotary(c, True).frequencies, rotary(c, False).frequencies)


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ("", []),
        ("w", [("w", 1)]),
        ("wwww", [("w", 4)]),
        ("wgwgwg", [("wg", 3)]),
        ("wwwwwgwwwwwgww", [("wwwwwg", 2), ("w", 2)]),
        ("gggwww", [("g", 3), ("w", 3)]),
        ("gwg", [("g", 1), ("w", 1), ("g", 1)]),
        ("ggwgwgw", [("g", 2), ("wg", 2), ("w", 1)]),
    ],
)
def test_layers_are_scanned_in_periods(kinds, expected):
    got = periods([kind == "w" for kind in kinds])
    assert [("".join("w" if w else "g" for w in pattern), times) for pattern, times in got] == expected
    assert "".join(pattern * times for pattern, times in expected) == kinds


def loss_and_gradient(model, params, mesh=None):
    tokens, mask = tiny.tokens(8, tiny.LENGTH + 1), np.ones((8, tiny.LENGTH), np.uint8)
    segments, positions = (np.broadcast_to(row, (8, tiny.LENGTH)) for row in (SEGMENTS + 1, POSITIONS))

    def loss(params):
        rows = dict(segments_bt=segments, positions_bt=positions)
        return model.nll_sum(params, tokens[:, :-1], tokens[:, 1:], mask, **rows)

    if mesh is None:
        return jax.jit(jax.value_and_grad(loss))(params)
    with jax.set_mesh(mesh):
        return jax.jit(jax.value_and_grad(loss))(jax.device_put(params, model.shardings(mesh)))


@pytest.mark.parametrize(
    ("family", "remat"),
    [("gemma3", "full"), ("qwen-yarn", "dots"), ("olmo2", "save_qkv_attn_mlp_in"), ("gpt2", "full")],
)
def test_layout_remat_and_mesh_change_no_number(family, remat):
    model, other = tiny.decoder(family), tiny.decoder(family, layout="scan", remat=remat)
    value, gradient = loss_and_gradient(model, tiny.random_params(model))
    scanned, sharded = tiny.random_params(other), tiny.mesh(2, 2, 2)
    other_value, other_gradient = loss_and_gradient(other, scanned, sharded)
    np.testing.assert_allclose(other_value, value, rtol=1e-5)
    other_gradient = unstack(jax.tree.map(np.asarray, other_gradient), model.config.layers)
    tiny.assert_trees_close(other_gradient, jax.tree.map(np.asarray, gradient), rtol=1e-4, atol=2e-4)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("family", ["gemma3", "qwen-yarn", "gpt2", "olmo2"])
def test_caches_give_what_whole_rows_give(family):
    """Prompts of different lengths, then token by token."""
    model = tiny.decoder(family, layout="scan")
    params, tokens = tiny.random_params(model), tiny.tokens(2)
    lengths, prompt = np.array([3, 7]), 7
    rows = np.zeros((2, prompt), np.int32)
    for row, text, n in zip(rows, tokens, lengths, strict=True):
        row[prompt - n :] = text[:n]
    whole = tiny.forward(model, params, tokens)

    @jax.jit
    def decoded(params):
        hidden, caches = model.prefill(params, rows, prompt - lengths, tiny.LENGTH)
        logits = [model.logits(params, hidden)[:, -1]]
        for step in range(3):
            hidden, caches = model.hidden(params, tokens[np.arange(2), lengths + step][:, None], caches=caches)
            logits.append(model.logits(params, hidden)[:, 0])
        return jnp.stack(logits, 1)

    expected = np.stack([whole[i, n - 1 : n + 3] for i, n in enumerate(lengths)])
    np.testing.assert_allclose(decoded(params), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", tiny.RELATIVES)
def test_parameters_and_flops_are_those_of_the_program(family):
    model = tiny.decoder(family, layout="scan")
    c = model.config
    assert flops.parameters(c) == model.size == Decoder(dataclasses.replace(c, layout="unroll")).size
    leaves = estimate._leaves(c)
    assert sum(size for _, size in leaves) == model.size
    if c.window:
        t, s = np.indices((64, 64))
        pairs = [np.sum((s <= t) & (t - s < (c.window if windowed else 64))) for windowed in c.windowed]
        assert flops.attended_keys(c, 64) == pytest.approx(np.mean(pairs) / 64, abs=0.5)
        assert estimate.saved_bytes(
            dataclasses.replace(c, attention="reference", seq_len=2048), 1
        ) < estimate.saved_bytes(dataclasses.replace(c.uniform(c.layers), attention="reference", seq_len=2048), 1)
    else:
        assert estimate.saved_bytes(c, 1) > 0


@pytest.mark.parametrize(("family", "remats"), [("olmo2", POLICIES), ("neox-after", ["full"]), ("gpt2", ["full"])])
def test_norms_behind_a_product_make_the_backward_pass_repeat_it(family, remats):
    from test_flops import _traced

    for remat in remats:
        c = tiny.decoder(family, remat=remat).config
        assert _traced(c, grad=True) == flops.executed_flops(c, c.seq_len, causal=False), remat


def test_init_leaves_new_norms_without_effect_and_draws_the_table():
    params = Decoder(tiny.decoder("gemma3").config.uniform(1)).init(jax.random.key(0), tiny.mesh())
    layer = params["layers"]["0"]
    for name in ("attention_norm", "attention_post_norm", "mlp_norm", "mlp_post_norm"):
        np.testing.assert_array_equal(layer[name]["scale"], 0.0)
    assert "attention_norm" not in tiny.decoder("olmo2").shapes["layers"]["0"]
    table = tiny.decoder("gpt2", layers=1).init(jax.random.key(0), tiny.mesh())["positions"]
    assert table.shape == (2 * tiny.LENGTH, 16)
    assert np.std(table) == pytest.approx(0.02, rel=4 / np.sqrt(2 * table.size))


@pytest.mark.parametrize("family", ["gemma3", "olmo2", "gpt2"])
def test_bfloat16_is_near(family):
    exact, rough = tiny.decoder(family), tiny.decoder(family, dtype="bfloat16")
    params, tokens = tiny.random_params(exact, std=0.1), tiny.tokens(4)
    expected, got = tiny.forward(exact, params, tokens), tiny.forward(rough, params, tokens)
    error = np.asarray(got) - np.asarray(expected)
    assert 0 < np.sqrt(np.mean(error**2)) < 0.03 * np.std(expected)


def test_embeddings_are_scaled_by_a_rounded_root():
    """Gemma multiplies by the root of the width as bfloat16 has it: 45.25 for 45.2548."""
    model = tiny.decoder("gemma", embed=2048, dtype="bfloat16", layers=0)
    shell = model._outer({"embedding": jnp.ones((tiny.VOCAB, 2048)), "final_norm": {"scale": jnp.zeros(2048)}})
    got = shell.embed(jnp.zeros((1, 1), jnp.int32), jnp.zeros((1, 1), jnp.int32))
    assert got.dtype == jnp.bfloat16 and float(got[0, 0, 0]) == 45.25


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(rope_factor=2.0), "rope_factor=2.0 has no effect: rope_type='plain' does not use it. Leave it out."),
        (
            dict(rope_type="linear", rope_factor=2.0, rope_original_len=9),
            "rope_original_len=9 has no effect: rope_type='linear'",
        ),
        (
            dict(rope_type="llama3", rope_factor=2.0, rope_original_len=9, rope_beta_fast=9.0),
            "rope_beta_fast=9.0 has no effect",
        ),
        (dict(rope_truncate=False), "rope_truncate=False has no effect"),
        (dict(rope_type="ntk"), "rope_type='ntk': expected one of plain, linear, dynamic, llama3, yarn."),
        (dict(rope_type="linear"), "rope_factor=1.0: rope_type='linear' needs a factor above 1"),
        (dict(rope_type="dynamic", rope_factor=0.5, rope_original_len=9), "rope_factor=0.5"),
        (dict(rope_type="yarn", rope_factor=2.0), "rope_original_len=0: rope_type='yarn' needs the length"),
        (
            dict(rope_type="llama3", rope_factor=2.0, rope_original_len=9, rope_low_freq=4.0),
            "rope_low_freq=4.0, model.rope_high_freq=4.0: expected 0 < rope_low_freq < rope_high_freq",
        ),
        (dict(rope_type="yarn", rope_factor=2.0, rope_original_len=9, rope_beta_slow=0.0), "rope_beta_slow=0.0"),
        (dict(rope_type="yarn", rope_factor=2.0, rope_original_len=9, rope_theta=1.0), "rope_theta=1.0"),
        (
            dict(rope_type="dynamic", rope_factor=2.0, rope_original_len=9, head_dim=2),
            "rope_type='dynamic': its formula needs 4 rotary dimensions, not 2",
        ),
        (dict(positions="learned", rope_theta=5e5), "rope_theta=500000.0 has no effect: positions='learned'"),
        (dict(positions="none", rotary_fraction=0.5), "rotary_fraction=0.5 has no effect"),
        (dict(max_positions=64), "max_positions=64 has no effect: only positions='learned' has a table"),
        (dict(positions="learned", max_positions=8), "max_positions=8: rows of data.seq_len=12 tokens"),
        (dict(global_every=2), "global_every=2 has no effect: no layer has a window (model.window=0)"),
        (dict(window_from=1), "window_from=1 has no effect"),
        (dict(rope_local_theta=1e4), "rope_local_theta=10000.0 has no effect"),
        (dict(window=4, window_from=2), "window_from=2: none of the 2 layers is left with the window"),
        (dict(window=4, global_every=1), "global_every=1: none of the 2 layers is left"),
        (dict(window=4, global_every=3), "global_every=3: none of the 2 layers is reached. Use at most 2"),
        (dict(window=4, rope_local_theta=1e3), "rope_local_theta=1000.0: every layer has the window"),
        (dict(window=2.5), "window=2.5: expected zero or a positive whole number"),
        (dict(attention_scale=-1.0), "attention_scale=-1.0"),
        (dict(qk_norm=True), "qk_norm=True: expected one of none, head, full."),
        (dict(norm_place="after"), "norm_place='after': expected one of pre, post, both."),
        (dict(positions="alibi"), "positions='alibi': expected one of rotary, learned, none."),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_name(fields, message):
    with pytest.raises(UserError, match=re.escape("model." + message)):
        tiny.decoder("llama", **fields)
