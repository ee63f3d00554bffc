"""Which transformer is it? Architecture switches, and the config section that sets them."""

import dataclasses
from typing import Any, Literal

from elastic_jax.errors import UserError, closest
from elastic_jax.models import flops
from elastic_jax.models.sizes import NAMED, SIZES

__all__ = ["SIZES", "ModelConfig", "model_config"]


# Fields beside `rope_theta` that each kind of rotary frequencies depends on.
_ROPE_FIELDS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "linear": ("rope_factor",),
    "dynamic": ("rope_factor", "rope_original_len"),
    "llama3": ("rope_factor", "rope_original_len", "rope_low_freq", "rope_high_freq"),
    "yarn": (
        "rope_factor",
        "rope_original_len",
        "rope_beta_fast",
        "rope_beta_slow",
        "rope_truncate",
        "rope_attention_factor",
    ),
}
_NOT_NEGATIVE = (
    "norm_eps",
    "rope_theta",
    "rope_factor",
    "rope_attention_factor",
    "rope_local_theta",
    "attention_scale",
    "attention_softcap",
    "logit_softcap",
    "init_std",
)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer.

    The defaults are Llama's block (RMSNorm, rotary, SwiGLU, no biases). The switches cover Llama 3.1 (`rope_type`), Qwen
    (`qkv_bias`, `qk_norm`), Gemma (`norm_offset`, `embed_scale`, `activation="gelu_tanh"`, and from its second version
    soft-caps, `norm_place="both"`, windows and `rope_local_theta`), NeoX (`norm="layer"`, `parallel_residual`,
    `rotary_fraction`, biases, `gated=False`), GPT-2 (`positions="learned"`) and OLMo 2 (`norm_place="post"`,
    `qk_norm="full"`).

    A field that could have no effect beside the others is an error, so that no setting is ever ignored.
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
    norm_place: Literal["pre", "post", "both"] = "pre"  # of attention and feed-forward; "post": x + norm(f(x))
    positions: Literal["rotary", "learned", "none"] = "rotary"
    max_positions: int = 0  # rows of the learned table; 0: seq_len
    rope_theta: float = 10_000.0
    rotary_fraction: float = 1.0
    # How the frequencies are stretched to rows longer than those of pre-training (`models.attention.rotary`), and by what.
    rope_type: Literal["plain", "linear", "dynamic", "llama3", "yarn"] = "plain"
    rope_factor: float = 1.0
    rope_original_len: int = 0  # length of the rows of pre-training
    rope_low_freq: float = 1.0
    rope_high_freq: float = 4.0
    rope_beta_fast: float = 32.0
    rope_beta_slow: float = 1.0
    rope_truncate: bool = True  # YaRN's ramp begins and ends at whole dimensions
    rope_attention_factor: float = 0.0  # of YaRN's cosines and sines; 0: 0.1 ln(rope_factor) + 1
    rope_local_theta: float = 0.0  # of layers with a window, never stretched; 0: as the other layers
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: Literal["none", "head", "full"] = "none"  # "full": over all heads at once
    parallel_residual: bool = False
    tie_embeddings: bool = True
    embed_scale: bool = False
    window: int = 0  # keys further back than this are not attended; 0 attends to all
    global_every: int = 0  # every so manieth layer attends to all in spite of the window; 0: none does
    window_from: int = 0  # layers before this one attend to all in spite of the window
    attention_scale: float = 0.0  # scores are multiplied by it; 0: head_dim ** -0.5
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
    # Which implementation attends over whole rows (`models.attention.dispatch`); caches are read by `models.attention.cache`.
    attention: Literal["auto", "reference", "cudnn", "splash"] = "auto"
    loss_chunk: int = 0  # tokens of a device whose logits exist at a time; 0: `models.cross_entropy.Head.chunk` chooses

    def __post_init__(self):
        for name in ("vocab_size", "seq_len", "layers", "embed", "heads", "kv_heads", "head_dim", "mlp"):
            if not _whole(getattr(self, name), 0 if name == "layers" else 1):
                raise UserError(f"model.{name}={getattr(self, name)!r}: expected a positive whole number.")
        for name in ("max_positions", "rope_original_len", "window", "global_every", "window_from"):
            if not _whole(getattr(self, name), 0):
                raise UserError(f"model.{name}={getattr(self, name)!r}: expected zero or a positive whole number.")
        if not _whole(self.loss_chunk, 0):
            raise UserError(
                f"model.loss_chunk={self.loss_chunk!r}: expected a positive number of tokens, or 0 to have it chosen."
            )
        for name in _NOT_NEGATIVE:
            if not getattr(self, name) >= 0:
                raise UserError(f"model.{name}={getattr(self, name)!r}: expected zero or a positive number.")
        if not 0 <= self.rotary_fraction <= 1:
            raise UserError(f"model.rotary_fraction={self.rotary_fraction!r}: expected 0 <= rotary_fraction <= 1.")
        if self.heads % self.kv_heads:
            raise UserError(
                f"model.heads={self.heads} is not a multiple of model.kv_heads={self.kv_heads}: every key head serves the "
                f"same number of query heads. Use kv_heads={_divisor(self.heads, self.kv_heads)}."
            )
        for field in dataclasses.fields(self):
            allowed = getattr(field.type, "__args__", None)
            if allowed and getattr(self, field.name) not in allowed:
                raise UserError(
                    f"model.{field.name}={getattr(self, field.name)!r}: expected one of {', '.join(allowed)}."
                )
        self._check_positions()
        self._check_rope()
        self._check_windows()

    def _check_positions(self) -> None:
        if self.positions == "learned":
            if 0 < self.max_positions < self.seq_len:
                raise UserError(
                    f"model.max_positions={self.max_positions}: rows of data.seq_len={self.seq_len} tokens have more "
                    f"positions than the learned table. Use data.seq_len={self.max_positions} or less."
                )
        else:
            self._refuse("max_positions", "only positions='learned' has a table")
        if self.positions != "rotary":
            for name in ("rope_theta", "rotary_fraction", "rope_type", "rope_local_theta"):
                self._refuse(name, f"positions='{self.positions}' turns no query and no key")
        elif self.rotary_dims % 2:
            raise UserError(
                f"model.head_dim={self.head_dim} x rotary_fraction={self.rotary_fraction} gives {self.rotary_dims} rotary "
                "dimensions: an even number is needed, since they turn in pairs."
            )

    def _check_rope(self) -> None:
        used = _ROPE_FIELDS[self.rope_type]
        for name in (field for fields in _ROPE_FIELDS.values() for field in fields if field not in used):
            self._refuse(name, f"rope_type='{self.rope_type}' does not use it")
        if self.rope_type == "plain":
            return
        if self.rope_factor < 1 or (self.rope_factor == 1 and self.rope_type != "dynamic"):
            raise UserError(
                f"model.rope_factor={self.rope_factor!r}: rope_type='{self.rope_type}' needs a factor above 1. Without one use "
                "rope_type='plain'."
            )
        if "rope_original_len" in used and not self.rope_original_len:
            raise UserError(
                f"model.rope_original_len=0: rope_type='{self.rope_type}' needs the length of the rows of pre-training "
                "(original_max_position_embeddings of Hugging Face)."
            )
        if self.rope_type == "dynamic" and self.rotary_dims < 4:
            raise UserError(
                f"model.rope_type='dynamic': its formula needs 4 rotary dimensions, not {self.rotary_dims}."
            )
        for low, high in (("rope_low_freq", "rope_high_freq"), ("rope_beta_slow", "rope_beta_fast")):
            if not 0 < getattr(self, low) < getattr(self, high):
                raise UserError(
                    f"model.{low}={getattr(self, low)!r}, model.{high}={getattr(self, high)!r}: expected 0 < {low} < {high}."
                )
        if self.rope_type == "yarn" and self.rope_theta <= 1:
            raise UserError(
                f"model.rope_theta={self.rope_theta!r}: rope_type='yarn' takes its logarithm and needs more than 1."
            )

    def _check_windows(self) -> None:
        if not self.window:
            for name in ("global_every", "window_from", "rope_local_theta"):
                self._refuse(name, "no layer has a window (model.window=0)")
        if not self.layers or not self.window:
            return
        if not any(self.windowed):
            name = "window_from" if self.window_from >= self.layers else "global_every"
            raise UserError(
                f"model.{name}={getattr(self, name)}: none of the {self.layers} layers is left with the window. Use "
                "model.window=0, or a value that leaves one."
            )
        if self.global_every > self.layers:
            raise UserError(
                f"model.global_every={self.global_every}: none of the {self.layers} layers is reached. Use at most {self.layers}, "
                "or 0 where every layer has the window."
            )
        if self.rope_local_theta and all(self.windowed):
            raise UserError(
                f"model.rope_local_theta={self.rope_local_theta!r}: every layer has the window, and none would turn by "
                "rope_theta. Set rope_theta itself."
            )

    def _refuse(self, name: str, why: str) -> None:
        """Raises UserError when a field that has no effect is set."""
        default = type(self).__dataclass_fields__[name].default
        if getattr(self, name) != default:
            raise UserError(f"model.{name}={getattr(self, name)!r} has no effect: {why}. Leave it out.")

    @property
    def windowed(self) -> tuple[bool, ...]:
        """Of each layer: does it attend to the window only?"""
        every = self.global_every or self.layers + 1
        return tuple(bool(self.window) and i >= self.window_from and bool((i + 1) % every) for i in range(self.layers))

    def uniform(self, layers: int, windowed: bool = False) -> "ModelConfig":
        """The same model with `layers` layers of one kind."""
        local: dict[str, Any] = {}
        if windowed and self.rope_local_theta:
            plain = {f.name: f.default for f in dataclasses.fields(self) if f.name.startswith("rope_")}
            local = dict(plain, rope_theta=self.rope_local_theta)
        window = self.window if windowed else 0
        none = dict(global_every=0, window_from=0, rope_local_theta=0.0)
        return dataclasses.replace(self, **{**none, **local, "layers": layers, "window": window})

    @property
    def group(self) -> int:
        """Query heads per key head."""
        return self.heads // self.kv_heads

    @property
    def rotary_dims(self) -> int:
        """How many of a head's dimensions turn with the position."""
        return int(self.head_dim * self.rotary_fraction) if self.positions == "rotary" else 0

    @property
    def table_positions(self) -> int:
        """Rows of the table of learned positions."""
        return (self.max_positions or self.seq_len) if self.positions == "learned" else 0

    @property
    def matmul_params(self) -> int:
        """See `flops.matmul_params`."""
        return flops.matmul_params(self)

    def flops_per_token(self, length: int, *, causal: bool = True) -> float:
        """Training FLOPs per token of a row of `length`: `flops.training_flops`. The causal convention is the default: it
        flatters no MFU by masked products."""
        return flops.training_flops(self, length, causal=causal)


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


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
