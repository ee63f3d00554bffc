"""How do a model's probabilities become whole numbers that are the same whenever they are computed?

Decoding asks for what encoding had, bit for bit. So both run one and the same compiled program: one token of every lane, with a cache of
keys and values, from logits to cumulated frequencies in whole numbers; a faster program for encoding alone, which sees all tokens at
once, would round differently. Everything after these numbers is exact.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from elastic_jax.models.transformer import Decoder, Params
from elastic_jax.parallel.mesh import batch_sharding, put_global, replicated


def precision(vocab_size: int) -> int:
    """log2 of the sum of all frequencies.

    Every token gets at least one slot of it, which takes vocab_size / 2^precision of the probability from the others: at most 0.4 %,
    and 0.006 bits a token.

    >>> precision(2048), precision(151_643)
    (24, 26)
    """
    return 24 if vocab_size <= 1 << 16 else 26


def cumulated(logits_bv: Float[Array, "b v"], precision: int) -> Int[Array, "b v+1"]:
    """Frequencies of all tokens, each at least 1 and together 2^precision, added up from 0: token i has the slots from [i] to [i + 1].

    f = 1 + floor(p (2^precision - v)); what rounding leaves over goes to the most likely token.
    """
    v = logits_bv.shape[-1]
    p_bv = jax.nn.softmax(logits_bv.astype(jnp.float32), axis=-1)
    f_bv = 1 + jnp.floor(p_bv * ((1 << precision) - v)).astype(jnp.int32)
    left_b = (1 << precision) - jnp.sum(f_bv, axis=-1)
    f_bv = f_bv + left_b[:, None] * jax.nn.one_hot(jnp.argmax(f_bv, axis=-1), v, dtype=jnp.int32)
    return jnp.pad(jnp.cumsum(f_bv, axis=-1), ((0, 0), (1, 0)))


class Tables:
    """The frequencies of the next token of several lanes, step by step.

    Args:
      lanes: texts that are continued at once, a multiple of the shards of a batch on the mesh.
      length: the most tokens of one.
    """

    def __init__(self, model: Decoder, params: Params, mesh: Mesh, lanes: int, length: int):
        self._model, self._mesh, self._shape = model, mesh, (lanes, length)
        with jax.set_mesh(mesh):
            self._params = jax.jit(model.for_decoding)(params)
        self._caches: Any = None

    def restart(self) -> None:
        """Forget what the lanes have seen."""
        with jax.set_mesh(self._mesh):
            self._caches = _empty(self._model, *self._shape)

    def next(self, tokens_b: Int[np.ndarray, " b"]) -> Int[Array, "b v+1"]:
        """`cumulated` frequencies after one more token of every lane; call `restart` first."""
        assert self._caches is not None, "restart comes first"
        with jax.set_mesh(self._mesh):
            tokens_b1 = put_global(tokens_b.astype(np.int32)[:, None], batch_sharding(self._mesh))
            table, self._caches = _step(self._model, self._mesh, self._params, tokens_b1, self._caches)
        return table

    def slots(
        self, table: Int[Array, "b v+1"], tokens_b: Int[np.ndarray, " b"]
    ) -> tuple[Int[Array, " b"], Int[Array, " b"]]:
        """First slot and number of slots of one token of each lane: whole numbers, read off where the table lies."""
        with jax.set_mesh(self._mesh):
            return _slots(table, put_global(tokens_b.astype(np.int32), replicated(self._mesh)))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _empty(model: Decoder, lanes: int, length: int) -> Any:
    return model.empty_caches(lanes, length)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=4)
def _step(model: Decoder, mesh: Mesh, params: Params, tokens_b1: jax.Array, caches: Any) -> tuple[jax.Array, Any]:
    hidden_b1d, caches = model.hidden(params, tokens_b1, caches=caches)
    table = cumulated(model.logits(params, hidden_b1d)[:, 0], precision(model.config.vocab_size))
    return jax.lax.with_sharding_constraint(table, replicated(mesh)), caches


@jax.jit
def _slots(table: jax.Array, tokens_b: jax.Array) -> tuple[jax.Array, jax.Array]:
    both = jnp.take_along_axis(table, tokens_b[:, None] + jnp.arange(2)[None], axis=1)
    return both[:, 0], both[:, 1] - both[:, 0]
