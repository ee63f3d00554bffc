"""How many bits does a model need for held-out text, and how far has it moved from another model?

All of these are sums over the targets that count divided by the number of such targets; the standard error treats a row of text
as the unit that is drawn at random.
"""

import threading
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from elastic_jax.models.transformer import Decoder, Params
from elastic_jax.objectives.likelihood import token_nll
from elastic_jax.parallel.mesh import batch_sharding, replicated
from elastic_jax.parallel.rows import each_batch, in_batches

LOG2 = float(np.log(2.0))


def ratio(numerators: np.ndarray, denominators: np.ndarray) -> tuple[float, float]:
    """Sum of numerators over sum of denominators, and its standard error by the delta method over rows."""
    total, n = float(np.sum(denominators)), len(numerators)
    value = float(np.sum(numerators)) / total
    if n < 2:
        return value, float("nan")
    residuals = numerators - value * denominators
    return value, float(np.sqrt(n * np.var(residuals, ddof=1)) / total)


# (params, base params, rows, token bytes) -> sums of every row
RowSums = Callable[[Params, Params, dict[str, np.ndarray], np.ndarray], dict[str, np.ndarray]]

# What a base says of one held-out set, in bytes, up to which it is kept for the next model that is compared with it; and of all together.
_KEPT_OF_A_SET = 64 * 2**20
_KEPT = 512 * 2**20


class _Kept:
    """What bases say of held-out sets, the latest ones: many points of a study are compared with one base."""

    def __init__(self, ceiling: int = _KEPT):
        self._ceiling, self._lock = ceiling, threading.Lock()
        # The first two are held so that nothing else can have their ids.
        self._found: dict[tuple[int, int], tuple[Any, Any, list[jax.Array]]] = {}

    def get(self, base: Params, rows: Any, make: Callable[[], list[jax.Array]]) -> list[jax.Array]:
        key = id(base), id(rows)
        with self._lock:
            found = self._found.pop(key, None)
        found = found or (base, rows, make())
        with self._lock:
            self._found[key] = found  # the last to go
            while sum(part.nbytes for _, _, parts in self._found.values() for part in parts) > self._ceiling:
                del self._found[next(iter(self._found))]
        return found[2]


def make_row_sums(model: Decoder, mesh: Mesh, batch_size: int, kept_bytes: int = _KEPT_OF_A_SET) -> RowSums:
    """A function of (params, base params, rows, token bytes) to per-row sums, jitted once for all held-out sets.

    Sums per row: `nll` -log p of the targets in nats; `tokens`; `bytes`; `base_model` and `model_base`, the Kullback-Leibler
    divergences over the whole vocabulary at every target's context, in nats, both directions; zeros where `base` is `params`.

    Args:
      kept_bytes: log-probabilities of a base on a set of rows are kept for the next call with these very objects where neither they
        nor the base take more than this. So half of the work is saved; others are computed inside the program, which need not hold
        them all.
    """
    kept = _Kept()

    def log_probs(params: Params, tokens: jax.Array) -> jax.Array:
        return jax.nn.log_softmax(model(params, tokens[:, :-1]))

    def sums(
        params: Params,
        base: Params | None,
        log_q: jax.Array | None,
        batch: dict[str, jax.Array],
        token_bytes: jax.Array,
    ) -> dict[str, jax.Array]:
        targets_bt, mask_bt = batch["tokens"][:, 1:], batch["mask"].astype(jnp.float32)
        logits_btv = model(params, batch["tokens"][:, :-1])
        log_p = jax.nn.log_softmax(logits_btv)
        if log_q is None:
            log_q = log_p if base is None else log_probs(base, batch["tokens"])
        over = lambda values_bt: jnp.sum(values_bt * mask_bt, axis=-1)  # noqa: E731
        return {
            "nll": over(token_nll(logits_btv, targets_bt)),
            "tokens": jnp.sum(mask_bt, axis=-1),
            "bytes": over(jnp.take(token_bytes, targets_bt, axis=0).astype(jnp.float32)),
            "base_model": over(jnp.sum(jnp.exp(log_q) * (log_q - log_p), axis=-1)),
            "model_base": over(jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)),
        }

    jitted = jax.jit(sums, out_shardings=replicated(mesh))
    of_base = jax.jit(log_probs, out_shardings=batch_sharding(mesh))

    def run(
        params: Params, base: Params, rows: dict[str, np.ndarray], token_bytes: np.ndarray
    ) -> dict[str, np.ndarray]:
        wanted = {k: rows[k] for k in ("tokens", "mask")}
        n, length = rows["mask"].shape
        if base is params:
            program = lambda batch: jitted(params, None, None, batch, token_bytes)  # noqa: E731
        elif 4 * n * length * model.config.vocab_size > kept_bytes or _size(base) > kept_bytes:
            program = lambda batch: jitted(params, base, None, batch, token_bytes)  # noqa: E731
        else:
            said = lambda: each_batch(lambda batch: of_base(base, batch["tokens"]), wanted, mesh, batch_size)  # noqa: E731
            parts = iter(kept.get(base, rows, said))
            program = lambda batch: jitted(params, None, next(parts), batch, token_bytes)  # noqa: E731
        whole = in_batches(program, wanted, mesh, batch_size)
        return {k: v.astype(np.float64) for k, v in whole.items()}

    return run


def _size(params: Params) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(params))


def rows_of(
    sums: dict[str, np.ndarray], split: str, vocab_size: int, log_prob: np.ndarray | None = None
) -> list[dict[str, Any]]:
    """Measure rows of one held-out set.

    - bits_per_token: gamma, the compression rate (paper, section 3: training loss and compression rate are one).
    - bits_per_byte: comparable between tokenisers.
    - normalised_compression: gamma - log2 V, the practical form of Definition 4.1 with the vocabulary for the leaves.
    - kl_base_model, kl_model_base: nats per token, against the model before alignment.
    - kl_data_model: E_x~D [log p_D(x) - log p_model(x)], nats per token, where log p_D is known exactly.
    """
    n = len(sums["nll"])

    def row(
        measure: str, unit: str, numerators: np.ndarray, denominators: np.ndarray, shift: float = 0.0
    ) -> dict[str, Any]:
        value, stderr = ratio(numerators, denominators)
        return dict(measure=measure, split=split, unit=unit, value=value + shift, stderr=stderr, n=n, text="")

    bits = sums["nll"] / LOG2
    rows = [
        row("bits_per_token", "bits/token", bits, sums["tokens"]),
        row("bits_per_byte", "bits/byte", bits, sums["bytes"]),
        row("normalised_compression", "bits/token", bits, sums["tokens"], -float(np.log2(vocab_size))),
        row("kl_base_model", "nats/token", sums["base_model"], sums["tokens"]),
        row("kl_model_base", "nats/token", sums["model_base"], sums["tokens"]),
    ]
    if log_prob is not None:
        rows.append(row("kl_data_model", "nats/token", log_prob + sums["nll"], sums["tokens"]))
    return rows
