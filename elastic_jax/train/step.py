"""What happens in one update?

Sums and weights first, one division last: however a batch is cut into parts and spread over devices, its gradient is that of
the whole. Gradients are added up in float32, and moments and parameters are updated in it, whatever the dtype of the model.

Under LoRA (`models.adapted`) the parameters of all this are the adapters; the frozen ones are an argument of their own, which is
read and never donated.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from elastic_jax.models import adapted
from elastic_jax.models.adapted import Adapted, Trained
from elastic_jax.models.transformer import Params
from elastic_jax.objectives import Batch, Objective
from elastic_jax.parallel import mesh as mesh_lib
from elastic_jax.parallel.mesh import batch_sharding, batch_shards, replicated, shard
from elastic_jax.train import state as state_lib
from elastic_jax.train.accumulate import Reduce
from elastic_jax.train.last_batch import LastBatch
from elastic_jax.train.state import TrainState


@dataclasses.dataclass(frozen=True)
class Step:
    """A jitted `(state, batch, key) -> (state, metrics)`; the state is donated.

    Attributes:
      frozen: under LoRA the parameters that are adapted, in the dtype of `adapted.frozen_for`.
    """

    jitted: Any
    mesh: Mesh
    frozen: Params | None = None

    def __call__(self, state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        with jax.set_mesh(self.mesh):
            return self.jitted(state, batch, key, self.frozen)

    def compile(self, state: Any, batch: Any, key: Any) -> Any:
        """The compiled step for abstract or real inputs, with its memory analysis."""
        with jax.set_mesh(self.mesh):
            return self.jitted.lower(state, batch, key, self.frozen).compile()


def make_train_step(
    model: Trained,
    objective: Objective,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    accumulate: int = 1,
    reduce: Reduce = "step",
    frozen: Params | None = None,
    last_batch: LastBatch = "whole",
) -> Step:
    """The update of a stage.

    An update whose loss or gradient is not finite leaves parameters and moments as they were and reports `finite` = 0: the
    last good state is still there when the host hears of it.

    Args:
      accumulate: parts of the batch that are computed one after the other.
      reduce: what devices exchange while they accumulate. "step": nothing; the parameters are gathered over fsdp before the
        first part and each device adds up the gradient of its own rows, 4 bytes for every parameter on top of those of the
        compute dtype, reduced once at the end. "micro": every part's gradient is reduced, and only the device's share of it is
        kept, as the parameters are gathered where they are used: for models that do not fit otherwise.
      frozen: what a model of adapters adapts: arrays, or their shapes to compile for.
      last_batch: see `make_update`.

    The key is the stage's; each update folds in its own number, each part its own, and under "step" each device.
    """
    update = make_update(model, objective, tx, mesh, accumulate, reduce, last_batch)
    places = state_lib.shardings(model, tx, mesh)
    jitted = jax.jit(
        update,
        in_shardings=(places, batch_sharding(mesh), replicated(mesh), frozen_places(model, mesh)),
        out_shardings=(places, replicated(mesh)),
        donate_argnums=0,
    )
    return Step(jitted, mesh, frozen)


def frozen_places(model: Trained, mesh: Mesh) -> Any:
    """Shardings of the frozen parameters; None where there are none."""
    return model.decoder.shardings(mesh) if isinstance(model, Adapted) else None


def make_update(
    model: Trained,
    objective: Objective,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    accumulate: int,
    reduce: Reduce,
    last_batch: LastBatch = "whole",
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """The update itself, `(state, batch, key, frozen=None)`, to be traced inside other device code; objective and optimiser may
    hold traced numbers.

    Args:
      last_batch: "pad" divides the gradient of a batch of which only some rows are `real` by the weight that all of them would have at
        the mean weight of those: it is smaller by their share. The loss that is reported stays that of the real rows.
    """
    gradient = _accumulated(model, objective, batch_shards(mesh), accumulate, reduce)

    def step(
        state: TrainState, batch: Batch, key: jax.Array, frozen: Params | None = None
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(key, state.updates)
        (total, (weight, sums)), grads = gradient(state.params, adapted.with_row_keys(model, batch, key), key, frozen)
        weight = jnp.maximum(weight, 1.0)
        whole = weight
        if last_batch == "pad" and "real" in batch:
            whole = weight * batch["real"].shape[0] / jnp.sum(batch["real"], dtype=jnp.float32)
        grads = jax.tree.map(lambda g: g / whole.astype(g.dtype), grads)
        norm = optax.tree.norm(grads)
        loss = total / weight
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        keep = lambda new, old: jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)  # noqa: E731
        state = TrainState(state.updates + 1, keep(params, state.params), keep(opt_state, state.opt_state))
        metrics = {name: value / weight for name, value in sums.items()}
        masks = [rows for name, rows in batch.items() if name.endswith("mask")]
        tokens = sum((jnp.sum(mask, dtype=jnp.int32) for mask in masks), jnp.zeros((), jnp.int32))
        return state, {**metrics, "loss": loss, "grad_norm": norm, "tokens": tokens, "finite": finite}

    return step


def _accumulated(model: Trained, objective: Objective, shards: int, accumulate: int, reduce: Reduce) -> Any:
    """(params, batch, key, frozen) -> ((loss sum, (weight, metric sums)), gradient of the loss sum in float32)."""

    # Inside `over_shards` these are the places of a device's whole copy, outside those of the parameters.
    def placed(tree: Any, dims: Any = model.dims) -> Any:
        is_leaf = lambda node: isinstance(node, tuple)  # noqa: E731
        return jax.tree.map(lambda dims, leaf: shard(leaf, *dims), dims, tree, is_leaf=is_leaf)

    def gradient(params: Any, batch: Batch, key: jax.Array, frozen: Any) -> Any:
        rows = {name: value for name, value in batch.items() if name != adapted.KEYS}
        policy = adapted.policy(model, frozen, batch.get(adapted.KEYS))

        def loss_sum(params: Any) -> tuple[jax.Array, Any]:
            total, weight, metrics = objective.loss(policy, params, rows, key)
            return total, (weight, metrics)

        sums, grads = jax.value_and_grad(loss_sum, has_aux=True)(params)
        return sums, placed(jax.tree.map(_wide, grads))

    def scanned(gradient: Any, batch: Batch, key: jax.Array) -> Any:
        """The sum of `gradient(part, key of the part)` over the parts, which are the first dim of the batch."""

        def add(carry: Any, part: tuple[jax.Array, Batch]) -> tuple[Any, None]:
            number, rows = part
            return jax.tree.map(jnp.add, carry, gradient(rows, jax.random.fold_in(key, number))), None

        first = jax.tree.map(lambda x: x[0], batch)
        zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(gradient, first, key))
        return jax.lax.scan(add, zero, (jnp.arange(accumulate), batch))[0]

    def by_part(params: Any, batch: Batch, key: jax.Array, frozen: Any) -> Any:
        # Every accumulate-th row goes to one part: rows stay on the device that holds them.
        cut = lambda x: shard(jnp.swapaxes(x.reshape(-1, accumulate, *x.shape[1:]), 0, 1), None, "batch")  # noqa: E731
        return scanned(lambda rows, key: gradient(params, rows, key, frozen), jax.tree.map(cut, batch), key)

    def by_device(params: Any, batch: Batch, key: jax.Array, frozen: Any) -> Any:
        cut = lambda x: shard(x.reshape(shards, -1, *x.shape[1:]), "batch")  # noqa: E731

        def of_device(params: Any, frozen: Any, batch: Batch, device: jax.Array) -> Any:
            whole = placed(frozen, model.decoder.dims) if isinstance(model, Adapted) else frozen
            return by_part(placed(params), batch, jax.random.fold_in(key, device), whole)

        split = jax.tree.map(cut, batch), jnp.arange(shards)
        every = mesh_lib.over_shards(of_device, (None, None, 0, 0))(params, frozen, *split)
        sums, grads = jax.tree.map(lambda x: jnp.sum(x, axis=0), every)
        return sums, placed(grads)

    many = by_part if shards == 1 or reduce == "micro" else by_device
    chosen = gradient if accumulate == 1 else many
    return lambda params, batch, key, frozen=None: chosen(model.compute_params(params), batch, key, frozen)


def _wide(gradient: jax.Array) -> jax.Array:
    return gradient.astype(jnp.promote_types(gradient.dtype, jnp.float32))
