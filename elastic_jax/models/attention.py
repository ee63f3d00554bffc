"""Which earlier tokens does a token look at, and how strongly?

Shapes: b batch, t query position, s key position, k kv_heads, g query heads per kv head, h head_dim.
"""

import dataclasses

import jax
import jax.numpy as jnp

MASKED = -1e30  # exp() of it is exactly zero, and unlike -inf it gives no NaN in a row without any key


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values of the tokens so far: [b, s, k, h], the first `length` of them filled."""

    keys: jax.Array
    values: jax.Array
    length: jax.Array

    def append(self, keys: jax.Array, values: jax.Array) -> "Cache":
        start = (0, self.length, 0, 0)
        return Cache(
            jax.lax.dynamic_update_slice(self.keys, keys.astype(self.keys.dtype), start),
            jax.lax.dynamic_update_slice(self.values, values.astype(self.values.dtype), start),
            self.length + keys.shape[1],
        )


def rotate(x: jax.Array, positions_bt: jax.Array, theta: float, dims: int) -> jax.Array:
    """Rotary position embedding of the first `dims` of the last dim, in halves as Llama and NeoX store them.

    x: [b, t, ..., h]. Angles are float32: bfloat16 positions collide beyond 256.
    """
    if dims == 0:
        return x
    half = dims // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions_bt.astype(jnp.float32)[..., None] * frequencies[None, None]
    angles = angles.reshape(positions_bt.shape + (1,) * (x.ndim - 3) + (half,))
    cos, sin = jnp.cos(angles).astype(x.dtype), jnp.sin(angles).astype(x.dtype)
    first, second = x[..., :half], x[..., half:dims]
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate([*turned, x[..., dims:]] if dims < x.shape[-1] else turned, axis=-1)


def causal_mask(
    queries: jax.Array, keys: jax.Array, segments_bt: jax.Array | None = None, window: int = 0
) -> jax.Array:
    """True where a query may look: not ahead, not beyond the window, not into another segment. [1 or b, t, s]."""
    ahead = queries[:, None] >= keys[None, :]
    if window:
        ahead &= queries[:, None] - keys[None, :] < window
    mask = ahead[None]
    if segments_bt is not None:
        mask = mask & (segments_bt[:, :, None] == segments_bt[:, None, :])
    return mask


def attend(
    q_btkgh: jax.Array, k_bskh: jax.Array, v_bskh: jax.Array, mask: jax.Array, softcap: float = 0.0
) -> jax.Array:
    """Softmax attention; scores and softmax in float32, and the division comes after the product with the values.

    The queries of one key head are stacked along t, so that both products are plain batched matmuls over (b, k): on CPU
    this layout is 2.5 times as fast as `jax.nn.dot_product_attention`.
    """
    b, t, k, g, h = q_btkgh.shape
    s = k_bskh.shape[1]
    q = jnp.transpose(q_btkgh * h**-0.5, (0, 2, 3, 1, 4)).reshape(b, k, g * t, h)
    keys = jnp.transpose(k_bskh, (0, 2, 3, 1))
    values = jnp.transpose(v_bskh, (0, 2, 1, 3))
    batch = ((0, 1), (0, 1))
    scores = jax.lax.dot_general(q, keys, (((3,), (2,)), batch), preferred_element_type=jnp.float32)
    if softcap:
        scores = softcap * jnp.tanh(scores / softcap)
    scores = jnp.where(mask[:, None, None], scores.reshape(b, k, g, t, s), MASKED)
    peak = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - peak)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    out = jax.lax.dot_general(weights.reshape(b, k, g * t, s).astype(values.dtype), values, (((3,), (2,)), batch))
    out = out.reshape(b, k, g, t, h) / total.astype(out.dtype)
    return jnp.transpose(out, (0, 3, 1, 2, 4))
