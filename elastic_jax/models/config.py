"""Which transformer is it? Architecture switches, and the config section that sets them."""

import dataclasses
from typing import Any, Literal

from elastic_jax.errors import UserError, closest
from elastic_jax.models import flops
from elastic_jax.models.sizes import NAMED, SIZES

__all__ = ["SIZES", "ModelConfig", "model_config"]


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
    used_vocab: int = (
        0  # tokens that exist, where the tables are larger; logits beyond are masked; 0: all of vocab_size
    )
    layout: Literal["unroll", "scan"] = "unroll"
    # What the backward pass computes again: the table in `models.remat`.
    remat: Literal["none", "save_qkv_attn_mlp_in", "dots", "save_dot_with_context_except_mlp", "offload", "full"] = (
        "none"
    )
    # Which implementation attends over whole rows (`models.attention.dispatch`); caches are always read by the reference.
    attention: Literal["auto", "reference", "cudnn", "splash"] = "auto"
    loss_chunk: int = 0  # tokens of a device whose logits exist at a time; 0: `models.cross_entropy.Head.chunk` chooses

    def __post_init__(self):
        for name in ("vocab_size", "seq_len", "layers", "embed", "heads", "kv_heads", "head_dim", "mlp"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < (0 if name == "layers" else 1):
                raise UserError(f"model.{name}={value!r}: expected a positive whole number.")
        if not isinstance(self.loss_chunk, int) or isinstance(self.loss_chunk, bool) or self.loss_chunk < 0:
            raise UserError(
                f"model.loss_chunk={self.loss_chunk!r}: expected a positive number of tokens, or 0 to have it chosen."
            )
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
        """See `flops.matmul_params`."""
        return flops.matmul_params(self)

    def flops_per_token(self, length: int, *, causal: bool = True) -> float:
        """Training FLOPs per token of a row of `length`: `flops.training_flops`. The causal convention is the default: it
        flatters no MFU by masked products."""
        return flops.training_flops(self, length, causal=causal)


def _divisor(of: int, near: int) -> int:
    return min((d for d in range(1, of + 1) if of % d == 0), key=lambda d: abs(d - near))


def model_config(section: dict[str, Any], vocab_size: int, seq_len: int) -> ModelConfig:
    """The model of a config section `{size: name, any field: value}`; the fields win over the named size.

    Args:
      vocab_size: of the tokenizer. `vocab_size` of the section or of the named model may be larger: the tables then have
        rows that no token uses, whose logits are masked out exactly.

    Raises:
      UserError: an unknown size or field, or values that do not fit each other.
    """
    section = dict(section)
    size = section.pop("size", "")
    known = {field.name for field in dataclasses.fields(ModelConfig)} - {"used_vocab", "seq_len"}
    for name in section:
        if name not in known:
            raise UserError(f"model.{name}: no such field. {closest(name, known | {'size'})}")
    if size and size not in NAMED:
        raise UserError(f"model.size={size!r}: no such size. Known: {', '.join(NAMED)}.")
    fields = {**NAMED.get(size, {}), **{k: v for k, v in section.items() if v is not None}}
    missing = {"layers", "embed", "heads", "kv_heads", "head_dim", "mlp"} - fields.keys()
    if missing:
        raise UserError(f"model: give model.size (one of {', '.join(NAMED)}) or {', '.join(sorted(missing))}.")
    table = fields.pop("vocab_size", vocab_size)
    if not isinstance(table, int) or table < vocab_size:
        raise UserError(
            f"model.vocab_size={table!r}: the tokenizer has {vocab_size} tokens, and each needs a row of the tables. Use "
            f"{vocab_size} or more, or leave it out."
        )
    used = vocab_size if table > vocab_size else 0
    return ModelConfig(vocab_size=table, seq_len=seq_len, used_vocab=used, **fields)
