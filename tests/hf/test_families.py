"""Is every tensor of every family one part of one parameter, and does every key of a config.json count or get refused?"""

import dataclasses
import json
import re

import hf_checkpoints
import numpy as np
import pytest
from hf_checkpoints import BFLOAT16, CONFIGS

from elastic_jax.errors import UserError
from elastic_jax.models.config import ModelConfig
from elastic_jax.models.families import EXECUTION, FAMILIES, family_for, family_of
from elastic_jax.models.transformer import Decoder

EVERY = pytest.mark.parametrize("name", CONFIGS)


@EVERY
@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16], ids=["float32", "bfloat16"])
def test_there_and_back_every_number_once(name, dtype):
    hf_config = hf_checkpoints.config(name)
    family, c = hf_checkpoints.model(hf_config)
    numbers = hf_checkpoints.tensors(hf_config, dtype)
    params = {path: np.zeros(leaf.shape, dtype) for path, leaf in hf_checkpoints.leaves(Decoder(c).shapes)}
    written = {path: np.zeros(leaf.shape, int) for path, leaf in params.items()}
    for piece in family.pieces(c):
        params[piece.path][piece.region] = piece.to_ours(numbers[piece.name])
        written[piece.path][piece.region] += 1
    assert all((counts == 1).all() for counts in written.values())
    for piece in family.pieces(c):
        back = piece.from_ours(params[piece.path])
        assert back.shape == piece.shape and back.tobytes() == numbers[piece.name].tobytes()


@EVERY
def test_a_padded_table_keeps_its_padding_inside(name):
    hf_config = hf_checkpoints.config(name)
    family, c = hf_checkpoints.model(hf_config)
    padded = dataclasses.replace(c, vocab_size=64, used_vocab=c.vocab_size)
    assert [piece.shape for piece in family.pieces(padded)] == [piece.shape for piece in family.pieces(c)]
    assert family.hf_config(padded) == family.hf_config(c)


@EVERY
def test_the_config_there_and_back(name):
    hf_config = hf_checkpoints.config(name)
    family, c = hf_checkpoints.model(hf_config)
    written = json.loads(json.dumps(family.hf_config(c, length=64)))
    again, back = hf_checkpoints.model(written)
    assert again is family and back == c
    assert {key: written[key] for key in hf_config if key in written and key != "layer_types"} == {
        key: value for key, value in hf_config.items() if key in written
    }


@EVERY
def test_a_body_without_its_head(name):
    family, c = hf_checkpoints.model(hf_checkpoints.config(name))
    whole, body = ({piece.name for piece in family.pieces(c, head=head)} for head in (True, False))
    assert {piece for piece in whole - body} == (set() if c.tie_embeddings else {p for p in whole if family.is_head(p)})
    assert len(whole - body) == (not c.tie_embeddings)


def test_every_family_has_a_checkpoint_here():
    assert {hf_config["model_type"] for hf_config in CONFIGS.values()} == set(FAMILIES)


def test_heads_are_where_their_family_has_them():
    """What each head computes, from the definition of each format."""
    x = np.random.default_rng(0).standard_normal(16).astype(np.float32)
    for name, split in {"llama": _llama_heads, "neox": _neox_heads, "gpt2": _gpt2_heads}.items():
        hf_config = hf_checkpoints.config(name)
        family, c = hf_checkpoints.model(hf_config)
        numbers = hf_checkpoints.tensors(hf_config)
        qkv = np.zeros((c.embed, c.kv_heads, c.group + 2, c.head_dim), np.float32)
        for piece in family.pieces(c):
            if piece.path == ("layers", "1", "attention", "qkv"):
                qkv[piece.region] = piece.to_ours(numbers[piece.name])
        ours = np.einsum("d,dkgh->kgh", x, qkv)
        queries, keys, values = split(numbers, x, c)
        np.testing.assert_allclose(ours[:, : c.group].reshape(c.heads, -1), queries, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(ours[:, c.group], keys, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(ours[:, c.group + 1], values, rtol=1e-5, atol=1e-5)


def _llama_heads(numbers, x, c):
    return [(numbers[f"model.layers.1.self_attn.{part}_proj.weight"] @ x).reshape(-1, c.head_dim) for part in "qkv"]


def _neox_heads(numbers, x, c):
    fused = (numbers["gpt_neox.layers.1.attention.query_key_value.weight"] @ x).reshape(c.heads, 3 * c.head_dim)
    return np.split(fused, 3, axis=1)


def _gpt2_heads(numbers, x, c):
    fused = x @ numbers["transformer.h.1.attn.c_attn.weight"]
    return [part.reshape(c.heads, c.head_dim) for part in np.split(fused, 3)]


# --- what is filled in, and what is refused


def fields(name, **changes):
    hf_config = hf_checkpoints.config(name, **changes)
    return family_of(hf_config).fields(hf_config)


@pytest.mark.parametrize(
    "name, changes, wanted",
    [
        ("llama", dict(num_key_value_heads=None), dict(kv_heads=4, head_dim=4)),
        ("llama", dict(head_dim=6), dict(head_dim=6)),
        ("llama", dict(rope_scaling=dict(type="linear", factor=2)), dict(rope_type="linear", rope_factor=2)),
        ("llama", dict(rope_scaling=dict(rope_type="linear", factor=1.0)), dict(rope_type="plain")),
        ("llama", dict(rope_scaling=dict(type="dynamic", factor=2.0)), dict(rope_type="dynamic", rope_original_len=64)),
        (
            "llama",
            dict(rope_scaling=dict(rope_type="yarn", factor=4.0, beta_fast=16, mscale=0.707, mscale_all_dim=1.0)),
            dict(rope_original_len=64, rope_beta_fast=16, rope_attention_factor=pytest.approx(0.964327, abs=1e-6)),
        ),
        (
            "llama",
            dict(rope_parameters=dict(rope_type="linear", factor=2.0, rope_theta=5.0)),
            dict(rope_theta=5.0, rope_factor=2.0),
        ),
        ("mistral", dict(sliding_window=None), dict(window=0)),
        ("qwen2", dict(use_sliding_window=False), dict(window=0, window_from=0)),
        ("qwen2", {}, dict(window=5, window_from=1, qkv_bias=True, out_bias=False)),
        ("qwen2", dict(max_window_layers=3), dict(window=0, window_from=0)),
        ("qwen2", dict(layer_types=["full_attention", "full_attention", "sliding_attention"]), dict(global_every=0, window_from=2)),
        ("gemma2", {}, dict(window=5, global_every=2, attention_scale=6**-0.5, attention_softcap=50.0, logit_softcap=30.0)),
        ("gemma2", dict(query_pre_attn_scalar=8), dict(attention_scale=0.0)),
        ("gemma2", dict(final_logit_softcapping=None), dict(logit_softcap=0.0)),
        ("gemma3", {}, dict(global_every=3, rope_local_theta=10_000.0, rope_theta=1e6, rope_type="linear")),
        ("gemma3", dict(sliding_window_pattern=6), dict(global_every=0, rope_theta=10_000.0, rope_type="plain")),
        (
            "gemma3",
            dict(
                rope_scaling=None,
                rope_parameters=dict(
                    full_attention=dict(rope_type="default", rope_theta=7.0),
                    sliding_attention=dict(rope_type="default", rope_theta=3.0),
                ),
            ),
            dict(rope_theta=7.0, rope_local_theta=3.0, rope_type="plain"),
        ),
        ("neox", {}, dict(rotary_fraction=0.5, parallel_residual=True, norm_eps=1e-5, qkv_bias=True)),
        ("neox", dict(attention_bias=False), dict(qkv_bias=False, out_bias=False, mlp_bias=True)),
        ("gpt2", {}, dict(mlp=64, max_positions=24, activation="gelu_tanh", tie_embeddings=True)),
        ("gpt2", dict(n_inner=20, scale_attn_weights=False), dict(mlp=20, attention_scale=1.0)),
    ],
)  # fmt: skip
def test_what_a_key_means(name, changes, wanted):
    read = fields(name, **changes)
    c = ModelConfig(vocab_size=37, seq_len=16, **read)
    assert {field: getattr(c, field) for field in wanted} == wanted


@pytest.mark.parametrize(
    "name, changes, words",
    [
        ("llama", dict(rope_scaling=dict(rope_type="longrope", factor=2.0)), "'longrope', which is not supported. Supported: default, linear, dynamic, llama3, yarn"),
        ("llama", dict(rope_scaling=dict(rope_type="llama3", factor=8.0)), "original_max_position_embeddings=None: expected a number"),
        ("llama", dict(hidden_act="relu"), "hidden_act='relu': no such activation here. Supported: silu, swish, gelu"),
        ("llama", dict(partial_rotary_factor=0.5), "partial_rotary_factor=0.5: this family is supported with 1.0 only"),
        ("llama", dict(quantization_config=dict(quant_method="gptq")), "quantization_config=.*gptq.*supported with null"),
        ("llama", dict(hidden_size="big"), "hidden_size='big': expected a whole number"),
        ("llama", dict(tie_word_embeddings=None), "tie_word_embeddings=None: expected true or false"),
        ("llama", dict(hidden_size=18), "hidden size 18 is not a multiple of 4 attention heads"),
        ("gemma2", dict(layer_types=["full_attention", "sliding_attention", "full_attention"]), "layer_types=.*every n-th layer"),
        ("gemma2", dict(layer_types=["full_attention"]), "layer_types=.*expected 3 times"),
        ("gemma3", dict(attn_logit_softcapping=50.0), "attn_logit_softcapping=50.0: Gemma 3 is supported with null"),
        ("gemma3", dict(use_bidirectional_attention=True), "use_bidirectional_attention=True"),
        ("gpt2", dict(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx=True: GPT-2 is supported with false"),
    ],
)  # fmt: skip
def test_what_changes_the_numbers_and_is_not_known_is_refused(name, changes, words):
    with pytest.raises(UserError, match="config.json: ") as raised:
        fields(name, **changes)
    assert re.search(words, str(raised.value)), raised.value


@EVERY
def test_no_value_of_any_key_ends_in_a_traceback(name):
    hf_config = hf_checkpoints.config(name)
    family = family_of(hf_config)
    keys = {*family.defaults, *hf_config, "rope_parameters", "sliding_window_pattern", "text_config"}
    scaling = [
        dict(rope_type=kind, factor=factor) for kind in ("linear", "dynamic", "yarn", []) for factor in (0, "x", 2)
    ]
    for key in keys:
        for value in (None, "x", -1, 0, 2.5, float("nan"), True, [], ["x"], {}, {"full_attention": 3}, *scaling):
            changed = {**hf_config, key: value}
            try:
                ModelConfig(
                    vocab_size=family_of(changed).vocabulary(changed), seq_len=8, **family_of(changed).fields(changed)
                )
            except UserError:
                continue


def test_unknown_architectures_are_told_what_is_known():
    with pytest.raises(
        UserError, match="model_type='mamba'.*not supported. Supported: LlamaForCausalLM, .*Olmo2ForCausalLM"
    ):
        family_of(dict(model_type="mamba", architectures=["MambaForCausalLM"]))
    with pytest.raises(UserError, match="not supported"):
        family_of({})
    assert family_of(dict(architectures=["GPTNeoXForCausalLM"])).title == "GPT-NeoX"


def test_a_classifier_is_a_body_and_no_language_model():
    config = dict(hf_checkpoints.CONFIGS["llama"], architectures=["LlamaForSequenceClassification"])
    with pytest.raises(UserError, match="LlamaForSequenceClassification.* is not a language model"):
        family_of(config)
    assert family_of(config, head=False).title == "Llama"


def test_the_text_of_a_model_of_several_modalities():
    text = {k: v for k, v in hf_checkpoints.CONFIGS["gemma3"].items() if k != "vocab_size"}
    config = dict(model_type="gemma3", architectures=["Gemma3ForConditionalGeneration"], text_config=text)
    family = family_of(config)
    assert family.fields(config) == fields("gemma3")
    assert family.vocabulary(config) == 262_208  # what transformers fills in
    for prefix in ("language_model.model.", "model.language_model."):
        names = [f"{prefix}layers.0.mlp.up_proj.weight", "vision_tower.x.weight", "multi_modal_projector.y"]
        assert family.locate(names) == {"model.layers.0.mlp.up_proj.weight": names[0]}


def test_names_without_the_prefix_and_buffers():
    gpt2 = FAMILIES["gpt2"]
    names = ["wte.weight", "h.0.attn.bias", "h.0.attn.masked_bias", "h.0.attn.c_attn.bias", "lm_head.weight"]
    assert gpt2.locate(names) == {
        "transformer.wte.weight": "wte.weight",
        "transformer.h.0.attn.c_attn.bias": "h.0.attn.c_attn.bias",
        "lm_head.weight": "lm_head.weight",
    }
    neox = FAMILIES["gpt_neox"]
    prefix = "gpt_neox.layers.0.attention."
    names = [f"{prefix}{end}" for end in ("bias", "masked_bias", "rotary_emb.inv_freq", "dense.bias")]
    assert list(neox.locate(names)) == [f"{prefix}dense.bias"]


# --- writing


@EVERY
def test_the_family_of_a_model_of_ours(name):
    family, c = hf_checkpoints.model(hf_checkpoints.config(name))
    found = family_for(c)
    found_back = found.fields(found.hf_config(c))
    assert all(getattr(ModelConfig(vocab_size=37, seq_len=1, **found_back), f.name) == getattr(c, f.name)
               for f in dataclasses.fields(c) if f.name not in EXECUTION)  # fmt: skip
    assert found is family or name == "mistral"


def test_what_a_format_cannot_express_is_named():
    _, c = hf_checkpoints.model(hf_checkpoints.config("llama"))
    with pytest.raises(UserError, match=r"Llama .* cannot express model.window=4 \(it has 0\). Mistral can"):
        FAMILIES["llama"].hf_config(dataclasses.replace(c, window=4))
    odd = dataclasses.replace(c, logit_softcap=3.0, parallel_residual=True)
    with pytest.raises(UserError, match="model.logit_softcap=3.0.*None of the supported families can"):
        family_for(odd)
    with pytest.raises(
        UserError, match="has no tensor for layers.{}.attention.k_norm.scale, layers.{}.attention.q_norm"
    ):
        FAMILIES["gpt2"].pieces(dataclasses.replace(c, qk_norm="head"))


def test_the_longest_row_is_written():
    family, c = hf_checkpoints.model(hf_checkpoints.config("llama"))
    assert family.hf_config(c)["max_position_embeddings"] == 16
    assert family.hf_config(c, length=99)["max_position_embeddings"] == 99


# --- beside transformers


def reference_config(name):
    transformers = pytest.importorskip("transformers")
    hf_config = hf_checkpoints.config(name)
    kind = {k: v for k, v in hf_config.items() if k not in ("model_type", "architectures")}
    return transformers.AutoConfig.for_model(hf_config["model_type"], **kind)


@pytest.mark.parity
@EVERY
def test_tensors_are_those_of_transformers(name):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    with torch.device("meta"):
        reference = transformers.AutoModelForCausalLM.from_config(reference_config(name))
    family, c = hf_checkpoints.model(hf_checkpoints.config(name))
    theirs = {
        n: tuple(t.shape) for n, t in reference.state_dict().items() if not (c.tie_embeddings and family.is_head(n))
    }
    assert {piece.name: piece.shape for piece in family.pieces(c)} == theirs
    assert type(reference).__name__ == family.architecture


@pytest.mark.parity
@EVERY
def test_a_config_that_transformers_saved_means_the_same(name):
    saved = json.loads(reference_config(name).to_json_string())
    assert family_of(saved).fields(saved) == fields(name)


@pytest.mark.parity
@EVERY
def test_a_config_of_ours_is_theirs(name):
    transformers = pytest.importorskip("transformers")
    family, c = hf_checkpoints.model(hf_checkpoints.config(name))
    written = family.hf_config(c, length=64)
    opened = transformers.AutoConfig.for_model(**json.loads(json.dumps(written)))
    theirs, wanted = opened.to_dict(), reference_config(name).to_dict()
    differ = {k for k in theirs.keys() | wanted.keys() if theirs.get(k) != wanted.get(k)}
    assert differ <= {"architectures", "torch_dtype", "dtype", "_sliding_window_pattern", "sliding_window_pattern", "n_inner", "head_dim", "query_pre_attn_scalar", "max_window_layers"}, {
        k: (theirs.get(k), wanted.get(k)) for k in differ
    }  # fmt: skip


@pytest.mark.parity
@pytest.mark.parametrize("model_type", FAMILIES)
def test_defaults_are_those_of_transformers(model_type):
    transformers = pytest.importorskip("transformers")
    reference = transformers.AutoConfig.for_model(model_type)
    given = reference.to_dict()
    for key, value in FAMILIES[model_type].defaults.items():
        if key not in given:  # a key that the class does not know, but honours
            assert value is None, key
        # These follow from others, in transformers when the class is made and here when it is read.
        elif key not in ("head_dim", "layer_types", "num_key_value_heads", "sliding_window") or value is not None:
            assert given[key] == value or (key == "sliding_window" and given[key] is None), key
