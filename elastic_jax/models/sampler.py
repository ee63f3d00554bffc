"""What does the model write?"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from elastic_jax.errors import UserError
from elastic_jax.models.transformer import Decoder, Params
from elastic_jax.parallel.mesh import batch_sharding, batch_shards, put_global, replicated


def nucleus(logits_bv: jax.Array, top_p: float) -> jax.Array:
    """Keep the smallest set of tokens whose probability reaches `top_p`; the rest become impossible.

    Tokens as likely as the last of the set are kept with it: nothing else tells them apart.
    """
    ordered = jnp.sort(logits_bv, axis=-1, descending=True)
    before = jnp.cumsum(jax.nn.softmax(ordered, axis=-1), axis=-1) - jax.nn.softmax(ordered, axis=-1)
    floor = jnp.min(jnp.where(before < top_p, ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits_bv >= floor, logits_bv, -jnp.inf)


@partial(jax.jit, static_argnames=("model", "length", "temperature", "top_p", "eos", "pad"))
def generate(
    model: Decoder,
    params: Params,
    prompts_bp: jax.Array,
    key: jax.Array,
    *,
    length: int,
    temperature: float,
    top_p: float,
    eos: int,
    pad: int,
) -> jax.Array:
    """The jitted part of `sample`, for use inside other device code: tokens [b, length], pad after the first eos."""
    b, p = prompts_bp.shape

    def draw(logits_bv: jax.Array, number: jax.Array) -> jax.Array:
        logits_bv = logits_bv.at[:, pad].set(-jnp.inf)
        if temperature == 0:
            return jnp.argmax(logits_bv, axis=-1).astype(jnp.int32)
        logits_bv = logits_bv / temperature
        if top_p < 1:
            logits_bv = nucleus(logits_bv, top_p)
        return jax.random.categorical(jax.random.fold_in(key, number), logits_bv).astype(jnp.int32)

    # The prompt but its last token fills the cache; that last token is the first input of the loop.
    caches = model.empty_caches(b, p + length)
    if p > 1:
        _, caches = model.hidden(params, prompts_bp[:, :-1], caches=caches)
    out = jnp.full((b, length), pad, jnp.int32)

    def unfinished(carry: tuple) -> jax.Array:
        number, _, _, _, done_b = carry
        return (number < length) & ~jnp.all(done_b)

    def extend(carry: tuple) -> tuple:
        number, last_b, caches, out, done_b = carry
        hidden, caches = model.hidden(params, last_b[:, None], caches=caches)
        token_b = draw(model.logits(params, hidden)[:, 0], number)
        token_b = jnp.where(done_b, pad, token_b)
        out = jax.lax.dynamic_update_slice(out, token_b[:, None], (0, number))
        return number + 1, token_b, caches, out, done_b | (token_b == eos)

    start = (jnp.zeros((), jnp.int32), prompts_bp[:, -1], caches, out, jnp.zeros((b,), bool))
    return jax.lax.while_loop(unfinished, extend, start)[3]


def sample(
    model: Decoder,
    params: Params,
    prompts: np.ndarray,
    key: jax.Array,
    mesh: Mesh,
    *,
    length: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    eos: int = 1,
    pad: int = 0,
) -> np.ndarray:
    """Continuations of `prompts` [n, p]: tokens [n, length], pad after the first eos. All processes get all of them.

    One compilation per shape; keys and values are cached, so a token costs one pass over one position.

    Raises:
      UserError: prompts and length together exceed the model's length, or a setting out of range.
    """
    if prompts.shape[1] + length > model.config.seq_len + 1:
        raise UserError(
            f"measures.sample: {prompts.shape[1]} prompt tokens and {length} new ones exceed data.seq_len={model.config.seq_len}."
        )
    if length < 1 or not prompts.size:
        raise UserError(
            f"measures.sample: length={length}, prompts of shape {prompts.shape}: expected at least one token of each."
        )
    if temperature < 0 or not 0 < top_p <= 1:
        raise UserError(
            f"measures.sample: temperature={temperature}, top_p={top_p}: expected temperature >= 0 and 0 < top_p <= 1."
        )
    n = len(prompts)
    padded = np.resize(prompts, (-(-n // batch_shards(mesh)) * batch_shards(mesh), prompts.shape[1]))
    with jax.set_mesh(mesh):
        tokens = generate(
            model,
            params,
            put_global(padded.astype(np.int32), batch_sharding(mesh)),
            key,
            length=length,
            temperature=temperature,
            top_p=top_p,
            eos=eos,
            pad=pad,
        )
        return np.asarray(jax.device_put(tokens, replicated(mesh)))[:n]
