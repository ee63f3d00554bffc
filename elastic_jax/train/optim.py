"""Which optimiser does a config section describe?"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
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
    moments: Literal["float32", "bfloat16"] = "float32"  # both of AdamW: see `short_moments`

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
            self._refuse_unused(f"name={self.name}", "b2", "eps", "weight_decay", "moments")

    def _refuse_unused(self, reason: str, *names: str) -> None:
        """A value that was chosen and has no effect would be reported as if it had one."""
        for field in dataclasses.fields(self):
            if field.name in names and getattr(self, field.name) != field.default:
                raise UserError(
                    f"optim.{field.name}={getattr(self, field.name)} has no effect with optim.{reason}. "
                    f"Set optim.{field.name}={field.default}, or choose another optim.{reason.partition('=')[0]}."
                )

    @property
    def identity(self) -> dict[str, Any]:
        """What the numbers of a run depend on. The default of a field that came later is left out: runs made before it stay."""
        fields = dataclasses.asdict(self)
        return fields if self.moments != "float32" else {k: v for k, v in fields.items() if k != "moments"}

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


def numbers(config: OptimConfig, updates: int) -> dict[str, float]:
    """What may differ between runs which share a program; `decay` is the number of updates after warm-up."""
    fields = ("lr", "warmup", "final", "b1", "b2", "eps", "weight_decay", "clip")
    return {name: float(getattr(config, name)) for name in fields} | {"decay": float(max(updates - config.warmup, 1))}


def structure(config: OptimConfig) -> dict[str, Any]:
    """What has to be equal for that: the rest, and which numbers are zero, since a part without effect is left out."""
    known = numbers(config, 1)
    rest = {k: v for k, v in dataclasses.asdict(config).items() if k not in known}
    return rest | {name: bool(known[name]) for name in ("b1", "weight_decay", "clip")}


def schedule(config: OptimConfig, updates: int, given: Mapping[str, Any] | None = None) -> optax.Schedule:
    """Learning rate by update number; `updates` matters only where the schedule decays. `given` as for `make`."""
    number = numbers(config, updates) | dict(given or {})
    lr, final, warmup = number["lr"], number["final"], number["warmup"]
    shape = {
        "constant": lambda done: jnp.ones_like(done),
        "cosine": lambda done: final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * done)),
        "linear": lambda done: final + (1 - final) * (1 - done),
    }[config.schedule]

    def rate(count: Any) -> Any:
        # Warm-up starts at one step's worth, not at zero: an update with learning rate zero counts as volume and does nothing.
        ramp = (count + 1.0) / jnp.maximum(warmup, 1.0)
        done = jnp.clip((count - warmup) / number["decay"], 0.0, 1.0)
        return lr * jnp.where(count < warmup, ramp, shape(done))

    return rate


def make(config: OptimConfig, updates: int, given: Mapping[str, Any] | None = None) -> optax.GradientTransformation:
    """The optax chain: clip, then AdamW or SGD on the schedule.

    Args:
      given: values, traced ones too, that take the place of those of `numbers`; zeros have to stay zeros.
    """
    rate, number = schedule(config, updates, given), numbers(config, updates) | dict(given or {})
    if config.name == "adamw":
        adam = optax.scale_by_adam(b1=number["b1"], b2=number["b2"], eps=number["eps"])
        core = optax.chain(
            short_moments(adam) if config.moments == "bfloat16" else adam,
            optax.add_decayed_weights(number["weight_decay"], decayed if config.weight_decay else None),
            optax.scale_by_learning_rate(rate),
        )
    else:
        core = optax.sgd(rate, momentum=number["b1"] if config.b1 else None)
    core = _wide(core)
    return optax.chain(optax.clip_by_global_norm(number["clip"]), core) if config.clip else core


def _wide(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Moments of float32 at least, whatever the dtype of the parameters."""

    def widened(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)), tree)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        return inner.update(widened(updates), state, params)

    return optax.GradientTransformation(lambda params: inner.init(widened(params)), update)


def short_moments(adam: optax.GradientTransformation) -> optax.GradientTransformation:
    """Adam whose two moments are kept in bfloat16 and computed in float32: 4 bytes less for every parameter.

    Rounding is stochastic: up with the probability that makes the mean exact. To the nearest, a moment would stop moving where
    its change per update is below half of its last digit, 2^-9: with b2 = 0.999 a second moment could never fall again. What it
    costs: 16 random bits per number and update, and noise of one part in 256 on each moment, which the moments average over
    1 / (1 - b) updates. The bits are a function of the update number and of the place of the parameter in its tree, so resumed
    runs and other meshes have the same; the layouts "scan" and "unroll" have different ones.
    """

    def init(params: Any) -> Any:
        state: Any = adam.init(params)
        short = lambda tree: jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tree)  # noqa: E731
        return state._replace(mu=short(state.mu), nu=short(state.nu))

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        wide = lambda tree: jax.tree.map(lambda leaf, g: leaf.astype(g.dtype), tree, updates)  # noqa: E731
        updates, state = adam.update(updates, state._replace(mu=wide(state.mu), nu=wide(state.nu)), params)
        leaves, tree = jax.tree.flatten((state.mu, state.nu))
        keys = jax.random.split(jax.random.fold_in(jax.random.key(0), state.count), len(leaves))
        mu, nu = tree.unflatten([stochastic_bfloat16(leaf, key) for leaf, key in zip(leaves, keys, strict=True)])
        return updates, state._replace(mu=mu, nu=nu)

    return optax.GradientTransformation(init, update)


def stochastic_bfloat16(x: jax.Array, key: jax.Array) -> jax.Array:
    """One of the two neighbours of x in bfloat16, drawn such that its mean is x. Not finite values stay what they are."""
    x = x.astype(jnp.float32)
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + noise
    drawn = jax.lax.bitcast_convert_type(bits & jnp.uint32(0xFFFF0000), jnp.float32)
    return jnp.where(jnp.isfinite(x), drawn, x).astype(jnp.bfloat16)


def decayed(params: Any) -> Any:
    """True for the weights of matrix products, named as in `models.layers`, and for both factors of an adapter (`models.adapted`)."""
    names = {"qkv", "out", "up", "down", "head", "a", "b"}
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in names, params)
