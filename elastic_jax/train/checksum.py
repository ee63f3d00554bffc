"""Are these the numbers that were saved, to the bit, wherever they lie now?

The checkpoint format has a checksum for its index and none for the arrays: a byte that turned on the disk would be read as
another weight. The sums below are made on the devices, where the arrays are, and are the same on every mesh.
"""

import functools
import json
import zlib
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from elastic_jax.parallel.mesh import replicated


def of_json(values: Any) -> int:
    """CRC-32 of values that JSON can hold."""
    return zlib.crc32(json.dumps(values, sort_keys=True).encode())


def of_arrays(tree: Any, mesh: Mesh) -> int:
    """A 32-bit sum over names, shapes and bits of all arrays of `tree`, which lie on `mesh`."""
    return finish(tree, start(tree, mesh))


def start(tree: Any, mesh: Mesh) -> list[jax.Array]:
    """The sum of every array, launched and not waited for, unless the devices are simulated."""
    # One call per array: layers have the same shapes, so that deep models compile no more than shallow ones.
    total = _jitted(mesh)
    simulated = mesh.size > 1 and mesh.devices.flat[0].platform == "cpu"
    # Simulated devices share a few threads. Many sums over all of them at once can leave each waiting for a thread that another
    # holds, which XLA ends by aborting the process.
    return [jax.block_until_ready(total(leaf)) if simulated else total(leaf) for leaf in jax.tree.leaves(tree)]


def finish(tree: Any, sums: list[jax.Array]) -> int:
    """What `of_arrays` gives, of what `start` began; of `tree` only names, shapes and types are looked at."""
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    leaves = jax.tree.leaves(tree)
    parts = [
        [path, str(leaf.dtype), leaf.shape, int(total)]
        for path, leaf, total in zip(paths, leaves, jax.device_get(sums), strict=True)
    ]
    return of_json(parts)


@functools.cache
def _jitted(mesh: Mesh) -> Any:
    return jax.jit(_sum, out_shardings=replicated(mesh))


def _sum(x: jax.Array) -> jax.Array:
    """sum_i m(bits_i ^ m(i)) mod 2^32, with m = `_mixed`: integers add up the same in any order, and one changed number
    always changes the sum, since m is one to one."""
    width = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(x, width).astype(jnp.uint32)
    place = jnp.zeros(x.shape, jnp.uint32)
    for dim, size in enumerate(x.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, dim)
    return jnp.sum(_mixed(bits ^ _mixed(place)), dtype=jnp.uint32)


def _mixed(x: jax.Array) -> jax.Array:
    """A permutation of the 32-bit numbers without a pattern (the finaliser of MurmurHash3)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
