"""What is a scorer, and how good is one?"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from elastic_jax.errors import UserError, first_line


@runtime_checkable
class Scorer(Protocol):
    """A judge of texts, one at a time: what it says of a text depends on that text alone.

    Attributes:
      name: for people.
      digest: identity of what the scores depend on (weights, settings, code): equal digests give equal scores.
      unit: of a score; "probability" has the bounds 0 and 1.
      low, high: no score lies beyond them; None where there is no bound.
    """

    @property
    def name(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def unit(self) -> str: ...
    @property
    def low(self) -> float | None: ...
    @property
    def high(self) -> float | None: ...

    def score(self, prompts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        """A number for every prompt and its answer, float64 [n]; NaN where the text has none.

        Args:
          prompts: [n].
          answers: [n], as they continue their prompts: prompt + answer is the text.
        """
        ...


def asked(
    scorer: Scorer, prompts: Sequence[str], answers: Sequence[str], field: str = "measures.scorers"
) -> np.ndarray:
    """What a scorer says, checked: float64 [n], within its bounds where it is a number.

    Raises:
      UserError: it failed, or gave something else.
    """
    try:
        scores = np.asarray(scorer.score(prompts, answers), np.float64)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{field}: {scorer.name} failed: {type(error).__name__}: {first_line(error)}") from error
    if scores.shape != (len(answers),):
        raise UserError(f"{field}: {scorer.name} gave scores of shape {scores.shape} for {len(answers)} texts.")
    beyond = (scores < (-np.inf if scorer.low is None else scorer.low)) | (
        scores > (np.inf if scorer.high is None else scorer.high)
    )
    if beyond.any():
        raise UserError(
            f"{field}: {scorer.name} gave {scores[beyond][0]:g}, beyond its bounds {scorer.low} and {scorer.high}. Correct the "
            "score, or low and high."
        )
    return scores


def accuracy(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float, float]:
    """Share of rows on the right side of 0.5, its standard error, and the area under the ROC curve.

    The standard error is sqrt(a (1 - a) / n). The area is P(score of an aligned row > score of an opposite
    one), ties counted half (Mann and Whitney 1947).

    >>> accuracy(np.array([0.9, 0.2, 0.6, 0.4]), np.array([True, False, False, True]))[0]
    0.5
    """
    labels = np.asarray(labels, bool)
    right = float(np.mean((scores > 0.5) == labels))
    error = float(np.sqrt(right * (1 - right) / len(labels)))
    _, places, ties = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(ties) - (ties - 1) / 2)[places]
    positive, negative = int(labels.sum()), int((~labels).sum())
    if not positive or not negative:
        return right, error, float("nan")
    area = (ranks[labels].sum() - positive * (positive + 1) / 2) / (positive * negative)
    return right, error, float(area)
