"""Figure 4: does perturbation bring an aligned model back, and the faster the more it was aligned?"""

from collections.abc import Callable, Iterable, Sequence

from elastic_jax.analysis import rebound
from elastic_jax.analysis.claims import path as of
from elastic_jax.analysis.claims.statement import (
    Outcome,
    Settings,
    Statement,
    Test,
    Untested,
    Value,
    combine,
    missing,
    per_doubling,
)
from elastic_jax.analysis.rebound import Trajectory
from elastic_jax.analysis.table import Study

STATEMENTS = (
    Statement("rebound.returns", "The perturbed score returns to the base's level or passes it", "abstract; Figure 4"),
    Statement("rebound.before", "More alignment, better before perturbation", "Figure 4, caption"),
    Statement("rebound.after", "More alignment, worse after perturbation", "Figure 4, caption"),
    Statement("rebound.faster", "More alignment, faster return", "Figure 4; section 5"),
    Statement(
        "rebound.control",
        "An aligned model returns faster than a model that was never aligned learns the same",
        "not in the paper, which has no such control",
    ),
)
RETURNS = Test("final", "rebound.returns", "s (final − base)", "score", -1)
BEFORE = Test(
    "before", "rebound.before", "s score before perturbation, per doubling of alignment", "score per doubling", 1
)
AFTER = Test(
    "after", "rebound.after", "s score after equal perturbation, per doubling of alignment", "score per doubling", -1
)
HALF_LIFE = Test(
    "half_life", "rebound.faster", "log2 half-life in examples, per doubling of alignment", "per doubling", -1
)
SPEED = Test(
    "speed", "rebound.faster", "speed in the first interval, per doubling of alignment", "score/update per doubling", 1
)
RELATIVE = Test("relative", "rebound.faster", "relative return in the first interval, per doubling of alignment",
                "1/update per doubling", 1)  # fmt: skip
CONTROL_SPEED = Test(
    "control_speed", "rebound.control", "speed in the first interval, aligned − control", "score/update", 1
)
CONTROL_HALF = Test(
    "control_half", "rebound.control", "log2 of updates to half of the own way, aligned − control", "log2", -1
)
_ACROSS = ((BEFORE, of.start), (HALF_LIFE, of.log_half_life), (SPEED, of.speed), (RELATIVE, of.relative_speed))


def outcomes(study: Study, settings: Settings) -> Iterable[Outcome | Untested]:
    paths = rebound.trajectories(study)
    aligned = [path for path in paths if path.arm == "aligned"]
    controls = {(p.condition[0], p.condition[2], p.seed): p for p in paths if p.arm == "control"}
    if not aligned:
        for statement in STATEMENTS:
            yield Untested(statement.key, "no aligned model has been perturbed")
        return
    for panel in sorted({path.condition[:3] for path in aligned}):
        group = [path for path in aligned if path.condition[:3] == panel]
        volumes = sorted({path.align_volume for path in group})
        for volume in volumes:
            here = {path.seed: path for path in group if path.align_volume == volume}
            yield Outcome(RETURNS, {s: of.final_excess(p) for s, p in here.items()}, panel, volume)
            if controls:
                pairs = {s: (p, controls.get((panel[0], panel[2], s))) for s, p in here.items()}
                yield Outcome(CONTROL_SPEED, {s: _speed_gain(*pair) for s, pair in pairs.items()}, panel, volume)
                yield Outcome(CONTROL_HALF, {s: _half_ratio(*pair) for s, pair in pairs.items()}, panel, volume)
        if len(volumes) > 1:
            by_seed = {s: [path for path in group if path.seed == s] for s in sorted({path.seed for path in group})}
            for test, quantity in _ACROSS:
                yield Outcome(test, {s: _trend(own, quantity) for s, own in by_seed.items()}, panel)
            yield Outcome(AFTER, {s: _final_trend(own) for s, own in by_seed.items()}, panel)
    if not controls:
        yield Untested("rebound.control", "no control was run (perturb.control=False)")
    for statement in ("rebound.before", "rebound.after", "rebound.faster"):
        yield Untested(statement, "every panel has one volume of alignment, and a trend needs two")


def _speed_gain(path: Trajectory, control: Trajectory | None) -> Value:
    if control is None:
        return missing("no control with this seed")
    own = of.speed(path)
    updates = [one.axis("updates")[of.first_update(one)] for one in (path, control)]
    if updates[0] != updates[1]:
        return missing("control recorded at other updates")
    return combine([1, -1], [own, of.first_speed(control, of.side(path))])


def _half_ratio(path: Trajectory, control: Trajectory | None) -> Value:
    if control is None:
        return missing("no control with this seed")
    return combine([1, -1], [of.log_own_half(path), of.log_own_half(control)])


def _trend(group: Sequence[Trajectory], quantity: Callable[[Trajectory], Value]) -> Value:
    return per_doubling([path.align_volume for path in group], [quantity(path) for path in group])


def _final_trend(group: Sequence[Trajectory]) -> Value:
    last = last_shared(group)
    if not last:
        return missing("no perturbation volume recorded for every alignment volume")
    return _trend(group, lambda path: of.at_volume(path, last))


def last_shared(group: Sequence[Trajectory]) -> int:
    """The largest volume of perturbation that all of them have recorded; 0 where there is none."""
    return max(set.intersection(*(set(path.points["examples"].tolist()) for path in group)), default=0)
