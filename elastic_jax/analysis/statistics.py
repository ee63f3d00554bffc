"""How sure can one be of a mean over seeds?"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from jaxtyping import Float
from scipy import special

LEVEL = 0.95
FLIPS = 20  # pairs beyond which all assignments of signs are too many to be gone through


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean with its interval; NaN where the data gives none, and then `reason` says why.

    Attributes:
      mean: sample mean over seeds.
      low, high: ends of the two-sided interval.
      n: seeds that gave a value.
      median: sample median; it survives censoring of fewer than half of the seeds.
      censored: seeds whose value lies beyond the recorded range; then `mean` is NaN and `bound` is what is
        known.
      bound: mean over all seeds with censored values replaced by the end of their record: a lower bound of
        the mean.
      reason: why a field is NaN, else "".
    """

    mean: float
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    median: float = math.nan
    censored: int = 0
    bound: float = math.nan
    reason: str = ""

    def columns(self, name: str) -> dict[str, float]:
        """Mean and interval as a row of a table has them: see `columns`."""
        return dict(zip(columns([name]), (self.mean, self.low, self.high), strict=True))


def columns(names: Iterable[str]) -> list[str]:
    """What the columns of estimates are called: x, x_low, x_high for every name x."""
    return [f"{name}{end}" for name in names for end in ("", "_low", "_high")]


def mean_interval(values: Float[np.ndarray, " n"], level: float = LEVEL) -> Estimate:
    """Mean over seeds and Student's t interval.

    Formula: m +- t_{(1+level)/2, n-1} s / sqrt(n), s the standard deviation with n - 1; unit of the values.
    NaN values are left out and counted in `reason`. One value has no spread and gets no interval.
    Source: Student, "The probable error of a mean", Biometrika 6 (1908); it assumes seeds drawn independently
    and values near normal.

    >>> mean_interval(np.array([1.0, 2.0, 3.0])).high.__round__(3)
    4.484
    """
    values = np.asarray(values, np.float64)
    kept = values[~np.isnan(values)]
    n, dropped = len(kept), int(np.isnan(values).sum())
    notes = [f"{dropped} of {len(values)} seeds without a value"] if dropped and n else []
    if n == 0:
        return Estimate(math.nan, reason="no seed has a value")
    mean, median = float(np.mean(kept)), float(np.median(kept))
    if n == 1:
        return Estimate(mean, n=1, median=median, bound=mean, reason="; ".join([*notes, "one seed: no interval"]))
    half = float(special.stdtrit(n - 1, (1 + level) / 2)) * float(np.std(kept, ddof=1)) / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half, n, median, bound=mean, reason="; ".join(notes))


def censored_interval(
    values: Float[np.ndarray, " n"], bounds: Float[np.ndarray, " n"], level: float = LEVEL
) -> Estimate:
    """As `mean_interval`, for a position that some seeds have not reached within their record.

    Args:
      values: NaN where not reached.
      bounds: the end of the record where not reached (the value is larger), NaN elsewhere.

    With any seed censored the mean is unknown (NaN) and `bound` is a lower bound of it. `median` is given
    where the censored values cannot change it: it lies below every bound.
    """
    values, bounds = np.asarray(values, np.float64), np.asarray(bounds, np.float64)
    late = ~np.isnan(bounds)
    known = ~late & ~np.isnan(values)
    if not late.any():
        return mean_interval(values, level)
    used = np.where(late, bounds, values)[late | known]
    order = np.median(np.where(late, np.inf, values)[late | known])
    # With an even count the median averages two order statistics; a finite result needs both of them.
    median = float(order) if np.isfinite(order) and order <= np.min(bounds[late]) else math.nan
    reason = f"not reached by {late.sum()} of {len(used)} seeds"
    if len(used) < len(values):
        reason += f"; {len(values) - len(used)} of {len(values)} seeds without a value"
    return Estimate(
        math.nan,
        n=int(known.sum()),
        median=median,
        censored=int(late.sum()),
        bound=float(np.mean(used)),
        reason=reason,
    )


def paired_difference(first: Mapping[int, float], second: Mapping[int, float], level: float = LEVEL) -> Estimate:
    """Mean of first - second over the seeds that both have, with Student's t interval of the differences.

    Pairing by seed removes what two arms share (the base model, the order of the data).
    """
    shared = sorted(set(first) & set(second))
    if not shared:
        return Estimate(math.nan, reason="no seed in both arms")
    return mean_interval(np.array([first[s] - second[s] for s in shared]), level)


def bootstrap_interval(
    values: Float[np.ndarray, " n"],
    statistic: Callable[[np.ndarray], float] = np.mean,
    *,
    level: float = LEVEL,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Percentile bootstrap over units drawn with replacement: texts within a seed, or ten and more seeds.

    With few units the percentile interval is too narrow (for n = 3 it covers about 3 in 4); over seeds use
    `mean_interval`. `mean` holds the statistic of the data itself. Source: Efron, Annals of Statistics 7
    (1979).
    """
    values = np.asarray(values, np.float64)
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return Estimate(math.nan, reason="no value")
    centre = float(statistic(values))
    if len(values) == 1:
        return Estimate(centre, n=1, median=centre, bound=centre, reason="one value: no interval")
    draws = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    found = np.array([statistic(values[index]) for index in draws])
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(centre, float(low), float(high), len(values), float(np.median(values)), bound=centre)


def bootstrap_seeds_and_texts(
    values: Float[np.ndarray, " n"],
    stderrs: Float[np.ndarray, " n"],
    *,
    level: float = LEVEL,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Percentile bootstrap of a mean in two levels: seeds drawn with replacement, and the texts within each.

    Args:
      values: mean of each seed over its texts (or samples).
      stderrs: standard error of each over its texts; the table keeps these and not the texts, so the inner level draws from the
        normal distribution that they state. NaN: no inner level for that seed.

    With the inner level a mean is not called sure because few seeds happen to agree. Source: Davison and Hinkley, "Bootstrap
    Methods and their Application" (1997), section 3.8; as any percentile interval it is too narrow for a handful of seeds, which
    `reason` says below ten.
    """
    values, stderrs = np.asarray(values, np.float64), np.asarray(stderrs, np.float64)
    keep = ~np.isnan(values)
    values, stderrs = values[keep], np.nan_to_num(stderrs[keep])
    n = len(values)
    if n == 0:
        return Estimate(math.nan, reason="no seed has a value")
    centre, median = float(np.mean(values)), float(np.median(values))
    if n == 1 and not stderrs[0]:
        return Estimate(
            centre, n=1, median=median, bound=centre, reason="one seed without a standard error: no interval"
        )
    rng = np.random.default_rng(seed)
    drawn = rng.integers(n, size=(resamples, n))
    means = np.mean(values[drawn] + stderrs[drawn] * rng.normal(size=drawn.shape), axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    reason = "" if n >= 10 else f"percentile interval of {n} seed{'s' * (n > 1)}: too narrow"
    return Estimate(centre, float(low), float(high), n, median, bound=centre, reason=reason)


def bootstrap_seeds_and_draws(
    values: Float[np.ndarray, " n"],
    draws: Float[np.ndarray, "n d"],
    *,
    level: float = LEVEL,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """As `bootstrap_seeds_and_texts`, for numbers that are no means over texts, such as interpolated positions.

    Args:
      values: of each seed.
      draws: the same number computed again from redrawn texts, d times for each seed. NaN where a redrawn record does not give it:
        such a number may be anything, so it counts as minus infinity at the lower end and as infinity at the upper one. Where too
        many are NaN the interval is infinite, and nothing is called sure of a position that the texts alone could have moved
        out of the record.
    """
    values, draws = np.asarray(values, np.float64), np.asarray(draws, np.float64)
    n = len(values)
    if n == 0:
        return Estimate(math.nan, reason="no seed has a value")
    rng = np.random.default_rng(seed)
    drawn, inner = rng.integers(n, size=(resamples, n)), rng.integers(draws.shape[1], size=(resamples, n))
    means = np.mean(draws[drawn, inner], axis=1)
    # Not interpolated: between a number and infinity there is none.
    low = np.quantile(np.where(np.isnan(means), -np.inf, means), (1 - level) / 2, method="lower")
    high = np.quantile(np.where(np.isnan(means), np.inf, means), (1 + level) / 2, method="higher")
    centre = float(np.mean(values))
    reason = "" if n >= 10 else f"percentile interval of {n} seed{'s' * (n > 1)}: too narrow"
    return Estimate(centre, float(low), float(high), n, float(np.median(values)), bound=centre, reason=reason)


def sign_flip(differences: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """Exact two-sided p-value of "the sign of each paired difference is arbitrary", and the smallest that n pairs can give.

    All 2^n assignments of signs are equally likely under the hypothesis; p is the share whose mean is as far from zero as the
    observed one. With n = 3 nothing below 0.25 can come out, whatever the effect. Source: Fisher, "The Design of Experiments"
    (1935), section 21. NaN differences are left out; without any, (NaN, NaN).

    Raises:
      ValueError: more than FLIPS pairs.

    >>> sign_flip(np.array([1.0, 2.0, 3.0]))
    (0.25, 0.25)
    """
    differences = np.asarray(differences, np.float64)
    differences = differences[~np.isnan(differences)]
    n = len(differences)
    if n > FLIPS:
        raise ValueError(f"{n} pairs make 2^{n} assignments of signs; {FLIPS} pairs at most.")
    if n == 0:
        return math.nan, math.nan
    signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
    sums = np.abs(signs @ differences)
    observed = abs(float(np.sum(differences)))
    return float(np.mean(sums >= observed * (1 - 1e-12))), min(1.0, 2.0 ** (1 - n))


def log_slope(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> float:
    """Least-squares slope of y on log2 x: change of y per doubling of x. NaN without two distinct x."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    keep = (x > 0) & np.isfinite(y)
    if len(np.unique(x[keep])) < 2:
        return math.nan
    return float(np.polyfit(np.log2(x[keep]), y[keep], 1)[0])
