"""Which transformer is it? Architecture switches, named sizes, and the numbers that follow from them."""

import dataclasses
from typing import Any, Literal

from elastic_jax.errors import UserError, closest


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer.

    The defaults are Llama's block (RMSNorm, rotary, SwiGLU, no biases). The switches cover Qwen (`qkv_bias`, `qk_norm`),
    Gemma (`norm_offset`, `embed_scale`, `activation="gelu_tanh"`, soft-caps) and NeoX (`norm="layer"`,
    `parallel_residual`, `rotary_fraction`, biases, `gated=False`).
    """

    vocab_size: int
    seq_len: int
    layers: int
    embed: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-6
    norm_offset: float = 0.0  # Gemma stores the scale minus one: it is applied as offset + scale
    activation: Literal["silu", "gelu", "gelu_tanh"] = "silu"
    gated: bool = True
    rope_theta: float = 10_000.0
    rotary_fraction: float = 1.0
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    parallel_residual: bool = False
    tie_embeddings: bool = True
    embed_scale: bool = False
    window: int = 0  # keys further back than this are not attended; 0 attends to all
    attention_softcap: float = 0.0
    logit_softcap: float = 0.0
    init_std: float = 0.02
    dtype: Literal["float32", "bfloat16"] = "float32"  # of activations and of the matmuls
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    layout: Literal["unroll", "scan"] = "unroll"
    remat: Literal["none", "dots", "full"] = "none"

    def __post_init__(self):
        for name in ("vocab_size", "seq_len", "layers", "embed", "heads", "kv_heads", "head_dim", "mlp"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < (0 if name == "layers" else 1):
                raise UserError(f"model.{name}={value!r}: expected a positive whole number.")
        for name in ("norm_eps", "rope_theta", "window", "attention_softcap", "logit_softcap", "init_std"):
            if not getattr(self, name) >= 0:
                raise UserError(f"model.{name}={getattr(self, name)!r}: expected zero or a positive number.")
        if not 0 <= self.rotary_fraction <= 1:
            raise UserError(f"model.rotary_fraction={self.rotary_fraction!r}: expected 0 <= rotary_fraction <= 1.")
        if self.heads % self.kv_heads:
            raise UserError(
                f"model.heads={self.heads} is not a multiple of model.kv_heads={self.kv_heads}: every key head serves the "
                f"same number of query heads. Use kv_heads={_divisor(self.heads, self.kv_heads)}."
            )
        if self.rotary_dims % 2:
            raise UserError(
                f"model.head_dim={self.head_dim} x rotary_fraction={self.rotary_fraction} gives {self.rotary_dims} rotary "
                "dimensions: an even number is needed, since they turn in pairs."
            )
        for field in dataclasses.fields(self):
            allowed = getattr(field.type, "__args__", None)
            if allowed and getattr(self, field.name) not in allowed:
                raise UserError(
                    f"model.{field.name}={getattr(self, field.name)!r}: expected one of {', '.join(allowed)}."
                )

    @property
    def group(self) -> int:
        """Query heads per key head."""
        return self.heads // self.kv_heads

    @property
    def rotary_dims(self) -> int:
        return int(self.head_dim * self.rotary_fraction)

    @property
    def matmul_params(self) -> int:
        """Weights that take part in matrix products, head included, embedding look-up excluded."""
        attention = self.embed * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        mlp = self.embed * self.mlp * (3 if self.gated else 2)
        return self.layers * (attention + mlp) + self.embed * self.vocab_size

    def flops_per_token(self, length: int) -> float:
        """Training FLOPs (forward and backward) per token of a row of `length`, causal attention counted once.

        6 N_matmul + 12 L K H h, where K is the mean number of keys that a token attends to, T/2 without a window: the causal
        convention, in which no MFU is flattered by masked products.
        """
        window = min(length, self.window or length)
        keys = window - window**2 / (2 * length)
        return 6.0 * self.matmul_params + 12 * self.layers * keys * self.heads * self.head_dim


def _divisor(of: int, near: int) -> int:
    return min((d for d in range(1, of + 1) if of % d == 0), key=lambda d: abs(d - near))


def _llama(layers: int, embed: int, heads: int, mlp: int, kv_heads: int | None = None) -> dict[str, Any]:
    return dict(layers=layers, embed=embed, heads=heads, kv_heads=kv_heads or heads, head_dim=embed // heads, mlp=mlp)


# Shapes only; the vocabulary and the length come from the data. The name is roughly the count of non-embedding weights.
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


def model_config(section: dict[str, Any], vocab_size: int, seq_len: int) -> ModelConfig:
    """The model of a config section `{size: name, any field: value}`; the fields win over the named size.

    Raises:
      UserError: an unknown size or field, or values that do not fit each other.
    """
    section = dict(section)
    size = section.pop("size", "")
    known = {field.name for field in dataclasses.fields(ModelConfig)} - {"vocab_size", "seq_len"}
    for name in section:
        if name not in known:
            raise UserError(f"model.{name}: no such field. {closest(name, known | {'size'})}")
    if size and size not in SIZES:
        raise UserError(f"model.size={size!r}: no such size. Known: {', '.join(SIZES)}.")
    fields = {**SIZES.get(size, {}), **{k: v for k, v in section.items() if v is not None}}
    missing = {"layers", "embed", "heads", "kv_heads", "head_dim", "mlp"} - fields.keys()
    if missing:
        raise UserError(f"model: give model.size (one of {', '.join(SIZES)}) or {', '.join(sorted(missing))}.")
    return ModelConfig(vocab_size=vocab_size, seq_len=seq_len, **fields)
