"""Which weights does a study fine-tune by low-rank updates? The config section `lora` (LoRA, arXiv 2106.09685).

A weight W of a product, seen as a matrix, stays as it is and W + (alpha / rank) A B takes its place; `models.adapted` says how
A and B are trained.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from elastic_jax.errors import UserError, closest
from elastic_jax.models.config import ModelConfig

# An adapter belongs to a product as this package computes it: "qkv" is queries, keys and values together, "up" is gate and up.
# Name -> module of the block that has the weight, and how many of its dims are contracted.
TARGETS: dict[str, tuple[str, int]] = {
    "qkv": ("attention", 1),
    "out": ("attention", 3),
    "up": ("mlp", 1),
    "down": ("mlp", 1),
}


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Which weights are adapted, and how.

    Attributes:
      rank: columns of A and rows of B.
      alpha: the update is scaled by alpha / rank.
      dropout: share of the adapters' inputs that is dropped while training.
      targets: names of `TARGETS`.
    """

    rank: int
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = tuple(TARGETS)

    def __post_init__(self):
        if not _is_whole(self.rank) or self.rank < 1:
            raise UserError(
                f"lora.rank={self.rank!r}: expected a whole number: 1 or more, or 0 to train all parameters."
            )
        if not _is_number(self.alpha) or not 0 < self.alpha < math.inf:
            raise UserError(
                f"lora.alpha={self.alpha!r}: expected a positive number; the update of a weight is scaled by alpha / rank."
            )
        if not _is_number(self.dropout) or not 0 <= self.dropout < 1:
            raise UserError(f"lora.dropout={self.dropout!r}: expected 0 <= dropout < 1.")
        if not self.targets:
            raise UserError(f"lora.targets=(): nothing would be trained. Name some of {', '.join(TARGETS)}.")
        for name in self.targets:
            if name not in TARGETS:
                raise UserError(
                    f"lora.targets: {name!r} is not a weight that can be adapted. {closest(str(name), TARGETS)}"
                )
        if len(set(self.targets)) < len(self.targets):
            raise UserError(f"lora.targets={self.targets}: each may be named once.")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @property
    def identity(self) -> dict[str, Any]:
        """What the numbers of a run depend on, whatever the order in which the targets are named."""
        return dict(rank=self.rank, alpha=float(self.alpha), dropout=float(self.dropout), targets=sorted(self.targets))


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_whole(value) or isinstance(value, float)


DEFAULTS: dict[str, Any] = dict(rank=0, alpha=16.0, dropout=0.0, targets=tuple(TARGETS))


def lora_config(section: Mapping[str, Any]) -> LoraConfig | None:
    """What a config section `{rank, alpha, dropout, targets}` describes; None at rank 0, where all parameters are trained.

    Raises:
      UserError: an unknown field or target, a value out of range, or one that rank 0 would ignore.
    """
    for name in section:
        if name not in DEFAULTS:
            raise UserError(f"lora.{name}: no such field. {closest(name, DEFAULTS)}")
    fields = {**DEFAULTS, **section}
    given = fields["targets"]
    fields["targets"] = (given,) if isinstance(given, str) else tuple(given)
    if not _is_whole(fields["rank"]) or fields["rank"]:
        return LoraConfig(**fields)
    for name, default in DEFAULTS.items():
        if fields[name] != default:
            raise UserError(
                f"lora.{name}={fields[name]!r} has no effect with lora.rank=0, which trains all parameters. Set lora.rank to 1 or "
                f"more, or lora.{name}={default!r}."
            )
    return None


def check_rank(lora: LoraConfig, model: ModelConfig) -> None:
    """Raises UserError for a rank above that of an adapted weight."""
    c = model
    matrices = dict(
        qkv=(c.embed, c.kv_heads * (c.group + 2) * c.head_dim),
        out=(c.heads * c.head_dim, c.embed),
        up=(c.embed, (2 if c.gated else 1) * c.mlp),
        down=(c.mlp, c.embed),
    )
    for name in lora.targets:
        if lora.rank > min(matrices[name]):
            inner, out = matrices[name]
            raise UserError(
                f"lora.rank={lora.rank}: the weight {name!r} of this model is a matrix of {inner} x {out}, whose rank is at most "
                f"{min(inner, out)}. Use that or less, or leave {name!r} out of lora.targets."
            )
