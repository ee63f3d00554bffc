"""What is one block of the transformer made of?

Shapes: b batch, t position, n = b * t tokens, d embed, k kv_heads, g query heads per kv head, h head_dim, f mlp. Tokens are
flattened around the projections: on CPU one contraction over a single leading dim is a third faster than over (b, t).
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from elastic_jax.models import remat
from elastic_jax.models.adapter import NO_ADAPTERS, Adapter, Adapters
from elastic_jax.models.attention import Cache, View, attend, attend_cache, rotary, rotate
from elastic_jax.models.config import ModelConfig
from elastic_jax.models.products import linear
from elastic_jax.parallel.mesh import RULES, parts, shard

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


def contract(x: jax.Array, weight: jax.Array, count: int = 1, adapter: Adapter | None = None) -> jax.Array:
    """Contract the last `count` dims of x with the first of the weight, and add what an adapter adds.

    As a product of two matrices, which on CPU is a tenth faster forward and backward than the same dims unmerged.
    """
    inner, out = math.prod(weight.shape[:count]), weight.shape[count:]
    product = linear(x.reshape(-1, inner), weight.astype(x.dtype).reshape(inner, -1))
    product = product.reshape(*x.shape[: x.ndim - count], *out)
    return product if adapter is None else product + adapter(x)


# Autodiff of a slice pads its gradient with zeros to the size of the whole, and adds up the padded parts: on CPU that takes longer
# than the attention. The two cuts of a block therefore know that their transpose is a concatenation.


@jax.custom_vjp
def split_heads(
    qkv: Float[Array, "b t k g+2 h"],
) -> tuple[Float[Array, "b t k g h"], Float[Array, "b t k h"], Float[Array, "b t k h"]]:
    """Queries, keys and values of the fused projection."""
    group = qkv.shape[-2] - 2
    return qkv[..., :group, :], qkv[..., group, :], qkv[..., group + 1, :]


def _split_heads_backward(_: None, grads: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array]:
    queries, keys, values = grads
    return (jnp.concatenate([queries, keys[..., None, :], values[..., None, :]], axis=-2),)


split_heads.defvjp(lambda qkv: (split_heads(qkv), None), _split_heads_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def gate(activation: Callable[[jax.Array], jax.Array], y_n2f: Float[Array, "n 2 f"]) -> Float[Array, "n f"]:
    """activation(gate) * up of the fused projection."""
    return activation(y_n2f[:, 0]) * y_n2f[:, 1]


def _gate_backward(activation: Any, y_n2f: jax.Array, grad_nf: jax.Array) -> tuple[jax.Array]:
    gated_nf, pull = jax.vjp(activation, y_n2f[:, 0])
    return (jnp.stack([pull(grad_nf * y_n2f[:, 1])[0], grad_nf * gated_nf], axis=1),)


gate.defvjp(lambda activation, y_n2f: (gate(activation, y_n2f), y_n2f), _gate_backward)


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
        per_head = c.qk_norm == "head"
        self.q_norm = None if c.qk_norm == "none" else Norm(c, c.head_dim * (1 if per_head else c.heads), rngs)
        self.k_norm = None if c.qk_norm == "none" else Norm(c, c.head_dim * (1 if per_head else c.kv_heads), rngs)

    def __call__(
        self,
        x_btd: jax.Array,
        positions_bt: jax.Array,
        view: View,
        windowed: bool,
        cache: Cache | None,
        adapters: Adapters = NO_ADAPTERS,
    ) -> tuple[jax.Array, Cache | None]:
        c = self.config
        b, t, d = x_btd.shape
        qkv = contract(x_btd.reshape(b * t, d), self.qkv[...], adapter=adapters.get("qkv"))
        if self.qkv_bias is not None:
            qkv = qkv + self.qkv_bias[...].astype(qkv.dtype)[None]
        qkv = remat.named(qkv, remat.QKV).reshape(b, t, c.kv_heads, c.group + 2, c.head_dim)
        q_btkgh, k_btkh, v_btkh = split_heads(qkv)
        if self.q_norm is not None and self.k_norm is not None:
            q_btkgh, k_btkh = self._normed(self.q_norm, q_btkgh), self._normed(self.k_norm, k_btkh)
        turn = rotary(c, windowed)
        q_btkgh, k_btkh = rotate(q_btkgh, positions_bt, turn), rotate(k_btkh, positions_bt, turn)
        if cache is not None:
            cache = cache.append(k_btkh, v_btkh, 0 if view.start is None else view.start)
        window = c.window if windowed else 0
        options: Any = dict(window=window, softcap=c.attention_softcap, scale=c.attention_scale)
        if cache is None or view.start is None:  # no token came before these
            o_btkgh = attend(q_btkgh, k_btkh, v_btkh, view, backend=c.attention, **options)
        else:
            o_btkgh = attend_cache(q_btkgh, cache, view, **options)
        y = contract(o_btkgh.reshape(b * t, c.kv_heads, c.group, c.head_dim), self.out[...], 3, adapters.get("out"))
        if self.out_bias is not None:
            y = y + self.out_bias[...].astype(y.dtype)[None]
        return remat.named(y, remat.ATTENTION_OUT).reshape(b, t, d), cache

    def _normed(self, norm: Norm, x: jax.Array) -> jax.Array:
        """Queries [b, t, k, g, h] or keys [b, t, k, h], head by head or all at once."""
        return norm(x) if self.config.qk_norm == "head" else norm(x.reshape(*x.shape[:2], -1)).reshape(x.shape)


class Mlp(nnx.Module):
    """Gated (SwiGLU, GeGLU) or plain feed-forward; gate and up projections are one contraction, [d, 2, f]."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        c = self.config = config
        halves = 2 if c.gated else 1
        self.up = param(c, rngs, ("embed", "gate", "mlp"), (c.embed, halves, c.mlp), c.init_std)
        self.down = param(c, rngs, ("mlp", "embed"), (c.mlp, c.embed), c.init_std / (2 * max(c.layers, 1)) ** 0.5)
        self.up_bias = param(c, rngs, ("gate", "mlp"), (halves, c.mlp), None) if c.mlp_bias else None
        self.down_bias = param(c, rngs, ("bias",), (c.embed,), None) if c.mlp_bias else None

    def __call__(self, x_btd: jax.Array, adapters: Adapters = NO_ADAPTERS) -> jax.Array:
        b, t, d = x_btd.shape
        if parts("mlp") == 1:
            y = contract(x_btd.reshape(b * t, d), self.up[...], adapter=adapters.get("up"))
        else:  # merging the two halves would mix the parts of mlp that lie on different devices
            y = jnp.einsum("nd,dpf->npf", x_btd.reshape(b * t, d), self.up[...].astype(x_btd.dtype))
            y = y + adapters["up"](x_btd.reshape(b * t, d)) if "up" in adapters else y
        if self.up_bias is not None:
            y = y + self.up_bias[...].astype(y.dtype)[None]
        y = remat.named(y, remat.MLP_IN)
        activation = ACTIVATIONS[self.config.activation]
        hidden: Any = gate(activation, y) if self.config.gated else activation(y[:, 0])
        y = contract(hidden, self.down[...], adapter=adapters.get("down"))
        if self.down_bias is not None:
            y = y + self.down_bias[...].astype(y.dtype)[None]
        return y.reshape(b, t, d)


class Block(nnx.Module):
    """Attention and feed-forward, each added to the residual stream (in parallel for NeoX), with norms before or after or both."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        c = self.config = config
        before, after = c.norm_place != "post", c.norm_place != "pre"
        self.attention_norm = Norm(c, c.embed, rngs) if before else None
        self.attention = Attention(c, rngs)
        self.attention_post_norm = Norm(c, c.embed, rngs) if after else None
        self.mlp_norm = Norm(c, c.embed, rngs) if before else None
        self.mlp = Mlp(c, rngs)
        self.mlp_post_norm = Norm(c, c.embed, rngs) if after else None

    def __call__(
        self,
        x_btd: jax.Array,
        positions_bt: jax.Array,
        view: View,
        windowed: bool,
        cache: Cache | None = None,
        adapters: Adapters = NO_ADAPTERS,
    ) -> tuple[jax.Array, Cache | None]:
        h_btd = _maybe(self.attention_norm, x_btd)
        attended, cache = self.attention(h_btd, positions_bt, view, windowed, cache, adapters)
        attended = _maybe(self.attention_post_norm, attended)
        if self.config.parallel_residual:
            x_btd = x_btd + attended + self._feed_forward(x_btd, adapters)
        else:
            x_btd = x_btd + attended
            x_btd = x_btd + self._feed_forward(x_btd, adapters)
        return shard(x_btd, "batch", "seq", None), cache

    def _feed_forward(self, x_btd: jax.Array, adapters: Adapters) -> jax.Array:
        return _maybe(self.mlp_post_norm, self.mlp(_maybe(self.mlp_norm, x_btd), adapters))


def _maybe(norm: Norm | None, x: jax.Array) -> jax.Array:
    return x if norm is None else norm(x)
