"""Is rebound, and its growth with pre-training and size, more than sensitivity to any change of the weights?

The rival explanation of Figures 5 and 6 (Springer et al., arXiv 2503.19206): whatever was pre-trained longer is moved further by any change
of its weights, one of random direction included. Where noise stands beside training (`analysis.noise`) each can be tested: training against
noise of the same size; the trend along the axis under noise; and what of the trend under training is left without that under noise.
Models are compared, and volumes of alignment averaged, as for the figures themselves (`claims.bases`); a number is also the mean over all
volumes of perturbation that every model was measured at.
"""

import math
from collections.abc import Iterable

import numpy as np

from elastic_jax.analysis import noise, statistics, table
from elastic_jax.analysis.claims import bases
from elastic_jax.analysis.claims.statement import (
    Outcome,
    Settings,
    Statement,
    Test,
    Untested,
    Value,
    mean,
    missing,
    per_doubling,
)
from elastic_jax.analysis.noise import SIDES
from elastic_jax.analysis.statistics import Estimate
from elastic_jax.analysis.table import Frame, Study

_CONTROL = "not in the paper: the control that Figures 5 and 6 lack"
_RIVAL = "arXiv 2503.19206, the rival explanation"
STATEMENTS = (
    Statement(
        "noise.direction", "Training back undoes an alignment further than a random change of the weights of the same size", _CONTROL
    ),
    Statement("noise.size_sensitive", "Larger models are moved further by a random change of the size of their perturbation", _RIVAL),
    Statement(
        "noise.size_beyond", "Larger models rebound further, by more than their sensitivity to a random change of the same size grows", _CONTROL
    ),
    Statement(
        "noise.tokens_sensitive", "After more pre-training a random change of the size of the perturbation moves a model further", _RIVAL
    ),
    Statement(
        "noise.tokens_beyond",
        "After more pre-training models rebound further, by more than their sensitivity to a random change of the same size grows",
        _CONTROL,
    ),
)  # fmt: skip
ALL = 0  # in place of a number of examples: the mean over all volumes of perturbation
_DIRECTION = Test("noise_direction", "noise.direction", "way back, training − noise", "score", 1)


def outcomes(study: Study, settings: Settings) -> Iterable[Outcome | Untested]:
    if not noise.has_runs(study):
        yield from (Untested(one.key, "no noise beside the perturbations: noise.draws=0") for one in STATEMENTS)
        return
    values = seeds_of(study)
    scores = values[values.quantity == "score"]
    for key, part in scores.groupby([*noise.ALIGNED, "examples"], sort=True):
        model, align, perturb, volume, examples = key
        found = {int(row["seed"]): _value(row, "difference") for row in part.to_dict("records")}
        where = f"{int(examples):,} examples of perturbation"
        yield Outcome(_DIRECTION, found, (str(model), str(align), str(perturb)), int(volume), where)
    if scores.empty:
        yield Untested(_DIRECTION.statement, "no point has been measured under both")
    for axis in bases.AXES:
        tested = False
        for where, place, methods, own in _groups(study, values, axis):
            for quantity, side, test in _tests(axis):
                part = own[own.quantity == quantity]
                yield Outcome(test, _slopes(part, place, ALL, side), ("", *methods), where=where)
                tested = True
        if not tested:
            alone = not bases.comparable(study, axis)
            reason = (
                f"no two bases differ in {bases.AXES[axis][0]} alone"
                if alone
                else "no point has been measured under both"
            )
            yield from (Untested(one.key, reason) for one in STATEMENTS if one.key.startswith(f"noise.{axis}_"))


def _tests(axis: str) -> list[tuple[str, str, Test]]:
    """(quantity, side of it, test) of an axis."""
    per, sensitive, beyond = f"per doubling of {bases.AXES[axis][0]}", f"noise.{axis}_sensitive", f"noise.{axis}_beyond"
    unit = "per doubling"
    return [
        (
            "score",
            "noise",
            Test(f"noise_{axis}_score", sensitive, f"way back in score under noise, {per}", f"score {unit}", 1),
        ),
        (
            "loss_pretrain",
            "noise",
            Test(
                f"noise_{axis}_loss",
                sensitive,
                f"rise of the loss on pre-training text under noise, {per}",
                f"bits/token {unit}",
                1,
            ),
        ),
        (
            "score",
            "trained",
            Test(f"noise_{axis}_trained", beyond, f"way back in score under training, {per}", f"score {unit}", 1),
        ),
        (
            "score",
            "difference",
            Test(f"noise_{axis}_difference", beyond, f"way back in score, training − noise, {per}", f"score {unit}", 1),
        ),
    ]


def seeds_of(study: Study) -> Frame:
    """`noise.per_seed`, computed once a study."""
    key = ("noise.per_seed",)
    if key not in study.memo:
        study.memo[key] = noise.per_seed(study)
    return study.memo[key]


def _groups(study: Study, values: Frame, axis: str) -> Iterable[tuple[str, dict[str, float], tuple[str, str], Frame]]:
    """(what the models have in common, model -> place on the axis, methods, their rows) of models that differ in the axis alone."""
    for where, models in bases.comparable(study, axis):
        place = {model.name: float(getattr(model, bases.AXES[axis][1])) for model in models}
        of_models = values[values.model.isin(list(place))]
        for methods, own in of_models.groupby(["align_method", "perturb_method"], sort=True):
            yield where, place, (str(methods[0]), str(methods[1])), own


def _slopes(values: Frame, place: dict[str, float], examples: int, side: str) -> dict[int, Value]:
    """Seed -> slope per doubling of the axis, of one quantity at a number of examples, or of its mean over ALL shared ones.

    A seed that lacks a model, or a model that lacks a volume of alignment, has none.
    """
    points = {examples} if examples else set(noise.shared_points(values))
    cells: dict[tuple[int, str], list[dict]] = {}
    for row in values.to_dict("records"):
        if row["examples"] in points:
            cells.setdefault((row["seed"], row["model"]), []).append(row)
    wanted = len({(row["align_volume"], row["examples"]) for own in cells.values() for row in own})
    out = {}
    for seed in sorted({int(s) for s in values.seed}):
        found = []
        for model in place:
            own = cells.get((seed, model), [])
            whole = bool(own) and len(own) == wanted
            found.append(mean([_value(row, side) for row in own]) if whole else missing(f"{model}: not every volume"))
        out[seed] = per_doubling(list(place.values()), found)
    return out


def _value(row: dict, side: str) -> Value:
    return Value(float(row[side]), float(row[f"{side}_stderr"]), str(row["reason"]) if math.isnan(row[side]) else "")


def trends(study: Study, level: float = statistics.LEVEL) -> Frame:
    """How every quantity of `noise.QUANTITIES` changes along the axes, under training, under noise and in their difference.

    Columns: axis, where (what the models have in common), align_method, perturb_method, quantity, unit, examples (ALL: mean over them);
    trained, trained_low, trained_high, the same of noise and difference, per doubling of the axis; n, p, p_least (of the difference),
    verdict, reason.
    """
    rows, values = [], seeds_of(study)
    for axis in bases.AXES:
        for where, place, methods, own in _groups(study, values, axis):
            for quantity, part in own.groupby("quantity", sort=False):
                for examples in (ALL, *noise.shared_points(part)):
                    slopes = {side: _slopes(part, place, examples, side) for side in SIDES}
                    numbers = {side: np.array([v.value for v in found.values()]) for side, found in slopes.items()}
                    found = {side: statistics.mean_interval(numbers[side], level) for side in SIDES}
                    why = {v.reason for v in slopes["difference"].values() if v.reason}
                    known = numbers["difference"][~np.isnan(numbers["difference"])]
                    p, least = statistics.sign_flip(known[: statistics.FLIPS])
                    row = dict(axis=axis, where=where, align_method=methods[0], perturb_method=methods[1])
                    row |= dict(quantity=quantity, unit=part.unit.iloc[0], examples=examples)
                    for side in SIDES:
                        row |= found[side].columns(side)
                    reasons = [found["difference"].reason, *sorted(why)]
                    rows.append(
                        row
                        | dict(n=found["difference"].n, p=p, p_least=least, verdict=verdict(**found))
                        | dict(reason="; ".join(dict.fromkeys(one for one in reasons if one)))
                    )
    ends = statistics.columns(SIDES)
    head = ["axis", "where", "align_method", "perturb_method", "quantity", "unit", "examples"]
    return table.frame(rows, [*head, *ends, "n", "p", "p_least", "verdict", "reason"])


def verdict(trained: Estimate, noise: Estimate, difference: Estimate) -> str:
    """Whether a trend under training is there under noise as well.

    "no trend": training's interval holds zero, so that nothing is to be explained. Else, with the sides of zero on which the whole
    intervals lie: "as under noise": noise has the trend too, and no more of it is sure; "partly noise": noise has it too, training more of
    it; "not under noise": noise does not have it, and training has more of it than noise; "undecided": neither, or no intervals.
    """
    if math.isnan(trained.low) or math.isnan(noise.low) or math.isnan(difference.low):
        return "undecided"
    side = _side(trained)
    if not side:
        return "no trend"
    if _side(noise) == side:
        return "partly noise" if _side(difference) == side else "as under noise"
    return "not under noise" if _side(difference) == side else "undecided"


def _side(estimate: Estimate) -> int:
    return 1 if estimate.low > 0 else -1 if estimate.high < 0 else 0
