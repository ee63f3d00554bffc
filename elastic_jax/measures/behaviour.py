"""How does the model behave when it writes?"""

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from elastic_jax.data.tokenizers import Tokenizer
from elastic_jax.measures.questions import NO_FRAME, Frame
from elastic_jax.measures.scorers import Scorer
from elastic_jax.measures.scorers.base import asked

ARROW = " ⟶ "
_log = logging.getLogger(__name__)


class Judge(NamedTuple):
    """A further scorer of samples.

    Attributes:
      question: whether it has a template of its own, and so is given the question in place of the prompt.
    """

    measure: str
    scorer: Scorer
    question: bool = False


def rows_of(
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    tokenizer: Tokenizer,
    scorer: Scorer,
    keep: int,
    further: Sequence[Judge] = (),
    frame: Frame = NO_FRAME,
) -> list[dict[str, Any]]:
    """The mean score of samples, with its standard error over samples, and the first `keep` samples themselves.

    Args:
      prompts, continuations: tokens of each sample, without padding.
      scorer: the data's own, whose measure is "score".
      further: other judges of the same samples.
      frame: what the template puts around a question.

    Raises:
      UserError: a scorer failed, or gave what is no score.
    """
    heads, written = tokenizer.decode(prompts), tokenizer.decode(continuations)
    answers = _following(heads, written, prompts, continuations, tokenizer)
    scores = asked(scorer, heads, answers)
    rows = [_mean("score", scorer, scores)]
    questions = [frame.question(head) for head in heads]
    for measure, other, question in further:
        rows.append(_mean(measure, other, asked(other, questions if question else heads, answers)))
    for prompt, answer, score in zip(heads[:keep], written[:keep], scores[:keep], strict=True):
        text = f"{prompt}{ARROW}{answer}"
        common = dict(split="samples", unit=scorer.unit, measure="sample")
        rows.append(dict(common, value=float(score), stderr=float("nan"), n=1, text=text))
    return rows


def _mean(measure: str, scorer: Scorer, scores: np.ndarray) -> dict[str, Any]:
    """The mean over the texts that have a score, and its standard error; NaN where there is none."""
    known = scores[np.isfinite(scores)]
    n = len(known)
    if n < len(scores):
        _log.info("%s: %d of %d texts have no score", scorer.name, len(scores) - n, len(scores))
    value = float(np.mean(known)) if n else float("nan")
    stderr = float(np.std(known, ddof=1) / np.sqrt(n)) if n > 1 else float("nan")
    return dict(split="samples", unit=scorer.unit, measure=measure, value=value, stderr=stderr, n=n, text="")


def _following(
    heads: Sequence[str],
    written: Sequence[str],
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    tokenizer: Tokenizer,
) -> list[str]:
    """The answers as they follow their prompts. Decoded alone, a text may lack the blank that stands before it in the whole."""
    wholes = tokenizer.decode([[*head, *answer] for head, answer in zip(prompts, continuations, strict=True)])
    return [
        whole[len(head) :] if whole.startswith(head) else answer  # a character may lie across the border
        for whole, head, answer in zip(wholes, heads, written, strict=True)
    ]
