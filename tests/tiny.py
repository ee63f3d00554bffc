"""Which models are small enough to test on, and how do they still show every mistake?

One model of each family, with every weight random: zero biases and unit scales would hide their terms.
"""

import dataclasses
import functools

import jax
import numpy as np

from elastic_jax.models.config import ModelConfig
from elastic_jax.models.transformer import Decoder, stack
from elastic_jax.parallel.mesh import make_mesh

VOCAB, LENGTH = 40, 12
FAMILIES = {
    "llama": dict(tie_embeddings=False),
    "qwen": dict(qkv_bias=True, qk_norm="head", rope_theta=1e6),
    "gemma": dict(
        norm_offset=1.0,
        embed_scale=True,
        activation="gelu_tanh",
        attention_softcap=2.0,
        logit_softcap=3.0,
        window=4,
    ),
    "neox": dict(
        norm="layer",
        norm_eps=1e-5,
        activation="gelu",
        gated=False,
        parallel_residual=True,
        rotary_fraction=0.25,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        tie_embeddings=False,
    ),
}
# Later members of the families: every switch that those above leave alone is set in one of these.
RELATIVES = {
    "llama3": dict(rope_type="llama3", rope_factor=8.0, rope_original_len=8, rope_high_freq=3.0, rope_theta=100.0),
    "qwen-yarn": dict(
        qkv_bias=True, rope_type="yarn", rope_factor=4.0, rope_original_len=40, window=4, window_from=1, layers=3
    ),
    "gemma3": dict(
        norm_offset=1.0,
        norm_place="both",
        qk_norm="head",
        embed_scale=True,
        activation="gelu_tanh",
        attention_scale=0.2,
        window=4,
        global_every=2,
        layers=5,
        rope_type="linear",
        rope_factor=8.0,
        rope_local_theta=100.0,
    ),
    "olmo2": dict(norm_place="post", qk_norm="full", rope_type="dynamic", rope_factor=2.0, rope_original_len=6),
    "gpt2": dict(
        norm="layer",
        positions="learned",
        max_positions=2 * LENGTH,
        activation="gelu_tanh",
        gated=False,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
    ),
    "neox-after": dict(
        norm="layer",
        norm_place="both",
        parallel_residual=True,
        positions="none",
        qk_norm="full",
        mlp_bias=True,
        attention_softcap=2.0,
    ),
}


def decoder(family="llama", **fields):
    """Two layers unless the family says otherwise, four heads in two groups."""
    shape = dict(layers=2, embed=16, heads=4, kv_heads=2, head_dim=8, mlp=32)
    data = dict(vocab_size=VOCAB, seq_len=LENGTH)
    return Decoder(ModelConfig(**{**shape, **data, **{**FAMILIES, **RELATIVES}[family], **fields}))


def random_params(model, seed=0, std=0.3):
    """Numbers of numpy, the same in both layouts."""
    unrolled = Decoder(dataclasses.replace(model.config, layout="unroll"))
    rng = np.random.default_rng(seed)
    one = 1.0 - model.config.norm_offset

    def draw(path, leaf):
        centre = one if path[-1].key == "scale" else 0.0
        return (centre + std * rng.standard_normal(leaf.shape)).astype(leaf.dtype)

    params = jax.tree_util.tree_map_with_path(draw, unrolled.shapes)
    return params if model.config.layout == "unroll" else jax.tree.map(np.asarray, stack(params))


def tokens(rows, length=LENGTH, seed=0, vocab=VOCAB):
    return np.random.default_rng(seed).integers(2, vocab, (rows, length)).astype(np.int32)


def text_batch(rows, seed=0, length=LENGTH):
    """Token rows whose masks count unevenly many targets."""
    rng = np.random.default_rng(seed + 1000)
    first = rng.integers(0, length - 1, (rows, 1))
    mask = (np.arange(length)[None] >= first) & (rng.random((rows, length)) < 0.8)
    return dict(tokens=tokens(rows, length + 1, seed), mask=mask.astype(np.uint8))


@functools.cache
def mesh(data=1, fsdp=1, tensor=1):
    return make_mesh(data, fsdp, tensor, devices=jax.devices()[: data * fsdp * tensor])


@functools.partial(jax.jit, static_argnums=0)
def forward(model, params, tokens_bt, segments_bt=None, positions_bt=None):
    return model(params, tokens_bt, segments_bt=segments_bt, positions_bt=positions_bt)


def assert_trees_close(actual, expected, **tolerance):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), err_msg=jax.tree_util.keystr(path), **tolerance)


def assert_trees_equal(actual, expected):
    """Bit for bit."""
    assert_trees_close(actual, expected, rtol=0, atol=0)
