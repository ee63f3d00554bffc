"""How does a position enter a query and a key?

By rotation: pair i of a head's first r dimensions turns by the position times the frequency theta^(-2i/r). Rows longer than those of
pre-training, T_0, would turn the slow pairs to angles never seen, and four kinds of stretching are in use, each by a factor s:

  linear   all frequencies divided by s (Chen et al., arXiv 2306.15595)
  dynamic  theta times (s T / T_0 - s + 1)^(r/(r-2)) for rows of T > T_0 tokens: the fast pairs stay, the slow ones are stretched
  llama3   slow pairs divided by s, fast ones as they are, between wavelengths T_0/high and T_0/low a mixture (Llama 3.1)
  yarn     the same, by turns within T_0, beta_fast to beta_slow, with cosines and sines scaled up (Peng et al., arXiv 2309.00071)

The T of "dynamic" is `seq_len`, for every row, packed or not, and with caches. Implementations that take it from the longest row of
the batch give a token other logits when others follow or stand beside it, and read cached keys that were turned by other
frequencies than the query; at T = `seq_len` and at T <= T_0 = `seq_len` they agree with this one.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from elastic_jax.parallel.device import current_device

if TYPE_CHECKING:
    from elastic_jax.models.config import ModelConfig


class Rotary(NamedTuple):
    """Radians per position of each pair, float32, and what cosines and sines are multiplied by."""

    frequencies: Float[np.ndarray, " r/2"]
    factor: float = 1.0


def plain(theta: float, dims: int) -> Rotary:
    """theta^(-2i/dims) for dims / 2 pairs."""
    half = dims // 2
    # Exponents rounded to float32 and powers not: so XLA evaluates the formula, to the last bit where half is a power of two.
    exponents = -np.arange(half, dtype=np.float32) / np.float32(max(half, 1))
    return Rotary((theta ** exponents.astype(np.float64)).astype(np.float32))


def rotary(c: ModelConfig, windowed: bool = False) -> Rotary:
    """The rotation of a layer with or without a window, worked out on the host."""
    if windowed and c.rope_local_theta:
        return plain(c.rope_local_theta, c.rotary_dims)
    original, factor = plain(c.rope_theta, c.rotary_dims), c.rope_factor
    if c.rope_type == "plain":
        return original
    if c.rope_type == "dynamic":
        longer = factor * max(c.seq_len, c.rope_original_len) / c.rope_original_len - (factor - 1)
        return plain(c.rope_theta * longer ** (c.rotary_dims / (c.rotary_dims - 2)), c.rotary_dims)
    frequencies = original.frequencies.astype(np.float64)
    if c.rope_type == "linear":
        return Rotary((frequencies / factor).astype(np.float32))
    kept, scale = (_kept_by_wavelength(c, frequencies), 1.0) if c.rope_type == "llama3" else _kept_by_turns(c)
    return Rotary((frequencies * (kept + (1 - kept) / factor)).astype(np.float32), scale)


def _kept_by_wavelength(c: ModelConfig, frequencies: np.ndarray) -> np.ndarray:
    """Llama 3's share of the original frequency: 1 for pairs of more than `rope_high_freq` turns, 0 for less than `rope_low_freq`."""
    turns = c.rope_original_len * frequencies / (2 * math.pi)
    return np.clip((turns - c.rope_low_freq) / (c.rope_high_freq - c.rope_low_freq), 0, 1)


def _kept_by_turns(c: ModelConfig) -> tuple[np.ndarray, float]:
    """YaRN's share of the original frequency, linear in the number of the pair, and its factor on cosines and sines."""

    def pair(turns: float) -> float:
        """The number, seldom whole, of the pair that turns so often within the original length."""
        return c.rotary_dims * math.log(c.rope_original_len / (turns * 2 * math.pi)) / (2 * math.log(c.rope_theta))

    first, last = pair(c.rope_beta_fast), pair(c.rope_beta_slow)
    if c.rope_truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, c.rotary_dims - 1)
    last += 1e-3 if first == last else 0  # a step
    kept = 1 - np.clip((np.arange(c.rotary_dims // 2) - first) / (last - first), 0, 1)
    return kept, c.rope_attention_factor or 0.1 * math.log(c.rope_factor) + 1


def rotate(x: Array, positions_bt: Int[Array, "b t"], by: Rotary) -> Array:
    """Rotary position embedding of the first dims of the last dim, in halves as Llama and NeoX store them.

    x: [b, t, ..., h]. Angles are float32: bfloat16 positions collide beyond 256.
    """
    half = len(by.frequencies)
    if half == 0:
        return x
    angles = positions_bt.astype(jnp.float32)[..., None] * by.frequencies[None, None]
    angles = angles.reshape(positions_bt.shape + (1,) * (x.ndim - 3) + (half,))
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    if by.factor != 1:
        cos, sin = by.factor * cos, by.factor * sin
    if current_device().platform == "cpu":
        cos, sin = _written(cos), _written(sin)
    cos, sin = cos.astype(x.dtype), sin.astype(x.dtype)
    return _turn(x, cos, sin, 2 * half)


@jax.jit  # so that it can be told from the products of the model
def _written(table: Array) -> Array:
    """The same numbers, in memory. XLA on a CPU would put a cosine into each loop that needs it, once for every head and layer, forward
    and backward, where it costs eight times what turning does, and it drops an `optimization_barrier` before it fuses. A product with
    the identity is exact, and is not fused.
    """
    return jnp.matmul(table, jnp.eye(table.shape[-1], dtype=table.dtype), precision=jax.lax.Precision.HIGHEST)


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
