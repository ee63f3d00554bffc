"""Table 3 and Definition 3.6: does alignment lead away from the base the further the longer it is, and does less perturbation lead back?

Distances are KL per token on held-out pre-training text, both directions; the paper gives neither its direction nor its texts.
"""

import math
from collections.abc import Callable, Iterable

import numpy as np

from elastic_jax.analysis import rebound
from elastic_jax.analysis.claims import path as of
from elastic_jax.analysis.claims.statement import (
    Outcome,
    Settings,
    Statement,
    Test,
    Untested,
    Value,
    missing,
    per_doubling,
)
from elastic_jax.analysis.rebound import Trajectory
from elastic_jax.analysis.table import Study

STATEMENTS = (
    Statement("kl.grows", "More alignment, larger KL to the base", "Table 3 (a)"),
    Statement(
        "kl.returns", "Perturbation brings the model into the neighbourhood of its base, KL < eps", "Table 3 (b)"
    ),
    Statement(
        "kl.less_data",
        "Less perturbation than alignment suffices: KL < eps before |D_b| = |D_a|",
        "Definition 3.6, which asks for |D_b| ≪ |D_a|",
    ),
    Statement("kl.fewer", "More alignment, fewer examples of perturbation until KL < eps", "Table 3 (b)"),
)
GROWS = Test("kl_start", "kl.grows", "KL after alignment, per doubling of alignment", "nats/token per doubling", 1)
RETURNS = Test("kl_lowest", "kl.returns", "log2 of lowest KL on the way / eps", "log2", -1)
LESS = Test("kl_less_data", "kl.less_data", "log2 of lowest KL within |D_a| examples / eps", "log2", -1)
FEWER = Test("kl_fewer", "kl.fewer", "log2 of examples until KL < eps, per doubling of alignment", "per doubling", -1)
_NAMES = {"kl_base_model": "KL(base‖model)", "kl_model_base": "KL(model‖base)"}
SPLIT = "pretrain"


def outcomes(study: Study, settings: Settings) -> Iterable[Outcome | Untested]:
    reached = False
    for measure, name in _NAMES.items():
        paths = [path for path in rebound.trajectories(study, measure, SPLIT) if path.arm == "aligned"]
        for panel in sorted({path.condition[:3] for path in paths}):
            group = [path for path in paths if path.condition[:3] == panel]
            volumes = sorted({path.align_volume for path in group})
            seeds = sorted({path.seed for path in group})
            for volume in volumes:
                here = {path.seed: path for path in group if path.align_volume == volume}
                yield Outcome(RETURNS, {s: _lowest(p, settings.eps) for s, p in here.items()}, panel, volume, name)
                yield Outcome(LESS, {s: _lowest_within(p, settings.eps) for s, p in here.items()}, panel, volume, name)
            if len(volumes) < 2:
                continue

            def trend(quantity: Callable[[Trajectory], Value], seed: int, group: list[Trajectory] = group) -> Value:
                own = [path for path in group if path.seed == seed]
                return per_doubling([path.align_volume for path in own], [quantity(path) for path in own])

            yield Outcome(GROWS, {s: trend(_start, s) for s in seeds}, panel, where=name)
            if any(rebound.elasticity(path, settings.eps).at > 0 for path in group):
                reached = True
                fewer = {s: trend(lambda path: of.log_examples_within(path, settings.eps), s) for s in seeds}
                yield Outcome(FEWER, fewer, panel, where=name)
    none = not any((study.rows.measure == measure).any() for measure in _NAMES)
    why = (
        "KL to the base was not measured"
        if none
        else "no aligned model has been perturbed with KL to the base measured"
    )
    for statement in ("kl.returns", "kl.less_data"):
        yield Untested(statement, why)
    one = "one volume of alignment, and a trend needs two"
    yield Untested("kl.grows", why if none else one)
    if not reached:
        yield Untested(
            "kl.fewer", why if none else f"KL < {settings.eps:g} was reached by no seed where volumes can be compared"
        )


def _start(path: Trajectory) -> Value:
    return (
        Value(path.start, float(path.points["stderr"][0]))
        if path.start == path.start
        else missing("starting point not measured")
    )


def _lowest(path: Trajectory, eps: float) -> Value:
    """Of the whole path. Above eps and still falling at its end, the way to eps may only be longer than the record."""
    if path.start < eps:
        return missing(f"alignment stayed within KL < {eps:g}")
    lowest, where = rebound.minimum(path)
    if lowest >= eps and math.isfinite(where.bound):
        return missing(f"KL is above {eps:g} and still falling at the end of the record")
    return _against(lowest, path, eps)


def _lowest_within(path: Trajectory, eps: float) -> Value:
    """Of as much perturbation as there was alignment."""
    if path.start < eps:
        return missing(f"alignment stayed within KL < {eps:g}")
    examples = path.axis("examples")
    inside = path.value[examples <= path.align_volume]
    lowest = float(np.nanmin(inside)) if np.isfinite(inside).any() else math.nan
    if not lowest < eps and examples[-1] < path.align_volume:
        return missing(f"the record ends at {examples[-1]:,.0f} examples, before |D_a|")
    return _against(lowest, path, eps)


def _against(lowest: float, path: Trajectory, eps: float) -> Value:
    if not lowest > 0:
        return missing("KL not measured, or zero")
    (place, *_) = np.flatnonzero(path.value == lowest)
    return Value(math.log2(lowest / eps), float(path.points["stderr"][place]) / lowest / math.log(2))
