"""Which number does one perturbed model give to a test?

s = sign(aligned - base) throughout, so that "towards the base" counts alike for scores that alignment raised or lowered; speeds are s
times the score lost per update. Errors over texts follow from those of the points, taken as independent. Positions that are interpolated
(half-lives, the way into a neighbourhood) are computed again from DRAWS records with redrawn errors; crossings, which speeds are divided
by, are given none.
"""

import math
import zlib

import numpy as np

from elastic_jax.analysis import rebound
from elastic_jax.analysis.claims.statement import Value, missing
from elastic_jax.analysis.rebound import Reached, Trajectory

DRAWS = 2000  # records with redrawn errors over texts


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


def way(path: Trajectory, examples: int) -> Value:
    """s (score before - score after so many examples of perturbation)."""
    if why := rebound.moved(path):
        return missing(why)
    return way_of(path, examples, side(path))


def way_of(path: Trajectory, examples: int, s: float) -> Value:
    """As `way`, where the sign is that of another model: a control has no alignment of its own."""
    if math.isnan(path.start):
        return missing("starting point not measured")
    (place,) = np.flatnonzero(path.points["examples"] == examples)
    fall = path.start - float(path.value[place])
    return Value(s * fall, abs(s) * math.hypot(error(path, 0), error(path, int(place))))


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
    if not reached.at > 0:
        return missing(f"half-life {reached.reason}")
    (x, y), base = redrawn(path, "examples"), redrawn_base(path)
    way = y[:, :1] - base[:, None]
    # A record redrawn with the alignment on the other side of the base has no half-life.
    there = way * (path.start - path.base) > 0
    back = np.where(there, (y[:, :1] - y) / np.where(there, way, 1.0), np.nan)
    return _located(reached, rebound.first_reach_of(x, back, 0.5))


def log_own_half(path: Trajectory) -> Value:
    """log2 of the updates until half of the path's own way is done: `rebound.own_half`."""
    reached = rebound.own_half(path)
    if not reached.at > 0:
        return missing(f"half of the own way not located: {reached.reason}")
    x, y = redrawn(path, "updates")
    way = y[:, -1:] - y[:, :1]
    there = way * (path.final - path.start) > 0
    done = np.where(there, (y - y[:, :1]) / np.where(there, way, 1.0), np.nan)
    return _located(reached, rebound.first_reach_of(x, done, 0.5))


def log_examples_within(path: Trajectory, eps: float) -> Value:
    """log2 of the examples until KL to the base is below eps: `rebound.elasticity`."""
    reached = rebound.elasticity(path, eps)
    if not reached.at > 0:
        return missing(f"KL < {eps:g} {reached.reason}")
    x, y = redrawn(path, "examples")
    return _located(reached, rebound.first_reach_of(x, y, eps, sign=-1))


def redrawn(path: Trajectory, axis: str) -> tuple[np.ndarray, np.ndarray]:
    """(positions [n], records [DRAWS, n]): the recorded points, each with an error over texts drawn anew; NaN where that is unknown."""
    keep = np.isfinite(path.value)
    errors = _generator(path.run, path.condition, path.seed).standard_normal((DRAWS, int(keep.sum())))
    return path.axis(axis)[keep], path.value[keep] + path.points["stderr"][keep] * errors


def redrawn_base(path: Trajectory) -> np.ndarray:
    """[DRAWS] of the base, the same for all paths that start from it."""
    errors = _generator("base", path.condition[0], path.seed).standard_normal(DRAWS)
    return path.base + path.base_stderr * errors


def _generator(*names: object) -> np.random.Generator:
    """By what it is for, so that no number depends on what was computed before it."""
    return np.random.default_rng(zlib.crc32(repr(names).encode()))


def _located(reached: Reached, at: np.ndarray) -> Value:
    """log2 of a position. Of records whose errors over texts are not known there are no draws."""
    with np.errstate(divide="ignore"):
        draws = np.log2(at)
    draws[~np.isfinite(draws)] = np.nan
    if np.isnan(draws).all():
        return Value(math.log2(reached.at))
    return Value(math.log2(reached.at), float(np.nanstd(draws)), draws=draws)


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
