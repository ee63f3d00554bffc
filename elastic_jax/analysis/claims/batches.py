"""Is a flat start the model's doing, or that of batches which were not filled?"""

from collections.abc import Iterable, Mapping

import numpy as np

from elastic_jax.analysis import rebound
from elastic_jax.analysis.claims import path as of
from elastic_jax.analysis.claims.statement import Outcome, Settings, Statement, Test, Untested, Value, combine, missing
from elastic_jax.analysis.rebound import Trajectory
from elastic_jax.analysis.table import Study

STATEMENTS = (
    Statement(
        "batches.flat",
        "Where a dropped remainder leaves no update, training on it moves the model: the flat start is the batch's",
        "not in the paper, whose curves are flat from 0 to 200 examples",
    ),
)
FLAT = Test("batches_flat", "batches.flat", "s (score with the remainder dropped − trained on)", "score", 1)


def outcomes(study: Study, settings: Settings) -> Iterable[Outcome | Untested]:
    variants = (study.info.get("config") or {}).get("variants") or {}
    how = {name: (config.get("perturb") or {}).get("last_batch") for name, config in variants.items()}
    dropped = sorted(name for name, last in how.items() if last == "drop")
    others = sorted(name for name, last in how.items() if last in ("flush", "pad"))
    paths: Mapping[tuple, Trajectory] = {
        (p.condition, p.seed): p for p in rebound.trajectories(study) if p.arm == "aligned"
    }
    for drop in dropped:
        conditions = sorted({condition for condition, _ in paths if condition[0] == drop})
        for condition in conditions:
            seeds = sorted(seed for other, seed in paths if other == condition)
            flat = sorted({int(x) for s in seeds for x in _without_update(paths[condition, s])})
            for other in others:
                for examples in flat:
                    values = {
                        s: _gap(paths[condition, s], paths.get(((other, *condition[1:]), s)), examples) for s in seeds
                    }
                    where = f"{examples:,} examples, {drop} against {other}"
                    yield Outcome(FLAT, values, ("", *condition[1:3]), condition[4], where)
    if not (dropped and others):
        yield Untested("batches.flat", "one way with the last batch (configs/batch_semantics.py has three)")
    else:
        yield Untested(
            "batches.flat", "no volume of perturbation leaves the model without an update when the remainder is dropped"
        )


def _without_update(path: Trajectory) -> np.ndarray:
    points = path.points
    return points["examples"][(points["examples"] > 0) & (points["updates"] == 0)]


def _gap(drop: Trajectory, other: Trajectory | None, examples: int) -> Value:
    if other is None or examples not in other.points["examples"]:
        return missing("not trained the other way to this volume")
    if examples not in drop.points["examples"]:
        return missing("not recorded")
    return combine([1, -1], [of.at_volume(drop, examples), of.at_volume(other, examples)])
