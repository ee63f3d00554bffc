"""How likely are the targets, without ever holding the logits of all tokens?

The head's product, the softmax and the loss are made for a chunk of tokens at a time. `nll_sum`, whose weights are known
beforehand, forms the gradient of hidden states and head in the same pass: three matrix products in all, where a rematerialised
softmax takes four. `log_probs` gives every token its own value, whose cotangent comes later, so backward makes the logits again.

Shapes: n tokens, c tokens of a chunk, d embed, v vocabulary. A tied head is the embedding [v, d], a separate one [d, v]; it may
be sharded over its vocabulary: then a device holds the logits of its own columns alone, and what is exchanged is [c] numbers.
Log-sum-exp, losses and the gradient of the head are float32 whatever the dtype of the hidden states.

On a mesh every device cuts its own tokens into chunks, and the gradients of the head are added up over devices once, after the
last chunk.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from elastic_jax.models.attention.reference import MASKED
from elastic_jax.models.products import matmul, matmul_nt, matmul_tn
from elastic_jax.parallel import mesh as mesh_lib
from elastic_jax.parallel.device import current_device

# A few percent of an accelerator's memory, and rows enough to keep its matrix unit busy.
CHUNK_BYTES, CHUNK_ROWS = 256 * 2**20, 1024
# What the caches of a CPU hold, so that the passes after the product need no memory, and rows enough to make little of adding up the
# gradient of the head (benchmarks/results/loss.md).
CPU_CHUNK_BYTES, CPU_CHUNK_ROWS = 16 * 2**20, 512


@dataclasses.dataclass(frozen=True)
class Head:
    """How hidden states become logits.

    Attributes:
      tied: the weight is the embedding, [v, d]; otherwise [d, v].
      softcap: c > 0 replaces a logit x by c tanh(x / c).
      vocab: number of tokens that exist; later columns of the weight are padding and have probability exactly zero. 0: all.
      chunk: tokens per chunk on a device. 0: as many as have CHUNK_BYTES of float32 logits on it, but CHUNK_ROWS at least (on a
        CPU less of both). Chunks are of equal size, so the largest that is needed may be smaller; one that takes all tokens is
        computed without a loop.
    """

    tied: bool = False
    softcap: float = 0.0
    vocab: int = 0
    chunk: int = 0

    def chunks(self, tokens: int, columns: int, platform: str = "") -> int:
        """Into how many chunks `tokens` tokens of a device are cut when it holds `columns` columns of the head."""
        size, rows = (CPU_CHUNK_BYTES, CPU_CHUNK_ROWS) if platform == "cpu" else (CHUNK_BYTES, CHUNK_ROWS)
        most = self.chunk or max(size // (4 * columns), rows)
        return max(-(-tokens // most), 1)


def logits(hidden_nd: Float[Array, "n d"], weight: Float[Array, "..."], head: Head) -> Float[Array, "n v"]:
    """The logits themselves, float32, padding masked: for what needs every token's probability."""
    values_nv, exists_nv = _products(head, hidden_nd, weight.astype(hidden_nd.dtype))
    return _masked(values_nv, exists_nv)


def nll_sum(
    hidden_nd: Float[Array, "n d"],
    weight: Float[Array, "..."],
    targets_n: Int[Array, " n"],
    weights_n: Float[Array, " n"],
    head: Head = Head(),
) -> Float[Array, ""]:
    """sum_i weights_i (log sum_j exp(logit_ij) - logit_i,target), in nats, float32.

    Differentiable in hidden states, head and weights. A token of weight zero adds exactly nothing, to the loss and to the gradients.
    """
    return _nll_sum(head, hidden_nd, weight, targets_n, weights_n.astype(_wide(hidden_nd)))


def log_probs(
    hidden_nd: Float[Array, "n d"],
    weight: Float[Array, "..."],
    targets_n: Int[Array, " n"],
    head: Head = Head(),
) -> Float[Array, " n"]:
    """log p(target) of every token, in nats, float32. Differentiable in hidden states and head."""
    return _log_probs(head, hidden_nd, weight, targets_n)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _nll_sum(head: Head, hidden_nd: Any, weight: Any, targets_n: Any, weights_n: Any) -> jax.Array:
    return jnp.sum(_nll(head, hidden_nd, weight, targets_n) * weights_n)


def _nll_sum_forward(head: Head, hidden_nd: Any, weight: Any, targets_n: Any, weights_n: Any) -> Any:
    nll_n, d_hidden, d_weight = _nll_and_gradients(head, hidden_nd, weight, targets_n, weights_n)
    return jnp.sum(nll_n * weights_n), (nll_n, d_hidden, d_weight, jnp.zeros((), weight.dtype))


def _nll_sum_backward(head: Head, residuals: Any, cotangent: jax.Array) -> Any:
    nll_n, d_hidden, d_weight, like = residuals
    scaled = (cotangent * d_hidden).astype(d_hidden.dtype), (cotangent * d_weight).astype(like.dtype)
    return *scaled, None, cotangent * nll_n


_nll_sum.defvjp(_nll_sum_forward, _nll_sum_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _log_probs(head: Head, hidden_nd: Any, weight: Any, targets_n: Any) -> jax.Array:
    return -_nll(head, hidden_nd, weight, targets_n)


def _log_probs_forward(head: Head, hidden_nd: Any, weight: Any, targets_n: Any) -> Any:
    return _log_probs(head, hidden_nd, weight, targets_n), (hidden_nd, weight, targets_n)


def _log_probs_backward(head: Head, residuals: Any, cotangent_n: jax.Array) -> Any:
    hidden_nd, weight, targets_n = residuals
    _, d_hidden, d_weight = _nll_and_gradients(head, hidden_nd, weight, targets_n, -cotangent_n)
    return d_hidden, d_weight.astype(weight.dtype), None


_log_probs.defvjp(_log_probs_forward, _log_probs_backward)


def _nll(head: Head, hidden_nd: jax.Array, weight: jax.Array, targets_n: jax.Array) -> jax.Array:
    """-log p of every target, [n]."""

    def local(count: int, weight: jax.Array, hidden_nd: jax.Array, targets_n: jax.Array) -> tuple[jax.Array]:
        def chunk(_: None, rows: tuple[jax.Array, ...]) -> tuple[None, tuple[jax.Array]]:
            return None, (_Logits.of(head, rows[0], weight, rows[1]).nll_c,)

        return _scan(count, chunk, None, (hidden_nd, targets_n))[1]

    return _by_shard(head, local, weight, (hidden_nd, targets_n))[0]


def _nll_and_gradients(
    head: Head, hidden_nd: jax.Array, weight: jax.Array, targets_n: jax.Array, weights_n: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """-log p of every target [n], and the gradient of sum(weights * nll) in hidden states [n, d] and, float32, in the head."""

    def local(count: int, weight: jax.Array, *rows: jax.Array) -> Any:
        def gradients(hidden_cd: jax.Array, targets_c: jax.Array, weights_c: jax.Array) -> tuple[jax.Array, ...]:
            logits = _Logits.of(head, hidden_cd, weight, targets_c)
            d_logits_cv = logits.gradient(weights_c).astype(hidden_cd.dtype)
            back = matmul if head.tied else matmul_nt
            d_hidden = back(d_logits_cv, weight, _wide(hidden_cd)).astype(hidden_cd.dtype)
            pair = (d_logits_cv, hidden_cd) if head.tied else (hidden_cd, d_logits_cv)
            return logits.nll_c, d_hidden, matmul_tn(*pair, _wide(hidden_cd))

        if count == 1:
            return gradients(*rows)

        def chunk(d_weight: jax.Array, rows: tuple[jax.Array, ...]) -> tuple[jax.Array, tuple[jax.Array, ...]]:
            nll_c, d_hidden, more = gradients(*rows)
            return mesh_lib.shard(d_weight + more, *_dims(head)), (nll_c, d_hidden)

        zero = mesh_lib.shard(jnp.zeros(weight.shape, _wide(hidden_nd)), *_dims(head))
        d_weight, (nll_n, d_hidden) = _scan(count, chunk, zero, rows)
        return nll_n, d_hidden, d_weight

    nll_n, d_hidden, d_weight = _by_shard(head, local, weight, (hidden_nd, targets_n, weights_n), sums=1)
    return nll_n, d_hidden, mesh_lib.shard(d_weight, *(("vocab", "embed") if head.tied else ("embed", "vocab")))


@dataclasses.dataclass(frozen=True)
class _Logits:
    """The logits of a chunk and what follows from them, all float32."""

    head: Head
    values_cv: jax.Array  # after the soft-cap, before the padding is masked
    targets_c: jax.Array
    weights_cv: jax.Array  # exp(logit - the largest of its row): the softmax before its division; 0 for padding
    total_c: jax.Array  # their sums
    nll_c: jax.Array

    @classmethod
    def of(cls, head: Head, hidden_cd: jax.Array, weight: jax.Array, targets_c: jax.Array) -> "_Logits":
        values_cv, exists = _products(head, hidden_cd, weight)
        masked_cv = _masked(values_cv, exists)
        highest_c = jnp.max(masked_cv, axis=1)
        weights_cv = jnp.exp(masked_cv - highest_c[:, None])
        total_c = jnp.sum(weights_cv, axis=1)
        nll_c = jnp.log(total_c) + highest_c - _of_target(values_cv, targets_c)
        return cls(head, values_cv, targets_c, weights_cv, total_c, nll_c)

    def gradient(self, weights_c: jax.Array) -> jax.Array:
        """Of sum(weights * nll) in the products of hidden states and head, [c, v]."""
        # Exponentials of a pass before, and divisions of rows: a second exp over [c, v] would cost as much as a product.
        hit_cv = _columns_of(self.values_cv) == self.targets_c[:, None]
        d_cv = self.weights_cv * (weights_c / self.total_c)[:, None] - jnp.where(hit_cv, weights_c[:, None], 0.0)
        if self.head.softcap:
            d_cv = d_cv * (1.0 - jnp.square(self.values_cv / self.head.softcap))
        return d_cv


def _of_target(values_cv: jax.Array, targets_c: jax.Array) -> jax.Array:
    """The logit of every row's target, [c]."""
    if mesh_lib.parts("vocab") == 1 and mesh_lib.parts("batch") == 1:
        return jnp.take_along_axis(values_cv, targets_c[:, None], axis=1)[:, 0]
    # By comparison: a look-up would make the partitioner gather what is sharded.
    return jnp.sum(jnp.where(_columns_of(values_cv) == targets_c[:, None], values_cv, 0.0), axis=1)


def _products(head: Head, hidden_cd: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    """Logits after the soft-cap, float32, and where they are of tokens that exist (None: everywhere)."""
    values_cv = (matmul_nt if head.tied else matmul)(hidden_cd, weight, _wide(hidden_cd))
    if head.softcap:
        values_cv = head.softcap * jnp.tanh(values_cv / head.softcap)
    padded = 0 < head.vocab < values_cv.shape[1]
    return values_cv, _columns_of(values_cv) < head.vocab if padded else None


def _columns_of(values_cv: jax.Array) -> jax.Array:
    return jax.lax.broadcasted_iota(jnp.int32, values_cv.shape, 1)


def _masked(values_cv: jax.Array, exists_cv: jax.Array | None) -> jax.Array:
    return values_cv if exists_cv is None else jnp.where(exists_cv, values_cv, MASKED)


def _wide(x: jax.Array) -> Any:
    return jnp.promote_types(x.dtype, jnp.float32)


def _dims(head: Head) -> tuple[str | None, str | None]:
    """Dims of the head while it is used: whole over fsdp, its vocabulary on its axis."""
    return ("vocab", None) if head.tied else (None, "vocab")


def _scan(count: int, chunk: Any, carry: Any, rows: tuple[jax.Array, ...]) -> Any:
    """`chunk` over `count` equal parts of rows of [n, ...]; the outputs are [n, ...] again. What fills the last part has weight 0."""
    if count == 1:
        return chunk(carry, rows)
    n, size = len(rows[0]), -(-len(rows[0]) // count)
    parts = [
        jnp.pad(row, [(0, count * size - n)] + [(0, 0)] * (row.ndim - 1)).reshape(count, size, *row.shape[1:])
        for row in rows
    ]
    carry, outputs = jax.lax.scan(chunk, carry, tuple(parts))
    return carry, jax.tree.map(lambda out: out.reshape(count * size, *out.shape[2:])[:n], outputs)


def _by_shard(head: Head, local: Any, weight: jax.Array, rows: tuple[jax.Array, ...], sums: int = 0) -> Any:
    """`local(chunks, weight, *rows)` for the tokens of each device, its last `sums` outputs added up over devices.

    Left to the partitioner, every chunk would end in an exchange of the head's whole gradient.
    """
    columns = -(-weight.shape[0 if head.tied else 1] // mesh_lib.parts("vocab"))
    shards, n = mesh_lib.parts("batch"), len(rows[0])
    count = head.chunks(-(-n // shards), columns, current_device().platform)
    # Cast before it is gathered: half the bytes.
    weight = mesh_lib.shard(weight.astype(rows[0].dtype), *_dims(head))
    if shards == 1 or count == 1 or n % shards:
        return local(count, weight, *rows)
    split = [mesh_lib.shard(row.reshape(shards, n // shards, *row.shape[1:]), "batch") for row in rows]
    local = functools.partial(local, count)
    outputs = mesh_lib.over_shards(local, (None, *[0] * len(rows)))(weight, *split)
    kept = len(outputs) - sums
    flat = [out.reshape(n, *out.shape[2:]) for out in outputs[:kept]]
    return *flat, *[jnp.sum(out, axis=0) for out in outputs[kept:]]
