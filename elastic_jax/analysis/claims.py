"""Which statements of the paper does this study support, contradict or leave undecided?

Each statement is turned into tests. A test is one number per seed, its mean and Student t interval over
seeds, and the side of zero on which the statement puts it: supported when the whole interval lies there,
contradicted when the whole interval lies on the other side, undecided otherwise, with one seed, or when a
seed has no value. Intervals are not adjusted for the number of tests. A statement is supported (contradicted)
when all its tests are.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from elastic_jax.analysis import rebound, statistics, table
from elastic_jax.analysis.rebound import Trajectory
from elastic_jax.analysis.table import Frame, Study

STATEMENTS = {
    "a": "The perturbed score returns to the base's level or passes it",
    "b": "More alignment, faster return",
    "c": "An aligned model returns faster than the control learns",
    "d": "The return is fast before the base's level and slow after it",
}
TESTS = {
    "a.final": ("a", "s (final − base)", "probability", -1),
    "b.half_life": ("b", "log2 half-life in examples, per doubling of alignment", "per doubling", -1),
    "b.speed": (
        "b",
        "speed in the first interval, per doubling of alignment",
        "probability/update per doubling",
        1,
    ),
    "b.relative": (
        "b",
        "relative return in the first interval, per doubling of alignment",
        "1/update per doubling",
        1,
    ),
    "b.final": (
        "b",
        "s final at equal perturbation, per doubling of alignment",
        "probability per doubling",
        -1,
    ),
    "c.speed": ("c", "speed in the first interval, aligned − control", "probability/update", 1),
    "c.half": ("c", "log2 of updates to half of the own way, aligned − control", "log2", -1),
    "d.score": ("d", "speed before − speed after crossing the base's level", "probability/update", 1),
    "d.odds": ("d", "speed in log-odds before − after crossing the base's level", "nats/update", 1),
}
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
    "mean",
    "low",
    "high",
    "n",
    "verdict",
    "reason",
)


def verdict(estimate: statistics.Estimate, side: int, complete: bool = True) -> str:
    """supported, contradicted or undecided: where the interval lies; side 1 states above zero, -1 below."""
    if not complete or math.isnan(estimate.low) or math.isnan(estimate.high):
        return "undecided"
    if side * estimate.low > 0 and side * estimate.high > 0:
        return "supported"
    if side * estimate.low < 0 and side * estimate.high < 0:
        return "contradicted"
    return "undecided"


def tests(study: Study, level: float = statistics.LEVEL) -> Frame:
    """Every test of every condition. Columns: COLUMNS; `align_volume` is 0 for tests across volumes.

    s = sign(aligned - base) throughout, so "towards the base" counts alike for scores that alignment raised
    or lowered; speeds are s times the score lost per update.
    """
    paths = rebound.trajectories(study)
    aligned = [path for path in paths if path.arm != "control"]
    controls = {(p.condition[0], p.condition[2], p.seed): p for p in paths if p.arm == "control"}
    out: list[dict] = []
    for panel in sorted({path.condition[:3] for path in aligned}):
        group = [path for path in aligned if path.condition[:3] == panel]
        seeds = sorted({path.seed for path in group})

        def add(test: str, volume: int, values: dict[int, tuple[float, str]], panel: tuple = panel) -> None:
            claim, statistic, unit, side = TESTS[test]
            numbers = np.array([value for value, _ in values.values()])
            estimate = statistics.mean_interval(numbers, level)
            complete = not np.isnan(numbers).any()
            reasons = sorted({reason for value, reason in values.values() if reason and math.isnan(value)})
            out.append(
                {"claim": claim, "test": test, "statistic": statistic, "unit": unit, "side": side}
                | dict(zip(("model", "align_method", "perturb_method"), panel, strict=True))
                | {"align_volume": volume, "mean": estimate.mean, "low": estimate.low, "high": estimate.high}
                | {"n": estimate.n, "verdict": verdict(estimate, side, complete)}
                | {"reason": "; ".join([r for r in (estimate.reason,) if r] + reasons)}
            )

        for volume in sorted({path.align_volume for path in group}):
            here = {path.seed: path for path in group if path.align_volume == volume}
            add("a.final", volume, {s: _final_excess(p) for s, p in here.items()})
            pairs = {s: (p, controls.get((panel[0], panel[2], s))) for s, p in here.items()}
            add("c.speed", volume, {s: _speed_gain(p, c) for s, (p, c) in pairs.items()})
            add("c.half", volume, {s: _half_ratio(p, c) for s, (p, c) in pairs.items()})
            add("d.score", volume, {s: _slowing(p, odds=False) for s, p in here.items()})
            add("d.odds", volume, {s: _slowing(p, odds=True) for s, p in here.items()})
        across: dict[str, Callable[[Trajectory], tuple[float, str]]] = {
            "b.half_life": _log_half_life,
            "b.speed": _speed,
            "b.relative": _relative_speed,
        }
        by_seed = {s: [path for path in group if path.seed == s] for s in seeds}
        for test, quantity in across.items():
            add(test, 0, {s: _per_doubling(own, quantity) for s, own in by_seed.items()})
        add("b.final", 0, {s: _final_per_doubling(own) for s, own in by_seed.items()})
    order = list(TESTS)
    return table.frame(out, COLUMNS).sort_values(
        "test", key=lambda names: names.map(order.index), kind="stable", ignore_index=True
    )


def overall(found: Frame) -> dict[str, str]:
    """Statement -> its verdict: that of all its tests when they agree, else undecided."""
    out = {}
    for claim in STATEMENTS:
        said = set(found[found.claim == claim].verdict)
        out[claim] = said.pop() if len(said) == 1 else "undecided"
    return out


def _side(path: Trajectory) -> float:
    return math.copysign(1.0, path.start - path.base)


def _final_excess(path: Trajectory) -> tuple[float, str]:
    why = rebound.moved(path)
    return (math.nan, why) if why else (_side(path) * (path.final - path.base), "")


def _speed(path: Trajectory) -> tuple[float, str]:
    if why := rebound.moved(path):
        return math.nan, why
    return -_side(path) * rebound.initial_slope(path.axis("updates"), path.value), ""


def _relative_speed(path: Trajectory) -> tuple[float, str]:
    if why := rebound.moved(path):
        return math.nan, why
    relative = rebound.relative_return(path.value, path.start, path.base)
    return rebound.initial_slope(path.axis("updates"), relative), ""


def _log_half_life(path: Trajectory) -> tuple[float, str]:
    reached = rebound.return_time(path, 0.5)
    return (math.log2(reached.at) if reached.at > 0 else math.nan), f"half-life {reached.reason}"


def _speed_gain(path: Trajectory, control: Trajectory | None) -> tuple[float, str]:
    if control is None:
        return math.nan, "no control with this seed"
    own, why = _speed(path)
    if path.axis("updates")[:2].tolist() != control.axis("updates")[:2].tolist():
        return math.nan, "control recorded at other updates"
    other = -_side(path) * rebound.initial_slope(control.axis("updates"), control.value)
    return own - other, why


def _half_ratio(path: Trajectory, control: Trajectory | None) -> tuple[float, str]:
    if control is None:
        return math.nan, "no control with this seed"
    own, other = rebound.own_half(path), rebound.own_half(control)
    if not (own.at > 0 and other.at > 0):
        return math.nan, "half of the own way not located"
    return math.log2(own.at / other.at), ""


def _slowing(path: Trajectory, *, odds: bool) -> tuple[float, str]:
    crossed = rebound.return_time(path, 1.0, "updates")
    last = path.axis("updates")[-1]
    if math.isnan(crossed.at):
        return math.nan, f"base's level {crossed.reason}"
    if not 0 < crossed.at < last:
        return math.nan, "base's level reached at the end of the record"
    levels = np.array([path.start, path.base, path.final])
    if odds:
        if (levels < 0).any() or (levels > 1).any():
            return math.nan, "log-odds are of probabilities; this score is none"
        if (levels == 0).any() or (levels == 1).any():
            return math.nan, "a score of exactly 0 or 1 has no log-odds"
        levels = np.log(levels / (1 - levels))
    before = (levels[0] - levels[1]) / crossed.at
    after = (levels[1] - levels[2]) / (last - crossed.at)
    return _side(path) * (before - after), ""


def _per_doubling(
    group: Sequence[Trajectory], quantity: Callable[[Trajectory], tuple[float, str]]
) -> tuple[float, str]:
    values = [quantity(path) for path in group]
    missing = sorted({why or "not measured" for value, why in values if math.isnan(value)})
    if missing:
        return math.nan, "; ".join(missing)
    return _slope([path.align_volume for path in group], [value for value, _ in values])


def _final_per_doubling(group: Sequence[Trajectory]) -> tuple[float, str]:
    if missing := sorted({why for why in map(rebound.moved, group) if why}):
        return math.nan, "; ".join(missing)
    shared = set.intersection(*(set(path.points["examples"].tolist()) for path in group)) - {0}
    if not shared:
        return math.nan, "no perturbation volume recorded for every alignment volume"
    last = max(shared)
    values = [_side(path) * float(path.value[path.points["examples"] == last][0]) for path in group]
    return _slope([path.align_volume for path in group], values)


def _slope(volumes: Sequence[int], values: Sequence[float]) -> tuple[float, str]:
    if len(set(volumes)) < 2:
        return math.nan, "one alignment volume: no trend"
    return statistics.log_slope(np.array(volumes, np.float64), np.array(values)), ""
