"""How does a position enter a query and a key?"""

import functools
from typing import Any

import jax
import jax.numpy as jnp


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
    return _turn(x, cos, sin, dims)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _turn(x: jax.Array, cos: jax.Array, sin: jax.Array, dims: int) -> jax.Array:
    first, second = x[..., : dims // 2], x[..., dims // 2 : dims]
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate([*turned, x[..., dims:]] if dims < x.shape[-1] else turned, axis=-1)


def _turn_forward(x: jax.Array, cos: jax.Array, sin: jax.Array, dims: int) -> Any:
    return _turn(x, cos, sin, dims), (cos, sin)


def _turn_backward(dims: int, saved: Any, grad: jax.Array) -> Any:
    # A rotation's transpose turns back. Left to itself, autodiff pads each half with zeros and adds them.
    cos, sin = saved
    return _turn(grad, cos, -sin, dims), None, None


_turn.defvjp(_turn_forward, _turn_backward)
