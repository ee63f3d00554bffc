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

MODELS: dict[str, dict[str, Any]] = {
    "llama-2-7b": _llama(32, 4096, 32, 11_008, **_LLAMA_2),
    "llama-2-13b": _llama(40, 5120, 40, 13_824, **_LLAMA_2),
    "llama-3-8b": _llama(32, 4096, 32, 14_336, kv_heads=8, **_LLAMA_3),
    "llama-3-70b": _llama(80, 8192, 64, 28_672, kv_heads=8, **_LLAMA_3),
    "tinyllama-1.1b": _llama(22, 2048, 32, 5632, kv_heads=4, **_LLAMA_2),
    "gemma-2b": dict(
        _llama(18, 2048, 8, 16_384, kv_heads=1),
        vocab_size=256_000,
        norm_offset=1.0,
        activation="gelu_tanh",
        embed_scale=True,
    ),
    "qwen1.5-0.5b": _llama(24, 1024, 16, 2816, **_QWEN),
    "qwen1.5-4b": _llama(40, 2560, 20, 6912, **{**_QWEN, "rope_theta": 5_000_000.0}, **_UNTIED),
    "qwen1.5-7b": _llama(32, 4096, 32, 11_008, **_QWEN, **_UNTIED),
    # Not a released model: the shape of the fastest published single-GPU training run of JAX, to be measured beside it.
    "record-1.3b": _llama(24, 2048, 32, 5632, kv_heads=8, **_UNTIED, vocab_size=128_256),
}

NAMED: dict[str, dict[str, Any]] = {**SIZES, **MODELS}
