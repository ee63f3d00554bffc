"""What does a decoder remember between the tokens that it writes, and how is it read?

Shapes: b batch, t query position, s column of the cache, k kv_heads, g query heads per kv head, h head_dim.

Rows of different lengths lie against the right: row b begins in column `first_b`, and all rows write their next token into the same
column. One scalar then says how far every row is, and a token is one write in place for the whole batch.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from elastic_jax.models.attention.reference import MASKED
from elastic_jax.models.attention.view import View
from elastic_jax.models.products import matmul
from elastic_jax.parallel.mesh import shard


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values of one layer.

    What one key head needs lies together, and each product reads along its rows: transposing nothing, on CPU twice as fast for
    grouped queries as with keys [b, k, s, h].
    """

    keys: Float[Array, "b k h s"]
    values: Float[Array, "b k s h"]

    def append(self, k_btkh: Float[Array, "b t k h"], v_btkh: Float[Array, "b t k h"], start: Any) -> "Cache":
        """With the keys and values of `t` more tokens, written from column `start` on."""
        keys = jnp.transpose(k_btkh, (0, 2, 3, 1)).astype(self.keys.dtype)
        values = jnp.transpose(v_btkh, (0, 2, 1, 3)).astype(self.values.dtype)
        zero, start = jnp.zeros((), jnp.int32), jnp.asarray(start, jnp.int32)
        return Cache(
            jax.lax.dynamic_update_slice(self.keys, keys, (zero, zero, zero, start)),
            jax.lax.dynamic_update_slice(self.values, values, (zero, zero, start, zero)),
        )._sharded()

    def grown(self, more: int) -> "Cache":
        """With `more` columns."""
        keys, values = (((0, 0), (0, 0), (0, 0), (0, more)), ((0, 0), (0, 0), (0, more), (0, 0)))
        return Cache(jnp.pad(self.keys, keys), jnp.pad(self.values, values))._sharded()

    def _sharded(self) -> "Cache":
        return Cache(*(shard(x, "batch", "kv_heads", None, None) for x in (self.keys, self.values)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Caches:
    """Of all layers, by their number.

    Attributes:
      length: columns filled so far, the same for all rows.
      first_b: the column in which each row begins; those before it are padding that nobody looks at.
    """

    layers: dict[str, Cache]
    length: Int[Array, ""]
    first_b: Int[Array, " b"]

    @property
    def columns(self) -> int:
        """Room: tokens and padding together."""
        return next(iter(self.layers.values())).values.shape[2]

    @property
    def view(self) -> View:
        """What the next queries may look at."""
        return View(start=self.length, first_b=self.first_b)

    def positions(self, tokens: int) -> Int[Array, "b t"]:
        """Of the next `tokens` tokens of each row, counted from its own beginning."""
        return jnp.maximum(self.length + jnp.arange(tokens)[None, :] - self.first_b[:, None], 0)

    def grown(self, columns: int) -> "Caches":
        """With room for `columns` columns."""
        more = columns - self.columns
        return dataclasses.replace(self, layers={name: layer.grown(more) for name, layer in self.layers.items()})


def attend_cache(
    q_btkgh: Float[Array, "b t k g h"],
    cache: Cache,
    view: View,
    *,
    window: int = 0,
    softcap: float = 0.0,
    scale: float = 0.0,
) -> Float[Array, "b t k g h"]:
    """Softmax attention of the newest queries on a cache that holds their keys already; scores and softmax in float32.

    A pass over few tokens is bound by reading the cache: no backend does it faster than these two products, and all platforms
    have them.

    Args:
      window: keys further back than this are not looked at; 0 for all.
      softcap: c > 0 replaces a score x by c tanh(x / c).
      scale: scores are multiplied by it; 0 for head_dim ** -0.5.
    """
    b, t, k, g, h = q_btkgh.shape
    s = cache.values.shape[2]
    q_bknh = jnp.transpose(q_btkgh * (scale or h**-0.5), (0, 2, 3, 1, 4)).reshape(b, k, g * t, h)
    scores = matmul(q_bknh, cache.keys, jnp.float32).reshape(b, k, g, t, s)
    if softcap:
        scores = softcap * jnp.tanh(scores / softcap)
    mask_bts = view.mask(t, s, window)
    weights = jax.nn.softmax(jnp.where(mask_bts[:, None, None], scores, MASKED), axis=-1)
    out_bknh = matmul(weights.astype(cache.values.dtype).reshape(b, k, g * t, s), cache.values)
    return jnp.transpose(out_bknh.reshape(b, k, g, t, h), (0, 3, 1, 2, 4))
