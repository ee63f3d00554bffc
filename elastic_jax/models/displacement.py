"""How far has training moved each parameter tensor, and where would a random step of the same length have led?

From a tensor w that training moved to w', the random step leads to w + |w' - w| z / |z| with z standard normal: as long, in a
direction that knows nothing of any data. A tensor is that of one layer, so each keeps its own length, and one that training left alone
stays as it is, bit for bit. The random numbers follow from the key, the tensor's name and its layer: they are the same on every mesh, in
both layouts, and for tensors of equal name and shape in different models.
"""

import functools
import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from elastic_jax.models.transformer import Decoder, Params
from elastic_jax.parallel.mesh import replicated


def distances(model: Decoder, start: Params, end: Params, mesh: Mesh) -> Params:
    """Euclidean distance from `start` to `end` of every tensor: float32, of the form of the parameters.

    Leaves are scalars, or under layout "scan" [layers] where arrays carry a layer dim.
    """
    return _jitted_distances(model, mesh)(start, end)


def norms(model: Decoder, params: Params, mesh: Mesh) -> Params:
    """Euclidean norm of every tensor, in the form of `distances`."""
    return _jitted_norms(model, mesh)(params)


def displaced(model: Decoder, start: Params, lengths: Params, key: jax.Array, mesh: Mesh) -> Params:
    """`start` with every tensor moved by its length in a random direction, uniform over the sphere.

    Added in float32 and kept in the dtype of the parameters, whose rounding then changes the length by as much as it would in
    training.

    Args:
      lengths: of the form that `distances` gives.
    """

    def of(path: list[str], weight: jax.Array, length: jax.Array, place: NamedSharding) -> jax.Array:
        stacked = _is_stacked(model, path)
        # Tensor by tensor, so that equal layers share a program: one program of all takes minutes to compile.
        step = _jitted_step(place, stacked)
        if stacked or path[0] != "layers":
            return step(weight, length, _key(key, path[1:] if stacked else path))
        return step(weight, length, jax.random.fold_in(_key(key, path[2:]), int(path[1])))

    return _map(of, start, lengths, model.shardings(mesh))


def total(lengths: Params) -> float:
    """The length of all tensors together: the root of the sum of squares."""
    return math.sqrt(sum(float(np.sum(np.square(np.asarray(leaf, np.float64)))) for leaf in jax.tree.leaves(lengths)))


def _is_stacked(model: Decoder, path: Sequence[str]) -> bool:
    return model.config.layout == "scan" and path[0] == "layers"


def _map(function: Callable[..., Any], *trees: Params) -> Any:
    """`function` of the path and the leaves there."""
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: function([str(part.key) for part in path], *leaves), *trees
    )


def _norm(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(jnp.square(x)))


def _norms(model: Decoder, params: Params) -> Params:
    def of(path: list[str], leaf: jax.Array) -> jax.Array:
        whole = leaf.astype(jnp.float32)
        return jax.vmap(_norm)(whole) if _is_stacked(model, path) else _norm(whole)

    return _map(of, params)


def _distances(model: Decoder, start: Params, end: Params) -> Params:
    # In float32 before the subtraction: a difference of two near bfloat16 numbers is exact there.
    moved = jax.tree.map(lambda a, b: b.astype(jnp.float32) - a.astype(jnp.float32), start, end)
    return _norms(model, moved)


def _step(weight: jax.Array, length: jax.Array, key: jax.Array) -> jax.Array:
    direction = jax.random.normal(key, weight.shape, jnp.float32)
    moved = (weight.astype(jnp.float32) + length / _norm(direction) * direction).astype(weight.dtype)
    return jnp.where(length == 0, weight, moved)  # adding a zero would turn -0 into +0


def _steps(weight: jax.Array, length: jax.Array, key: jax.Array) -> jax.Array:
    """`_step` of every layer, with the numbers that it has by itself."""
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(len(weight)))
    return jax.vmap(_step)(weight, length, keys)


def _key(key: jax.Array, path: Sequence[str]) -> jax.Array:
    return jax.random.fold_in(key, zlib.crc32("/".join(path).encode()))


@functools.cache
def _jitted_distances(model: Decoder, mesh: Mesh) -> Any:
    return jax.jit(functools.partial(_distances, model), out_shardings=replicated(mesh))


@functools.cache
def _jitted_norms(model: Decoder, mesh: Mesh) -> Any:
    return jax.jit(functools.partial(_norms, model), out_shardings=replicated(mesh))


@functools.cache
def _jitted_step(place: NamedSharding, stacked: bool) -> Any:
    return jax.jit(_steps if stacked else _step, out_shardings=place)
