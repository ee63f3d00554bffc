"""What is a statement, and when does a study support it?

A statement becomes tests. A test is one number per seed (pairs of runs with one seed are differenced first, trends fitted within it)
and the side of zero on which the statement puts it. Three things are computed from these numbers:
 - Student's t interval over seeds;
 - where the standard error over texts is known for each seed, the bootstrap of seeds and texts (`statistics.bootstrap_seeds_and_texts`;
   of interpolated positions `bootstrap_seeds_and_draws`): few seeds that happen to agree more closely than their texts allow decide
   nothing;
 - the exact sign-flip test (`statistics.sign_flip`) with the smallest p-value that so many seeds can give.

Supported: the t interval lies on the stated side, and the bootstrap's does where there is one; contradicted: both on the other side;
undecided: neither, one seed, or a seed without a value. What a study has not been laid out to answer is "not tested here".
The p-value is shown beside: with three seeds none below 0.25 can come out, whatever the effect.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from elastic_jax.analysis import statistics
from elastic_jax.analysis.statistics import Estimate

SUPPORTED, CONTRADICTED, UNDECIDED, UNTESTED = "supported", "contradicted", "undecided", "not tested here"


@dataclasses.dataclass(frozen=True)
class Statement:
    """One claim.

    Attributes:
      key: `<family>.<name>`.
      text: what is claimed, in a sentence.
      source: the place of arXiv 2406.06144 that says it, or "not in the paper".
    """

    key: str
    text: str
    source: str


@dataclasses.dataclass(frozen=True)
class Test:
    """A number that the statement puts on one side of zero: above (side 1) or below (-1)."""

    __test__ = False  # not pytest's

    key: str
    statement: str
    statistic: str
    unit: str
    side: int


class Value(NamedTuple):
    """A seed's number.

    Attributes:
      value: NaN where there is none.
      stderr: over texts, NaN where that is not known.
      reason: why the number is NaN, else "".
      draws: the number computed again from redrawn texts, where an error is not enough to say how it scatters; else None.
    """

    value: float
    stderr: float = math.nan
    reason: str = ""
    draws: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a study gave for a test in one place.

    Attributes:
      values: by seed.
      panel: (model, align method, perturb method), "" where it is not about one.
      align_volume: 0: across volumes.
      where: what else tells this place from others.
      estimate, verdict: of an analysis that is no mean over seeds and has its own rule; else None and "", and both are computed.
      remark: said beside the verdict.
    """

    test: Test
    values: Mapping[int, Value] = dataclasses.field(default_factory=dict)
    panel: tuple[str, str, str] = ("", "", "")
    align_volume: int = 0
    where: str = ""
    estimate: Estimate | None = None
    verdict: str = ""
    remark: str = ""


@dataclasses.dataclass(frozen=True)
class Untested:
    """A statement that the study cannot test, and what it lacks."""

    statement: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Settings:
    """What tests are asked for with: the level of intervals, and the neighbourhood of the base (KL in nats per token)."""

    level: float = statistics.LEVEL
    eps: float = 0.01


def missing(reason: str) -> Value:
    """A number that there is not."""
    return Value(math.nan, math.nan, reason)


def combine(weights: Sequence[float] | np.ndarray, values: Sequence[Value]) -> Value:
    """Sum of weighted numbers, whose errors over texts are independent; NaN with all reasons where one is missing.

    Of numbers with draws the draws are added up as they stand, so that what two of them share is drawn alike in both.
    """
    lacking = sorted({value.reason or "not measured" for value in values if math.isnan(value.value)})
    if lacking:
        return missing("; ".join(lacking))
    w = np.asarray(weights, np.float64)
    errors = np.array([value.stderr for value in values])
    drawn = [value.draws for value in values if value.draws is not None]
    draws = w @ np.stack(drawn) if drawn and len(drawn) == len(values) else None
    return Value(float(w @ [value.value for value in values]), float(np.sqrt(np.sum((w * errors) ** 2))), draws=draws)


def mean(values: Sequence[Value]) -> Value:
    """Of several numbers of one seed."""
    return combine(np.full(len(values), 1 / max(len(values), 1)), values) if values else missing("not measured")


def per_doubling(x: Sequence[float], values: Sequence[Value]) -> Value:
    """Least-squares slope on log2 x."""
    if len(set(x)) < 2:
        return missing("one place: no trend")
    about = np.log2(np.asarray(x, np.float64))
    about -= about.mean()
    return combine(about / float(about @ about), values)


def verdict(estimate: Estimate, side: int, complete: bool = True, texts: Estimate | None = None) -> str:
    """supported, contradicted or undecided; side 1 states above zero, -1 below.

    Args:
      estimate: with the interval over seeds.
      complete: whether every seed has a value.
      texts: the bootstrap over seeds and texts; None where there is none.
    """
    intervals = [one for one in (estimate, texts) if one is not None]
    if not complete or any(math.isnan(one.low) or math.isnan(one.high) for one in intervals):
        return UNDECIDED
    for sign, said in ((side, SUPPORTED), (-side, CONTRADICTED)):
        if all(sign * one.low > 0 and sign * one.high > 0 for one in intervals):
            return said
    return UNDECIDED


def judge(outcome: Outcome, level: float = statistics.LEVEL) -> dict[str, Any]:
    """A row of the table of tests: mean, low, high, n, texts_low, texts_high, p, p_least, verdict and reason."""
    test, seeds = outcome.test, sorted(outcome.values)
    values = [outcome.values[seed] for seed in seeds]
    numbers = np.array([value.value for value in values], np.float64)
    known = numbers[~np.isnan(numbers)]
    estimate = outcome.estimate or statistics.mean_interval(numbers, level)
    errors = np.array([value.stderr for value in values], np.float64)
    whole = len(known) > 1 and len(known) == len(numbers) and not np.isnan(errors).any()
    draws = [value.draws for value in values if value.draws is not None]
    texts = None
    if whole and len(draws) == len(numbers):
        texts = statistics.bootstrap_seeds_and_draws(numbers, np.stack(draws), level=level)
    elif whole:
        texts = statistics.bootstrap_seeds_and_texts(numbers, errors, level=level)
    p, least = statistics.sign_flip(known) if 0 < len(known) <= statistics.FLIPS else (math.nan, math.nan)
    said = outcome.verdict or verdict(estimate, test.side, len(known) == len(numbers), texts)
    reasons = sorted({value.reason for value in values if value.reason and math.isnan(value.value)})
    shown = [reason for reason in (estimate.reason, *reasons, outcome.remark) if reason]
    return (
        dict(claim=test.statement, test=test.key, statistic=test.statistic, unit=test.unit, side=test.side)
        | dict(zip(("model", "align_method", "perturb_method"), outcome.panel, strict=True))
        | dict(align_volume=outcome.align_volume, where=outcome.where)
        | dict(mean=estimate.mean, low=estimate.low, high=estimate.high, n=estimate.n)
        | dict(texts_low=texts.low if texts else math.nan, texts_high=texts.high if texts else math.nan)
        | dict(p=p, p_least=least, verdict=said, reason="; ".join(dict.fromkeys(shown)))
    )
