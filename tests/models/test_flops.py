"""Are parameters and FLOPs the published ones, and the ones that the program really has?"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.extend.core import jaxprs_in_params

from elastic_jax.errors import UserError
from elastic_jax.models import flops
from elastic_jax.models.config import ModelConfig, model_config
from elastic_jax.models.remat import POLICIES
from elastic_jax.models.sizes import MODELS, SIZES
from elastic_jax.models.transformer import Decoder

# Parameters as the safetensors headers on the Hugging Face Hub state them ("Model size", exact in the API), by repository.
PARAMETERS = {
    "llama-2-7b": 6_738_415_616,  # meta-llama/Llama-2-7b-hf
    "llama-2-13b": 13_015_864_320,  # meta-llama/Llama-2-13b-hf
    "llama-3-8b": 8_030_261_248,  # meta-llama/Meta-Llama-3-8B
    "llama-3-70b": 70_553_706_496,  # meta-llama/Meta-Llama-3-70B
    "tinyllama-1.1b": 1_100_048_384,  # TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T
    "gemma-2b": 2_506_172_416,  # google/gemma-2b
    "qwen1.5-0.5b": 463_987_712,  # Qwen/Qwen1.5-0.5B
    "qwen1.5-4b": 3_950_369_280,  # Qwen/Qwen1.5-4B
    "qwen1.5-7b": 7_721_324_544,  # Qwen/Qwen1.5-7B
    "llama-3.1-8b": 8_030_261_248,  # meta-llama/Llama-3.1-8B
    "llama-3.2-1b": 1_235_814_400,  # meta-llama/Llama-3.2-1B
    "llama-3.2-3b": 3_212_749_824,  # meta-llama/Llama-3.2-3B
    "qwen2.5-0.5b": 494_032_768,  # Qwen/Qwen2.5-0.5B
    "qwen2.5-7b": 7_615_616_512,  # Qwen/Qwen2.5-7B
    "qwen3-0.6b": 596_049_920,  # Qwen/Qwen3-0.6B, whose file holds the tied head a second time
    "qwen3-8b": 8_190_735_360,  # Qwen/Qwen3-8B
    "mistral-7b-v0.1": 7_241_732_096,  # mistralai/Mistral-7B-v0.1
    "gemma-2-2b": 2_614_341_888,  # google/gemma-2-2b
    "gemma-3-1b": 999_885_952,  # google/gemma-3-1b-pt
    # The model cards of EleutherAI/pythia-70m to -6.9b, "Total params".
    "pythia-70m": 70_426_624,
    "pythia-160m": 162_322_944,
    "pythia-410m": 405_334_016,
    "pythia-1b": 1_011_781_632,
    "pythia-1.4b": 1_414_647_808,
    "pythia-2.8b": 2_775_208_960,
    "pythia-6.9b": 6_857_302_016,
    "gpt2": 124_439_808,  # openai-community/gpt2
    "olmo-2-7b": 7_298_617_344,  # allenai/OLMo-2-1124-7B
}

# Shapes that have no name here: Qwen3 (Qwen/Qwen3-1.7B, -4B).
QWEN_3 = dict(vocab_size=151_936, seq_len=4096, tie_embeddings=True, qk_norm="head")
SHAPES = {
    "qwen3-1.7b": ModelConfig(**QWEN_3, layers=28, embed=2048, heads=16, kv_heads=8, head_dim=128, mlp=6144),
    "qwen3-4b": ModelConfig(**QWEN_3, layers=36, embed=2560, heads=32, kv_heads=8, head_dim=128, mlp=9728),
}

# Tokens per second and device at 55 % causal MFU: H100 or H200 (989 TFLOP/s) at T = 2048, 4096, 8192, and TPU v5p (459) at 4096.
# Computed by hand from 6 N + 6 L T H h, to the digits given; independent of the code under test.
RATES = {
    "tinyllama-1.1b": (80.5e3, 74.4e3, 64.6e3, 34.5e3),
    "llama-3.2-1b": (69.6e3, 66.2e3, 60.3e3, 30.7e3),
    "qwen3-1.7b": (49.3e3, 46.4e3, 41.4e3, 21.5e3),
    "llama-3.2-3b": (26.8e3, 25.4e3, 23.1e3, 11.8e3),
    "qwen3-4b": (21.0e3, 19.6e3, 17.3e3, 9.1e3),
    "llama-2-7b": (13.2e3, 12.7e3, 11.8e3, 5890),
    "llama-3-8b": (11.7e3, 11.3e3, 10.6e3, 5232),
}


def named(name):
    return SHAPES[name] if name in SHAPES else model_config(dict(size=name), vocab_size=1, seq_len=1024)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_those_of_the_published_model(name):
    config = named(name)
    assert flops.parameters(config) == PARAMETERS[name]
    assert config.vocab_size == MODELS[name]["vocab_size"]


@pytest.mark.parametrize("name", [*SIZES, *MODELS])
def test_the_closed_form_is_what_the_model_has(name):
    config = model_config(dict(size=name, layout="scan"), vocab_size=128, seq_len=64) if name in SIZES else named(name)
    assert flops.parameters(config) == Decoder(config).size


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_norms_and_biases_are_counted(family):
    model = tiny.decoder(family)
    assert flops.parameters(model.config) == model.size


@pytest.mark.parametrize("name", RATES)
def test_rates_at_55_percent_are_the_tabulated_ones(name):
    config = named(name)
    for (length, peak), expected in zip(
        ((2048, 989e12), (4096, 989e12), (8192, 989e12), (4096, 459e12)), RATES[name], strict=True
    ):
        rate = 0.55 * peak / flops.training_flops(config, length)
        assert rate == pytest.approx(expected, rel=5e-3)
        assert flops.utilisation(rate, flops.training_flops(config, length), peak) == pytest.approx(0.55)


def test_published_utilisation_is_reproduced_in_both_conventions():
    # jla 0.1.0, package metadata on PyPI: 60,178 tokens/s on one H100; 56.4 % causal and 63.8 % non-causal.
    record = named("record-1.3b")
    rates = [flops.utilisation(60_178, flops.training_flops(record, 4096, causal=c), 989e12) for c in (True, False)]
    assert rates == pytest.approx([0.564, 0.638], abs=5e-4)
    # MaxText, configs/gpu/a3/llama_2_7b/README.md: 492 TFLOP/s per H100 with full attention; that is 10,676 tokens/s.
    seven = flops.training_flops(named("llama-2-7b"), 4096, causal=False)
    assert 492e12 / seven == pytest.approx(10_676, rel=2e-3)
    # PaLM 540B, arXiv 2204.02311 table 3: 238.3K tokens/s on 6144 TPU v4, 45.7 % without attention, 46.2 % with it. 118 layers,
    # 48 heads of 256 (table 1); its block is not ours, so that N enters by the paper's own count.
    palm = 6 * 540.35e9 + 12 * 118 * 48 * 256 * 2048
    assert flops.utilisation(238.3e3, palm, 6144 * 275e12) == pytest.approx(0.462, abs=1.5e-3)
    block = ModelConfig(
        vocab_size=256_000, seq_len=2048, layers=118, embed=18_432, heads=48, kv_heads=1, head_dim=256, mlp=4 * 18_432
    )
    assert 3 * flops.attention_flops(block, 2048, causal=False) == 12 * 118 * 48 * 256 * 2048


def test_a_forward_pass_is_a_third_of_training():
    config = named("llama-3-8b")
    for causal in (True, False):
        assert 3 * flops.forward_flops(config, 8192, causal=causal) == flops.training_flops(config, 8192, causal=causal)
    # A token of a dense model without attention costs two FLOPs per weight: the rule of thumb, 2 N.
    assert flops.forward_flops(config, 1, causal=False) == pytest.approx(2 * flops.matmul_params(config), rel=1e-4)


def test_grouped_heads_save_projections_and_no_products():
    many, few = (tiny.decoder("llama", heads=8, kv_heads=k).config for k in (8, 1))
    assert flops.attention_flops(many, 64) == flops.attention_flops(few, 64)
    saved = 2 * 7 * 8 * 16  # keys and values of 7 heads of 8 dims, width 16
    assert flops.matmul_params(many) - flops.matmul_params(few) == many.layers * saved


@pytest.mark.parametrize("window", [0, 8, 100, 64])
def test_keys_are_counted_pair_by_pair(window):
    config, length = tiny.decoder("llama", window=window).config, 64
    t, s = np.indices((length, length))
    pairs = np.sum((s <= t) & (t - s < (window or length)))
    assert flops.attended_keys(config, length) == pytest.approx(pairs / length, abs=0.5)
    assert flops.attended_keys(config, length, causal=False) == min(window or length, length)


def _product_flops(jaxpr):
    """FLOPs of every dot_general, inner jaxprs included; a scan's as often as it runs. Not of the copies of `rotary._written`."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.params.get("name") == "_written":
            continue
        if equation.primitive.name == "dot_general":
            (left, _), (batch, _) = equation.params["dimension_numbers"]
            a, b = (v.aval.shape for v in equation.invars)
            contracted = np.prod([a[i] for i in left], dtype=int)
            shared = np.prod([a[i] for i in batch], dtype=int)
            total += 2 * np.prod(a, dtype=int) * np.prod(b, dtype=int) // (contracted * shared)
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for inner in jaxprs_in_params(equation.params):
            total += times * _product_flops(inner)
    return total


def _traced(config, grad):
    """FLOPs per token that the program of one row of `seq_len` tokens has."""
    model = Decoder(config)
    tokens = jnp.zeros((1, config.seq_len), jnp.int32)

    def loss(params):
        logits = model(params, tokens)
        return jnp.sum(jax.nn.log_softmax(logits)[..., 0])

    traced = jax.make_jaxpr(jax.grad(loss) if grad else loss)(model.shapes)
    return _product_flops(traced.jaxpr) / config.seq_len


@pytest.mark.parametrize("layout", ["unroll", "scan"])
@pytest.mark.parametrize("family", ["llama", "neox"])
def test_the_program_has_as_many_flops_as_are_counted(family, layout):
    config = tiny.decoder(family, layout=layout).config
    t = config.seq_len
    assert _traced(config, grad=False) == flops.forward_flops(config, t, causal=False)
    for remat in ("none", *POLICIES):
        executed = tiny.decoder(family, layout=layout, remat=remat).config
        # The gradient of the first layer's input would be of no use but for the embedding: all three thirds are there.
        assert _traced(executed, grad=True) == flops.executed_flops(executed, t, causal=False), remat


def test_a_policy_that_is_not_counted_is_refused():
    config = tiny.decoder("llama").config
    object.__setattr__(config, "remat", "half")
    with pytest.raises(UserError, match=r"model\.remat='half'.*not counted"):
        flops.executed_flops(config, 64)
