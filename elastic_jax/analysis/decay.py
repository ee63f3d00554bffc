"""Is the return fast first and slow later, or does it have one rate?

    one rate    y_s(x) = o_s + a exp(-x / t)
    two rates   y_s(x) = o_s + a exp(-x / t_fast) + b exp(-x / t_slow),   t_fast < t_slow, a and b of one sign

x is the perturbation (examples, updates or tokens), s a seed: seeds share the shape and differ by a constant. A curve of two
rates with a and b of one sign *is* fast first and slow later; an overshoot has two signs and is not what is asked here. The
constants and amplitudes are linear and solved for, the time constants are searched on a grid and refined (variable projection,
Golub and Pereyra, SIAM J. Numer. Anal. 10, 1973). Which of the two the data prefers is said by AICc (Hurvich and Tsai, Biometrika
76, 1989), for Gaussian residuals of one unknown variance.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import optimize, special

from elastic_jax.analysis import statistics

EVIDENCE = 2.0  # a smaller difference of AICc is no evidence for either
_GRID = 48


@dataclasses.dataclass(frozen=True)
class Curve:
    """One seed's record: positions [n] and values [n]; points that are NaN are left out."""

    x: Float[np.ndarray, " n"]
    y: Float[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True)
class Fit:
    """Least squares of one of the two curves.

    Attributes:
      times: the time constants, ascending; unit of x.
      low, high: of each, the profile-likelihood interval; infinite where the data gives no bound.
      amplitudes: of each; unit of y.
      offsets: o_s by seed.
      r2: 1 - residual / total sum of squares, totals about each seed's own mean.
      aicc: smaller is better; only differences on the same points mean something.
      points: values that were fitted.
    """

    times: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    amplitudes: tuple[float, ...]
    offsets: tuple[float, ...]
    r2: float
    aicc: float
    points: int


@dataclasses.dataclass(frozen=True)
class Decay:
    """Both fits and what they say.

    Attributes:
      evidence: AICc of one rate minus AICc of two; positive favours two.
      verdict: "two rates", "one rate" or "undecided" (|evidence| below `EVIDENCE`, or too few points).
      reason: why there is no fit, else "".
    """

    one: Fit | None
    two: Fit | None
    evidence: float
    verdict: str
    reason: str = ""


def compare(curves: Sequence[Curve], level: float = statistics.LEVEL) -> Decay:
    """Fit both to all seeds of one condition and compare them.

    Two rates need two points more than the parameters of their fit (4 and one constant for each seed, and the variance): with
    fewer, the verdict is "undecided" and `reason` says so.
    """
    kept = [_finite(curve) for curve in curves]
    kept = [curve for curve in kept if len(curve.x) > 1]
    points = sum(len(curve.x) for curve in kept)
    needed = 4 + len(kept) + 1 + 2
    if not kept or points < needed:
        return Decay(
            None, None, math.nan, "undecided", f"{points} points, and two rates with {len(kept)} seeds need {needed}"
        )
    if all(np.ptp(curve.y) == 0 for curve in kept):
        return Decay(None, None, math.nan, "undecided", "the measure does not change")
    one, two = (_fit(kept, rates, level) for rates in (1, 2))
    evidence = one.aicc - two.aicc
    verdict = "two rates" if evidence > EVIDENCE else "one rate" if evidence < -EVIDENCE else "undecided"
    return Decay(one, two, evidence, verdict)


def _finite(curve: Curve) -> Curve:
    x, y = np.asarray(curve.x, np.float64), np.asarray(curve.y, np.float64)
    keep = np.isfinite(x) & np.isfinite(y)
    return Curve(x[keep], y[keep])


class _Problem:
    """The linear problem that is left when the time constants are given."""

    def __init__(self, curves: Sequence[Curve]):
        self.x = np.concatenate([curve.x for curve in curves])
        self.seed = np.repeat(np.arange(len(curves)), [len(curve.x) for curve in curves])
        self.seeds = len(curves)
        # Constants are projected out once: every column is taken about its mean within the seed.
        self.y = self._centred(np.concatenate([curve.y for curve in curves]))
        self.raw = np.concatenate([curve.y for curve in curves])
        self.total = float(self.y @ self.y)

    def _centred(self, column: np.ndarray) -> np.ndarray:
        sums = np.bincount(self.seed, column, self.seeds) / np.bincount(self.seed, minlength=self.seeds)
        return column - sums[self.seed]

    def solve(self, times: Sequence[float] | np.ndarray) -> tuple[float, np.ndarray]:
        """Residual sum of squares and amplitudes. Two amplitudes of different signs are no admissible solution: then the
        better of the two single ones, which lies on the boundary, takes its place."""
        columns = np.stack([self._centred(np.exp(-self.x / t)) for t in times], axis=1)
        found, *_ = np.linalg.lstsq(columns, self.y, rcond=None)
        if len(times) == 2 and found[0] * found[1] < 0:
            singles = [np.linalg.lstsq(columns[:, i : i + 1], self.y, rcond=None)[0][0] * np.eye(2)[i] for i in (0, 1)]
            found = min(singles, key=lambda amplitudes: self._residual(columns, amplitudes))
        return self._residual(columns, found), found

    def _residual(self, columns: np.ndarray, amplitudes: np.ndarray) -> float:
        rest = self.y - columns @ amplitudes
        return float(rest @ rest)

    def offsets(self, times: np.ndarray, amplitudes: np.ndarray) -> np.ndarray:
        rest = self.raw - sum(a * np.exp(-self.x / t) for a, t in zip(amplitudes, times, strict=True))
        return np.bincount(self.seed, rest, self.seeds) / np.bincount(self.seed, minlength=self.seeds)


def _fit(curves: Sequence[Curve], rates: int, level: float) -> Fit:
    problem = _Problem(curves)
    steps = np.unique(problem.x[problem.x > 0])
    # Faster than half of the first step looks like a jump, slower than eight records like a line: neither can be told apart further.
    grid = np.geomspace(steps[0] / 2, steps[-1] * 8, _GRID)
    logs = np.log(grid)

    def cost(log_times: np.ndarray) -> float:
        return problem.solve(np.exp(np.clip(log_times, logs[0], logs[-1])))[0]

    if rates == 1:
        starts = [np.array([value]) for value in logs]
    else:
        starts = [np.array([logs[i], logs[j]]) for i in range(_GRID) for j in range(i + 2, _GRID)]
    first = min(starts, key=cost)
    refined = optimize.minimize(cost, first, method="Nelder-Mead", options=dict(xatol=1e-6, fatol=1e-14, maxiter=4000))
    best = np.clip(refined.x if refined.fun <= cost(first) else first, logs[0], logs[-1])
    times = np.sort(np.exp(best))
    residual, amplitudes = problem.solve(times)
    n, parameters = len(problem.x), 2 * rates + problem.seeds + 1  # and the variance
    floor = max(residual, 1e-24 * max(problem.total, 1e-300))
    aicc = n * math.log(floor / n) + 2 * parameters + 2 * parameters * (parameters + 1) / (n - parameters - 1)
    low, high = _profile(problem, times, floor, logs, n - parameters + 1, level)
    return Fit(
        tuple(map(float, times)),
        low,
        high,
        tuple(map(float, amplitudes)),
        tuple(map(float, problem.offsets(times, amplitudes))),
        1 - residual / problem.total,
        aicc,
        n,
    )


def _profile(
    problem: _Problem, times: np.ndarray, residual: float, logs: np.ndarray, freedom: int, level: float
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Time constants at which the residual, minimised over the others, exceeds its minimum by F(1, freedom) / freedom of it."""
    allowed = residual * (1 + float(special.fdtri(1, freedom, level)) / freedom)
    lows, highs = [], []
    for which in range(len(times)):
        others = [np.log(t) for i, t in enumerate(times) if i != which]

        def least(log_time: float, others: list = others, which: int = which) -> float:
            if not others:
                return problem.solve([math.exp(log_time)])[0]
            room = (log_time + 1e-6, logs[-1]) if which == 0 else (logs[0], log_time - 1e-6)
            if room[0] >= room[1]:
                return math.inf

            def of_other(other: float) -> float:
                return problem.solve(sorted([math.exp(log_time), math.exp(other)]))[0]

            coarse = min(np.linspace(*room, 24), key=of_other)
            width = (room[1] - room[0]) / 23
            inner = (max(room[0], coarse - width), min(room[1], coarse + width))
            found: Any = optimize.minimize_scalar(of_other, bounds=inner, method="bounded")
            return float(found.fun)

        ends = []
        for end in (logs[0], logs[-1]):
            here = math.log(times[which])
            if least(end) <= allowed:
                ends.append(0.0 if end == logs[0] else math.inf)
                continue
            inside, outside = here, end
            for _ in range(40):
                middle = (inside + outside) / 2
                inside, outside = (middle, outside) if least(middle) <= allowed else (inside, middle)
            ends.append(math.exp(inside))
        lows.append(ends[0])
        highs.append(ends[1])
    return tuple(lows), tuple(highs)
