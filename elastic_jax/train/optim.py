"""Which optimiser does a config section describe?"""

import dataclasses
from typing import Any, Literal

import jax
import optax

from elastic_jax.errors import UserError, closest


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """AdamW behind a clip of the global gradient norm; the paper's betas, and its constant schedule, by default.

    `weight_decay` acts on matrices only: neither norms, biases nor the embedding's look-up are pulled to zero by convention.
    """

    name: Literal["adamw", "sgd"] = "adamw"
    lr: float = 1e-3
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup: int = 0  # updates of linear warm-up
    final: float = 0.0  # share of lr left at the end of cosine and linear
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float = 1.0  # 0 switches it off

    def __post_init__(self):
        limits = dict(lr=(0, 1e3), warmup=(0, 1e12), final=(0, 1), b1=(0, 1), b2=(0, 1), eps=(0, 1))
        limits |= dict(weight_decay=(0, 1e3), clip=(0, 1e6))
        for field, (low, high) in limits.items():
            value = getattr(self, field)
            if not low <= value < high:
                raise UserError(f"optim.{field}={value}: expected {low} <= {field} < {high:g}.")
        if self.lr == 0:
            raise UserError("optim.lr=0: nothing would be learnt. Give a positive learning rate.")
        if self.schedule == "constant":
            self._refuse_unused(f"schedule={self.schedule}", "final")
        if self.name == "sgd":
            self._refuse_unused(f"name={self.name}", "b2", "eps", "weight_decay")

    def _refuse_unused(self, reason: str, *names: str) -> None:
        """A value that was chosen and has no effect would be reported as if it had one."""
        for field in dataclasses.fields(self):
            if field.name in names and getattr(self, field.name) != field.default:
                raise UserError(
                    f"optim.{field.name}={getattr(self, field.name)} has no effect with optim.{reason}. "
                    f"Set optim.{field.name}={field.default}, or choose another optim.{reason.partition('=')[0]}."
                )

    @property
    def horizon_free(self) -> bool:
        """True when the first m updates do not depend on how many follow: then volumes share one run."""
        return self.schedule == "constant"


def optim_config(section: dict[str, Any]) -> OptimConfig:
    known = {field.name: field for field in dataclasses.fields(OptimConfig)}
    for name, value in section.items():
        if name not in known:
            raise UserError(f"optim.{name}: no such field. {closest(name, known)}")
        allowed = getattr(known[name].type, "__args__", None)
        if allowed and value not in allowed:
            raise UserError(f"optim.{name}={value!r}: expected one of {', '.join(allowed)}.")
    return OptimConfig(**section)


def schedule(config: OptimConfig, updates: int) -> optax.Schedule:
    """Learning rate by update number; `updates` matters only where the schedule decays."""
    decay_updates = max(updates - config.warmup, 1)
    body = {
        "constant": optax.constant_schedule(config.lr),
        "cosine": optax.cosine_decay_schedule(config.lr, decay_updates, config.final),
        "linear": optax.linear_schedule(config.lr, config.lr * config.final, decay_updates),
    }[config.schedule]
    if not config.warmup:
        return body
    # Warm-up starts at one step's worth, not at zero: an update with learning rate zero counts as volume and does nothing.
    ramp = optax.linear_schedule(config.lr / config.warmup, config.lr, max(config.warmup - 1, 1))
    return optax.join_schedules([ramp, body], [config.warmup])


def make(config: OptimConfig, updates: int) -> optax.GradientTransformation:
    """The optax chain: clip, then AdamW or SGD on the schedule."""
    rate = schedule(config, updates)
    if config.name == "adamw":
        core = optax.adamw(
            rate,
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=decayed if config.weight_decay else None,
        )
    else:
        core = optax.sgd(rate, momentum=config.b1 or None)
    return optax.chain(optax.clip_by_global_norm(config.clip), core) if config.clip else core


def decayed(params: Any) -> Any:
    """True for the weights of matrix products, named as in `models.layers`."""
    names = {"qkv", "out", "up", "down", "head"}
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in names, params)
