"""Which checkpoints are small enough to test on, and how do they still show every mistake?

Folders as transformers would save them, of random numbers: heads in groups where a family has them, a vocabulary that no mesh divides.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from elastic_jax.hf.tensors import INDEX, SINGLE
from elastic_jax.models.config import ModelConfig
from elastic_jax.models.families import Family, family_of

VOCAB = 37
_SIZES = dict(
    vocab_size=VOCAB,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
)
_HEADS = dict(_SIZES, head_dim=8)
_NEOX = {k: v for k, v in _SIZES.items() if k != "num_key_value_heads"}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": dict(_SIZES, model_type="llama"),
    "llama-tied-biases": dict(_HEADS, model_type="llama", attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "llama31": dict(
        _SIZES,
        model_type="llama",
        rope_theta=500_000.0,
        rope_scaling=dict(
            rope_type="llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=32,
        ),
    ),
    "mistral": dict(_HEADS, model_type="mistral", sliding_window=5),
    "qwen2": dict(_SIZES, model_type="qwen2", use_sliding_window=True, sliding_window=5, max_window_layers=1),
    "qwen3": dict(_HEADS, model_type="qwen3", tie_word_embeddings=True),
    "gemma": dict(_HEADS, model_type="gemma"),
    "gemma2": dict(_HEADS, model_type="gemma2", sliding_window=5, query_pre_attn_scalar=6),
    "gemma3": dict(
        _HEADS,
        model_type="gemma3_text",
        sliding_window=5,
        sliding_window_pattern=3,
        rope_scaling=dict(rope_type="linear", factor=8.0),
    ),
    "neox": dict(_NEOX, model_type="gpt_neox", rotary_pct=0.5),
    "gpt2": dict(vocab_size=VOCAB, n_embd=16, n_layer=3, n_head=4, n_positions=24, model_type="gpt2"),
    "olmo2": dict(_SIZES, model_type="olmo2"),
}


def config(name: str, **changes: Any) -> dict[str, Any]:
    """The config.json of a small model."""
    made = {**CONFIGS[name], **changes}
    return dict(made, architectures=[family_of(made).architecture])


def model(hf_config: Mapping[str, Any], seq_len: int = 16, **fields: Any) -> tuple[Family, ModelConfig]:
    """Its family and our config without padding."""
    family = family_of(hf_config)
    read = family.fields(hf_config)
    return family, ModelConfig(vocab_size=hf_config["vocab_size"], seq_len=seq_len, **read, **fields)


def tensors(hf_config: Mapping[str, Any], dtype: Any = np.float32, seed: int = 0) -> dict[str, np.ndarray]:
    """Random numbers for every tensor."""
    family, ours = model(hf_config)
    rng = np.random.default_rng(seed)
    return {piece.name: rng.standard_normal(piece.shape, np.float32).astype(dtype) for piece in family.pieces(ours)}


def write(
    folder: Path, hf_config: Mapping[str, Any], numbers: Mapping[str, np.ndarray] | None = None, files: int = 1
) -> Path:
    """A folder with config.json and the tensors, in one file or in several with an index."""
    numbers = tensors(hf_config) if numbers is None else numbers
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(hf_config))
    if files == 1:
        save_file(dict(numbers), folder / SINGLE)
        return folder
    weight_map = {}
    for number in range(files):
        file = f"model-{number + 1:05d}-of-{files:05d}.safetensors"
        part = dict(list(numbers.items())[number::files])
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / INDEX).write_text(json.dumps(dict(metadata={}, weight_map=weight_map)))
    return folder


def leaves(params: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Paths and arrays of a tree of parameters."""
    for key, value in params.items():
        yield from leaves(value, (*path, key)) if isinstance(value, Mapping) else [((*path, key), value)]


def at(params: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    for key in path:
        params = params[key]
    return params


BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
