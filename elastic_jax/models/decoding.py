"""How does a decoder write tokens on the device?

A prompt is read in one pass (`start`), then a loop writes a token for every row in each of its steps and stops when all rows are
done (`extend`).

Shapes: b batch, p prompt column, t written token, v vocabulary.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from elastic_jax.models.attention import Caches
from elastic_jax.models.filters import Choice
from elastic_jax.models.transformer import Decoder, Params
from elastic_jax.parallel.mesh import shard


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows that are being written.

    Attributes:
      caches: of everything but the last token.
      last_b: the token written last, at first the last one of the prompt.
      number: how many tokens have been written.
      keys_b: the random numbers of a row; those of its t-th token come from `fold_in(keys_b[row], t)`.
    """

    caches: Caches
    last_b: Int[Array, " b"]
    number: Int[Array, ""]
    keys_b: jax.Array


def row_keys(key: jax.Array, index_b: Int[Array, " b"]) -> jax.Array:
    """A key for each row, which depends on its number alone: not on what else is in the batch."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, index_b)


def start(
    model: Decoder,
    params: Params,
    tokens_bp: Int[Array, "b p"],
    first_b: Int[Array, " b"],
    last_b: Int[Array, " b"],
    keys_b: jax.Array,
    columns: int,
) -> Rows:
    """Reads prompts in one pass, all but their last tokens, which the first step of `extend` reads: only there logits are needed.

    Args:
      tokens_bp: padded on the left, row b begins in column `first_b`; of a prompt of one token nothing is here.
      last_b: the last token of each prompt.
      columns: room of the caches.
    """
    caches = model.empty_caches(tokens_bp.shape[0], columns, first_b)
    if tokens_bp.shape[1]:
        _, caches = model.prefill(params, tokens_bp, first_b, columns)
    return Rows(caches, last_b, jnp.zeros((), jnp.int32), keys_b)


def extend(
    model: Decoder,
    params: Params,
    rows: Rows,
    done_b: Bool[Array, " b"],
    steps: Int[Array, ""] | int,
    most: int,
    choice: Choice,
    eos_e: Int[Array, " e"],
    pad: Int[Array, ""] | int,
) -> tuple[Int[Array, "b t"], Rows]:
    """Writes up to `steps` more tokens, until all rows are done: [b, most], padded.

    Args:
      rows: whose caches have room for so many columns.
      eos_e: each of these tokens ends a row, and is the last token of it.
      pad: stands where a row has ended.
    """
    out = jnp.full((rows.last_b.shape[0], most), pad, jnp.int32)
    steps = jnp.asarray(steps, jnp.int32)

    def unfinished(carry: tuple) -> jax.Array:
        step, _, _, done_b = carry
        return (step < steps) & ~jnp.all(done_b)

    def write(carry: tuple) -> tuple:
        step, rows, out, done_b = carry
        hidden_btd, caches = model.hidden(params, rows.last_b[:, None], caches=rows.caches)
        token_b = _draw(model, params, hidden_btd, rows.keys_b, rows.number, choice)
        token_b = jnp.where(done_b, pad, token_b)
        out = jax.lax.dynamic_update_slice(out, token_b[:, None], (jnp.zeros((), jnp.int32), step))
        rows = dataclasses.replace(rows, caches=caches, last_b=token_b, number=rows.number + 1)
        return step + 1, rows, out, done_b | jnp.any(token_b[:, None] == eos_e[None], axis=-1)

    _, rows, out, _ = jax.lax.while_loop(unfinished, write, (jnp.zeros((), jnp.int32), rows, out, done_b))
    return out, rows


def _draw(
    model: Decoder, params: Params, hidden_btd: jax.Array, keys_b: jax.Array, number: jax.Array, choice: Choice
) -> jax.Array:
    """The next token after the last of `hidden_btd`."""
    logits_bv = model.logits(params, hidden_btd[:, -1])
    if choice.temperature > 0:
        keys_b = jax.vmap(jax.random.fold_in, (0, None))(keys_b, number)
    return choice.draw(logits_bv, keys_b)


@partial(jax.jit, static_argnames=("model", "length", "choice", "eos", "pad"))
def generate(
    model: Decoder,
    params: Params,
    prompts_bp: Int[Array, "b p"],
    key: jax.Array,
    *,
    length: int,
    choice: Choice,
    eos: tuple[int, ...] = (1,),
    pad: int = 0,
    first_b: Int[Array, " b"] | None = None,
) -> Int[Array, "b t"]:
    """Continuations [b, length], pad after the first eos: all of it on the device, for use inside other device code (a rollout).

    Args:
      first_b: the column in which each prompt begins; what lies left of it is padding. None: there is none.
    """
    b, p = prompts_bp.shape
    first_b = jnp.zeros((b,), jnp.int32) if first_b is None else first_b
    params = model.for_decoding(params)
    keys_b = row_keys(key, jnp.arange(b))
    rows = start(model, params, prompts_bp[:, :-1], first_b, prompts_bp[:, -1], keys_b, p - 1 + length)
    done_b = jnp.zeros((b,), bool)
    out_bt, _ = extend(model, params, rows, done_b, length, length, choice, jnp.asarray(eos, jnp.int32), pad)
    return shard(out_bt, "batch", None)
