"""What does training carry from one update to the next?"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from elastic_jax.models.adapted import Trained
from elastic_jax.models.transformer import Params, stack, unstack
from elastic_jax.parallel.mesh import replicated


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Nothing random and no data position: keys are folded from the seed and the update number, rows are a function of it."""

    updates: jax.Array  # int32 scalar
    params: Params  # all of them, or adapters alone
    opt_state: optax.OptState


def create(params: Params, tx: optax.GradientTransformation) -> TrainState:
    return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params))


def creator(model: Trained, tx: optax.GradientTransformation, mesh: Mesh) -> Callable[[Params], TrainState]:
    """`create`, compiled once, with every part made in its place."""
    return jax.jit(lambda params: create(params, tx), out_shardings=shardings(model, tx, mesh))


def shardings(model: Trained, tx: optax.GradientTransformation, mesh: Mesh) -> Any:
    """Where each part of the state lives, as a TrainState of shardings: moments beside their parameter, scalars on every device."""
    places = model.shardings(mesh)
    abstract = jax.eval_shape(lambda: create(_zeros(model), tx))
    opt_places = optax.tree_map_params(
        tx,
        lambda _, place: place,
        abstract.opt_state,
        places,
        transform_non_params=lambda _: replicated(mesh),
    )
    updates: Any = replicated(mesh)
    return TrainState(updates, places, opt_places)


def _zeros(model: Trained) -> Params:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), model.shapes)


def abstract(model: Trained, tx: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and places on the current mesh: what a checkpoint is restored into."""
    shapes = jax.eval_shape(lambda: create(_zeros(model), tx))
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        shardings(model, tx, mesh),
    )


def map_params(fn: Any, tree: Any) -> Any:
    """Apply `fn` to every subtree that has the form of the parameters (the parameters, and their moments)."""
    is_params = lambda node: isinstance(node, dict) and "layers" in node  # noqa: E731
    return jax.tree.map(lambda node: fn(node) if is_params(node) else node, tree, is_leaf=is_params)


def to_disk(state: Any, model: Trained) -> Any:
    """One entry per layer, whatever the layout in memory."""
    if model.config.layout == "unroll":
        return state
    return map_params(lambda params: unstack(params, model.config.layers), state)


def from_disk(state: Any, model: Trained) -> Any:
    return state if model.config.layout == "unroll" else map_params(stack, state)
