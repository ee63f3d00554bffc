"""How does a table of rows go through a program that takes a batch?"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from elastic_jax.parallel.mesh import batch_sharding, batch_shards, put_global


def in_batches(program: Callable[[Any], Any], rows: Any, mesh: Mesh, batch_size: int) -> Any:
    """What `program` says of every row: a tree of host arrays [n, ...], in the order of the rows.

    Args:
      program: a batch like `rows`, [b, ...] sharded over the mesh -> a tree of arrays [b, ...] that every process holds whole. What
        it says of a row must not depend on the others.
      rows: a tree of arrays [n, ...], n at least 1, the same on every process.
      batch_size: rounded up to what the mesh divides.
    """
    parts, n = each_batch(program, rows, mesh, batch_size), len(jax.tree.leaves(rows)[0])
    return jax.tree.map(lambda *part: np.concatenate(part)[:n], *jax.device_get(parts))


def each_batch(program: Callable[[Any], Any], rows: Any, mesh: Mesh, batch_size: int) -> list[Any]:
    """As `in_batches`, what `program` says of every batch, left where it is: the last one has rows too many."""
    size = -(-batch_size // batch_shards(mesh)) * batch_shards(mesh)
    n, parts = len(jax.tree.leaves(rows)[0]), []
    with jax.set_mesh(mesh):
        for start in range(0, n, size):
            # One shape for all batches: the last one is filled with rows that had their turn.
            index = np.arange(start, start + size) % n
            parts.append(program(jax.tree.map(lambda a, i=index: put_global(a[i], batch_sharding(mesh)), rows)))
    return parts
