"""How many bits does a model need for held-out text, and how far has it moved from another model?

All of these are sums over the targets that count divided by the number of such targets; the standard error treats a row of text
as the unit that is drawn at random.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from elastic_jax.models.transformer import Decoder, Params
from elastic_jax.objectives.likelihood import token_nll
from elastic_jax.parallel.mesh import batch_sharding, batch_shards, put_global, replicated

LOG2 = float(np.log(2.0))


def ratio(numerators: np.ndarray, denominators: np.ndarray) -> tuple[float, float]:
    """Sum of numerators over sum of denominators, and its standard error by the delta method over rows."""
    total, n = float(np.sum(denominators)), len(numerators)
    value = float(np.sum(numerators)) / total
    if n < 2:
        return value, float("nan")
    residuals = numerators - value * denominators
    return value, float(np.sqrt(n * np.var(residuals, ddof=1)) / total)


def make_row_sums(
    model: Decoder, mesh: Mesh, batch_size: int
) -> Callable[[Params, Params, dict[str, np.ndarray], np.ndarray], dict[str, np.ndarray]]:
    """A function of (params, base params, rows, token bytes) to per-row sums, jitted once for all held-out sets.

    Sums per row: `nll` -log p of the targets in nats; `tokens`; `bytes`; `base_model` and `model_base`, the Kullback-Leibler
    divergences over the whole vocabulary at every target's context, in nats, both directions.
    """
    batch_size = -(-batch_size // batch_shards(mesh)) * batch_shards(mesh)

    def sums(params: Params, base: Params, batch: dict[str, jax.Array], token_bytes: jax.Array) -> dict[str, jax.Array]:
        targets_bt, mask_bt = batch["tokens"][:, 1:], batch["mask"].astype(jnp.float32)
        logits_btv = model(params, batch["tokens"][:, :-1])
        log_p = jax.nn.log_softmax(logits_btv)
        log_q = jax.nn.log_softmax(model(base, batch["tokens"][:, :-1]))
        over = lambda values_bt: jnp.sum(values_bt * mask_bt, axis=-1)  # noqa: E731
        return {
            "nll": over(token_nll(logits_btv, targets_bt)),
            "tokens": jnp.sum(mask_bt, axis=-1),
            "bytes": over(jnp.take(token_bytes, targets_bt, axis=0).astype(jnp.float32)),
            "base_model": over(jnp.sum(jnp.exp(log_q) * (log_q - log_p), axis=-1)),
            "model_base": over(jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)),
        }

    jitted = jax.jit(sums, out_shardings=replicated(mesh))

    def run(
        params: Params, base: Params, rows: dict[str, np.ndarray], token_bytes: np.ndarray
    ) -> dict[str, np.ndarray]:
        n = len(rows["tokens"])
        parts: list[dict[str, Any]] = []
        with jax.set_mesh(mesh):
            for start in range(0, n, batch_size):
                # The last batch is filled with rows that were counted already; their sums are cut off below.
                index = np.arange(start, start + batch_size) % n
                batch = {k: put_global(rows[k][index], batch_sharding(mesh)) for k in ("tokens", "mask")}
                parts.append(jitted(params, base, batch, token_bytes))
        parts = jax.device_get(parts)
        return {k: np.concatenate([np.asarray(part[k], np.float64) for part in parts])[:n] for k in parts[0]}

    return run


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
