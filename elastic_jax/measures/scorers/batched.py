"""How do texts of many lengths go through a model without many shapes or much padding?"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from elastic_jax.parallel.mesh import batch_sharding, batch_shards, put_global

_SHORTEST = 16


def width(length: int, longest: int) -> int:
    """Columns that a batch of texts of up to `length` tokens gets: a power of two, so that there are few shapes to compile.

    >>> [width(n, 512) for n in (3, 17, 512)], width(300, 400)
    ([16, 32, 512], 400)
    """
    return min(longest, max(_SHORTEST, 1 << (length - 1).bit_length()))


def over_rows(
    fn: Callable[[jax.Array, jax.Array], jax.Array],
    rows: Sequence[Sequence[int]],
    *,
    extra: Sequence[int] | None = None,
    pad: int,
    longest: int,
    size: int,
    mesh: Mesh,
) -> np.ndarray:
    """What `fn` gives for every row of token numbers, float64, in the order of the rows.

    Rows are sorted by length and cut into batches; a batch has rows of similar length, padded on the right, and a number of rows
    that the mesh divides. What `fn` says of a row must not depend on the others or on the padding.

    Args:
      fn: (tokens [b, t] int32, facts [b, 1 or 2] int32: tokens of each row, and its `extra`) -> [b, ...], whole on every process.
      extra: a further number for each row.
      longest: no row has more tokens.
      size: rows of a batch, at the most (more where the mesh has more parts).
    """
    shards = batch_shards(mesh)
    lengths = np.array([len(row) for row in rows])
    order = np.argsort(-lengths, kind="stable")
    size = -(-size // shards) * shards
    parts: list[Any] = []
    taken: list[np.ndarray] = []
    with jax.set_mesh(mesh):
        for start in range(0, len(rows), size):
            index = order[start : start + size]
            b = min(size, shards * (1 << (-(-len(index) // shards) - 1).bit_length()))
            t = width(int(lengths[index[0]]), longest)
            tokens = np.full((b, t), pad, np.int32)
            facts = np.ones((b, 1 if extra is None else 2), np.int32)  # a row of one token where there is none
            for place, i in enumerate(index):
                tokens[place, : lengths[i]] = rows[i]
                facts[place, 0] = lengths[i]
                if extra is not None:
                    facts[place, 1] = extra[i]
            placed = (put_global(array, batch_sharding(mesh)) for array in (tokens, facts))
            parts.append(fn(*placed))
            taken.append(index)
    values = [
        np.asarray(part, np.float64)[: len(index)] for part, index in zip(jax.device_get(parts), taken, strict=True)
    ]
    joined = np.concatenate(values)
    out = np.empty_like(joined)
    out[np.concatenate(taken)] = joined
    return out
