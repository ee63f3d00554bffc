"""How well does a model fit what another model wrote?

The loss of a model on another's answers is their entropy and a divergence: -log p(answer) = H(answers) + KL(answers || model), per
token. Texts of two authors differ in the first, so that losses on them compare nothing. Two things can be subtracted:
 - the author's own loss on the same answers. Where the author wrote at temperature 1 without filters, that is KL(author || model);
   otherwise it is how much worse than the author the model predicts them.
 - -log q(answer), q being what the answers were drawn from, temperature and filters applied: then it is KL(q || model) always.
Both are known per token, which makes the differences less noisy than the losses.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from elastic_jax.measures.likelihood import ratio
from elastic_jax.models.filters import Choice
from elastic_jax.models.transformer import Decoder, Params
from elastic_jax.objectives.likelihood import token_nll
from elastic_jax.parallel.mesh import replicated
from elastic_jax.parallel.rows import in_batches

TRAINED, HELDOUT = "answers", "answers_heldout"  # splits
VERSIONS = ("", "_above_self", "_above_entropy")  # of a loss: as it is, and with either subtracted
_UNIT = "nats/token"

TokenNll = Callable[[Params, np.ndarray], np.ndarray]


def make_token_nll(model: Decoder, mesh: Mesh, batch_size: int) -> TokenNll:
    """A function of (params, tokens [n, T+1]) to -log p of every target [n, T], nats, float32."""

    def nll(params: Params, tokens_bt: jax.Array) -> jax.Array:
        return token_nll(model(params, tokens_bt[:, :-1]), tokens_bt[:, 1:])

    return _of_all(nll, mesh, batch_size)


def make_drawn_nll(model: Decoder, mesh: Mesh, batch_size: int, choice: Choice) -> TokenNll:
    """As `make_token_nll`, of the distribution that `choice` draws from."""

    def nll(params: Params, tokens_bt: jax.Array) -> jax.Array:
        if choice.temperature == 0:  # the answers follow from the queries
            return jnp.zeros(tokens_bt[:, 1:].shape, jnp.float32)
        logits_btv = model(params, tokens_bt[:, :-1])
        of_row = lambda row: drawn_nll(row[0], row[1], choice)  # noqa: E731
        return jax.lax.map(of_row, (logits_btv, tokens_bt[:, 1:]))

    return _of_all(nll, mesh, batch_size)


def drawn_nll(logits_tv: Float[Array, "t v"], drawn_t: Int[Array, " t"], choice: Choice) -> Float[Array, " t"]:
    """-log q of tokens that were drawn from `choice.filtered(logits)`.

    A token at the edge of the nucleus that rounding would leave outside counts as inside: it was drawn.
    """
    here_tv = jax.nn.one_hot(drawn_t, logits_tv.shape[-1], dtype=bool)
    filtered_tv = jnp.where(here_tv, logits_tv / choice.temperature, choice.filtered(logits_tv))
    return -jnp.sum(jnp.where(here_tv, jax.nn.log_softmax(filtered_tv), 0.0), axis=-1)


def loss_rows(
    nll: Float[np.ndarray, "n t"], own: Mapping[str, np.ndarray], mask: np.ndarray, split: str
) -> list[dict[str, Any]]:
    """The loss of a model on answers, in all VERSIONS.

    Args:
      nll: of the model.
      own: `self_nll` and `drawn_nll` [n, T] of the author.
      mask: [n, T], which targets count.
    """
    rows = []
    for version, subtracted in zip(VERSIONS, (0.0, own["self_nll"], own["drawn_nll"]), strict=True):
        value, stderr = ratio(_sums(nll - subtracted, mask), _sums(mask, mask))
        rows.append(_row("answer_loss" + version, split, _UNIT, value, stderr, len(nll)))
    return rows


def answer_rows(own: Mapping[str, np.ndarray], mask: np.ndarray, split: str) -> list[dict[str, Any]]:
    """What the answers are: the author's loss, their entropy, their length, and how many of them differ."""
    n, tokens = len(mask), _sums(mask, mask)
    texts = {row[1:][chosen].tobytes() for row, chosen in zip(own["tokens"], mask.astype(bool), strict=True)}
    stderr = float(np.std(tokens, ddof=1) / np.sqrt(n)) if n > 1 else float("nan")
    return [
        _row("self_loss", split, _UNIT, *ratio(_sums(own["self_nll"], mask), tokens), n),
        _row("answer_entropy", split, _UNIT, *ratio(_sums(own["drawn_nll"], mask), tokens), n),
        _row("answer_tokens", split, "tokens", float(tokens.mean()), stderr, n),
        _row("answer_total", split, "count", float(tokens.sum()), float("nan"), n),
        _row("distinct_answers", split, "fraction", len(texts) / n, float("nan"), n),
    ]


def epoch_rows(
    losses: Sequence[float], batches: Sequence[np.ndarray], own: Mapping[str, np.ndarray], mask: np.ndarray
) -> list[dict[str, Any]]:
    """The mean training loss of an epoch over its batches, each before it was trained on, and its slope over the epoch.

    Args:
      losses: of every update, nats per token.
      batches: the rows of every update.

    The slope is that of a least-squares line of the loss against the share of the epoch, 0 to 1: nats per token and epoch.
    """
    rows, n = [], len(losses)
    place = (np.arange(n) + 0.5) / n
    for version, subtracted in zip(
        VERSIONS, (np.zeros_like(own["self_nll"]), own["self_nll"], own["drawn_nll"]), strict=True
    ):
        less = [float((subtracted[rows] * mask[rows]).sum(dtype=np.float64) / mask[rows].sum()) for rows in batches]
        values = np.asarray(losses, np.float64) - less
        stderr = float(np.std(values, ddof=1) / np.sqrt(n)) if n > 1 else float("nan")
        slope = float(np.polyfit(place, values, 1)[0]) if n > 1 else float("nan")
        rows.append(_row("epoch_loss" + version, TRAINED, _UNIT, float(values.mean()), stderr, n))
        rows.append(_row("epoch_slope" + version, TRAINED, "nats/token per epoch", slope, float("nan"), n))
    return rows


def _sums(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return np.where(mask.astype(bool), values, 0).sum(axis=1, dtype=np.float64)


def _row(measure: str, split: str, unit: str, value: float, stderr: float, n: int) -> dict[str, Any]:
    return dict(measure=measure, split=split, unit=unit, value=value, stderr=stderr, n=n, text="")


def _of_all(function: Callable[[Params, jax.Array], jax.Array], mesh: Mesh, batch_size: int) -> TokenNll:
    jitted = jax.jit(function, out_shardings=replicated(mesh))

    def of_all(params: Params, tokens: np.ndarray) -> np.ndarray:
        return in_batches(lambda batch: jitted(params, batch), tokens, mesh, batch_size).astype(np.float32)

    return of_all
