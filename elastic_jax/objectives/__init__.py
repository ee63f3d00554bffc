"""What is a stage asked to minimise?

An `Objective` tells which rows it reads ("text" or "pair"), which frozen quantities are computed once beforehand, how an
on-policy method turns a batch into its own samples, and the loss. The training loop knows nothing else of it: a new method is
an entry in `OBJECTIVES`.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
from jax.core import Tracer

from elastic_jax.errors import UserError, closest
from elastic_jax.objectives import preference

Batch = dict[str, jax.Array]


class Policy(Protocol):
    """The model as an objective sees it: `models.transformer.Decoder`. It never holds the logits of all tokens.

    tokens, targets and mask are [b, t]; `segments_bt` and `positions_bt` come with packed rows.
    """

    def nll_sum(
        self,
        params: Any,
        tokens_bt: jax.Array,
        targets_bt: jax.Array,
        mask_bt: jax.Array,
        *,
        segments_bt: jax.Array | None = None,
        positions_bt: jax.Array | None = None,
    ) -> jax.Array:
        """Sum of -log p(target) over the targets that count, in nats. The cheaper of the two to differentiate."""
        ...

    def log_probs(
        self,
        params: Any,
        tokens_bt: jax.Array,
        targets_bt: jax.Array,
        mask_bt: jax.Array,
        *,
        segments_bt: jax.Array | None = None,
        positions_bt: jax.Array | None = None,
    ) -> jax.Array:
        """log p(target) of every target that counts and 0 elsewhere, in nats: [b, t]."""
        ...


@dataclasses.dataclass(frozen=True)
class Objective:
    """One way to train.

    Attributes:
      rows: kind of data row that it reads.
      loss: (policy, params, batch, key) -> (sum, weight, metrics). The loss is sum / weight, so that a batch cut into parts
        has the gradient of the whole: sums and weights are added first and divided once. Metrics are sums too, divided by the
        same weight. All are sums over rows of which each knows itself alone: accumulation and devices cut a batch anywhere.
        Where the batch has a field `real` [b], rows of 0 in it count for nothing; their masks are zero already.
      annotate: (policy, params, batch) -> arrays [b], computed once per row with the parameters that the stage starts from
        (a reference model), cached by run and added to every batch.
      rollout: (policy, params, batch, key) -> batch, for on-policy methods: runs before the step with the current parameters.
      packs: whether the loss is a sum over tokens that may come from several examples in one row (fields `segments` and
        `positions` of the batch), rather than something said about each row.
    """

    name: str
    rows: Literal["text", "pair"]
    loss: Callable[[Policy, Any, Batch, jax.Array], tuple[jax.Array, jax.Array, dict[str, jax.Array]]]
    annotate: Callable[[Policy, Any, Batch], Batch] | None = None
    rollout: Callable[[Policy, Any, Batch, jax.Array], Batch] | None = None
    packs: bool = False


def _check(holds: Any, message: str) -> None:
    """Raises UserError unless it holds; of traced numbers nothing is known, and they were checked when they were given."""
    if not isinstance(holds, Tracer) and not holds:
        raise UserError(message)


def sft() -> Objective:
    """Supervised fine-tuning, and pre-training: mean token cross-entropy over the targets that count, in nats."""

    def loss(policy: Policy, params: Any, batch: Batch, key: jax.Array):
        del key
        tokens, mask = batch["tokens"], batch["mask"].astype(jnp.float32)
        packed = {f"{name}_bt": batch[name] for name in ("segments", "positions") if name in batch}
        total = policy.nll_sum(params, tokens[:, :-1], tokens[:, 1:], mask, **packed)
        return total, jnp.sum(mask), {}

    return Objective("sft", "text", loss, packs=True)


def dpo(beta: float = 0.1, label_smoothing: float = 0.0) -> Objective:
    """Direct preference optimisation against the parameters that the stage starts from (arXiv 2305.18290)."""
    _check(
        (beta > 0) & (label_smoothing >= 0) & (label_smoothing < 0.5),
        f"objective dpo: beta={beta}, label_smoothing={label_smoothing}: expected beta > 0 and 0 <= label_smoothing < 0.5.",
    )

    def log_probs(policy: Policy, params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        # One pass over both answers: half the launches, and twice the rows for each weight that is read.
        tokens = jnp.concatenate([batch["chosen_tokens"], batch["rejected_tokens"]])
        mask = jnp.concatenate([batch["chosen_mask"], batch["rejected_mask"]]).astype(jnp.float32)
        both_bt = policy.log_probs(params, tokens[:, :-1], tokens[:, 1:], mask)
        chosen_b, rejected_b = jnp.split(jnp.sum(both_bt, axis=-1), 2)
        return chosen_b, rejected_b

    def annotate(policy: Policy, params: Any, batch: Batch) -> Batch:
        chosen_b, rejected_b = log_probs(policy, params, batch)
        return {"ref_chosen": chosen_b, "ref_rejected": rejected_b}

    def loss(policy: Policy, params: Any, batch: Batch, key: jax.Array):
        del key
        four = (*log_probs(policy, params, batch), batch["ref_chosen"], batch["ref_rejected"])
        losses_b = preference.dpo(*four, beta=beta, label_smoothing=label_smoothing)
        real_b = batch["real"].astype(jnp.float32) if "real" in batch else jnp.ones_like(losses_b)
        metrics = {
            "accuracy": jnp.sum(preference.preferred(*four) * real_b),
            "margin": beta * jnp.sum(((four[0] - four[2]) - (four[1] - four[3])) * real_b),
        }
        return jnp.sum(losses_b * real_b), jnp.sum(real_b), metrics

    return Objective("dpo", "pair", loss, annotate)


OBJECTIVES: dict[str, Callable[..., Objective]] = {"sft": sft, "dpo": dpo}


def settings(section: Mapping[str, Any]) -> dict[str, Any]:
    """Name and every hyper-parameter of a config section `{name: ..., hyper-parameters}`, defaults written out.

    Raises:
      UserError: an unknown name or hyper-parameter.
    """
    options = dict(section)
    name = options.pop("name", "")
    if name not in OBJECTIVES:
        raise UserError(f"objective {name!r}: no such method. {closest(name, OBJECTIVES)}")
    known = {p.name: p.default for p in inspect.signature(OBJECTIVES[name]).parameters.values()}
    for option in options:
        if option not in known:
            raise UserError(f"objective {name}: no setting {option!r}. Its settings: {', '.join(known) or 'none'}.")
    return {"name": name, **known, **options}


def numbers(section: Mapping[str, Any]) -> dict[str, float]:
    """The hyper-parameters that may differ between runs which share a program: those that are not whole numbers or words."""
    return {name: value for name, value in settings(section).items() if isinstance(value, float)}


def make(section: Mapping[str, Any] | str, numbers: Mapping[str, Any] | None = None) -> Objective:
    """The objective of a config section, or of a name alone; raises as `settings` does, and for values out of range.

    Args:
      numbers: values, traced ones too, that take the place of those in the section.
    """
    options = settings({"name": section} if isinstance(section, str) else section)
    return OBJECTIVES[options.pop("name")](**{**options, **(numbers or {})})
