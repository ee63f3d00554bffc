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
    b, _, k, g, h = q_btkgh.shape
    q_bkgth = jnp.transpose(q_btkgh * scale, (0, 2, 3, 1, 4))
    k_bksh, v_bksh = jnp.transpose(k_bskh, (0, 2, 1, 3)), jnp.transpose(v_bskh, (0, 2, 1, 3))
    parts = []
    for (first, last), (oldest, newest) in spans:
        keys = slice(oldest, newest)
        q_bknh = q_bkgth[:, :, :, first:last].reshape(b, k, -1, h)
        out_bknh: Any = _core(q_bknh, k_bksh[:, :, keys], v_bksh[:, :, keys], mask_bts[:, first:last, keys], softcap)
        parts.append(out_bknh.reshape(b, k, g, last - first, h))
    out_bkgth = parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=3)
    return jnp.transpose(out_bkgth, (0, 3, 1, 2, 4))


# n = g * t: the queries of one key head.
@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _core(q_bknh: jax.Array, k_bksh: jax.Array, v_bksh: jax.Array, mask_bts: jax.Array, softcap: float) -> jax.Array:
    return _core_forward(q_bknh, k_bksh, v_bksh, mask_bts, softcap)[0]


def _core_forward(
    q_bknh: jax.Array, k_bksh: jax.Array, v_bksh: jax.Array, mask_bts: jax.Array, softcap: float
) -> tuple[jax.Array, Any]:
    b, k, n, _ = q_bknh.shape
    _, t, s = mask_bts.shape
    scores = matmul(q_bknh, jnp.swapaxes(k_bksh, 2, 3), jnp.float32)
    slope = None
    if softcap:
        bent = jnp.tanh(scores / softcap)
        scores, slope = softcap * bent, 1.0 - jnp.square(bent)
    scores = jnp.where(mask_bts[:, None, None], scores.reshape(b, k, n // t, t, s), MASKED).reshape(b, k, n, s)
    weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    out = matmul(weights.astype(v_bksh.dtype), v_bksh) / total.astype(v_bksh.dtype)
    return out, (q_bknh, k_bksh, v_bksh, weights, total, slope, out)


def _core_backward(softcap: float, saved: Any, grad_bknh: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    # With p = weights / total and o = p v: dv = p^T do, dp = do v^T, ds = p (dp - sum(do o)). The division goes into `do`, the
    # smallest of the arrays.
    q, k, v, weights, total, slope, out = saved
    grad = (grad_bknh.astype(jnp.float32) / total).astype(v.dtype)
    mean = jnp.sum(grad.astype(jnp.float32) * out.astype(jnp.float32), axis=-1, keepdims=True)
    d_scores = weights * (matmul(grad, jnp.swapaxes(v, 2, 3), jnp.float32) - mean)
    if slope is not None:
        d_scores = d_scores * slope
    d_scores = d_scores.astype(v.dtype)
    d_k = matmul_tn(d_scores, q)
    return matmul(d_scores, k), d_k, matmul_tn(weights.astype(v.dtype), grad), None


_core.defvjp(_core_forward, _core_backward)


BACKEND = Backend(name="reference", attend=attend, segments=True, window=True, softcap=True)
