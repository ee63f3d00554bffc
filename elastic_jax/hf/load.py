"""How do the tensors of a checkpoint become parameters in their places on the devices?

Tensor by tensor, and of each only what the devices of this process hold: the numbers go from the mapped file, cast and transposed on the
way, into one buffer in host memory, and from there to the devices. On a CPU that buffer is the array; elsewhere it is gone when the next
one has been filled.
"""

import concurrent.futures
import functools
import itertools
import logging
import math
import mmap
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from elastic_jax.errors import UserError
from elastic_jax.hf.tensors import Tensors
from elastic_jax.models.families import Family, Piece
from elastic_jax.models.transformer import Decoder, Params
from elastic_jax.parallel import huge_pages

_log = logging.getLogger(__name__)
# A tile that is transposed stays in the cache: columns of the file, and bytes of a row that are written in one go.
_COLUMNS, _RUN = 256, 1024
_APART = 16  # columns between the rows of a tile
_SPAN = 8 << 20  # bytes of a tensor that a thread copies before their pages are given back


def load_params(
    model: Decoder, mesh: Mesh, tensors: Tensors, family: Family, *, head: bool = True, others: Sequence[str] = ()
) -> Params:
    """The parameters of a checkpoint under the shardings of `model` on `mesh`, in its `param_dtype` and its layout.

    Args:
      head: whether with the language-model head.
      others: names of tensors that the caller reads itself.

    Raises:
      UserError: tensors are missing, left over, of another shape or not of floating point, all of them listed with their files; or
        the model does not divide over the mesh. Nothing has been allocated then.
    """
    c = model.config
    pieces = family.pieces(c, head=head)
    names = family.locate(tensors.names)
    check(pieces, names, tensors, family, head=head, others=others)
    shardings, shapes = model.shardings(mesh), model.shapes
    if not head:
        shardings, shapes = ({k: v for k, v in tree.items() if k != "head"} for tree in (shardings, shapes))
    of_path: dict[tuple[str, ...], list[Piece]] = {}
    for piece in pieces:
        of_path.setdefault(piece.path, []).append(piece)
    began = time.perf_counter()
    flat, tree = jax.tree_util.tree_flatten_with_path(shapes)
    with concurrent.futures.ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        reader = _Reader(tensors, names, np.dtype(jnp.dtype(c.param_dtype)), pool)
        leaves: list[jax.Array] = []
        for (keys, leaf), sharding in zip(flat, jax.tree.leaves(shardings), strict=True):
            path = tuple(key.key for key in keys)
            if c.layout == "scan" and path[0] == "layers":
                blocks = [of_path[("layers", str(i), *path[1:])] for i in range(c.layers)]
                stacked = _stacked_on_host if _on_host(mesh) else _stacked_on_devices
                leaves.append(stacked(reader, blocks, leaf.shape, sharding))
            else:
                leaves.append(reader.array([(piece, ()) for piece in of_path[path]], leaf.shape, sharding))
            # One transfer may run while the next buffer is filled; more would gather on the host.
            jax.block_until_ready(leaves[-2:-1])
    params = jax.block_until_ready(jax.tree_util.tree_unflatten(tree, leaves))
    size, seconds = sum(leaf.nbytes for leaf in leaves) / 1e9, time.perf_counter() - began
    _log.info("Read %s, %s: %.2f GB of parameters in %.1f s.", tensors.folder, family.title, size, seconds)
    return params


def check(
    pieces: Sequence[Piece],
    names: Mapping[str, str],
    tensors: Tensors,
    family: Family,
    *,
    head: bool = True,
    others: Sequence[str] = (),
) -> None:
    """Raises UserError with everything in which a checkpoint differs from the table of its family."""
    wanted = {piece.name: piece for piece in pieces}
    faults = [f"missing: {name} {list(piece.shape)}" for name, piece in wanted.items() if name not in names]
    for name, actual in names.items():
        if actual in others:
            continue
        shape, file = list(tensors.shape(actual)), tensors.file(actual).name
        if name not in wanted:
            # A tied model may hold its embedding a second time, and a body may come with the head that is not asked for.
            if not family.is_head(name):
                faults.append(f"left over: {actual} {shape} in {file}")
        elif tuple(shape) != wanted[name].shape:
            faults.append(f"of another shape: {actual} {shape} in {file}, expected {list(wanted[name].shape)}")
        elif not jnp.issubdtype(tensors.dtype(actual), jnp.floating):
            faults.append(f"not of floating point: {actual} {tensors.dtype(actual)} in {file}")
    if faults:
        shown = faults[:_MOST] + ([f"and {len(faults) - _MOST} more"] if len(faults) > _MOST else [])
        raise UserError(
            f"{tensors.folder}: {len(faults)} of its tensors are not those that its config.json describes ({family.title}):\n  "
            + "\n  ".join(shown)
            + "\nconfig.json and weights are of different models, or the folder was copied in part: get it again."
        )


_MOST = 40  # faults that are shown


# A piece, and under `layout="scan"` the number of its layer.
Place = tuple[Piece, tuple[int, ...]]


class _Reader:
    """Reads parts of tensors into buffers that become arrays."""

    def __init__(
        self, tensors: Tensors, names: Mapping[str, str], dtype: np.dtype, pool: concurrent.futures.ThreadPoolExecutor
    ):
        self.tensors, self.names, self.dtype, self.pool = tensors, names, dtype, pool

    def array(self, places: Sequence[Place], shape: tuple[int, ...], sharding: NamedSharding) -> jax.Array:
        """The parameter that these pieces make, each part of it read once however many devices hold it."""
        holders: dict[tuple[tuple[int, int], ...], list[Any]] = {}
        for device, index in sharding.addressable_devices_indices_map(shape).items():
            bounds = tuple(part.indices(size)[:2] for part, size in zip(index or (), shape, strict=True))
            holders.setdefault(bounds, []).append(device)
        placed = []
        for bounds, devices in holders.items():
            part = self._part(places, bounds)
            placed += [jax.device_put(part, device) for device in devices]
        return jax.make_array_from_single_device_arrays(shape, sharding, placed)

    def _part(self, places: Sequence[Place], bounds: tuple[tuple[int, int], ...]) -> np.ndarray:
        """The numbers of a parameter between these bounds. What no tensor fills is zero: rows that pad the vocabulary."""
        part = _zeros(tuple(stop - start for start, stop in bounds), self.dtype)
        for piece, layer in places:
            whole = [(number, number + 1) for number in layer] + [(span.start, span.stop) for span in piece.region]
            overlap = [(max(a, c), min(b, d)) for (a, b), (c, d) in zip(bounds, whole, strict=True)]
            if any(first >= last for first, last in overlap):
                continue
            source = piece.to_ours(self.tensors.read(self.names[piece.name]))
            source = source[(None,) * len(layer)][_relative(overlap, whole)]
            self._copy(part[_relative(overlap, bounds)], source, piece)
        return part

    def _copy(self, target: np.ndarray, source: np.ndarray, piece: Piece) -> None:
        """target[...] = source, span by span of the file."""

        def copy(span: tuple[slice, ...]) -> None:
            _copy(target[span], source[span])
            self.tensors.release(self.names[piece.name])

        list(self.pool.map(copy, _spans(source, _RUN // target.itemsize)))


def _relative(overlap: Sequence[tuple[int, int]], within: Sequence[tuple[int, int]]) -> tuple[slice, ...]:
    return tuple(slice(first - start, last - start) for (first, last), (start, _) in zip(overlap, within, strict=True))


def _spans(source: np.ndarray, multiple: int) -> list[tuple[slice, ...]]:
    """A view of a file cut along the dim that runs slowest in the file, where it can be at multiples of `multiple`."""
    sizes = source.shape
    axis = max((i for i in range(source.ndim) if sizes[i] > 1), key=source.strides.__getitem__, default=None)
    if axis is None:
        return [()]
    rows = max(1, _SPAN * sizes[axis] // source.nbytes)
    rows = rows // multiple * multiple or rows
    return [(slice(None),) * axis + (slice(i, i + rows),) for i in range(0, sizes[axis], rows)]


def _copy(target: np.ndarray, source: np.ndarray) -> None:
    """target[...] = source with a cast, tile by tile where it is a transpose.

    Each tile is first copied as it lies in the file, into a buffer that stays in the cache, whose rows are a little apart so that
    reading down a column does not meet the same lines of the cache again and again.
    """
    if target.dtype == source.dtype and target.itemsize in (2, 4):  # plain integers are copied fastest
        plain = np.dtype(f"u{target.itemsize}")
        target, source = target.view(plain), source.view(plain)
    source, target = (view.squeeze() for view in (source, target))  # strides of dims of size 1 mean nothing
    fast, last = (min(range(source.ndim), key=view.strides.__getitem__, default=0) for view in (source, target))
    if fast == last:
        np.copyto(target, source, casting="unsafe")
        return
    run = _RUN // target.itemsize
    tile = np.empty((run, _COLUMNS + _APART), target.dtype)
    others = [axis for axis in range(source.ndim) if axis not in (fast, last)]
    index: list[Any] = [slice(None)] * source.ndim
    for numbers in itertools.product(*(range(source.shape[axis]) for axis in others)):
        for axis, number in zip(others, numbers, strict=True):
            index[axis] = number
        to, at = target[tuple(index)], source[tuple(index)]
        if fast > last:
            to, at = to.T, at.T
        for j in range(0, to.shape[1], run):
            for i in range(0, to.shape[0], _COLUMNS):
                part = at[i : i + _COLUMNS, j : j + run].T
                turned = tile[: part.shape[0], : part.shape[1]]
                np.copyto(turned, part, casting="unsafe")
                np.copyto(to[i : i + _COLUMNS, j : j + run], turned.T)


def _zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array in pages of its own, where XLA on a CPU uses it as it is: its address divides by the alignment that XLA asks for.

    Its pages are large where the command line asked for that (`parallel.huge_pages`), as all that XLA takes. numpy would always ask,
    and a virtual machine may need longer to find large ones than to read the file.
    """
    nbytes = math.prod(shape) * dtype.itemsize
    pages = mmap.mmap(-1, max(1, nbytes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if huge_pages.TUNABLE in os.environ.get(huge_pages.TUNABLES, "") and hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(pages, dtype, math.prod(shape)).reshape(shape)


def _on_host(mesh: Mesh) -> bool:
    """Whether the buffers are the arrays, so that one for all layers takes no more memory than they do."""
    return all(device.platform == "cpu" for device in mesh.devices.flat)


def _stacked_on_host(
    reader: _Reader, blocks: Sequence[Sequence[Piece]], shape: tuple[int, ...], sharding: NamedSharding
) -> jax.Array:
    """One array of all layers, filled layer by layer."""
    return reader.array(
        [(piece, (number,)) for number, pieces in enumerate(blocks) for piece in pieces], shape, sharding
    )


def _stacked_on_devices(
    reader: _Reader, blocks: Sequence[Sequence[Piece]], shape: tuple[int, ...], sharding: NamedSharding
) -> jax.Array:
    """One array of all layers, of which the host holds one layer at a time: each is written into its place on the devices."""
    of_layer = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
    create, write = _stack_functions(shape, reader.dtype, sharding)
    stack = create()
    for number, pieces in enumerate(blocks):
        layer = reader.array([(piece, ()) for piece in pieces], shape[1:], of_layer)
        stack = jax.block_until_ready(write(stack, layer, number))
    return stack


@functools.lru_cache(maxsize=64)
def _stack_functions(shape: tuple[int, ...], dtype: np.dtype, sharding: NamedSharding) -> tuple[Any, Any]:
    create = jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)
    write = jax.jit(
        lambda stack, layer, number: jax.lax.dynamic_update_index_in_dim(stack, layer, number, 0),
        donate_argnums=0,
        out_shardings=sharding,
    )
    return create, write
