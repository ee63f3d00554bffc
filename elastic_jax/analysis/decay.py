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
    """The linear problem that is left when the time constants are given; many choices of them are solved at once."""

    def __init__(self, curves: Sequence[Curve]):
        counts = np.array([len(curve.x) for curve in curves])
        self.x = np.concatenate([curve.x for curve in curves])
        self.seed = np.repeat(np.arange(len(curves)), counts)
        self.seeds = len(curves)
        self._starts, self._counts = np.cumsum(counts) - counts, counts
        # Constants are projected out once: every column is taken about its mean within the seed.
        self.raw = np.concatenate([curve.y for curve in curves])
        self.y = self.raw - self._means(self.raw)
        self.total = float(self.y @ self.y)

    def _means(self, columns: np.ndarray) -> np.ndarray:
        """[..., n] -> the mean of its seed at every point."""
        return np.repeat(np.add.reduceat(columns, self._starts, axis=-1) / self._counts, self._counts, axis=-1)

    def solve(self, times: Float[np.ndarray, "m r"]) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, "m r"]]:
        """Residual sum of squares and amplitudes of each row, of one time constant or two. Two amplitudes of different signs
        are no admissible solution: then the better of the two single ones, which lies on the boundary, takes its place."""
        columns = np.exp(-self.x / times[..., None])
        columns -= self._means(columns)
        # Normal equations of one or two columns written out: for so few, LAPACK costs ten times as much.
        squares, with_y = np.sum(columns**2, axis=-1), np.sum(columns * self.y, axis=-1)
        single = with_y / np.maximum(squares, 1e-300)
        if times.shape[1] == 1:
            return self._residuals(columns, single), single
        across = np.sum(columns[:, 0] * columns[:, 1], axis=-1)
        both = squares[:, 0] * squares[:, 1]
        determinant = both - across**2
        apart = determinant > 1e-12 * both
        pair = (with_y * squares[:, ::-1] - with_y[:, ::-1] * across[:, None]) / np.where(apart, determinant, 1.0)[
            :, None
        ]
        choices = single[:, :, None] * np.eye(2)  # the choice, then the amplitudes
        of_choices = np.stack([self._residuals(columns, choices[:, i]) for i in (0, 1)], axis=1)
        better = np.argmin(of_choices, axis=1)
        at = np.arange(len(times))
        allowed = apart & (pair[:, 0] * pair[:, 1] >= 0)
        found = np.where(allowed[:, None], pair, choices[at, better])
        return np.where(allowed, self._residuals(columns, found), of_choices[at, better]), found

    def residual(self, *times: float) -> float:
        """Of one choice of time constants."""
        return float(self.solve(np.array([times]))[0][0])

    def _residuals(self, columns: np.ndarray, amplitudes: np.ndarray) -> np.ndarray:
        return np.sum((self.y - np.sum(amplitudes[..., None] * columns, axis=1)) ** 2, axis=-1)

    def offsets(self, times: np.ndarray, amplitudes: np.ndarray) -> np.ndarray:
        rest = self.raw - sum(a * np.exp(-self.x / t) for a, t in zip(amplitudes, times, strict=True))
        return np.bincount(self.seed, rest, self.seeds) / self._counts


def _fit(curves: Sequence[Curve], rates: int, level: float) -> Fit:
    problem = _Problem(curves)
    steps = np.unique(problem.x[problem.x > 0])
    # Faster than half of the first step looks like a jump, slower than eight records like a line: neither can be told apart further.
    logs = np.log(np.geomspace(steps[0] / 2, steps[-1] * 8, _GRID))

    def cost(log_times: np.ndarray) -> float:
        return problem.residual(*np.exp(np.clip(log_times, logs[0], logs[-1])))

    i, j = np.triu_indices(_GRID, k=2)
    starts = logs[:, None] if rates == 1 else np.stack([logs[i], logs[j]], axis=1)
    first = starts[int(np.argmin(problem.solve(np.exp(starts))[0]))]
    refined = optimize.minimize(cost, first, method="Nelder-Mead", options=dict(xatol=1e-6, fatol=1e-14, maxiter=4000))
    best = np.clip(refined.x if refined.fun <= cost(first) else first, logs[0], logs[-1])
    times = np.sort(np.exp(best))
    residual, amplitudes = (found[0] for found in problem.solve(times[None]))
    n, parameters = len(problem.x), 2 * rates + problem.seeds + 1  # and the variance
    floor = max(float(residual), 1e-24 * max(problem.total, 1e-300))
    aicc = n * math.log(floor / n) + 2 * parameters + 2 * parameters * (parameters + 1) / (n - parameters - 1)
    low, high = _profile(problem, times, floor, logs, n - parameters + 1, level)
    return Fit(
        tuple(map(float, times)),
        low,
        high,
        tuple(map(float, amplitudes)),
        tuple(map(float, problem.offsets(times, amplitudes))),
        1 - float(residual) / problem.total,
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

        def least(log_time: float, which: int = which) -> float:
            if len(times) == 1:
                return problem.residual(math.exp(log_time))
            low, high = (log_time + 1e-6, logs[-1]) if which == 0 else (logs[0], log_time - 1e-6)
            if low >= high:
                return math.inf
            best = math.inf
            for _ in range(4):  # each time about the best of 24 places: 4 times narrow the range 10,000-fold
                others = np.linspace(low, high, 24)
                pairs = np.stack([np.full(24, log_time), others], axis=1)
                found = problem.solve(np.exp(pairs))[0]
                place, width = int(np.argmin(found)), (high - low) / 23
                best = min(best, float(found[place]))
                low, high = max(low, others[place] - width), min(high, others[place] + width)
            return best

        ends = []
        for end in (logs[0], logs[-1]):
            here = math.log(times[which])
            if least(end) <= allowed:
                ends.append(0.0 if end == logs[0] else math.inf)
                continue
            inside, outside = here, end
            for _ in range(24):
                middle = (inside + outside) / 2
                inside, outside = (middle, outside) if least(middle) <= allowed else (inside, middle)
            ends.append(math.exp(inside))
        lows.append(ends[0])
        highs.append(ends[1])
    return tuple(lows), tuple(highs)
