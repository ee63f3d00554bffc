"""Which shapes have a name?

Two kinds. A size such as "34m" is a shape only: its vocabulary comes with the data, and its name is roughly the count of non-embedding
weights. A model such as "llama-2-7b" is the published architecture with its vocabulary, as its `config.json` gives it.
"""

from typing import Any


def _llama(layers: int, embed: int, heads: int, mlp: int, kv_heads: int | None = None, **more: Any) -> dict[str, Any]:
    shape = dict(layers=layers, embed=embed, heads=heads, kv_heads=kv_heads or heads, head_dim=embed // heads, mlp=mlp)
    return {**shape, **more}


SIZES: dict[str, dict[str, Any]] = {
    "50k": _llama(2, 48, 4, 128),
    "100k": _llama(2, 64, 4, 176),
    "300k": _llama(3, 96, 4, 256),
    "1m": _llama(4, 144, 4, 384),
    "3m": _llama(6, 192, 6, 512),
    "10m": _llama(8, 320, 5, 864),
    "34m": _llama(8, 512, 8, 1792, kv_heads=4),
    "85m": _llama(12, 768, 12, 2048),
    "300m": _llama(24, 1024, 16, 2816),
    "1b": _llama(22, 2048, 32, 5632, kv_heads=4),
}

_UNTIED: dict[str, Any] = dict(tie_embeddings=False)
_LLAMA_2: dict[str, Any] = dict(_UNTIED, vocab_size=32_000, norm_eps=1e-5)
_LLAMA_3: dict[str, Any] = dict(_UNTIED, vocab_size=128_256, norm_eps=1e-5, rope_theta=500_000.0)
_QWEN: dict[str, Any] = dict(vocab_size=151_936, norm_eps=1e-6, qkv_bias=True, rope_theta=1_000_000.0)
_QWEN_3: dict[str, Any] = dict(vocab_size=151_936, norm_eps=1e-6, qk_norm="head", rope_theta=1_000_000.0)
_LLAMA_3_1: dict[str, Any] = dict(rope_type="llama3", rope_factor=8.0, rope_original_len=8192)
_LLAMA_3_2: dict[str, Any] = {**_LLAMA_3, **_LLAMA_3_1, "rope_factor": 32.0, "tie_embeddings": True}
_GEMMA: dict[str, Any] = dict(norm_offset=1.0, norm_eps=1e-6, activation="gelu_tanh", embed_scale=True)
_LAYER_NORM: dict[str, Any] = dict(
    norm="layer", norm_eps=1e-5, gated=False, qkv_bias=True, out_bias=True, mlp_bias=True
)


def _pythia(layers: int, embed: int, heads: int, vocab_size: int = 50_304) -> dict[str, Any]:
    neox: dict[str, Any] = dict(activation="gelu", parallel_residual=True, rotary_fraction=0.25)
    return _llama(layers, embed, heads, 4 * embed, **_LAYER_NORM, **_UNTIED, **neox, vocab_size=vocab_size)


MODELS: dict[str, dict[str, Any]] = {
    "llama-2-7b": _llama(32, 4096, 32, 11_008, **_LLAMA_2),
    "llama-2-13b": _llama(40, 5120, 40, 13_824, **_LLAMA_2),
    "llama-3-8b": _llama(32, 4096, 32, 14_336, kv_heads=8, **_LLAMA_3),
    "llama-3-70b": _llama(80, 8192, 64, 28_672, kv_heads=8, **_LLAMA_3),
    "tinyllama-1.1b": _llama(22, 2048, 32, 5632, kv_heads=4, **_LLAMA_2),
    "gemma-2b": _llama(18, 2048, 8, 16_384, kv_heads=1, **_GEMMA, vocab_size=256_000),
    "qwen1.5-0.5b": _llama(24, 1024, 16, 2816, **_QWEN),
    "qwen1.5-4b": _llama(40, 2560, 20, 6912, **{**_QWEN, "rope_theta": 5_000_000.0}, **_UNTIED),
    "qwen1.5-7b": _llama(32, 4096, 32, 11_008, **_QWEN, **_UNTIED),
    "llama-3.1-8b": _llama(32, 4096, 32, 14_336, kv_heads=8, **_LLAMA_3, **_LLAMA_3_1),
    "llama-3.2-1b": _llama(16, 2048, 32, 8192, kv_heads=8, **_LLAMA_3_2),
    "llama-3.2-3b": _llama(28, 3072, 24, 8192, kv_heads=8, **_LLAMA_3_2),
    "qwen2.5-0.5b": _llama(24, 896, 14, 4864, kv_heads=2, **_QWEN),
    "qwen2.5-7b": _llama(28, 3584, 28, 18_944, kv_heads=4, **{**_QWEN, "vocab_size": 152_064}, **_UNTIED),
    "qwen3-0.6b": dict(_llama(28, 1024, 16, 3072, kv_heads=8, **_QWEN_3), head_dim=128),
    "qwen3-8b": _llama(36, 4096, 32, 12_288, kv_heads=8, **_QWEN_3, **_UNTIED),
    "mistral-7b-v0.1": _llama(32, 4096, 32, 14_336, kv_heads=8, **_LLAMA_2, window=4096),
    "gemma-2-2b": dict(
        _llama(26, 2304, 8, 9216, kv_heads=4, **_GEMMA, norm_place="both"),
        head_dim=256,
        vocab_size=256_000,
        window=4096,
        global_every=2,
        attention_softcap=50.0,
        logit_softcap=30.0,
    ),
    "gemma-3-1b": dict(
        _llama(26, 1152, 4, 6912, kv_heads=1, **_GEMMA, norm_place="both"),
        head_dim=256,
        vocab_size=262_144,
        qk_norm="head",
        window=512,
        global_every=6,
        rope_theta=1_000_000.0,
        rope_local_theta=10_000.0,
    ),
    "pythia-70m": _pythia(6, 512, 8),
    "pythia-160m": _pythia(12, 768, 12),
    "pythia-410m": _pythia(24, 1024, 16),
    "pythia-1b": _pythia(16, 2048, 8),
    "pythia-1.4b": _pythia(24, 2048, 16),
    "pythia-2.8b": _pythia(32, 2560, 32),
    "pythia-6.9b": _pythia(32, 4096, 32, vocab_size=50_432),
    "gpt2": dict(
        _llama(12, 768, 12, 3072, **_LAYER_NORM),
        vocab_size=50_257,
        positions="learned",
        max_positions=1024,
        activation="gelu_tanh",
    ),
    "olmo-2-7b": _llama(
        32,
        4096,
        32,
        11_008,
        **_UNTIED,
        vocab_size=100_352,
        norm_eps=1e-6,
        rope_theta=500_000.0,
        norm_place="post",
        qk_norm="full",
    ),
    # Not a released model: the shape of the fastest published single-GPU training run of JAX, to be measured beside it.
    "record-1.3b": _llama(24, 2048, 32, 5632, kv_heads=8, **_UNTIED, vocab_size=128_256),
}

NAMED: dict[str, dict[str, Any]] = {**SIZES, **MODELS}
