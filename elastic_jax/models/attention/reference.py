"""What is attention, to the last digit? Every other backend is held against this one.

Shapes: b batch, t query position, s key position, k kv_heads, g query heads per kv head, h head_dim.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from elastic_jax.models import remat
from elastic_jax.models.attention.backend import Backend
from elastic_jax.models.attention.view import View
from elastic_jax.models.products import matmul, matmul_tn

MASKED = -1e30  # exp() of it is exactly zero, and unlike -inf it gives no NaN in a row without any key
BLOCK = 64  # queries; smaller blocks skip more and cost more launches: 64 was the fastest of 32, 64, 128 and 256 on CPU
BLOCKS_AT_MOST = 8  # they are unrolled, so that compilation grows with them


Span = tuple[int, int]


def attend(
    q_btkgh: jax.Array,
    k_bskh: jax.Array,
    v_bskh: jax.Array,
    view: View,
    *,
    window: int = 0,
    softcap: float = 0.0,
    scale: float = 0.0,
) -> jax.Array:
    """Softmax attention over a dense mask: any platform, any shape. [b, t, k, g, h].

    The queries are taken in blocks, each with the keys that some query of it may look at: half of the products
    that a mask would throw away are never formed.
    """
    t, s = q_btkgh.shape[1], k_bskh.shape[1]
    spans = [((first, last), (max(0, first - window + 1) if window else 0, last)) for first, last in _blocks(t)]
    scale = scale or q_btkgh.shape[-1] ** -0.5
    return remat.named(_attend(q_btkgh, k_bskh, v_bskh, view.mask(t, s, window), softcap, scale, spans), remat.CONTEXT)


def attend_masked(
    q_btkgh: jax.Array, k_bskh: jax.Array, v_bskh: jax.Array, mask_bts: jax.Array, softcap: float = 0.0
) -> jax.Array:
    """Softmax attention where `mask` [b or 1, t, s] is True, whatever the mask, in one block."""
    scale = q_btkgh.shape[-1] ** -0.5
    return _attend(q_btkgh, k_bskh, v_bskh, mask_bts, softcap, scale, [((0, q_btkgh.shape[1]), (0, k_bskh.shape[1]))])


def _blocks(length: int) -> list[Span]:
    size = max(BLOCK, -(-length // BLOCKS_AT_MOST))
    return [(first, min(first + size, length)) for first in range(0, length, size)]


def _attend(
    q_btkgh: jax.Array,
    k_bskh: jax.Array,
    v_bskh: jax.Array,
    mask_bts: jax.Array,
    softcap: float,
    scale: float,
    spans: list[tuple[Span, Span]],
) -> jax.Array:
    """Scores and softmax in float32, and the division comes after the product with the values.

    The queries of one key head are stacked along t, so that both products are plain batched matmuls over (b, k): on CPU
    this layout is 2.5 times as fast as `jax.nn.dot_product_attention`.

    Args:
      spans: of queries, and of the keys that they may look at: first and last + 1 of each.
    """
    q_bkgth = jnp.transpose(q_btkgh * scale, (0, 2, 3, 1, 4))
    k_bksh, v_bksh = jnp.transpose(k_bskh, (0, 2, 1, 3)), jnp.transpose(v_bskh, (0, 2, 1, 3))
    out_bkgth: Any = _blockwise(q_bkgth, k_bksh, v_bksh, mask_bts, softcap, tuple(spans))
    return jnp.transpose(out_bkgth, (0, 3, 1, 2, 4))


# The blocks have one backward pass together: autodiff of their slices would pad the gradient of each to the size of the whole, round it
# and add it up, which in bfloat16 on a CPU takes a fifth of an update.
@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _blockwise(
    q_bkgth: jax.Array,
    k_bksh: jax.Array,
    v_bksh: jax.Array,
    mask_bts: jax.Array,
    softcap: float,
    spans: tuple[tuple[Span, Span], ...],
) -> jax.Array:
    return _blockwise_forward(q_bkgth, k_bksh, v_bksh, mask_bts, softcap, spans)[0]


def _blockwise_forward(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, softcap: float, spans: tuple[tuple[Span, Span], ...]
) -> tuple[jax.Array, Any]:
    outs, saved = [], []
    for (first, last), (oldest, newest) in spans:
        keys = slice(oldest, newest)
        out, kept = _forward(q[:, :, :, first:last], k[:, :, keys], v[:, :, keys], mask[:, first:last, keys], softcap)
        outs.append(out)
        saved.append(kept)
    out = outs[0] if len(outs) == 1 else jnp.concatenate(outs, axis=3)
    return out, (q, k, v, saved, out)


def _blockwise_backward(
    softcap: float, spans: tuple[tuple[Span, Span], ...], saved: Any, grad: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    q, k, v, of_blocks, out = saved
    d_q = []
    sums: list[jax.Array | None] = [None, None]
    for ((first, last), (oldest, newest)), kept in reversed(list(zip(spans, of_blocks, strict=True))):
        keys = slice(oldest, newest)
        q_block, out_block, grad_block = (x[:, :, :, first:last] for x in (q, out, grad))
        d_block, *d_keys = _backward(q_block, out_block, grad_block, k[:, :, keys], v[:, :, keys], kept)
        d_q.append(d_block)
        sums = [_added(total, part, oldest, k.shape) for total, part in zip(sums, d_keys, strict=True)]
    d_k, d_v = (total.astype(k.dtype) for total in sums if total is not None)
    return d_q[0] if len(d_q) == 1 else jnp.concatenate(d_q[::-1], axis=3), d_k, d_v, None


_blockwise.defvjp(_blockwise_forward, _blockwise_backward)


def _added(total: jax.Array | None, part_bksh: jax.Array, first: int, shape: tuple[int, ...]) -> jax.Array:
    """`total`, of `shape`, with `part` added from key `first` on; in place, where an addition of padded parts would be many passes."""
    if total is None:
        if part_bksh.shape == shape:
            return part_bksh
        total = jnp.zeros(shape, part_bksh.dtype)
    last = first + part_bksh.shape[2]
    return jax.lax.dynamic_update_slice_in_dim(total, total[:, :, first:last] + part_bksh, first, axis=2)


def _forward(
    q_bkgth: jax.Array, k_bksh: jax.Array, v_bksh: jax.Array, mask_bts: jax.Array, softcap: float
) -> tuple[jax.Array, Any]:
    b, k, g, t, _ = q_bkgth.shape
    s = k_bksh.shape[2]
    scores = matmul(_stacked(q_bkgth), jnp.swapaxes(k_bksh, 2, 3), jnp.float32)
    slope = None
    if softcap:
        bent = jnp.tanh(scores / softcap)
        scores, slope = softcap * bent, 1.0 - jnp.square(bent)
    scores = jnp.where(mask_bts[:, None, None], scores.reshape(b, k, g, t, s), MASKED).reshape(b, k, g * t, s)
    weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    out = matmul(weights.astype(v_bksh.dtype), v_bksh) / total.astype(v_bksh.dtype)
    return out.reshape(q_bkgth.shape), (weights, total, slope)


def _backward(
    q_bkgth: jax.Array, out_bkgth: jax.Array, grad_bkgth: jax.Array, k: jax.Array, v: jax.Array, saved: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients of queries, and of keys and values in float32."""
    # With p = weights / total and o = p v: dv = p^T do, dp = do v^T, ds = p (dp - sum(do o)). The division goes into `do`, the
    # smallest of the arrays.
    weights, total, slope = saved
    grad = (_stacked(grad_bkgth).astype(jnp.float32) / total).astype(v.dtype)
    mean = jnp.sum(grad.astype(jnp.float32) * _stacked(out_bkgth).astype(jnp.float32), axis=-1, keepdims=True)
    d_scores = weights * (matmul(grad, jnp.swapaxes(v, 2, 3), jnp.float32) - mean)
    if slope is not None:
        d_scores = d_scores * slope
    d_scores = d_scores.astype(v.dtype)
    d_k = matmul_tn(d_scores, _stacked(q_bkgth), jnp.float32)
    d_v = matmul_tn(weights.astype(v.dtype), grad, jnp.float32)
    return matmul(d_scores, k).reshape(q_bkgth.shape), d_k, d_v


def _stacked(x_bkgth: jax.Array) -> jax.Array:
    """The queries of a key head one after the other: [b, k, g * t, h]."""
    b, k, g, t, h = x_bkgth.shape
    return x_bkgth.reshape(b, k, g * t, h)


BACKEND = Backend(name="reference", attend=attend, segments=True, window=True, softcap=True)
