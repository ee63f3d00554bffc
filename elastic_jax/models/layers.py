"""What is one block of the transformer made of?

Shapes: b batch, t position, n = b * t tokens, d embed, k kv_heads, g query heads per kv head, h head_dim, f mlp. Tokens are
flattened around the projections: on CPU one contraction over a single leading dim is a third faster than over (b, t).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from elastic_jax.models.attention import Cache, attend, rotate
from elastic_jax.models.config import ModelConfig
from elastic_jax.parallel.mesh import RULES, shard

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}


def param(
    config: ModelConfig, rngs: nnx.Rngs, dims: tuple[str, ...], shape: tuple[int, ...], std: float | None
) -> nnx.Param:
    """A weight with its logical dims; `std` None gives the constant that leaves a norm or a bias without effect."""
    dtype = jnp.dtype(config.param_dtype)
    if std is None:
        constant = 1.0 - config.norm_offset if dims == ("scale",) else 0.0
        return nnx.Param(jnp.full(shape, constant, dtype), dims=dims)
    # Drawn with the dims merged that no mesh axis divides: the numbers are the same, and XLA takes a third of the time to
    # compile it on CPU. Merging the others as well would make every device draw the whole weight.
    merged: list[int] = []
    for dim, size in zip(dims, shape, strict=True):
        if not merged or dim in RULES:
            merged.append(size)
        else:
            merged[-1] *= size
    return nnx.Param(std * jax.random.normal(rngs.params(), merged, dtype).reshape(shape), dims=dims)


def contract(x: jax.Array, weight: jax.Array, count: int = 1) -> jax.Array:
    """Contract the last `count` dims of x with the first of the weight."""
    axes = (tuple(range(x.ndim - count, x.ndim)), tuple(range(count)))
    return jax.lax.dot_general(x, weight.astype(x.dtype), (axes, ((), ())))


class Norm(nnx.Module):
    """RMSNorm or LayerNorm over the last dim, in float32: a mean of squares in bfloat16 loses the signal."""

    def __init__(self, config: ModelConfig, size: int, rngs: nnx.Rngs):
        self.config = config
        self.scale = param(config, rngs, ("scale",), (size,), None)
        self.bias = param(config, rngs, ("bias",), (size,), None) if config.norm == "layer" else None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        if self.bias is not None:
            y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.config.norm_eps)
        y = y * jnp.expand_dims(self.scale[...] + self.config.norm_offset, range(y.ndim - 1))
        if self.bias is not None:
            y = y + jnp.expand_dims(self.bias[...], range(y.ndim - 1))
        return y.astype(x.dtype)


class Attention(nnx.Module):
    """Grouped-query self-attention with fused query, key and value weights, stored group by group: [d, k, g + 2, h]."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        c = self.config = config
        self.qkv = param(
            c,
            rngs,
            ("embed", "kv_heads", "group", "head_dim"),
            (c.embed, c.kv_heads, c.group + 2, c.head_dim),
            c.init_std,
        )
        self.out = param(
            c,
            rngs,
            ("kv_heads", "group", "head_dim", "embed"),
            (c.kv_heads, c.group, c.head_dim, c.embed),
            c.init_std / (2 * max(c.layers, 1)) ** 0.5,
        )
        shape = (c.kv_heads, c.group + 2, c.head_dim)
        self.qkv_bias = param(c, rngs, ("kv_heads", "group", "head_dim"), shape, None) if c.qkv_bias else None
        self.out_bias = param(c, rngs, ("bias",), (c.embed,), None) if c.out_bias else None
        self.q_norm = Norm(c, c.head_dim, rngs) if c.qk_norm else None
        self.k_norm = Norm(c, c.head_dim, rngs) if c.qk_norm else None

    def __call__(
        self, x_btd: jax.Array, positions_bt: jax.Array, mask: jax.Array, cache: Cache | None
    ) -> tuple[jax.Array, Cache | None]:
        c = self.config
        b, t, d = x_btd.shape
        qkv = contract(x_btd.reshape(b * t, d), self.qkv[...])
        if self.qkv_bias is not None:
            qkv = qkv + self.qkv_bias[...].astype(qkv.dtype)[None]
        qkv = qkv.reshape(b, t, c.kv_heads, c.group + 2, c.head_dim)
        q_btkgh, k_btkh, v_btkh = qkv[..., : c.group, :], qkv[..., c.group, :], qkv[..., c.group + 1, :]
        if self.q_norm is not None and self.k_norm is not None:
            q_btkgh, k_btkh = self.q_norm(q_btkgh), self.k_norm(k_btkh)
        q_btkgh = rotate(q_btkgh, positions_bt, c.rope_theta, c.rotary_dims)
        k_btkh = rotate(k_btkh, positions_bt, c.rope_theta, c.rotary_dims)
        if cache is not None:
            cache = cache.append(k_btkh, v_btkh)
            k_btkh, v_btkh = cache.keys, cache.values
        o_btkgh = attend(q_btkgh, k_btkh, v_btkh, mask, softcap=c.attention_softcap)
        y = contract(o_btkgh.reshape(b * t, c.kv_heads, c.group, c.head_dim), self.out[...], 3)
        if self.out_bias is not None:
            y = y + self.out_bias[...].astype(y.dtype)[None]
        return y.reshape(b, t, d), cache


class Mlp(nnx.Module):
    """Gated (SwiGLU, GeGLU) or plain feed-forward; gate and up projections are one contraction, [d, 2, f]."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        c = self.config = config
        parts = 2 if c.gated else 1
        self.up = param(c, rngs, ("embed", "gate", "mlp"), (c.embed, parts, c.mlp), c.init_std)
        self.down = param(c, rngs, ("mlp", "embed"), (c.mlp, c.embed), c.init_std / (2 * max(c.layers, 1)) ** 0.5)
        self.up_bias = param(c, rngs, ("gate", "mlp"), (parts, c.mlp), None) if c.mlp_bias else None
        self.down_bias = param(c, rngs, ("bias",), (c.embed,), None) if c.mlp_bias else None

    def __call__(self, x_btd: jax.Array) -> jax.Array:
        b, t, d = x_btd.shape
        y = contract(x_btd.reshape(b * t, d), self.up[...])
        if self.up_bias is not None:
            y = y + self.up_bias[...].astype(y.dtype)[None]
        hidden = ACTIVATIONS[self.config.activation](y[:, 0])
        if self.config.gated:
            hidden = hidden * y[:, 1]
        y = contract(hidden, self.down[...])
        if self.down_bias is not None:
            y = y + self.down_bias[...].astype(y.dtype)[None]
        return y.reshape(b, t, d)


class Block(nnx.Module):
    """Norm, attention, norm, feed-forward, each added to the residual stream (in parallel for NeoX)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        self.attention_norm = Norm(config, config.embed, rngs)
        self.attention = Attention(config, rngs)
        self.mlp_norm = Norm(config, config.embed, rngs)
        self.mlp = Mlp(config, rngs)

    def __call__(
        self, x_btd: jax.Array, positions_bt: jax.Array, mask: jax.Array, cache: Cache | None = None
    ) -> tuple[jax.Array, Cache | None]:
        attended, cache = self.attention(self.attention_norm(x_btd), positions_bt, mask, cache)
        if self.config.parallel_residual:
            x_btd = x_btd + attended + self.mlp(self.mlp_norm(x_btd))
        else:
            x_btd = x_btd + attended
            x_btd = x_btd + self.mlp(self.mlp_norm(x_btd))
        return shard(x_btd, "batch", "seq", None), cache
