"""How does a quantity grow with volume, size or pre-training, and does that predict a cell that was left out?

    log y = a_s + b log x + noise,   s a seed

The exponent b is what scaling laws of the field are stated in; seeds share it and have each their own level a_s. Quantities such
as a half-life may be censored: not reached within the record, so that only y > bound is known. Leaving such cells out would bend the
law, so they enter the likelihood by the probability of exceeding their bound (Tobin, Econometrica 26, 1958).
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import optimize, special

from elastic_jax.analysis import statistics, table
from elastic_jax.analysis.statistics import Estimate
from elastic_jax.analysis.table import Frame


@dataclasses.dataclass(frozen=True)
class Cell:
    """One value: x > 0 (examples, parameters or tokens), y > 0, or NaN with `bound` > 0 where y is only known to exceed it."""

    x: float
    seed: int
    y: float
    bound: float = math.nan


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """A fitted law.

    Attributes:
      exponent: b with its interval; `censored` of it counts cells, `reason` says why it is NaN.
      levels: seed -> exp(a_s), the y at x = 1.
      spread: standard deviation of the noise in log y.
      r2: of log y about each seed's mean, over cells that are not censored.
      cells: that were used.
    """

    exponent: Estimate
    levels: dict[int, float]
    spread: float
    r2: float
    cells: int


def power_law(cells: Sequence[Cell], level: float = statistics.LEVEL) -> PowerLaw:
    """Fit the law.

    Without censored cells b is the mean over seeds of least-squares slopes with Student's interval over seeds (one seed: the
    interval of the regression). With them it is the maximum of the likelihood, with the interval in which twice the log-likelihood
    drops by less than the quantile of chi^2_1; that one is too narrow where cells are few.
    """
    used = [c for c in cells if c.x > 0 and (c.y > 0 or c.bound > 0)]
    known = [c for c in used if c.y > 0]
    if len({c.x for c in known}) < 2 or len(known) < 3:
        reason = f"{len(known)} known values at {len({c.x for c in known})} places, and a law needs 3 at 2"
        return PowerLaw(
            Estimate(math.nan, censored=len(used) - len(known), reason=reason), {}, math.nan, math.nan, len(used)
        )
    seeds = sorted({c.seed for c in used})
    place = {seed: i for i, seed in enumerate(seeds)}
    x = np.log([c.x for c in used])
    y = np.log([c.y if c.y > 0 else c.bound for c in used])
    late = np.array([not c.y > 0 for c in used])
    seed = np.array([place[c.seed] for c in used])
    if late.any():
        exponent, levels, spread = _tobit(x, y, late, seed, len(seeds), level)
    else:
        exponent, levels, spread = _least_squares(x, y, seed, len(seeds), level)
    rest = (y - exponent.mean * x - levels[seed])[~late]
    total = np.concatenate([y[~late & (seed == s)] - y[~late & (seed == s)].mean() for s in np.unique(seed[~late])])
    r2 = 1 - float(rest @ rest) / float(total @ total) if total @ total > 0 else math.nan
    return PowerLaw(exponent, dict(zip(seeds, map(float, np.exp(levels)), strict=True)), spread, r2, len(used))


def _least_squares(
    x: np.ndarray, y: np.ndarray, seed: np.ndarray, seeds: int, level: float
) -> tuple[Estimate, np.ndarray, float]:
    slopes = np.full(seeds, np.nan)
    for s in range(seeds):
        mine = seed == s
        if len(np.unique(x[mine])) > 1:
            slopes[s] = np.polyfit(x[mine], y[mine], 1)[0]
    exponent = statistics.mean_interval(slopes, level)
    levels = np.array([np.mean((y - exponent.mean * x)[seed == s]) for s in range(seeds)])
    rest = y - exponent.mean * x - levels[seed]
    freedom = len(y) - seeds - 1
    spread = math.sqrt(float(rest @ rest) / freedom) if freedom > 0 else math.nan
    if exponent.n == 1 and freedom > 0:
        mine = seed == int(np.flatnonzero(np.isfinite(slopes))[0])
        about = x[mine] - x[mine].mean()
        half = float(special.stdtrit(freedom, (1 + level) / 2)) * spread / math.sqrt(float(about @ about))
        exponent = dataclasses.replace(
            exponent, low=exponent.mean - half, high=exponent.mean + half, reason="interval of one regression"
        )
    return exponent, levels, spread


def _tobit(
    x: np.ndarray, y: np.ndarray, late: np.ndarray, seed: np.ndarray, seeds: int, level: float
) -> tuple[Estimate, np.ndarray, float]:
    def loss(parameters: np.ndarray, slope: float | None = None) -> float:
        slope_, levels, log_spread = (parameters[0], parameters[1:-1], parameters[-1]) if slope is None else (
            slope, parameters[:-1], parameters[-1])  # fmt: skip
        z = (y - slope_ * x - levels[seed]) * math.exp(-log_spread)
        return float(np.sum(np.where(late, -special.log_ndtr(-z), z**2 / 2 + log_spread))) + 1e-9 * log_spread**2

    known = ~late
    slope, level0 = np.polyfit(x[known], y[known], 1)
    start = np.concatenate([[slope], np.full(seeds, level0), [math.log(max(np.std(y[known]) / 4, 1e-3))]])
    bounds = [(None, None)] * (1 + seeds) + [(math.log(1e-6), math.log(1e3))]
    best = optimize.minimize(loss, start, method="L-BFGS-B", bounds=bounds)
    allowed = best.fun + float(special.chdtri(1, 1 - level)) / 2

    def profile(slope: float) -> float:
        return float(optimize.minimize(loss, best.x[1:], args=(slope,), method="L-BFGS-B", bounds=bounds[1:]).fun)

    ends = []
    for sign in (-1, 1):
        width = 0.1
        while profile(best.x[0] + sign * width) < allowed and width < 1e3:
            width *= 2
        if width >= 1e3:
            ends.append(sign * math.inf)
            continue
        ends.append(
            optimize.brentq(lambda w, s=sign: profile(best.x[0] + s * w) - allowed, 0, width) * sign + best.x[0]
        )
    count = int(late.sum())
    exponent = Estimate(
        float(best.x[0]), float(ends[0]), float(ends[1]), n=seeds, median=float(best.x[0]), censored=count,
        bound=float(best.x[0]), reason=f"{count} of {len(y)} values censored: maximum likelihood",
    )  # fmt: skip
    return exponent, best.x[1:-1], float(math.exp(best.x[-1]))


def leave_one_out(cells: Sequence[Cell], level: float = statistics.LEVEL) -> Frame:
    """Every place x predicted from all the others, and whether what was measured there lies within the interval.

    The interval is that of the geometric mean over seeds at the left-out place: log mean +- t s sqrt(1/m + 1/n + (x - mean)^2 / Sxx),
    n values behind the law and m predicted, all seeds together. Columns: x, predicted, low, high, observed, inside, reason. A place
    that is censored in any seed cannot be checked, and censored places do not predict: `reason` says which.
    """
    names = ["x", "predicted", "low", "high", "observed", "inside", "reason"]
    places = sorted({c.x for c in cells})
    whole = [x for x in places if all(c.y > 0 for c in cells if c.x == x)]
    rows = []
    for place in places:
        row: dict[str, Any] = dict(zip(names, (place, *[math.nan] * 4, False, ""), strict=True))
        rows.append(row)
        if place not in whole:
            row["reason"] = "not reached by every seed: nothing to check"
            continue
        row["observed"] = float(np.exp(np.mean([math.log(c.y) for c in cells if c.x == place])))
        behind = [c for c in cells if c.x in whole and c.x != place]
        if len({c.x for c in behind}) < 2 or len(behind) < 3:
            row["reason"] = "fewer than two other places to predict it from"
            continue
        x, y = np.log([c.x for c in behind]), np.log([c.y for c in behind])
        slope, intercept = np.polyfit(x, y, 1)
        rest, about = y - slope * x - intercept, x - x.mean()
        here, m, n = math.log(place), sum(c.x == place for c in cells), len(y)
        spread = math.sqrt(float(rest @ rest) / (n - 2))
        half = float(special.stdtrit(n - 2, (1 + level) / 2)) * spread
        half *= math.sqrt(1 / m + 1 / n + (here - x.mean()) ** 2 / float(about @ about))
        centre = slope * here + intercept
        row |= dict(predicted=math.exp(centre), low=math.exp(centre - half), high=math.exp(centre + half))
        row["inside"] = bool(row["low"] <= row["observed"] <= row["high"])
    return table.frame(rows, names)


def cells_of(quantities: Frame, quantity: str, x: str = "align_volume") -> list[Cell]:
    """The cells of one quantity in a table of `rebound.per_seed`; `x` is the column that the law is in."""
    rows = quantities[(quantities.quantity == quantity) & (quantities.arm != "control")]
    return [
        Cell(float(r[x]), int(r["seed"]), float(r["value"]), float(r["bound"]))
        for r in rows.to_dict("records")
        if not (pd.isna(r["value"]) and pd.isna(r["bound"]))
    ]
