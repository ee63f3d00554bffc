"""Does every family compute what transformers computes, from the same config.json and the same tensors?

Tiny models whose every number is random, norms and biases included: at its initial value a term would hide. Rows are longer than any
window and than the rows of pre-training, and some end in padding.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from elastic_jax.models.attention import rotary
from elastic_jax.models.config import ModelConfig, model_config
from elastic_jax.models.families import family_of
from elastic_jax.models.transformer import Decoder, stack

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

VOCAB, LENGTH, LENGTHS = 61, 40, (40, 23, 9)
SHAPE = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
GROUPED = dict(SHAPE, num_key_value_heads=2)
SHORT = dict(max_position_embeddings=16)  # the rows of pre-training
SCALED = dict(rope_type="llama3", factor=4.0, original_max_position_embeddings=16, low_freq_factor=1.0)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16, beta_fast=4.0, beta_slow=0.25)

# name: (class of the config, its arguments, length of our rows if it is not that of the text)
MODELS = {
    "llama": ("Llama", dict(GROUPED)),
    "llama, biases, a head of another size": (
        "Llama",
        dict(GROUPED, attention_bias=True, mlp_bias=True, head_dim=12, tie_word_embeddings=True, rope_theta=5e5),
    ),
    "llama, linear": ("Llama", dict(GROUPED, rope_scaling=dict(rope_type="linear", factor=3.0))),
    "llama, dynamic": ("Llama", dict(GROUPED, **SHORT, rope_scaling=dict(rope_type="dynamic", factor=2.0))),
    "llama, dynamic and short": (
        "Llama",
        dict(GROUPED, max_position_embeddings=64, rope_scaling=dict(rope_type="dynamic", factor=2.0)),
    ),
    "llama 3": (
        "Llama",
        dict(GROUPED, max_position_embeddings=64, rope_theta=100.0, rope_scaling=dict(SCALED, high_freq_factor=4.0)),
    ),
    "llama, yarn": ("Llama", dict(GROUPED, max_position_embeddings=64, rope_theta=100.0, rope_scaling=YARN)),
    "llama, yarn with its own factor": (
        "Llama",
        dict(GROUPED, max_position_embeddings=64, rope_theta=100.0, rope_scaling=dict(YARN, attention_factor=1.3)),
    ),
    "mistral": ("Mistral", dict(GROUPED, sliding_window=7)),
    "qwen2": ("Qwen2", dict(GROUPED, tie_word_embeddings=True)),
    "qwen2, windows from a layer on": (
        "Qwen2",
        dict(GROUPED, num_hidden_layers=3, use_sliding_window=True, sliding_window=7, max_window_layers=1),
    ),
    "qwen3": ("Qwen3", dict(GROUPED, head_dim=12)),
    "gemma": ("Gemma", dict(GROUPED, num_key_value_heads=1, head_dim=12)),
    "gemma2": (
        "Gemma2",
        dict(
            GROUPED,
            num_hidden_layers=4,
            head_dim=12,
            query_pre_attn_scalar=20,
            sliding_window=7,
            attn_logit_softcapping=1.5,
            final_logit_softcapping=2.0,
        ),
    ),
    "gemma3": (
        "Gemma3Text",
        dict(
            GROUPED,
            num_hidden_layers=4,
            sliding_window_pattern=3,
            head_dim=12,
            query_pre_attn_scalar=20,
            sliding_window=7,
            rope_scaling=dict(rope_type="linear", factor=8.0),
            rope_local_base_freq=100.0,
        ),
    ),
    "neox": ("GPTNeoX", dict(SHAPE, rotary_pct=0.25, hidden_size=64)),
    "neox, one after the other": ("GPTNeoX", dict(SHAPE, rotary_pct=0.5, use_parallel_residual=False)),
    "gpt2": ("GPT2", dict(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
    "gpt2, unscaled": (
        "GPT2",
        dict(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64, n_inner=40, scale_attn_weights=False),
    ),
    "olmo2": ("Olmo2", dict(GROUPED)),
}


def theirs(kind, fields, seed=0):
    """A model of transformers in float32, every parameter random."""
    config = getattr(transformers, f"{kind}Config")(**fields, pad_token_id=0, attn_implementation="eager")
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:  # norms, which stay about as they are, and biases
                parameter.add_(0.3 * noise)
            else:
                embedding = any(part in name for part in ("embed_tokens", "embed_in", "wte", "wpe"))
                parameter.copy_(noise * (0.15 if embedding else parameter.shape[-1] ** -0.5))
    return model


def ours(model, **fields):
    """The same model and its parameters, by the family's table."""
    hf_config = model.config.to_dict()
    family = family_of(hf_config)
    config = ModelConfig(**{"vocab_size": VOCAB, "seq_len": LENGTH, **family.fields(hf_config), **fields})
    decoder = Decoder(config)
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    places = family.locate(state)
    params = _empty(decoder.shapes)
    for piece in family.pieces(config):
        tensor = state[places[piece.name]]
        assert tensor.shape == piece.shape, piece.name
        target = params
        for key in piece.path:
            target = target[key]
        target[piece.region] = piece.to_ours(tensor)
    if config.used_vocab:
        params["embedding"][config.used_vocab :] = 0
    assert all(np.isfinite(leaf).all() for leaf in _leaves(params)), "a parameter that no tensor filled"
    return decoder, params


def _empty(shapes):
    if isinstance(shapes, dict):
        return {key: _empty(value) for key, value in shapes.items()}
    return np.full(shapes.shape, np.nan, shapes.dtype)


def _leaves(tree):
    return [leaf for value in tree.values() for leaf in (_leaves(value) if isinstance(value, dict) else [value])]


def rows():
    tokens = np.random.default_rng(1).integers(1, VOCAB, (len(LENGTHS), LENGTH)).astype(np.int32)
    mask = np.arange(LENGTH)[None] < np.array(LENGTHS)[:, None]
    return np.where(mask, tokens, 0), mask


@pytest.mark.filterwarnings("ignore")  # of transformers, about our tiny configs
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_transformers(name):
    kind, fields = MODELS[name]
    model = theirs(kind, fields)
    tokens, mask = rows()
    with torch.no_grad():
        expected = model(torch.tensor(tokens), attention_mask=torch.tensor(mask, dtype=torch.int64)).logits.numpy()
    decoder, params = ours(model)
    got = np.asarray(tiny.forward(decoder, params, tokens))
    assert 0.3 < expected[mask].std() < 3
    error = np.abs(got - expected)[mask].max()
    assert error < 5e-5


@pytest.mark.filterwarnings("ignore")
def test_layers_that_are_scanned_and_cut_over_devices_are_the_same():
    model = theirs(*MODELS["gemma3"])
    tokens, mask = rows()
    with torch.no_grad():
        expected = model(torch.tensor(tokens), attention_mask=torch.tensor(mask, dtype=torch.int64)).logits.numpy()
    decoder, params = ours(model, vocab_size=64, used_vocab=VOCAB)  # an odd vocabulary does not divide
    scanned = Decoder(dataclasses.replace(decoder.config, layout="scan"))
    mesh = tiny.mesh(1, 4, 2)
    with jax.set_mesh(mesh):
        got = tiny.forward(scanned, jax.device_put(stack(params), scanned.shardings(mesh)), tokens)
    # Both sum in other orders, and norms behind averages over many values magnify it: against float64 both are off by as much.
    assert np.abs(np.asarray(got)[..., :VOCAB] - expected)[mask].max() < 1e-4


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["gemma3", "gpt2", "llama, dynamic", "qwen2, windows from a layer on"])
def test_prompts_that_are_padded_on_the_left_are_the_same(name):
    """All but their last token at once, and that one through the caches."""
    model = theirs(*MODELS[name])
    tokens, mask = rows()
    left = np.stack([np.roll(row, LENGTH - n) for row, n in zip(tokens, LENGTHS, strict=True)])[:, -24:]
    seen = np.stack([np.roll(row, LENGTH - n) for row, n in zip(mask, LENGTHS, strict=True)])[:, -24:]
    positions = np.maximum(np.cumsum(seen, 1) - 1, 0)
    if "dynamic" in name:  # theirs depends on the longest row of the batch: make it as long as ours
        positions[:, :] += LENGTH - 24
    with torch.no_grad():
        expected = model(
            torch.tensor(left),
            attention_mask=torch.tensor(seen, dtype=torch.int64),
            position_ids=torch.tensor(positions),
        ).logits.numpy()
    decoder, params = ours(model)

    @jax.jit
    def last_two(params):
        first = jnp.asarray(seen[:, :-1]).argmax(1)
        hidden, caches = decoder.prefill(params, left[:, :-1], first, 24)
        logits = decoder.logits(params, hidden)[:, -1]
        hidden, _ = decoder.hidden(params, left[:, -1:], caches=caches)
        return jnp.stack([logits, decoder.logits(params, hidden)[:, 0]], 1)

    assert np.abs(np.asarray(last_two(params)) - expected[:, -2:]).max() < 5e-5


# As their config.json have it: Llama 3.1 and 3.2 1B, the YaRN of Qwen2.5's model card, Gemma 3 4B, and a dynamic Llama 2.
PUBLISHED = {
    "llama 3.1": dict(
        head_dim=128,
        rope_theta=500_000.0,
        max_position_embeddings=131_072,
        rope_scaling=dict(
            rope_type="llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=8192,
        ),
    ),
    "llama 3.2": dict(
        head_dim=64,
        rope_theta=500_000.0,
        max_position_embeddings=131_072,
        rope_scaling=dict(
            rope_type="llama3",
            factor=32.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=8192,
        ),
    ),
    "qwen2.5": dict(
        head_dim=128,
        rope_theta=1_000_000.0,
        max_position_embeddings=131_072,
        rope_scaling=dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32_768),
    ),
    "not truncated": dict(
        head_dim=64,
        rope_theta=150_000.0,
        max_position_embeddings=131_072,
        rope_scaling=dict(
            rope_type="yarn",
            factor=32.0,
            original_max_position_embeddings=4096,
            truncate=False,
            beta_fast=20.0,
            beta_slow=2.0,
        ),
    ),
    "gemma 3": dict(head_dim=256, rope_theta=1_000_000.0, rope_scaling=dict(rope_type="linear", factor=8.0)),
    "llama 2": dict(head_dim=128, max_position_embeddings=4096, rope_scaling=dict(rope_type="dynamic", factor=2.0)),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PUBLISHED)
def test_frequencies_are_those_of_transformers(name):
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = transformers.LlamaConfig(**{**GROUPED, **PUBLISHED[name]})
    length = 10_000
    expected, factor = ROPE_INIT_FUNCTIONS[config.rope_scaling["rope_type"]](config, "cpu", seq_len=length)
    hf_config = config.to_dict()
    got = rotary(ModelConfig(vocab_size=VOCAB, seq_len=length, **family_of(hf_config).fields(hf_config)))
    # Theirs are powers in float32.
    np.testing.assert_allclose(got.frequencies, expected.numpy(), rtol=1e-6)
    assert got.factor == pytest.approx(factor)


@pytest.mark.parametrize(("size", "kind"), [("gpt2", "GPT2"), ("gemma-2-2b", "Gemma2")])
def test_a_named_model_is_the_one_that_transformers_makes_by_default(size, kind):
    hf_config = getattr(transformers, f"{kind}Config")().to_dict()
    named = model_config(dict(size=size), vocab_size=1, seq_len=1024)
    fields = family_of(hf_config).fields(hf_config)
    assert ModelConfig(vocab_size=hf_config["vocab_size"], seq_len=1024, used_vocab=1, **fields) == named
