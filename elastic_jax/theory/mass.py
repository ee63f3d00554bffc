"""Are the masses of the leaves distributed as a Pareto law, and would a lognormal one do better?

The paper assumes a Pareto mass distribution (its Assumption A.7), motivated by Zipf's law. The theorem does not need it
(`elasticity`), but it can be looked at on any tree: here X is the mass, or the count, of a leaf drawn at random, and

    P(X > x) = (x_min / x)^alpha    for x >= x_min.

Counts are small whole numbers, for which the continuous law is a poor one; integers are therefore fitted by its discrete form, the
zeta law P(X = x) proportional to x^-(alpha + 1). The lognormal law is taken in the same tail, where it has the density
exp(-a y - b y^2 / 2) of y = log(x / x_min): an exponential family, whose border b = 0 *is* the Pareto law.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int
from scipy import optimize, special

from elastic_jax.errors import UserError

LEVEL = 0.95
# So many values of x_min are tried, spread evenly over the ranks of the different values.
_CANDIDATES = 200
# Fewer values than this say nothing about a tail.
_LEAST = 10
# A sum over whole numbers is taken term by term up to here, and from there on as an integral with two corrections.
_TERMS = 400


@dataclasses.dataclass(frozen=True)
class ParetoFit:
    """A Pareto law fitted to the tail of a sample.

    Attributes:
      alpha: exponent of the survival function.
      low, high: interval for alpha *given* x_min; how x_min was found is not in it.
      x_min: where the tail begins.
      tail: values in it.
      n: values altogether.
      distance: Kolmogorov-Smirnov distance between the tail and the law.
      discrete: the zeta law.
    """

    alpha: float
    low: float
    high: float
    x_min: float
    tail: int
    n: int
    distance: float
    discrete: bool


def hill(values: Any, tail: int | Int[np.ndarray, " k"]) -> Float[np.ndarray, "*k"]:
    """Hill's estimate of alpha from the `tail` largest values: tail / sum log(x_(i) / x_(tail+1)); several tails make a Hill plot.

    Its standard error is alpha / sqrt(tail). Source: Hill, Annals of Statistics 3 (1975).

    Raises:
      UserError: a tail that does not leave one smaller value, or whose values are all equal.
    """
    ordered = np.sort(_positive(values))[::-1]
    tails = np.asarray(tail)
    if (tails < 1).any() or (tails >= len(ordered)).any():
        raise UserError(f"tail={tail}: expected 1 to {len(ordered) - 1} of {len(ordered)} values.")
    logs = np.log(ordered)
    excess = np.cumsum(logs)[tails - 1] / tails - logs[tails]
    if (excess <= 0).any():
        raise UserError(
            f"tail={tail}: the values of a tail are all equal, so that it has no exponent. Take a longer one."
        )
    return 1.0 / excess


def fit_pareto(
    values: Any, *, x_min: float | None = None, discrete: bool | None = None, level: float = LEVEL
) -> ParetoFit:
    """The maximum-likelihood Pareto law of a tail.

    Args:
      values: positive masses or counts; zeros are left out, since a leaf that never occurs is none.
      x_min: where the tail begins; None: the value whose law has the least Kolmogorov-Smirnov distance from the tail above it
        (Clauset, Shalizi and Newman, SIAM Review 51, 2009).
      discrete: whether the values are whole numbers; None: whether their type is.
      level: of the interval. It is exact for masses (2 alpha sum log(x / x_min) is chi-squared with 2n degrees of freedom, 2 (n - 1) where
        x_min is one of the values), and by the Fisher information for counts.

    Raises:
      UserError: values that are negative or not finite, or a tail of fewer than 10 or with no two different values.
    """
    values = np.asarray(values)
    whole = values.dtype.kind in "iu" if discrete is None else discrete
    x, counts = np.unique(_positive(values[values != 0]), return_counts=True)
    if whole and (x != np.rint(x)).any():
        raise UserError("discrete=True: the values are not whole numbers. Masses are fitted with discrete=False.")
    law = _fit_zeta if whole else _fit_continuous
    if x_min is not None:
        at = int(np.searchsorted(x, x_min))
        _check_tail(x[at:], counts[at:], x_min)
        alpha, low, high = law(x[at:], counts[at:], float(x_min), level, 0)
        distance = _distance(x[at:], counts[at:], float(x_min), alpha, whole)
        return ParetoFit(alpha, low, high, float(x_min), int(counts[at:].sum()), int(counts.sum()), distance, whole)
    _check_tail(x, counts, None)
    left = np.cumsum(counts[::-1])[::-1]
    possible = np.flatnonzero(left[:-1] >= _LEAST)  # two different values at the least
    found: list[tuple[float, int]] = []
    for at in np.unique(possible[np.linspace(0, len(possible) - 1, min(_CANDIDATES, len(possible))).astype(int)]):
        alpha = law(x[at:], counts[at:], float(x[at]), None, 1)[0]
        found.append((_distance(x[at:], counts[at:], float(x[at]), alpha, whole), int(at)))
    distance, at = min(found)
    alpha, low, high = law(x[at:], counts[at:], float(x[at]), level, 1)
    return ParetoFit(alpha, low, high, float(x[at]), int(left[at]), int(left[0]), distance, whole)


@dataclasses.dataclass(frozen=True)
class Vuong:
    """Which of two laws is nearer to the one that made the sample?

    Attributes:
      ratio: log-likelihood of the Pareto law less that of the lognormal one, in nats.
      z: ratio over its standard deviation; standard normal where both laws are equally far from the truth.
      p: two-sided.
      nested_p: of the likelihood-ratio test of b = 0 against b > 0 (half of chi-squared with one degree of freedom): whether the tail bends
        at all. NaN for the whole lognormal law, which does not contain the Pareto one.
      favours: at the level that was asked for.
      n: values compared.
      a, b: of the lognormal law, exp(-a y - b y^2 / 2).
    """

    ratio: float
    z: float
    p: float
    nested_p: float
    favours: Literal["pareto", "lognormal", "neither"]
    n: int
    a: float
    b: float


def vuong(values: Any, fit: ParetoFit, *, whole: bool = False, level: float = LEVEL) -> Vuong:
    """Vuong's test of the fitted Pareto law against a lognormal one, on the values of the fit's tail.

    The lognormal law is cut at x_min like the other, and contains it (b = 0). So it is never the worse of the two: the test says
    "lognormal" or "neither", and a Pareto law is what survives it.

    Args:
      values: those that were fitted.
      whole: compare with the lognormal law over all positive numbers instead, which is no relative of the Pareto one, so that either can
        win. For masses, and where the tail is the whole sample.

    Source: Vuong, Econometrica 57 (1989).

    Raises:
      UserError: values that are not those of the fit, or `whole` for counts.
    """
    if whole and fit.discrete:
        raise UserError("whole=True: this comparison is for masses; counts are compared in their tail.")
    x, counts = np.unique(_positive(np.asarray(values)[np.asarray(values) != 0]), return_counts=True)
    x, counts = x[x >= fit.x_min], counts[x >= fit.x_min]
    n = int(counts.sum())
    if n != fit.tail:
        raise UserError(f"values: {n} lie in the tail, and {fit.tail} were fitted. Give the values that were fitted.")
    y = np.log(x / fit.x_min)
    normaliser = _log_sum(fit.x_min) if fit.discrete else _log_integral
    mean = float(counts @ y) / n
    if whole:
        spread = float(counts @ (y - mean) ** 2) / n
        a, b = -mean / spread, 1 / spread
        lognormal = -0.5 * (y - mean) ** 2 / spread - 0.5 * math.log(2 * math.pi * spread)
        pareto = math.log(1 / mean) - y / mean
    else:
        shift = 1.0 if fit.discrete else 0.0  # the zeta law has x^-(alpha + 1) where the density of y has exp(-alpha y)
        best = (fit.alpha + shift, 0.0) if fit.discrete else (1 / mean, 0.0)
        a, b = _fit_lognormal(y, counts, best, normaliser)
        lognormal = -a * y - 0.5 * b * y**2 - normaliser(a, b)
        pareto = -best[0] * y - normaliser(*best)
    each = pareto - lognormal
    ratio = float(counts @ each)
    variance = float(counts @ (each - ratio / n) ** 2) / n
    z = ratio / math.sqrt(n * variance) if variance > 0 else 0.0
    p = math.erfc(abs(z) / math.sqrt(2))
    nested = math.nan if whole else 0.5 * math.erfc(math.sqrt(max(-ratio, 0.0))) if b > 0 else 1.0
    favours = "neither" if p >= 1 - level else "pareto" if z > 0 else "lognormal"
    return Vuong(ratio, z, p, nested, favours, n, a, b)


def survival(values: Any) -> tuple[Float[np.ndarray, " u"], Float[np.ndarray, " u"]]:
    """The different values and the share of all that is at least as large: the points of a log-log plot."""
    x, counts = np.unique(_positive(np.asarray(values)[np.asarray(values) != 0]), return_counts=True)
    return x, np.cumsum(counts[::-1])[::-1] / counts.sum()


def _fit_continuous(
    x: np.ndarray, counts: np.ndarray, x_min: float, level: float | None, known: int
) -> tuple[float, float, float]:
    """Exponent and interval; `known` is 1 where x_min is one of the values, which then says nothing about alpha."""
    free = int(counts.sum()) - known
    total = float(counts @ np.log(x / x_min))
    if level is None:
        return free / total, math.nan, math.nan
    low, high = (float(special.gammaincinv(free, q)) / total for q in ((1 - level) / 2, (1 + level) / 2))
    return free / total, low, high


def _fit_zeta(
    x: np.ndarray, counts: np.ndarray, x_min: float, level: float | None, known: int
) -> tuple[float, float, float]:
    n = int(counts.sum())
    mean = float(counts @ np.log(x)) / n

    def loss(s: float) -> float:
        return s * mean + math.log(special.zeta(s, x_min))

    # The continuous law from x_min - 1/2 is a good guess (Clauset et al., equation 3.7).
    guess = 1 + 1 / max(mean - math.log(x_min - 0.5), 1e-3)
    low, high = 1 + (guess - 1) / 8, 1 + (guess - 1) * 8
    s = float(optimize.minimize_scalar(loss, bounds=(low, high), method="bounded", options=dict(xatol=1e-10)).x)  # pyright: ignore
    if level is None:
        return s - 1, math.nan, math.nan
    step = 1e-4 * (s - 1)
    information = (loss(s + step) - 2 * loss(s) + loss(s - step)) / step**2
    half = float(special.ndtri((1 + level) / 2)) / math.sqrt(n * information)
    return s - 1, s - 1 - half, s - 1 + half


def _distance(x: np.ndarray, counts: np.ndarray, x_min: float, alpha: float, discrete: bool) -> float:
    """The largest difference between the shares of the sample and of the law that are at most x."""
    steps = np.cumsum(counts) / counts.sum()
    if discrete:
        return float(np.max(np.abs(steps - 1 + special.zeta(alpha + 1, x + 1) / special.zeta(alpha + 1, x_min))))
    law = 1 - (x_min / x) ** alpha
    return float(max(np.max(np.abs(steps - law)), np.max(np.abs(steps - counts / counts.sum() - law))))


def _log_integral(a: float, b: float) -> float:
    """log of the integral of exp(-a y - b y^2 / 2) over y from 0."""
    if b <= 0:
        return -math.log(a)
    root = math.sqrt(2 * b)
    if a > 0:  # erfcx: both factors of the other form leave the range of floats
        if a / root > 1e6:
            return -math.log(a)
        return 0.5 * math.log(math.pi / (2 * b)) + math.log(special.erfcx(a / root))
    return 0.5 * math.log(2 * math.pi / b) + a * a / (2 * b) + float(special.log_ndtr(-a / math.sqrt(b)))


def _log_sum(x_min: float) -> Callable[[float, float], float]:
    """(a, b) -> log of the sum of exp(-a y - b y^2 / 2) over the whole numbers x from x_min, y = log(x / x_min)."""
    y = np.log1p(np.arange(_TERMS) / x_min)
    border = math.log1p(_TERMS / x_min)

    def log_sum(a: float, b: float) -> float:
        if b <= 0:
            return math.log(special.zeta(a, x_min)) + a * math.log(x_min) if a > 1 else math.inf
        # Euler and Maclaurin from `border` on: the integral, half of the first term, and a twelfth of its slope. In y the integral has
        # a factor x = x_min exp(y) more, and begins at `border`.
        first = -a * border - 0.5 * b * border**2
        tail = _log_integral(a - 1 + b * border, b) + first + border + math.log(x_min)
        slope = (a + b * border) * math.exp(-border) / x_min
        terms = np.append(-a * y - 0.5 * b * y**2, [tail, first + math.log(max(0.5 + slope / 12, 1e-300))])
        most = terms.max()
        return float(most + math.log(np.exp(terms - most).sum()))

    return log_sum


def _fit_lognormal(
    y: np.ndarray, counts: np.ndarray, pareto: tuple[float, float], normaliser: Callable[[float, float], float]
) -> tuple[float, float]:
    """(a, b) of most likelihood, b >= 0: a convex problem, from the Pareto law and from the normal one with the sample's moments."""
    n = counts.sum()
    first, second = float(counts @ y) / n, float(counts @ y**2) / n
    spread = max(second - first**2, 1e-12)

    def loss(parameters: np.ndarray) -> float:
        a, b = parameters * scale
        return a * first + 0.5 * b * second + normaliser(a, b)

    scale = np.array([1 / first, 1 / second])  # so that steps mean the same in both
    starts = [np.array([pareto[0], 1e-3 / second]), np.array([-first / spread, 1 / spread])]
    # Two parameters and no gradient at hand: the simplex. It stops where rounding does.
    settings = dict(bounds=[(None, None), (1e-12, None)], options=dict(xatol=1e-9, fatol=1e-14, maxfev=2000))
    found = [optimize.minimize(loss, start / scale, method="Nelder-Mead", **settings) for start in starts]
    best = min(found, key=lambda result: result.fun)
    a, b = best.x * scale
    # On the border, and wherever rounding is all that there is between them.
    at_pareto = loss(np.array(pareto) / scale)
    return (float(a), float(b)) if best.fun < at_pareto - 1e-14 * abs(at_pareto) and best.x[1] > 1e-9 else pareto


def _check_tail(x: np.ndarray, counts: np.ndarray, x_min: float | None) -> None:
    if counts.sum() < _LEAST or len(x) < 2:
        where = "" if x_min is None else f" from x_min={x_min:g} on"
        cure = (
            "Give more data or a deeper tree."
            if x_min is None
            else "Give more data, a deeper tree, or a smaller x_min."
        )
        raise UserError(
            f"{int(counts.sum())} values{where}, {len(x)} of them different; a fit needs {_LEAST} and two different ones. {cure}"
        )


def _positive(values: Any) -> Float[np.ndarray, " n"]:
    values = np.asarray(values, np.float64).reshape(-1)
    if not np.isfinite(values).all() or not (values > 0).all():
        raise UserError("values: expected finite numbers above 0.")
    return values
