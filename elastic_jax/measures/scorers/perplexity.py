"""How unexpected is an answer to a language model?

Nats per token: the mean of -log p(token | prompt and the answer's tokens before it). The perplexity is its exponential. A higher
score is a text that the model finds less likely.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from elastic_jax.data.files import digest_of
from elastic_jax.data.tokenizers import Tokenizer
from elastic_jax.measures.scorers.batched import over_rows
from elastic_jax.models.transformer import Decoder, Params
from elastic_jax.parallel.mesh import replicated

UNIT = "nats/token"
_LONGEST = 1024


def answer_rows(
    tokenizer: Tokenizer, prompts: Sequence[str], answers: Sequence[str], longest: int
) -> tuple[list[list[int]], list[int]]:
    """Token numbers of whole texts, what begins a document before them, and how many of each row the answer comes after.

    The answer's tokens are those of the whole text after what it has in common with the tokens of the prompt alone: where a token
    spans the end of the prompt, it counts as the answer's. Rows are cut at the end.
    """
    begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    wholes = tokenizer.encode([prompt + answer for prompt, answer in zip(prompts, answers, strict=True)])
    heads = dict(zip(dict.fromkeys(prompts), tokenizer.encode(list(dict.fromkeys(prompts))), strict=True))
    rows, starts = [], []
    for prompt, whole in zip(prompts, wholes, strict=True):
        head = heads[prompt]
        pairs = zip(head, whole, strict=False)
        common = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(head), len(whole)))
        rows.append((begin + whole)[:longest])
        starts.append(len(begin) + common)
    return rows, starts


def nats_per_token(
    forward: Callable[[jax.Array, jax.Array], jax.Array],
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    answers: Sequence[str],
    *,
    longest: int,
    size: int,
    mesh: Mesh,
) -> np.ndarray:
    """Float64 [n]; NaN for an answer without tokens, or that begins after the `longest` tokens that the model reads.

    Args:
      forward: (tokens, facts) -> `nll_sums`.
    """
    if not prompts:
        return np.zeros(0)
    rows, starts = answer_rows(tokenizer, prompts, answers, longest)
    starts = [max(start, 1) for start in starts]  # nothing is before the first token of a row, so it has no probability
    sums = over_rows(
        forward,
        [row or [tokenizer.pad_id] for row in rows],
        extra=starts,
        pad=tokenizer.pad_id,
        longest=longest,
        size=size,
        mesh=mesh,
    )
    counts = np.array([len(row) - start for row, start in zip(rows, starts, strict=True)], np.float64)
    return np.divide(sums, counts, out=np.full(len(rows), np.nan), where=counts > 0)


def nll_sums(model: Decoder, params: Params, tokens_bt: jax.Array, facts_b2: jax.Array) -> jax.Array:
    """[b]: -log p of the tokens from number `facts[:, 1]` to before number `facts[:, 0]` of each row, summed, in nats."""
    number_t = jnp.arange(1, tokens_bt.shape[1] + 1)[None]  # of the token that each position predicts
    mask_bt = (number_t >= facts_b2[:, 1:]) & (number_t < facts_b2[:, :1])
    targets_bt = jnp.roll(tokens_bt, -1, axis=1)
    return -jnp.sum(model.log_probs(params, tokens_bt, targets_bt, mask_bt), axis=1)


class PerplexityScorer:
    """Nats per token of the answer under a published model.

    Args:
      source: opened folder or hub id (`elastic_jax.hf.source.Source`).
      length: tokens of a text at the most; 0: 1024.
      dtype: in which the weights are held and multiplied.
      called: the model's name for people; "": that of the folder.

    Raises:
      UserError: no causal language model, no tokenizer, or one that belongs to another model.
    """

    unit = UNIT
    low: float | None = 0.0
    high: float | None = None

    def __init__(
        self,
        source: Any,
        mesh: Mesh,
        *,
        length: int = 0,
        dtype: Literal["float32", "bfloat16"] = "float32",
        batch_size: int = 64,
        called: str = "",
    ):
        from elastic_jax.data.tokenizers import load_pretrained

        where = Path(source.folder)
        self._source, self._mesh, self._batch_size, self._dtype = source, mesh, batch_size, dtype
        self._tokenizer = load_pretrained(where)
        self._length = length or _LONGEST
        execution = dict(dtype=dtype, param_dtype=dtype, layout="scan")  # every width of a batch is compiled
        config = source.model_config(self._tokenizer.vocab_size, self._length, **execution)
        self._model = Decoder(config)
        self.name = f"nats per token under {called or where.name}"

    @cached_property
    def digest(self) -> str:
        return digest_of(["perplexity-1", self._source.digest, self._tokenizer.digest, self._length, self._dtype])

    @cached_property
    def _params(self) -> Params:
        return self._source.load_params(self._model, self._mesh)

    def score(self, prompts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        """Nats per token of each answer, float64 [n]; NaN for one without tokens."""
        return nats_per_token(
            lambda tokens, facts: _sums(self._model, self._mesh, self._params, tokens, facts),
            self._tokenizer,
            prompts,
            answers,
            longest=self._length,
            size=self._batch_size,
            mesh=self._mesh,
        )


@dataclasses.dataclass(frozen=True)
class BoundPerplexity:
    """Nats per token of the answer under the model `params`: a `BasePerplexity` with its base."""

    model: Decoder
    params: Params
    tokenizer: Tokenizer
    mesh: Mesh
    batch_size: int
    name: str = "nats per token under the base model"
    digest: str = digest_of(["perplexity-1", "base"])
    unit: str = UNIT
    low: float | None = 0.0
    high: float | None = None

    def score(self, prompts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        """Nats per token of each answer, float64 [n]; NaN for one without tokens."""
        return nats_per_token(
            lambda tokens, facts: _sums(self.model, self.mesh, self.params, tokens, facts),
            self.tokenizer,
            prompts,
            answers,
            longest=self.model.config.seq_len,
            size=self.batch_size,
            mesh=self.mesh,
        )


class BasePerplexity:
    """Nats per token of the answer under the model that the study's runs descend from.

    What it says depends on parameters that a run brings along (`of`), so it is not stored, and seeds have judges of their own.
    """

    name, digest = BoundPerplexity.name, BoundPerplexity.digest

    def of(self, model: Decoder, base: Params, tokenizer: Tokenizer, mesh: Mesh, batch_size: int) -> BoundPerplexity:
        """The scorer, of one base."""
        return BoundPerplexity(model, base, tokenizer, mesh, batch_size)


@partial(jax.jit, static_argnums=(0, 1))
def _sums(model: Decoder, mesh: Mesh, params: Params, tokens_bt: jax.Array, facts_b2: jax.Array) -> jax.Array:
    return jax.lax.with_sharding_constraint(nll_sums(model, params, tokens_bt, facts_b2), replicated(mesh))
