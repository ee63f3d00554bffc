"""Do the counts of a config match the published models, and does a mistake say its field?"""

import jax
import numpy as np
import pytest
import tiny

from elastic_jax.errors import UserError
from elastic_jax.models.config import SIZES, ModelConfig, model_config
from elastic_jax.models.transformer import Decoder

LLAMA = dict(seq_len=4096, tie_embeddings=False)
PUBLISHED = {
    # name: (config, parameters, weights in matrix products)
    "Llama-2-7B": (
        dict(LLAMA, layers=32, embed=4096, heads=32, kv_heads=32, head_dim=128, mlp=11008, vocab_size=32000),
        6_738_415_616,
        6_738_415_616 - 32000 * 4096 - 65 * 4096,  # without the look-up and the norms
    ),
    "Llama-2-70B": (
        dict(LLAMA, layers=80, embed=8192, heads=64, kv_heads=8, head_dim=128, mlp=28672, vocab_size=32000),
        68_976_648_192,
        68_976_648_192 - 32000 * 8192 - 161 * 8192,
    ),
    "TinyLlama-1.1B": (
        dict(LLAMA, layers=22, embed=2048, heads=32, kv_heads=4, head_dim=64, mlp=5632, vocab_size=32000),
        1_100_048_384,
        1_100_048_384 - 32000 * 2048 - 45 * 2048,
    ),
    "Qwen2.5-0.5B": (
        dict(
            layers=24,
            embed=896,
            heads=14,
            kv_heads=2,
            head_dim=64,
            mlp=4864,
            vocab_size=151936,
            seq_len=4096,
            qkv_bias=True,
        ),
        494_032_768,
        494_032_768 - 49 * 896 - 24 * (14 + 2 + 2) * 64,  # tied: the head counts, and it is the look-up
    ),
    "Gemma-2B": (
        dict(
            layers=18,
            embed=2048,
            heads=8,
            kv_heads=1,
            head_dim=256,
            mlp=16384,
            vocab_size=256000,
            seq_len=4096,
            norm_offset=1.0,
            activation="gelu_tanh",
            embed_scale=True,
        ),
        2_506_172_416,
        2_506_172_416 - 37 * 2048,
    ),
    "Pythia-70M": (
        dict(
            tiny.FAMILIES["neox"],
            layers=6,
            embed=512,
            heads=8,
            kv_heads=8,
            head_dim=64,
            mlp=2048,
            vocab_size=50304,
            seq_len=2048,
        ),
        70_426_624,
        6 * 12 * 512**2 + 50304 * 512,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_are_those_of_the_published_model(name):
    fields, parameters, matmul = PUBLISHED[name]
    for layout in ("unroll", "scan"):
        model = Decoder(ModelConfig(**fields, layout=layout))
        assert model.size == parameters
        assert model.config.matmul_params == matmul


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_matmul_params_are_the_weights_of_products(family):
    model = tiny.decoder(family)
    products = {"qkv", "out", "up", "down"}
    counted = sum(
        leaf.size for path, leaf in jax.tree_util.tree_leaves_with_path(model.shapes) if path[-1].key in products
    )
    assert model.config.matmul_params == counted + tiny.VOCAB * 16


@pytest.mark.parametrize(("length", "window"), [(256, 0), (256, 64), (256, 1000), (256, 256)])
def test_flops_count_the_pairs_that_attend(length, window):
    config = tiny.decoder("llama", window=window).config
    t, s = np.indices((length, length))
    pairs = np.sum((s <= t) & (t - s < (window or length)))
    # Forward two products of 2 FLOPs per pair and channel, backward twice that.
    attention = 12 * config.layers * config.heads * config.head_dim * pairs / length
    got = config.flops_per_token(length) - 6 * config.matmul_params
    assert got == pytest.approx(attention, rel=2 / min(length, window or length))


@pytest.mark.parametrize("size", SIZES)
def test_a_named_size_is_about_what_its_name_says(size):
    model = Decoder(model_config(dict(size=size), vocab_size=128, seq_len=32))
    count = float(size[:-1]) * dict(k=1e3, m=1e6, b=1e9)[size[-1]]
    assert model.size - 128 * model.config.embed == pytest.approx(count, rel=0.25)
    assert model.config.group * model.config.kv_heads == model.config.heads


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(heads=4, kv_heads=3), r"model\.heads=4.*model\.kv_heads=3.*Use kv_heads=[24]"),
        (dict(embed=0), r"model\.embed=0"),
        (dict(mlp=2.5), r"model\.mlp=2\.5"),
        (dict(layers=-1), r"model\.layers=-1"),
        (dict(head_dim=7), r"model\.head_dim=7"),
        (dict(rotary_fraction=0.4), r"rotary_fraction=0\.4.*even"),
        (dict(rotary_fraction=1.5), r"model\.rotary_fraction=1\.5"),
        (dict(window=-4), r"model\.window=-4"),
        (dict(logit_softcap=-1.0), r"model\.logit_softcap=-1"),
        (dict(norm="batch"), r"model\.norm='batch'.*rms, layer"),
        (dict(dtype="float16"), r"model\.dtype='float16'.*float32, bfloat16"),
        (dict(remat="most"), r"model\.remat='most'.*none, .*dots, .*full"),
    ],
)
def test_a_wrong_value_names_its_field(fields, message):
    with pytest.raises(UserError, match=message):
        tiny.decoder("llama", **fields)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (dict(size="1m", head=4), r"model\.head: no such field\. Closest: .*heads"),
        (dict(size="2m"), r"model\.size='2m'.*1m"),
        (dict(layers=2, embed=16), "heads, kv_heads, mlp"),
        (dict(size="1m", vocab_size=5), r"model\.vocab_size"),
    ],
)
def test_a_wrong_section_says_what_exists(section, message):
    with pytest.raises(UserError, match=message):
        model_config(section, vocab_size=40, seq_len=12)


def test_fields_win_over_the_named_size_and_none_leaves_it():
    config = model_config(dict(size="1m", layers=2, mlp=None, norm="layer"), vocab_size=40, seq_len=12)
    assert (config.layers, config.mlp, config.embed, config.norm) == (2, SIZES["1m"]["mlp"], 144, "layer")
