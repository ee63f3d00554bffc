"""On which device does each part of an array live?

An *axis* belongs to the device mesh, a *dim* to an array; `RULES` joins them. One mesh serves every size: (run, data, fsdp,
tensor), any of them 1. Over `run` lie the lanes of a population, which exchange nothing; everything else is the same on all
of it.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from elastic_jax.errors import UserError

AXES = ("run", "data", "fsdp", "tensor")

# dim -> mesh axes. A dim that is not listed is whole on every device.
RULES: dict[str, tuple[str, ...]] = {
    "lanes": ("run",),
    "batch": ("data", "fsdp"),
    "embed": ("fsdp",),
    "vocab": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
}


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, run: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """A (run, data, fsdp, tensor) mesh; one of the sizes may be -1 and takes the devices that remain.

    Axis types are Auto: the default of `jax.make_mesh` became Explicit, which breaks look-ups in a table whose vocabulary
    is sharded.

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = [run, data, fsdp, tensor]
    given = f"mesh.data={data}, mesh.fsdp={fsdp}, mesh.tensor={tensor}" + (f", mesh.run={run}" if run != 1 else "")
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise UserError(f"{given}: expected positive sizes, at most one of them -1 (the rest of the devices).")
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if math.prod(sizes) != len(devices):
        asked = dict(data=data, fsdp=fsdp, tensor=tensor) | (dict(run=run) if run != 1 else {})
        near = (
            " ".join(f"--config.mesh.{axis}={size}" for axis, size in one.items())
            for one in nearest(asked, len(devices))
        )
        raise UserError(
            f"{given}: the sizes multiply to {known}{' x n' if -1 in sizes else ''}, but there are {len(devices)} devices. "
            f"The nearest that do: {', or '.join(near)}."
        )
    return Mesh(np.asarray(devices).reshape(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def nearest(sizes: Mapping[str, int], devices: int, most: int = 3) -> list[dict[str, int]]:
    """The sizes that multiply to `devices` and differ least from those given: several where they differ by the same, `most` of them.

    The axis at -1, or else `data`, takes the devices that remain, and axes of size 1 keep it.

    >>> nearest(dict(data=-1, fsdp=3, tensor=1), 8)
    [{'data': 4, 'fsdp': 2, 'tensor': 1}, {'data': 2, 'fsdp': 4, 'tensor': 1}]
    """
    rest = next((axis for axis, size in sizes.items() if size == -1), "data")
    asked = {axis: size for axis, size in sizes.items() if axis != rest}
    choices = [[1] if size == 1 else divisors(devices) for size in asked.values()]
    fits = [taken for taken in itertools.product(*choices) if devices % math.prod(taken) == 0]
    away = [sum(abs(size - wanted) for size, wanted in zip(taken, asked.values(), strict=True)) for taken in fits]
    return [
        {axis: dict(zip(asked, taken, strict=True)).get(axis, devices // math.prod(taken)) for axis in sizes}
        for taken, distance in zip(fits, away, strict=True)
        if distance == min(away)
    ][:most]


def divisors(n: int) -> list[int]:
    """Smallest first."""
    return [k for k in range(1, n + 1) if n % k == 0]


def without_lanes(mesh: Mesh) -> Mesh:
    """The same devices in the same order, those of the `run` axis as more of `data`: for what all lanes' devices do for one run."""
    run, data, *rest = mesh.devices.shape
    return Mesh(mesh.devices.reshape(1, run * data, *rest), AXES, axis_types=(AxisType.Auto,) * len(AXES))


# True while `over_shards` traces. A context of jax's own: it is part of the key of every trace that is cached.
_SPLIT = jax.make_user_context(False)


def axes(dim: str | None) -> tuple[str, ...]:
    """Mesh axes that a dim lies on here. Inside `over_shards` those of the batch are taken."""
    taken = RULES["batch"] if _SPLIT.value else ()
    return tuple(axis for axis in RULES.get(dim or "", ()) if axis not in taken)


def parts(dim: str) -> int:
    """Into how many parts a dim is cut here; 1 where no mesh is set."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in axes(dim))


def over_shards(fn: Callable[..., Any], in_axes: Any) -> Callable[..., Any]:
    """`fn` for each device's part of the batch by itself: nothing is exchanged over the axes of the batch but what the caller
    does with the outputs, which carry a leading dim of `batch_shards`.

    Args:
      in_axes: as in `jax.vmap`: 0 for what is cut, [batch_shards, ...] with the first dim on the batch axes; None for what all
        share.
    """

    def of_one(*args: Any) -> Any:
        with _SPLIT(True):
            return fn(*args)

    return jax.vmap(of_one, in_axes=in_axes, spmd_axis_name=RULES["batch"])


def spec(dims: Sequence[str | None]) -> PartitionSpec:
    """The partition of an array with these dims under `RULES`."""
    return PartitionSpec(*(axes(dim) or None for dim in dims))


def shard(x: jax.Array, *dims: str | None) -> jax.Array:
    """Constrain an activation to its place; does nothing where no mesh is set."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec(dims))


def tree_shardings(mesh: Mesh, dims: Any) -> Any:
    """NamedShardings for a tree whose leaves are tuples of dims."""
    return jax.tree.map(
        lambda leaf: NamedSharding(mesh, spec(leaf)), dims, is_leaf=lambda leaf: isinstance(leaf, tuple)
    )


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, spec(("batch",)))


def batch_shards(mesh: Mesh) -> int:
    """Into how many parts the mesh cuts a batch."""
    return math.prod(mesh.shape[axis] for axis in RULES["batch"])


def check_batch(field: str, batch_size: int, mesh: Mesh) -> None:
    """Raises UserError, with a size that fits, when a batch does not divide over the mesh."""
    shards = batch_shards(mesh)
    if batch_size % shards:
        down, up = batch_size // shards * shards, -(-batch_size // shards) * shards
        fits = f"{down} or {up}" if down else str(up)
        raise UserError(
            f"{field}={batch_size} does not divide over mesh axes data x fsdp = {shards}. Use {fits}, or a smaller "
            f"--config.mesh.data (now {mesh.shape['data']})."
        )


def check_dims(dims: Any, shapes: Any, mesh: Mesh) -> None:
    """Raises UserError when a parameter's dim does not divide over its mesh axes."""
    flat_dims = jax.tree.leaves(dims, is_leaf=lambda leaf: isinstance(leaf, tuple))
    bad = {}
    common = dict(mesh.shape)  # what every dim on an axis divides over
    for leaf_dims, leaf in zip(flat_dims, jax.tree.leaves(shapes), strict=True):
        for dim, size in zip(leaf_dims, leaf.shape, strict=True):
            for axis in RULES.get(dim, ()):
                common[axis] = math.gcd(common[axis], size)
                if size % mesh.shape[axis]:
                    bad[dim] = (size, axis)
    for dim, (size, axis) in bad.items():
        parts = mesh.shape[axis]
        raise UserError(
            f"model dim '{dim}' has size {size}, which does not divide over mesh axis {axis} = {parts}. "
            f"Use --config.mesh.{axis}={common[axis]}, or a model whose '{dim}' is a multiple of {parts}."
        )


def put_local(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """A batch of which each process holds its own contiguous block of rows, as global arrays."""
    sharding = batch_sharding(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def put_global(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """An array that every process holds whole, placed under `sharding`."""
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
