"""How much arithmetic does a token cost?

The only place where parameters and FLOPs are counted: MFU, HFU, plans and benchmarks all ask here. A FLOP is one multiplication or one
addition; what is counted are matrix products, as in PaLM (arXiv 2204.02311, appendix B): norms, activations, softmax and the optimiser
are left out, and so is the embedding look-up, which is no product.

Two conventions for attention are in use and differ by 2 to 9 points of MFU at 4 to 8 thousand tokens: *causal* counts the pairs of tokens
that attend, *full* counts every pair, masked or not. Both are given; the name says which.

Shapes in the formulas: d embed, H heads, K kv_heads, h head_dim, f mlp, L layers, v vocabulary, T length of a row.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from elastic_jax.errors import UserError
from elastic_jax.models.remat import POLICIES

if TYPE_CHECKING:
    from elastic_jax.models.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class LayerProducts:
    """Weights of the matrix products of one block."""

    qkv: int
    out: int
    up: int
    down: int

    @property
    def total(self) -> int:
        return self.qkv + self.out + self.up + self.down


def layer_products(c: ModelConfig) -> LayerProducts:
    """d (H + 2K) h + H h d + (2 or 1) d f + f d."""
    return LayerProducts(
        qkv=c.embed * c.head_dim * (c.heads + 2 * c.kv_heads),
        out=c.heads * c.head_dim * c.embed,
        up=c.embed * c.mlp * (2 if c.gated else 1),
        down=c.mlp * c.embed,
    )


def matmul_params(c: ModelConfig) -> int:
    """Weights that take part in matrix products: the head counts, tied or not, the embedding look-up does not."""
    return c.layers * layer_products(c).total + c.embed * c.vocab_size


def parameters(c: ModelConfig) -> int:
    """All parameters: products, embedding, table of positions, head unless tied, norms and biases."""
    norm = 2 if c.norm == "layer" else 1  # scale, and bias
    layer = layer_products(c).total + (4 if c.norm_place == "both" else 2) * norm * c.embed
    layer += (c.heads + 2 * c.kv_heads) * c.head_dim if c.qkv_bias else 0
    normed = {"none": 0, "head": 2, "full": c.heads + c.kv_heads}[c.qk_norm]  # heads of scales
    layer += normed * norm * c.head_dim
    layer += c.embed if c.out_bias else 0
    layer += (2 if c.gated else 1) * c.mlp + c.embed if c.mlp_bias else 0
    rows = (1 if c.tie_embeddings else 2) * c.vocab_size + c.table_positions
    return c.layers * layer + rows * c.embed + norm * c.embed


def attended_keys(c: ModelConfig, length: int, *, causal: bool = True) -> float:
    """Mean number of keys that a token of a row of `length` is multiplied with, over its layers.

    Causal: T/2, or w - w^2 / 2T under a window w. Full: T, or w: a kernel that skips what lies outside the window still
    multiplies the masked half of it. Only some layers may have the window.
    """

    def of_layer(window: int) -> float:
        return window - window**2 / (2 * length) if causal else float(window)

    every = of_layer(length)
    if not c.window or not c.layers:
        return every
    return every + sum(c.windowed) / c.layers * (of_layer(min(length, c.window)) - every)


def attention_flops(c: ModelConfig, length: int, *, causal: bool = True) -> float:
    """Forward FLOPs per token of both attention products in all layers: 4 L H h times the keys attended.

    Grouped heads share keys and values, which saves memory and projections, not products: H counts, not K.
    """
    return 4.0 * c.layers * c.heads * c.head_dim * attended_keys(c, length, causal=causal)


def forward_flops(c: ModelConfig, length: int, *, causal: bool = True) -> float:
    """FLOPs per token of one pass without a gradient: 2 N_matmul and attention."""
    return 2.0 * matmul_params(c) + attention_flops(c, length, causal=causal)


def training_flops(c: ModelConfig, length: int, *, causal: bool = True) -> float:
    """FLOPs per token of forward and backward, without recomputation: the numerator of MFU.

    6 N_matmul + 12 L T H h, the second term halved when causal.
    """
    return 3.0 * forward_flops(c, length, causal=causal)


def recomputed_flops(c: ModelConfig, length: int, *, causal: bool = True) -> float:
    """FLOPs per token that the backward pass repeats under `c.remat`.

    "full" repeats each block but for the products whose results no gradient needs: the last of the feed-forward, and of a
    parallel residual the last of attention too. The others keep the results of the projections, one of them without the
    feed-forward's, and repeat attention's products, as its kernels do. A norm behind a product needs its result: none keeps
    that of the feed-forward.

    Raises:
      UserError: a policy that is not counted here.
    """
    attention, products = attention_flops(c, length, causal=causal), layer_products(c)
    behind = c.norm_place != "pre"
    down = products.down if behind else 0
    if c.remat == "none":
        return 0.0
    if c.remat in ("save_qkv_attn_mlp_in", "dots", "offload"):
        return 2.0 * c.layers * down + attention
    if c.remat == "save_dot_with_context_except_mlp":
        return 2.0 * c.layers * (products.up + down) + attention
    if c.remat == "full":
        out = 0 if c.parallel_residual and not behind else products.out
        return 2.0 * c.layers * (products.qkv + products.up + out + down) + attention
    known = ", ".join(["none", *POLICIES])
    raise UserError(f"model.remat={c.remat!r}: its FLOPs are not counted. Known: {known}.")


def executed_flops(c: ModelConfig, length: int, *, causal: bool = True) -> float:
    """FLOPs per token that the device carries out in training, repeated ones included: the numerator of HFU.

    What an attention kernel repeats within itself (flash kernels form the scores again in their backward pass) is not
    counted, as in the published HFU figures.
    """
    return training_flops(c, length, causal=causal) + recomputed_flops(c, length, causal=causal)


@dataclasses.dataclass(frozen=True)
class PerToken:
    """The three counts of a training token that a utilisation can be stated in."""

    causal: float
    full: float
    executed: float


def per_token(c: ModelConfig, length: int) -> PerToken:
    """MFU (causal), MFU (all pairs, PaLM's convention) and HFU (causal) are rates of these over the peak."""
    return PerToken(training_flops(c, length), training_flops(c, length, causal=False), executed_flops(c, length))


def utilisation(tokens_per_second: float, flops_per_token: float, peak_flops: float) -> float:
    """Share of the peak: MFU for `training_flops`, HFU for `executed_flops`; rates and peak of the same devices."""
    return tokens_per_second * flops_per_token / peak_flops
