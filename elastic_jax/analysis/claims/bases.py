"""Figures 5 and 6: do larger and longer pre-trained models rebound more?

Along an axis those models are compared that differ in it and in nothing else that the study records: sizes at equal tokens of
pre-training, tokens at equal size and under one form of schedule. A number of a model is the mean over the volumes of alignment, as in the
paper's figures; its slope on log2 of the axis is taken within each seed, which the models share.

A model that has read more, or is larger, may learn any task in fewer examples, with nothing to come back from. So where the same perturbation
was trained from each base as well, the trend of the aligned models is tested against that of these controls, by the distance covered
and by the two measures of speed that need no way back (`claims.rebound`). The distance alone does not decide: it also grows where
alignment leads further away. `noise` has the other control, a random change of the weights.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from elastic_jax.analysis import rebound
from elastic_jax.analysis.claims import path as of
from elastic_jax.analysis.claims.rebound import last_shared
from elastic_jax.analysis.claims.statement import (
    Outcome,
    Settings,
    Statement,
    Test,
    Untested,
    Value,
    combine,
    mean,
    missing,
    per_doubling,
)
from elastic_jax.analysis.rebound import Trajectory
from elastic_jax.analysis.table import Model, Study

_NO_VOLUME = "no perturbation volume recorded for every base and control"
_CONTROL = "not in the paper: the control that Figures 5 and 6 lack"
STATEMENTS = (
    Statement("size.faster", "Larger models return faster at first", "Figure 5"),
    Statement("size.slower", "Larger models move more slowly once past the base's level", "Figure 5"),
    Statement(
        "size.final",
        "Larger models end further from the aligned level",
        "Figure 5, IMDb; its safety panel has the reverse",
    ),
    Statement(
        "size.beyond_control",
        "Larger models return further and faster, by more than unaligned bases gain under the same training",
        _CONTROL,
    ),
    Statement("tokens.faster", "More pre-training, faster return", "Figure 6"),
    Statement("tokens.slower", "More pre-training, slower once past the base's level", "Figure 6"),
    Statement("tokens.final", "More pre-training, further from the aligned level in the end", "Figure 6"),
    Statement(
        "tokens.emerges",
        "Rebound is hardly there after little pre-training and emerges with more",
        "appendix, 0.1T to 3T tokens",
    ),
    Statement(
        "tokens.beyond_control",
        "After more pre-training models return further and faster, by more than unaligned bases gain under the same training",
        _CONTROL,
    ),
)
# axis -> (what it is called, the field of a model that it is)
AXES = {"size": ("parameters", "params"), "tokens": ("pre-training", "pretrain_tokens")}


def _tests(axis: str) -> dict[str, Test]:
    per = f"per doubling of {AXES[axis][0]}"
    tests = [
        Test(f"{axis}_half_life", f"{axis}.faster", f"log2 half-life in examples, {per}", "per doubling", -1),
        Test(f"{axis}_speed", f"{axis}.faster", f"speed in the first interval, {per}", "score/update per doubling", 1),
        Test(
            f"{axis}_relative",
            f"{axis}.faster",
            f"relative return in the first interval, {per}",
            "1/update per doubling",
            1,
        ),
        Test(
            f"{axis}_late",
            f"{axis}.slower",
            f"speed after crossing the base's level, {per}",
            "score/update per doubling",
            -1,
        ),
        Test(f"{axis}_final", f"{axis}.final", f"s score after equal perturbation, {per}", "score per doubling", -1),
    ]
    if axis == "tokens":
        tests.append(
            Test("tokens_rebound", "tokens.emerges", f"way back towards the base, {per}", "score per doubling", 1)
        )
    return {test.key.removeprefix(f"{axis}_"): test for test in tests}


def _control_tests(axis: str) -> dict[str, Test]:
    per, statement = f"aligned − control, per doubling of {AXES[axis][0]}", f"{axis}.beyond_control"
    return {
        "way": Test(f"{axis}_control_way", statement, f"s (start − score after equal perturbation), {per}", "score per doubling", 1),
        "speed": Test(f"{axis}_control_speed", statement, f"speed in the first interval, {per}", "score/update per doubling", 1),
        "half": Test(f"{axis}_control_half", statement, f"log2 of updates to half of the own way, {per}", "per doubling", -1),
    }  # fmt: skip


def outcomes(study: Study, settings: Settings) -> Iterable[Outcome | Untested]:
    every = rebound.trajectories(study)
    paths = [path for path in every if path.arm == "aligned"]
    controls = {(path.condition[0], path.condition[2], path.seed): path for path in every if path.arm == "control"}
    for axis, (what, field) in AXES.items():
        groups = comparable(study, axis)
        for where, models in groups:
            place = {model.name: float(getattr(model, field)) for model in models}
            for methods in sorted({path.condition[1:3] for path in paths if path.condition[0] in place}):
                own = [path for path in paths if path.condition[0] in place and path.condition[1:3] == methods]
                for name, test in _tests(axis).items():
                    quantity = _quantity(name, last_shared(own))
                    values = {s: _trend(own, place, s, quantity) for s in sorted({path.seed for path in own})}
                    yield Outcome(test, values, ("", *methods), where=where)
                against = {key: path for key, path in controls.items() if key[0] in place and key[1] == methods[1]}
                if against:
                    yield from _beyond_control(axis, own, against, place, ("", *methods), where)
        if not paths:
            reason = "no aligned model has been perturbed"
        elif len(study.models) < 2:
            reason = f"one base: {what} do not vary" if axis == "size" else f"one base: {what} does not vary"
        else:
            reason = f"no two bases differ in {what} alone"
        for statement in STATEMENTS:
            if statement.key.startswith(f"{axis}."):
                alone = statement.source == _CONTROL and groups and paths
                yield Untested(statement.key, "no control was run (perturb.control=False)" if alone else reason)


def _beyond_control(
    axis: str,
    own: Sequence[Trajectory],
    controls: Mapping[tuple[str, str, int], Trajectory],
    place: dict[str, float],
    panel: tuple[str, str, str],
    where: str,
) -> Iterable[Outcome]:
    last = last_shared([*own, *controls.values()])
    for name, test in _control_tests(axis).items():
        aligned, control = {}, {}
        for seed in sorted({path.seed for path in own}):
            aligned[seed] = _trend(own, place, seed, _aligned(name, last))
            alone = [_control(name, model, seed, own, controls.get((model, panel[2], seed)), last) for model in place]
            control[seed] = per_doubling(list(place.values()), alone)
        values = {seed: combine([1, -1], [aligned[seed], control[seed]]) for seed in aligned}
        remark = ""
        if not any(math.isnan(value.value) for value in values.values()):
            means = [mean(list(side.values())).value for side in (aligned, control)]
            remark = f"aligned {means[0]:.3g}, control {means[1]:.3g}"
        yield Outcome(test, values, panel, where=where, remark=remark)


def _aligned(name: str, last: int) -> Callable[[Trajectory], Value]:
    if name == "way":
        return lambda path: of.way(path, last) if last else missing(_NO_VOLUME)
    return {"speed": of.speed, "half": of.log_own_half}[name]


def _control(
    name: str, model: str, seed: int, own: Sequence[Trajectory], control: Trajectory | None, last: int
) -> Value:
    """What the control of one base gives, in the direction that undoes the alignments of that base: the mean over them."""
    if control is None:
        return missing(f"{model}: no control with this seed")
    if name == "half":
        return of.log_own_half(control)
    beside = [path for path in own if path.condition[0] == model and path.seed == seed]
    if not beside:
        return missing(f"{model}: not every volume of alignment")
    s = sum(of.side(path) for path in beside) / len(beside)
    if name == "way":
        return of.way_of(control, last, s) if last else missing(_NO_VOLUME)
    updates = {float(path.axis("updates")[of.first_update(path)]) for path in (*beside, control)}
    return of.first_speed(control, s) if len(updates) == 1 else missing("control recorded at other updates")


def comparable(study: Study, axis: str) -> list[tuple[str, list[Model]]]:
    """(what they have in common, models) for each group of two or more places on the axis "size" or "tokens"."""
    groups: dict[tuple, list[Model]] = {}
    for model in study.models:
        if axis == "size":
            key = (f"{model.pretrain_tokens:,} tokens" if model.pretrain_tokens else "", _schedule(study, model.name))
        else:
            key = (f"{model.params:,} parameters", _schedule(study, model.name))
        if axis == "size" or model.pretrain_tokens:
            groups.setdefault(key, []).append(model)
    field = AXES[axis][1]
    several = {key: group for key, group in groups.items() if len({getattr(model, field) for model in group}) > 1}
    return [(", ".join(part for part in key if part), group) for key, group in sorted(several.items())]


def _schedule(study: Study, variant: str) -> str:
    """Form of the learning rate in pre-training, where variants of the config say it; "" otherwise."""
    variants = (study.info.get("config") or {}).get("variants") or {}
    form = ((variants.get(variant, {}).get("pretrain") or {}).get("optim") or {}).get("schedule")
    return f"{form} schedule" if form else ""


def _quantity(name: str, last: int) -> Callable[[Trajectory], Value]:
    if name == "final":
        return lambda path: (
            of.at_volume(path, last) if last else missing("no perturbation volume recorded for every base")
        )
    if name == "late":
        return lambda path: of.speeds_about_base(path, odds=False)[1]
    return {
        "half_life": of.log_half_life,
        "speed": of.speed,
        "relative": of.relative_speed,
        "rebound": of.towards_base,
    }[name]


def _trend(
    group: Sequence[Trajectory], place: dict[str, float], seed: int, quantity: Callable[[Trajectory], Value]
) -> Value:
    volumes = {path.align_volume for path in group}
    x, values = [], []
    for model, at in place.items():
        own = [path for path in group if path.condition[0] == model and path.seed == seed]
        whole = {path.align_volume for path in own} == volumes
        x.append(at)
        values.append(
            mean([quantity(path) for path in own]) if whole else missing(f"{model}: not every volume of alignment")
        )
    return per_doubling(x, values)
