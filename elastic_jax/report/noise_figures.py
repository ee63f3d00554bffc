"""How do training and random changes of the weights of the same size look side by side?"""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from elastic_jax.analysis import noise, rebound, statistics, table
from elastic_jax.analysis.claims import bases
from elastic_jax.analysis.claims import noise as claims
from elastic_jax.analysis.table import Frame
from elastic_jax.report import figures, style
from elastic_jax.report.figures import Drawing
from elastic_jax.report.findings import Findings

_COLUMNS = (("score", "samples", figures.SCORE), ("bits_per_token", "pretrain", "bits/token, pretrain rows"))
_TREND = ("score", "loss_pretrain", "loss_align")
_SIDES: dict[str, tuple[str, str, str, Any]] = {
    "trained": ("training", style.INK, "o", "-"),
    "noise": ("noise", style.CONTROL, "D", "--"),
    "difference": ("training − noise", style.SPLIT_COLOURS["align"], "s", ":"),
}
_PLACES = {"size": "model (parameters)", "tokens": "pre-training (tokens)"}


def noise_curves(found: Findings) -> Drawing | None:
    """Score and loss under training and under noise, one row for each panel."""
    parts = []
    for measure, split, _ in _COLUMNS:
        paths = noise.trajectories(found.study, measure, split)
        if paths:
            own = found.stacked(rebound.curves(paths, found.level)).assign(measure=measure, split=split)
            beside = found.curves(measure, split)
            parts += [own, beside[beside.arm == "aligned"]]
    if not parts:
        return None
    frame = table.stack(parts)
    columns = [column for column in _COLUMNS if (frame.measure == column[0]).any()]
    names, colours = found.panel_names(frame), style.volume_colours(found.volumes)
    figure, axes = style.grid(len(names), len(columns), height=2.4, gap=0.8, titles=len(names) > 1)
    for line, name in zip(axes, names, strict=True):
        for axis, (measure, _, label) in zip(line, columns, strict=True):
            part = frame[(frame.panel == name) & (frame.measure == measure)]
            for (arm, volume), own in part.groupby(["arm", "align_volume"], sort=True):
                _line(axis, own.sort_values("examples"), colours[int(volume)], arm == noise.ARM)
            if part.base.notna().any():
                axis.axhline(part.base.mean(), color=style.INK, linestyle=(0, (5, 3)), linewidth=1.1, zorder=1)
            style.log_axis(axis, list(part.examples), "perturbation (examples)")
            if measure == "score":
                figures._score_axis(axis)
            else:
                figures._frame_y(axis, part)
                axis.set_ylabel(label)
            figures._title(axis, name)
    beside = Line2D(
        [], [], color=style.MUTED, marker="D", fillstyle="none", linestyle="--", label="noise of the same size"
    )
    figures._legend(figure, found, frame, extra=[beside])
    caption = (
        "Lines: training, with all its recorded points. Dashed: from the same model a random change of the weights, as large tensor by tensor as "
        f"training's at that number of examples, mean over draws. {figures._band_note(found)}"
    )
    return Drawing("noise", "Training and random changes of the same size", caption, figure, frame)


def _line(axis: Axes, part: Frame, colour: str, is_noise: bool) -> None:
    look = dict(marker="D", fillstyle="none", linestyle="--") if is_noise else dict(marker="o")
    axis.plot(part.examples, part["mean"], color=colour, zorder=3 if is_noise else 4, **look)  # type: ignore[arg-type]
    if part.low.notna().any():
        axis.fill_between(part.examples, part.low, part.high, color=colour, alpha=0.1, linewidth=0, zorder=2)


def noise_trend(found: Findings) -> Drawing | None:
    """Means over volumes against size and pre-training, under training, under noise, and their difference."""
    frame = _means(found)
    if frame.empty:
        return None
    rows = list(dict.fromkeys(frame[["axis", "where"]].itertuples(index=False, name=None)))
    quantities = [name for name in _TREND if (frame.quantity == name).any()]
    figure, axes = style.grid(len(rows), len(quantities), height=2.4, gap=1.05, left=0.9, titles=len(rows) > 1)
    for line, (along, where) in zip(axes, rows, strict=True):
        for axis, name in zip(line, quantities, strict=True):
            own = frame[(frame.axis == along) & (frame["where"] == where) & (frame.quantity == name)]
            for side, (_, colour, marker, dashes) in _SIDES.items():
                part = own[own.side == side].sort_values("place")
                axis.plot(part.place, part["mean"], color=colour, marker=marker, linestyle=dashes)
                axis.vlines(part.place, part.low, part.high, color=colour, linewidth=1.1)
            axis.axhline(0, color=style.MUTED, linewidth=0.8, zorder=1)
            style.log_axis(axis, list(own.place), _PLACES[along])
            axis.margins(y=0.15)
            axis.set_ylabel(f"{noise.QUANTITIES[name].text}\n({noise.QUANTITIES[name].unit})")
            figures._title(axis, where if len(rows) > 1 else "")
    handles = [Line2D([], [], color=c, marker=m, linestyle=d, label=label) for label, c, m, d in _SIDES.values()]
    style.legend(figure, handles)
    caption = (
        "Change since the aligned model, mean over volumes of alignment and of perturbation that all models have. Bars: "
        f"{found.level:.0%} Student t interval over seeds, none for one seed."
    )
    return Drawing("noise_trend", "Noise along size and pre-training", caption, figure, frame)


def _means(found: Findings) -> Frame:
    """Columns axis, where, align_method, perturb_method, quantity, side, model, place, mean, low, high, n."""
    values, out = claims.seeds_of(found.study), []
    for along, (_, field) in bases.AXES.items():
        for where, models in bases.comparable(found.study, along):
            of_models = values[values.model.isin([model.name for model in models]) & values.quantity.isin(_TREND)]
            for (align, perturb, name), part in of_models.groupby(
                ["align_method", "perturb_method", "quantity"], sort=True
            ):
                part = part[part.examples.isin(noise.shared_points(part))]
                for model in models:
                    seeds = part[part.model == model.name].groupby("seed")[list(noise.SIDES)].agg(
                        lambda column: column.mean(skipna=False)
                    )  # fmt: skip
                    for side in noise.SIDES if len(seeds) else ():
                        found_ = statistics.mean_interval(np.asarray(seeds[side], np.float64), found.level)
                        out.append(
                            dict(axis=along, where=where, align_method=align, perturb_method=perturb, quantity=name)
                            | dict(side=side, model=model.name, place=float(getattr(model, field)))
                            | dict(mean=found_.mean, low=found_.low, high=found_.high, n=found_.n)
                        )
    names = [
        "axis",
        "where",
        "align_method",
        "perturb_method",
        "quantity",
        "side",
        "model",
        "place",
        "mean",
        "low",
        "high",
        "n",
    ]
    return table.frame(out, names)


ALL = (noise_curves, noise_trend)
