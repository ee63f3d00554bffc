"""Which statements of the paper does this study support, contradict or leave undecided, and which can it not test?

Each family of statements is a module of its own with `STATEMENTS`, a tuple of `Statement`, and `outcomes(study, settings)`, which
gives for every statement of the family its `Outcome`s, or an `Untested` with the reason. How an outcome is judged stands in
`statement`. Intervals are not adjusted for the number of tests.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

from elastic_jax.analysis import statistics, table
from elastic_jax.analysis.claims import (
    bases,
    batches,
    decay,
    divergence,
    noise,
    order,
    rebound,
    resistance,
    scope,
    theorem,
)
from elastic_jax.analysis.claims.statement import (
    UNDECIDED,
    UNTESTED,
    Outcome,
    Settings,
    Statement,
    Untested,
    judge,
    verdict,
)
from elastic_jax.analysis.table import Frame, Study

__all__ = ["COLUMNS", "FAMILIES", "STATEMENTS", "overall", "tests", "verdict"]


class Family(Protocol):
    """A module of statements."""

    STATEMENTS: tuple[Statement, ...]

    def outcomes(self, study: Study, settings: Settings) -> Iterable[Outcome | Untested]: ...


FAMILIES: Sequence[Family] = (
    resistance,
    rebound,
    decay,
    bases,
    noise,
    order,
    divergence,
    theorem,
    scope,
    batches,
)  # as they stand on the page
STATEMENTS: dict[str, Statement] = {one.key: one for family in FAMILIES for one in family.STATEMENTS}
COLUMNS = (
    "claim",
    "test",
    "statistic",
    "unit",
    "side",
    "model",
    "align_method",
    "perturb_method",
    "align_volume",
    "where",
    "mean",
    "low",
    "high",
    "n",
    "texts_low",
    "texts_high",
    "p",
    "p_least",
    "verdict",
    "reason",
)


def tests(study: Study, level: float = statistics.LEVEL, eps: float = 0.01) -> Frame:
    """Every test of every statement in the order of STATEMENTS, and a row with an empty `test` for each that the study cannot test.

    Columns: COLUMNS; `align_volume` is 0 for tests across volumes; `texts_low` and `texts_high` are the bootstrap over seeds and texts,
    NaN where errors over texts are not known, infinite where texts alone can move a position out of the record; `p` is that of the
    sign-flip test, `p_least` the smallest that so many seeds can give.
    """
    rows, settings = [], Settings(level, eps)
    for family in FAMILIES:
        found = list(family.outcomes(study, settings))
        for statement in family.STATEMENTS:
            own = [
                judge(one, level) for one in found if isinstance(one, Outcome) and one.test.statement == statement.key
            ]
            why = [one.reason for one in found if isinstance(one, Untested) and one.statement == statement.key]
            if not own:
                blank = dict(claim=statement.key, test="", verdict=UNTESTED, reason="; ".join(dict.fromkeys(why)), n=0)
                own = [
                    dict.fromkeys(("statistic", "unit", "model", "align_method", "perturb_method", "where"), "") | blank
                ]
                own[0] |= dict(side=0, align_volume=0)
            rows += own
    return table.frame(rows, COLUMNS)


def overall(found: Frame) -> dict[str, str]:
    """Statement -> its verdict: that of all its tests when they agree, else undecided."""
    out = {}
    for claim in STATEMENTS:
        said = set(found[found.claim == claim].verdict)
        out[claim] = said.pop() if len(said) == 1 else UNDECIDED
    return out
