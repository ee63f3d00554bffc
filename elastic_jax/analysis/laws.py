"""Which laws do the rebounds of a study follow, and how well?

Three tables: is a return fast first and slow later (`decay`); how do half-life and crossing grow with the alignment volume, the size
of the model and its pre-training (`scaling`); is the volume that undoes an alignment predicted by the other volumes?
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from elastic_jax.analysis import decay, rebound, scaling, statistics, table
from elastic_jax.analysis.decay import Curve
from elastic_jax.analysis.rebound import CONDITION, Trajectory
from elastic_jax.analysis.table import Frame, Study

QUANTITIES = {
    "half_life_examples": "half-life",
    "crossing_examples": "crossing of the base's level",
    "elasticity_examples": "examples to the neighbourhood of the base",
}
# What a law is in -> heading; within a panel, or over the models of the study at one alignment volume.
ALONG = {"align_volume": "alignment examples", "params": "parameters", "pretrain_tokens": "tokens of pre-training"}


def decays(paths: Iterable[Trajectory], level: float = statistics.LEVEL) -> Frame:
    """One rate against two for every condition, all seeds together; see `decay.compare`.

    Columns: CONDITION, one, one_low, one_high, fast, fast_low, fast_high, slow, slow_low, slow_high (time constants in examples),
    share_fast (of the way), evidence (AICc, positive for two rates), r2_one, r2_two, points, n (seeds), verdict, reason.
    """
    groups: dict[tuple, list[Trajectory]] = {}
    for path in paths:
        groups.setdefault(path.condition, []).append(path)
    rows = []
    for condition, group in sorted(groups.items()):
        found = decay.compare([Curve(path.axis("examples"), path.value) for path in group], level)
        row = dict(zip(CONDITION, condition, strict=True)) | dict(
            evidence=found.evidence, n=len(group), verdict=found.verdict, reason=found.reason
        )
        one, two = found.one, found.two
        if one is not None and two is not None:
            row |= dict(one=one.times[0], one_low=one.low[0], one_high=one.high[0], r2_one=one.r2, points=one.points)
            for place, name in enumerate(("fast", "slow")):
                row |= {name: two.times[place], f"{name}_low": two.low[place], f"{name}_high": two.high[place]}
            whole = sum(two.amplitudes)
            row |= dict(r2_two=two.r2, share_fast=two.amplitudes[0] / whole if whole else math.nan)
        rows.append(row)
    times = statistics.columns(("one", "fast", "slow"))
    names = [*CONDITION, *times, "share_fast", "evidence", "r2_one", "r2_two", "points", "n", "verdict", "reason"]
    return table.frame(rows, names)


def decays_of(study: Study, level: float = statistics.LEVEL) -> Frame:
    """`decays` of the scores of a study, computed once for it."""
    key = ("decays", level)
    if key not in study.memo:
        study.memo[key] = decays(rebound.trajectories(study), level)
    return study.memo[key]


def power_laws(values: Frame, sizes: Frame, level: float = statistics.LEVEL) -> Frame:
    """The power law of every quantity of QUANTITIES along every axis of ALONG that has three places or more.

    Args:
      values: of `rebound.per_seed`.
      sizes: columns model, params, pretrain_tokens; one row a model; 0 where unknown.

    Columns: quantity, along, where (panel, or alignment volume), mean, low, high (the exponent), n, censored, r2, spread, cells,
    reason.
    """
    rows = []
    for quantity, along, where, cells in _series(values, sizes):
        law = scaling.power_law(cells, level)
        e = law.exponent
        rows.append(
            dict(quantity=quantity, along=along, where=where, mean=e.mean, low=e.low, high=e.high, n=e.n)
            | dict(censored=e.censored, r2=law.r2, spread=law.spread, cells=law.cells, reason=e.reason)
        )
    names = ["quantity", "along", "where", "mean", "low", "high", "n", "censored", "r2", "spread", "cells", "reason"]
    return table.frame(rows, names)


def predictions(values: Frame, sizes: Frame, level: float = statistics.LEVEL) -> Frame:
    """Every place of every series of `power_laws` predicted from the others: columns quantity, along, where, and those of
    `scaling.leave_one_out`."""
    parts = [
        scaling.leave_one_out(cells, level).assign(quantity=quantity, along=along, where=where)
        for quantity, along, where, cells in _series(values, sizes)
    ]
    names = ["quantity", "along", "where", "x", "predicted", "low", "high", "observed", "inside", "reason"]
    return table.stack(parts)[names] if parts else table.frame([], names)


def _series(values: Frame, sizes: Frame) -> Iterable[tuple[str, str, str, Sequence[scaling.Cell]]]:
    """(quantity, along, where, cells) with three places or more."""
    values = values[(values.arm != "control") & (values.measure != "kl_model_base")]
    values = values[values.quantity.isin(list(QUANTITIES)) & values.split.isin(["samples", "pretrain"])]
    if values.empty:
        return
    values = values.merge(sizes, on="model", how="left").fillna({"params": 0, "pretrain_tokens": 0})
    panel = ["model", "align_method", "perturb_method"]
    for along in ALONG:
        keys = panel if along == "align_volume" else ["align_method", "perturb_method", "align_volume"]
        for key, part in values.groupby(keys, sort=True):
            where = _in_words(dict(zip(keys, key, strict=True)))
            for quantity in QUANTITIES:
                cells = scaling.cells_of(part[part[along] > 0], quantity, along)
                if len({cell.x for cell in cells}) >= 3:
                    yield quantity, along, where, cells


def _in_words(condition: Mapping[str, Any]) -> str:
    """What a series has in common, such as "aligned by sft, perturbed by sft, 2,048 alignment examples"."""
    words = dict(model="{}", align_method="aligned by {}", perturb_method="perturbed by {}")
    words["align_volume"] = "{:,} alignment examples"
    return ", ".join(words[name].format(value) for name, value in condition.items() if value)
