"""What happens in one update?"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from elastic_jax.models.transformer import Decoder
from elastic_jax.objectives import Batch, Objective
from elastic_jax.parallel.mesh import batch_sharding, replicated, shard
from elastic_jax.train import state as state_lib
from elastic_jax.train.state import TrainState


@dataclasses.dataclass(frozen=True)
class Step:
    """A jitted `(state, batch, key) -> (state, metrics)`; the state is donated."""

    jitted: Any
    mesh: Mesh

    def __call__(self, state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        with jax.set_mesh(self.mesh):
            return self.jitted(state, batch, key)

    def compile(self, state: Any, batch: Any, key: Any) -> Any:
        """The compiled step for abstract or real inputs, with its memory analysis."""
        with jax.set_mesh(self.mesh):
            return self.jitted.lower(state, batch, key).compile()


def make_train_step(
    model: Decoder, objective: Objective, tx: optax.GradientTransformation, mesh: Mesh, accumulate: int = 1
) -> Step:
    """The update of a stage.

    The key is the stage's; each update folds in its own number. With `accumulate` k > 1 the batch is cut into k parts whose
    loss sums and weights are added before the one division, so that the gradient is that of the whole batch.

    An update whose loss or gradient is not finite leaves parameters and moments as they were and reports `finite` = 0: the
    last good state is still there when the host hears of it.
    """

    def loss_sum(params: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, Any]:
        total, weight, metrics = objective.loss(model, params, batch, key)
        return total, (weight, metrics)

    gradient = jax.value_and_grad(loss_sum, has_aux=True)

    def accumulated(params: Any, batch: Batch, key: jax.Array) -> Any:
        if accumulate == 1:
            return gradient(params, batch, key)
        # Every accumulate-th row goes to one part: rows stay on the device that holds them.
        parts = jax.tree.map(
            lambda x: shard(jnp.swapaxes(x.reshape(-1, accumulate, *x.shape[1:]), 0, 1), None, "batch"), batch
        )

        def add(carry: Any, part: tuple[jax.Array, Batch]) -> tuple[Any, None]:
            number, rows = part
            return jax.tree.map(jnp.add, carry, gradient(params, rows, jax.random.fold_in(key, number))), None

        first = jax.tree.map(lambda x: x[0], parts)
        zero = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(gradient, params, first, key)
        )
        return jax.lax.scan(add, zero, (jnp.arange(accumulate), parts))[0]

    def step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(key, state.updates)
        (total, (weight, sums)), grads = accumulated(state.params, batch, key)
        weight = jnp.maximum(weight, 1.0)
        grads = jax.tree.map(lambda g: g / weight.astype(g.dtype), grads)
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

    places = state_lib.shardings(model, tx, mesh)
    jitted = jax.jit(
        step,
        in_shardings=(places, batch_sharding(mesh), replicated(mesh)),
        out_shardings=(places, replicated(mesh)),
        donate_argnums=0,
    )

    return Step(jitted, mesh)
