"""Which number does one perturbed model give to a test?

s = sign(aligned - base) throughout, so that "towards the base" counts alike for scores that alignment raised or lowered; speeds are s
times the score lost per update. Errors over texts follow from those of the points, taken as independent; positions that are interpolated
(half-lives, crossings) are given none.
"""

import math

import numpy as np

from elastic_jax.analysis import rebound
from elastic_jax.analysis.claims.statement import Value, missing
from elastic_jax.analysis.rebound import Trajectory


def side(path: Trajectory) -> float:
    return math.copysign(1.0, path.start - path.base)


def error(path: Trajectory, place: int) -> float:
    """Standard error over texts of one recorded point."""
    return float(path.points["stderr"][place])


def start(path: Trajectory) -> Value:
    """s score before perturbation."""
    if why := rebound.moved(path):
        return missing(why)
    return Value(side(path) * path.start, error(path, 0))


def final_excess(path: Trajectory) -> Value:
    """s (final - base)."""
    if why := rebound.moved(path):
        return missing(why)
    return Value(side(path) * (path.final - path.base), math.hypot(error(path, -1), path.base_stderr))


def at_volume(path: Trajectory, examples: int) -> Value:
    """s score after so many examples of perturbation."""
    if why := rebound.moved(path):
        return missing(why)
    (place,) = np.flatnonzero(path.points["examples"] == examples)
    return Value(side(path) * float(path.value[place]), error(path, int(place)))


def speed(path: Trajectory) -> Value:
    """Score lost per update until the first recorded update."""
    if why := rebound.moved(path):
        return missing(why)
    return first_speed(path, side(path))


def first_speed(path: Trajectory, s: float) -> Value:
    """As `speed`, where the sign is that of another model: a control has no alignment of its own."""
    updates, second = path.axis("updates"), first_update(path)
    if not second or math.isnan(path.start):
        return missing("no recorded update")
    width = float(updates[second] - updates[0])
    slope = -s * float(path.value[second] - path.value[0]) / width
    return Value(slope, math.hypot(error(path, 0), error(path, second)) / width)


def first_update(path: Trajectory) -> int:
    """Place of the first point that an update lies before; 0 where there is none. Volumes that fill no batch are passed over."""
    updates = path.axis("updates")
    return int(np.argmax(updates > updates[0]))


def relative_speed(path: Trajectory) -> Value:
    """Share of aligned - base that is undone per update until the first recorded update."""
    if why := rebound.moved(path):
        return missing(why)
    second, way = first_update(path), path.start - path.base
    if not second:
        return missing("no recorded update")
    width = float(path.axis("updates")[second] - path.axis("updates")[0])
    r = float(rebound.relative_return(path.value, path.start, path.base)[second])
    errors = np.array([error(path, second), r * path.base_stderr, (1 - r) * error(path, 0)]) / way
    return Value(r / width, float(np.sqrt(np.sum(errors**2))) / width)


def log_half_life(path: Trajectory) -> Value:
    """log2 of the examples that undo half of the alignment."""
    reached = rebound.return_time(path, 0.5)
    return Value(math.log2(reached.at)) if reached.at > 0 else missing(f"half-life {reached.reason}")


def towards_base(path: Trajectory) -> Value:
    """The part of the way back that leads to the base's level: `rebound.split_way`."""
    if why := rebound.moved(path):
        return missing(why)
    return Value(rebound.split_way(path.start, path.base, path.final)[0], error(path, 0))


def speeds_about_base(path: Trajectory, *, odds: bool) -> tuple[Value, Value]:
    """Mean speed per update before and after the crossing of the base's level, in the score or in its log-odds."""

    def neither(why: str) -> tuple[Value, Value]:
        return missing(why), missing(why)

    crossed = rebound.return_time(path, 1.0, "updates")
    last = path.axis("updates")[-1]
    if math.isnan(crossed.at):
        return neither(f"base's level {crossed.reason}")
    if not 0 < crossed.at < last:
        return neither("base's level reached at the end of the record")
    levels = np.array([path.start, path.base, path.final])
    errors = np.array([error(path, 0), path.base_stderr, error(path, -1)])
    if odds:
        if (levels < 0).any() or (levels > 1).any():
            return neither("log-odds are of probabilities; this score is none")
        if (levels == 0).any() or (levels == 1).any():
            return neither("a score of exactly 0 or 1 has no log-odds")
        errors = errors / (levels * (1 - levels))
        levels = np.log(levels / (1 - levels))
    s, rest = side(path), last - crossed.at
    before = Value(s * float(levels[0] - levels[1]) / crossed.at, math.hypot(errors[0], errors[1]) / crossed.at)
    after = Value(s * float(levels[1] - levels[2]) / rest, math.hypot(errors[1], errors[2]) / rest)
    return before, after
