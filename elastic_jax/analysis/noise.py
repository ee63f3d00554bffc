"""What does a random change of the weights do, beside training that changed them by as much?

A run of noise (`study.noise`) stands beside every perturbation of an aligned model: from the same checkpoint as far in weights, tensor by
tensor, at the same kept points. What both do alike is the size of the change, and what training does beyond it is its direction. Draws of
one seed are averaged, then compared with that seed's training; how many draws there are does not count as evidence.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from elastic_jax.analysis import rebound, statistics, table
from elastic_jax.analysis.rebound import CONDITION, Trajectory
from elastic_jax.analysis.statistics import Estimate
from elastic_jax.analysis.table import POINT, Frame, Points, Study

STAGE = ARM = "noise"
ALIGNED = (
    "model",
    "align_method",
    "perturb_method",
    "align_volume",
)  # what tells an aligned model from others, beside the seed


@dataclasses.dataclass(frozen=True)
class Quantity:
    """A change since the aligned model: of the score s (start - value), s = sign(aligned - base), of all others value - start."""

    measure: str
    split: str
    unit: str
    text: str


QUANTITIES = {
    "score": Quantity("score", "samples", "probability", "way back in score"),
    "loss_align": Quantity("bits_per_token", "align", "bits/token", "rise of the loss on alignment text"),
    "loss_pretrain": Quantity("bits_per_token", "pretrain", "bits/token", "rise of the loss on pre-training text"),
    "loss_perturb": Quantity("bits_per_token", "perturb", "bits/token", "rise of the loss on perturbation text"),
    "kl_pretrain": Quantity("kl_base_model", "pretrain", "nats/token", "rise of KL(base || model), pre-training text"),
}
SIDES = ("trained", "noise", "difference")
PLACE = (*ALIGNED, "examples", "quantity")


def has_runs(study: Study) -> bool:
    """Whether the study has noise at all."""
    return STAGE in study.stage_of.values()


def trajectories(study: Study, measure: str = "score", split: str = "samples") -> list[Trajectory]:
    """As `rebound.trajectories`, of noise: arm "noise", the mean over draws, from the start of the perturbation beside it.

    Points are those that every draw has; their standard error over texts is the mean of those of the draws, which are measured on the
    same texts. Seeds that have not yet reached the last point of their condition are left out.
    """
    key = ("noise", measure, split)
    if key not in study.memo:
        study.memo[key] = tuple(_complete(_trajectories(study, measure, split)))
    return list(study.memo[key])


def _trajectories(study: Study, measure: str, split: str) -> list[Trajectory]:
    trained = {_place(path): path for path in rebound.trajectories(study, measure, split) if path.arm == "aligned"}
    rows = study.rows.loc[study.rows.stage == STAGE, [*CONDITION, "seed", "run"]].drop_duplicates()
    draws: dict[tuple, list[tuple[str, Points]]] = {}
    for *condition, seed, run in rows.sort_values("run", kind="stable").itertuples(index=False):
        part = study.points.get((str(run), measure, split))
        if part is not None:
            draws.setdefault((tuple(condition), int(seed)), []).append((str(run), part))
    found = []
    for (condition, seed), parts in sorted(draws.items()):
        model, align, perturb, arm, volume = condition
        beside = trained.get((model, align, perturb, int(volume), seed))
        if beside is None or math.isnan(beside.start):
            continue
        points = _mean_of_draws([part for _, part in parts], beside)
        where = (str(model), str(align), str(perturb), str(arm), int(volume))
        found.append(Trajectory(where, seed, parts[0][0], points, beside.base, beside.base_stderr))
    return found


def _complete(found: Sequence[Trajectory]) -> list[Trajectory]:
    last: dict[tuple, int] = {}
    for one in found:
        last[one.condition] = max(last.get(one.condition, 0), int(one.points["examples"][-1]))
    return [one for one in found if one.points["examples"][-1] == last[one.condition]]


def _place(path: Trajectory) -> tuple:
    return (*path.condition[:3], path.align_volume, path.seed)


def _mean_of_draws(parts: Sequence[Points], beside: Trajectory) -> Points:
    """The starting point, and every number of examples that the most draws have."""
    every = {name: np.concatenate([part[name] for part in parts]) for name in POINT}
    places, counts = np.unique(every["examples"], return_counts=True)
    places = places[counts == counts.max()]
    start = {name: column[:1] for name, column in beside.points.items()}
    means = {name: np.array([every[name][every["examples"] == at].mean() for at in places]) for name in POINT}
    return {name: np.concatenate([start[name], means[name].astype(start[name].dtype)]) for name in POINT}


def per_seed(study: Study) -> Frame:
    """Every quantity at every point that both were measured at.

    Columns: ALIGNED, seed, examples, updates, quantity, unit, trained, noise, difference (trained - noise), their standard errors over
    texts (`trained_stderr`, ...; of the score alone: losses of both are on the same texts, whose errors cancel by an amount that the
    table does not hold), reason (why they are NaN).
    """
    out = []
    for name, quantity in QUANTITIES.items():
        trained = {
            _place(p): p for p in rebound.trajectories(study, quantity.measure, quantity.split) if p.arm == "aligned"
        }
        for path in trajectories(study, quantity.measure, quantity.split):
            beside = trained[_place(path)]
            why = rebound.moved(beside) if name == "score" else ""
            sign = -math.copysign(1.0, beside.start - beside.base) if name == "score" else 1.0
            for i, examples in enumerate(path.points["examples"]):
                there = np.flatnonzero(beside.points["examples"] == examples)
                if not examples or not len(there):
                    continue
                changes, errors = [], []
                for one, at in ((beside, there[0]), (path, i)):
                    changes.append(math.nan if why else sign * (float(one.value[at]) - beside.start))
                    errors.append(float(one.points["stderr"][at]) if name == "score" else math.nan)
                # Of a change: with the error of the start, which the difference of both does without.
                first = float(beside.points["stderr"][0])
                out.append(
                    dict(zip(ALIGNED, (*path.condition[:3], path.align_volume), strict=True))
                    | dict(seed=path.seed, examples=int(examples), updates=int(path.points["updates"][i]))
                    | dict(quantity=name, unit=quantity.unit, reason=why)
                    | dict(zip(SIDES, (*changes, changes[0] - changes[1]), strict=True))
                    | dict(zip(_ERRORS, (*(math.hypot(e, first) for e in errors), math.hypot(*errors)), strict=True))
                )
    return table.frame(out, [*ALIGNED, "seed", "examples", "updates", "quantity", "unit", *SIDES, *_ERRORS, "reason"])


_ERRORS = tuple(f"{side}_stderr" for side in SIDES)


def compare(values: Frame, level: float = statistics.LEVEL) -> Frame:
    """Training, noise and their difference over seeds, for a table made by `per_seed`.

    Columns: PLACE, unit; trained, trained_low, trained_high, the same of noise and difference; share (noise / trained, of the means,
    where training's interval leaves zero out); n (seeds), p, p_least (sign flip of the difference), verdict, reason.
    """
    rows = []
    for key, part in values.groupby(list(PLACE), sort=True):
        part = part.sort_values("seed", kind="stable")
        row = dict(zip(PLACE, key, strict=True)) | dict(unit=part.unit.iloc[0])
        found = {side: statistics.mean_interval(part[side].to_numpy(), level) for side in SIDES}
        for side, estimate in found.items():
            row |= estimate.columns(side)
        known = part.difference.dropna().to_numpy()
        p, least = statistics.sign_flip(known[: statistics.FLIPS])
        trained = found["trained"]
        surely = trained.low > 0 or trained.high < 0
        reasons = [found["difference"].reason, *sorted({str(why) for why in part.reason if why})]
        rows.append(
            row
            | dict(share=found["noise"].mean / trained.mean if surely else math.nan, n=found["difference"].n)
            | dict(p=p, p_least=least, verdict=verdict(found["difference"]))
            | dict(reason="; ".join(dict.fromkeys(why for why in reasons if why)))
        )
    ends = statistics.columns(SIDES)
    frame = table.frame(rows, [*PLACE, "unit", *ends, "share", "n", "p", "p_least", "verdict", "reason"])
    order = {name: i for i, name in enumerate(QUANTITIES)}
    return frame.sort_values(
        ["quantity", *ALIGNED, "examples"],
        key=lambda column: column.map(order) if column.name == "quantity" else column,
        kind="stable",
        ignore_index=True,
    )


def verdict(difference: Estimate) -> str:
    """ "training more", "noise more" or "undecided": where the interval of trained - noise lies."""
    return "training more" if difference.low > 0 else "noise more" if difference.high < 0 else "undecided"


def changes(study: Study) -> Frame:
    """How far the weights were moved. Columns: ALIGNED, seed, examples, draws, trained, noise (Euclidean, mean over draws), weights (norm
    of the aligned model's)."""
    rows = study.rows[(study.rows.stage == STAGE) & study.rows.measure.isin(["weight_change", "weight_norm"])]
    names = {"perturb": "trained", "noise": "noise", "align": "weights"}
    out = []
    for key, part in rows.groupby([*ALIGNED, "seed", "examples"], sort=True):
        means: Mapping[str, float] = part.groupby("split").value.mean().to_dict()
        out.append(
            dict(zip([*ALIGNED, "seed", "examples"], key, strict=True))
            | dict(draws=part.run.nunique())
            | {name: means.get(split, math.nan) for split, name in names.items()}
        )
    return table.frame(out, [*ALIGNED, "seed", "examples", "draws", *names.values()])


def shared_points(values: Frame) -> list[int]:
    """Numbers of examples at which every aligned model and seed of the table was measured."""
    if values.empty:
        return []
    each = values.groupby([*ALIGNED, "seed"]).examples.agg(lambda column: frozenset(map(int, column)))
    return sorted(frozenset.intersection(*each))
