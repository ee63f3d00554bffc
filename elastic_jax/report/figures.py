"""What do the measured curves look like?

Each function takes the findings and gives a `Drawing`: a figure and the table it was drawn from, nothing
else. None where the study holds no data for it.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from elastic_jax.analysis import compression, rebound, statistics, table
from elastic_jax.analysis.table import Frame, Model
from elastic_jax.report import style
from elastic_jax.report.findings import Findings
from elastic_jax.report.tables import short

SCORE = "score, P(aligned behaviour)"
KL_NAMES = {"kl_base_model": "KL(base || model)", "kl_model_base": "KL(model || base)"}


@dataclasses.dataclass(frozen=True)
class Drawing:
    name: str
    title: str
    caption: str
    figure: Figure
    data: Frame


def _band_note(found: Findings) -> str:
    if len(found.seeds) == 1:
        return "One seed: no band."
    return f"Lines: mean over seeds; bands: {found.level:.0%} Student t interval over seeds, cut at the frame."


def _lines(axis: Axes, frame: Frame, x: str, found: Findings, *, base: bool = True) -> list:
    """One line and band per alignment volume, the control in grey. Returns labels for the line ends."""
    colours = style.volume_colours(found.volumes)
    labels = []
    shade = min(0.16, 0.6 / max(len(found.volumes), 1))
    for (arm, volume), part in frame.groupby(["arm", "align_volume"], sort=True):
        part = part.sort_values(x)
        control = arm == "control"
        colour = style.CONTROL if control else colours[int(volume)]
        axis.plot(part[x], part["mean"], color=colour, marker="s" if control else "o", zorder=3 if control else 4)
        if part.low.notna().any():
            axis.fill_between(part[x], part.low, part.high, color=colour, alpha=shade, linewidth=0, zorder=2)
        labels.append((float(part["mean"].iloc[-1]), "control" if control else short(float(volume)), colour))
    if base and frame.base.notna().any():
        axis.axhline(frame.base.mean(), color=style.INK, linestyle=(0, (5, 3)), linewidth=1.1, zorder=1)
    return labels


def _legend(figure: Figure, found: Findings, frame: Frame, *, base: bool = True, extra: Iterable = ()) -> None:
    colours = style.volume_colours(found.volumes)
    present = sorted({int(v) for v in frame.loc[frame.arm != "control", "align_volume"]})
    entries = []
    if (frame.arm == "control").any():
        entries.append(Line2D([], [], color=style.CONTROL, marker="s", label="control (from base)"))
    if base:
        entries.append(Line2D([], [], color=style.INK, linestyle=(0, (5, 3)), linewidth=1.1, label="base"))
    entries += list(extra)
    # Inches by which the row of entries may still grow; with many volumes every second, third, ... one is
    # named.
    room = figure.get_figwidth() - 2.1 - sum(0.4 + 0.066 * len(str(entry.get_label())) for entry in entries)
    count = max(2, min(len(present), int(room / 0.74)))
    shown = sorted({present[round(i)] for i in np.linspace(0, len(present) - 1, count)}) if present else []
    entries = [Line2D([], [], color=colours[v], marker="o", label=short(float(v))) for v in shown] + entries
    left, height = 0.68 / figure.get_figwidth(), figure.get_figheight()
    figure.text(left, 1 - 0.17 / height, "alignment examples", fontsize=8.5, color=style.MUTED, va="center")
    style.legend(figure, entries, left=0.68 + 1.25, handlelength=1.5, columnspacing=1.2, handletextpad=0.5)


def _frame_y(axis: Axes, frame: Frame, *, floor: float | None = None) -> None:
    """Limits from means, base and nearby parts of bands: bands of two seeds would flatten every curve."""
    values = np.append(frame["mean"], frame.get("base", []))
    values = values[np.isfinite(values)]
    if not len(values):
        return
    low, high = float(values.min()), float(values.max())
    span = max(high - low, 1e-3)
    low, high = low - 0.08 * span, high + 0.08 * span
    inner_low, inner_high = frame.low.min(), frame.high.max()
    if np.isfinite([inner_low, inner_high]).all():
        low, high = (
            min(low, max(inner_low, low - 0.25 * span)),
            max(high, min(inner_high, high + 0.25 * span)),
        )
    axis.set_ylim(low if floor is None else max(low, floor - 0.04 * (high - floor)), high)


def _score_axis(axis: Axes) -> None:
    axis.set_ylim(-0.03, 1.03)
    axis.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    axis.set_ylabel(SCORE)


def _title(axis: Axes, *parts: str) -> None:
    axis.set_title(", ".join(part for part in parts if part), loc="left", color=style.INK)


def rebound_curve(found: Findings) -> Drawing | None:
    frame = found.curves("score", "samples")
    if frame.empty:
        return None
    names = found.panel_names(frame)
    figure, axes = style.grid(len(names), 1, height=3.5, right=0.95, titles=len(names) > 1)
    colours = style.volume_colours(found.volumes)
    for axis, name in zip(axes[:, 0], names, strict=True):
        part = frame[frame.panel == name]
        for volume, own in part[(part.arm != "control") & (part.examples == 0)].groupby("align_volume"):
            axis.axhline(own["mean"].iloc[0], color=colours[int(volume)], linestyle=":", linewidth=0.9, zorder=1)
        labels = _lines(axis, part, "examples", found)
        style.log_axis(axis, list(part.examples), "perturbation (examples)")
        _score_axis(axis)
        _title(axis, name)
        style.end_labels(axis, labels if len(labels) <= 9 else [])
    aligned = Line2D([], [], color=style.MUTED, linestyle=":", linewidth=0.9, label="aligned, at 0")
    _legend(figure, found, frame, extra=[aligned])
    caption = f"{_band_note(found)} Axis linear from 0 to the first recorded point, logarithmic after it."
    return Drawing("rebound", "Score under perturbation", caption, figure, frame)


def rebound_axes(found: Findings) -> Drawing | None:
    frame = found.curves("score", "samples")
    if frame.empty:
        return None
    names = found.panel_names(frame)
    figure, axes = style.grid(len(names), 2, height=2.8)
    for row, name in zip(axes, names, strict=True):
        part = frame[frame.panel == name]
        for axis, x, label in zip(row, ("updates", "tokens"), ("optimizer updates", "tokens"), strict=True):
            _lines(axis, part, x, found)
            style.log_axis(axis, list(part[x]), f"perturbation ({label})")
            _score_axis(axis)
            _title(axis, name, f"at equal {label}")
    _legend(figure, found, frame)
    caption = f"{_band_note(found)} The same points, to be compared at equal updates or equal tokens."
    return Drawing("rebound_axes", "Score at equal updates and equal tokens", caption, figure, frame)


def further_scores(found: Findings) -> Drawing | None:
    """One row for each further scorer, on a scale of its own: few of them are probabilities."""
    units = rebound.further_units(found.study)
    frames = [frame for measure in units if len(frame := found.curves(measure, "samples"))]
    if not frames:
        return None
    frame = table.stack(frames)
    rows = [(n, m) for n in found.panel_names(frame) for m in units if (frame.measure == m).any()]
    figure, axes = style.grid(len(rows), 1, height=2.1, gap=0.5, left=0.85, right=0.95)
    for axis, (name, measure) in zip(axes[:, 0], rows, strict=True):
        part = frame[(frame.panel == name) & (frame.measure == measure)]
        labels = _lines(axis, part, "examples", found)
        style.log_axis(axis, list(part.examples), "perturbation (examples)")
        _frame_y(axis, part)
        axis.set_ylabel(f"{measure.removeprefix(rebound.FURTHER)}\n({units[measure]})")
        _title(axis, name)
        style.end_labels(axis, labels if len(labels) <= 9 else [])
    _legend(figure, found, frame, base=bool(frame.base.notna().any()))
    caption = f"Means over the same samples as the score. {_band_note(found)}"
    return Drawing("further_scores", "Further scorers under perturbation", caption, figure, frame)


def control_gap(found: Findings) -> Drawing | None:
    gaps = rebound.against_control(found.scores)
    if gaps.empty:
        return None
    out = []
    for key, part in gaps.groupby([*rebound.CONDITION, "updates"], sort=True):
        estimate = statistics.mean_interval(part.sort_values("seed").difference.to_numpy(), found.level)
        out.append(
            dict(zip([*rebound.CONDITION, "updates"], key, strict=True))
            | {"mean": estimate.mean, "low": estimate.low, "high": estimate.high, "n": estimate.n}
        )
    frame = found.stacked(table.frame(out, list(out[0]))).assign(base=0.0)
    names = found.panel_names(frame)
    figure, axes = style.grid(len(names), 1, height=2.7, right=0.95, titles=len(names) > 1)
    for axis, name in zip(axes[:, 0], names, strict=True):
        part = frame[frame.panel == name]
        labels = _lines(axis, part, "updates", found, base=False)
        axis.axhline(0, color=style.CONTROL, linewidth=1.2, zorder=1)
        style.log_axis(axis, list(part.updates), "perturbation (optimizer updates)")
        _frame_y(axis, part)
        axis.set_ylabel("score difference")
        _title(axis, name)
        style.end_labels(axis, [*(labels if len(labels) <= 9 else []), (0.0, "control", style.CONTROL)])
    _legend(figure, found, frame, base=False)
    caption = "Aligned minus control at equal updates, paired by seed. " + _band_note(found)
    return Drawing("control_gap", "Difference from the control", caption, figure, frame.drop(columns="base"))


def divergence(found: Findings) -> Drawing | None:
    measures = [m for m in rebound.DIRECTIONS if found.splits(m)]
    frames = [found.curves(m, s) for m in measures for s in found.splits(m)]
    if not any(len(frame) for frame in frames):
        return None
    frame = table.stack([frame for frame in frames if len(frame)])
    return _matrix(
        found,
        frame,
        "kl_to_base",
        "KL to the base model under perturbation",
        rows=[(n, m) for n in found.panel_names(frame) for m in measures if (frame.measure == m).any()],
        label=lambda m: f"{KL_NAMES[m]}\n(nats/token)",
        floor=0.0,
        threshold=found.eps,
        caption=f"Held-out rows of each distribution. Dash-dotted: eps = {found.eps:g} nats/token. ",
    )


def _matrix(
    found: Findings,
    frame: Frame,
    name: str,
    title: str,
    *,
    rows: list[tuple[str, str]],
    label: Callable[[str], str],
    caption: str,
    floor: float | None = None,
    threshold: float | None = None,
) -> Drawing:
    splits = [s for s in (*style.SPLIT_COLOURS, *sorted(set(frame.split))) if s in set(frame.split)]
    splits = list(dict.fromkeys(splits))
    figure, axes = style.grid(len(rows), len(splits), height=2.1, gap=0.5, left=0.85)
    for line, (panel, measure) in zip(axes, rows, strict=True):
        for axis, split in zip(line, splits, strict=True):
            part = frame[(frame.panel == panel) & (frame.measure == measure) & (frame.split == split)]
            _lines(axis, part, "examples", found)
            style.log_axis(axis, list(part.examples), "perturbation (examples)")
            if threshold is not None and split == "pretrain":
                axis.axhline(threshold, color=style.INK, linestyle="-.", linewidth=0.9, zorder=1)
            if len(part):
                _frame_y(axis, part, floor=floor)
            _title(axis, panel, f"{split} rows")
        line[0].set_ylabel(label(measure))
    _legend(figure, found, frame, base=bool(frame.base.notna().any()))
    return Drawing(name, title, caption + _band_note(found), figure, frame)


def rates(found: Findings) -> Drawing | None:
    measure = next((m for m in compression.MEASURES[:2] if found.splits(m)), None)
    if measure is None:
        return None
    return _stages(found, measure, "compression", "Compression along alignment and perturbation")


def data_divergence(found: Findings) -> Drawing | None:
    if not found.splits("kl_data_model"):
        return None
    return _stages(found, "kl_data_model", "kl_data_model", "KL from each distribution to the model")


_RATE_LABELS = {
    "bits_per_token": "bits/token",
    "bits_per_byte": "bits/byte",
    "kl_data_model": "KL(data || model)\n(nats/token)",
}


def _stages(found: Findings, measure: str, name: str, title: str) -> Drawing | None:
    parts = []
    for split in found.splits(measure):
        align = compression.align_curves(found.study, measure, split, found.level)
        align = align.assign(perturb_method="", arm="aligned", align_volume=max(found.volumes, default=0), base=np.nan)
        for panel in found.panels:
            own = align[(align.model == panel[0]) & (align.align_method == panel[1])]
            parts.append(own.assign(panel=found.panel_name(panel), stage="align", split=split, measure=measure))
        parts.append(found.curves(measure, split).assign(stage="perturb"))
    parts = [part for part in parts if len(part)]
    if not parts:
        return None
    frame = table.stack(parts)
    splits = found.splits(measure)
    rows = [(n, s) for n in found.panel_names(frame) for s in ("align", "perturb") if (frame.stage == s).any()]
    figure, axes = style.grid(len(rows), len(splits), height=2.1, gap=0.5, left=0.85)
    for line, (panel, stage) in zip(axes, rows, strict=True):
        for axis, split in zip(line, splits, strict=True):
            part = frame[(frame.panel == panel) & (frame.stage == stage) & (frame.split == split)].sort_values(
                "examples"
            )
            if stage == "align":
                axis.plot(part.examples, part["mean"], color=style.INK, marker="o")
                if part.low.notna().any():
                    axis.fill_between(part.examples, part.low, part.high, color=style.INK, alpha=0.12, linewidth=0)
            else:
                _lines(axis, part, "examples", found)
            style.log_axis(
                axis, list(part.examples), f"{'alignment' if stage == 'align' else 'perturbation'} (examples)"
            )
            # One scale per distribution, so that the way out and the way back compare.
            _frame_y(axis, frame[(frame.panel == panel) & (frame.split == split)])
            _title(axis, panel, f"{split} rows")
        line[0].set_ylabel(_RATE_LABELS[measure])
    perturbed = frame[frame.stage == "perturb"]
    _legend(figure, found, perturbed, base=bool(perturbed.base.notna().any()))
    caption = "Held-out rows of each distribution; upper row while aligning, lower row while perturbing. "
    return Drawing(name, title, caption + _band_note(found), figure, frame)


def phase(found: Findings) -> Drawing | None:
    measures = [m for m in rebound.DIRECTIONS if "pretrain" in found.splits(m)]
    score = found.curves("score", "samples")
    if score.empty or not measures:
        return None
    keys = ["panel", *rebound.CONDITION, "examples"]
    parts = []
    for measure in measures:
        kl = found.curves(measure, "pretrain")[[*keys, "mean"]].rename(columns={"mean": "kl"})
        joined = score.rename(columns={"mean": "score"})[[*keys, "score", "base"]].merge(kl, on=keys)
        parts.append(joined.assign(measure=measure))
    frame = table.stack(parts)
    if frame.empty:
        return None
    names = found.panel_names(frame)
    figure, axes = style.grid(len(names), len(measures), height=3.3, titles=len(names) > 1)
    for row, name in zip(axes, names, strict=True):
        for axis, measure in zip(row, measures, strict=True):
            part = frame[(frame.panel == name) & (frame.measure == measure)]
            _paths(axis, part, "kl", "score", found, y_span=1.0)
            _base_mark(axis, part.base.mean())
            axis.set_xlim(-0.04 * part.kl.max(), 1.06 * part.kl.max())
            axis.locator_params(axis="x", nbins=6)
            _score_axis(axis)
            axis.set_xlabel(f"{KL_NAMES[measure]}, pretrain rows (nats/token)")
            _title(axis, name)
    _legend(figure, found, frame, base=False, extra=_path_marks())
    caption = "Paths of the means over seeds, arrows in the direction of more perturbation. The base lies at KL 0."
    return Drawing("phase", "Score against KL to the base model", caption, figure, frame)


def two_distances(found: Findings) -> Drawing | None:
    """KL to the base and to the perturbing distribution on one path: does a model that leaves its alignment pass the base?"""
    keys = ["panel", *rebound.CONDITION, "examples"]
    near, far = found.curves("kl_base_model", "pretrain"), found.curves("kl_data_model", "perturb")
    if near.empty or far.empty:
        return None
    near = near[[*keys, "mean"]].rename(columns={"mean": "kl_base_model"})
    frame = near.merge(far[[*keys, "mean", "base"]].rename(columns={"mean": "kl_data_model"}), on=keys)
    if frame.empty:
        return None
    names = found.panel_names(frame)
    figure, axes = style.grid(len(names), 1, height=3.3, left=0.95, titles=len(names) > 1)
    for axis, name in zip(axes[:, 0], names, strict=True):
        part = frame[frame.panel == name]
        values = np.append(part.kl_data_model, part.base.dropna())
        span = max(float(np.ptp(values)), 1e-9)
        _paths(axis, part, "kl_base_model", "kl_data_model", found, y_span=span)
        _base_mark(axis, part.base.mean())
        axis.set_xlim(-0.04 * part.kl_base_model.max(), 1.06 * part.kl_base_model.max())
        axis.set_ylim(values.min() - 0.06 * span, values.max() + 0.06 * span)
        axis.set_xlabel(f"{KL_NAMES['kl_base_model']}, pretrain rows (nats/token)")
        axis.set_ylabel("KL(perturbing data || model) (nats/token)")
        _title(axis, name)
    _legend(figure, found, frame, base=False, extra=_path_marks())
    caption = (
        "Held-out rows; paths of the means over seeds, arrows in the direction of more perturbation. To the left: nearer to the base; "
        "down: nearer to the distribution of the perturbation. A path that passed the base would touch the cross."
    )
    return Drawing("two_distances", "KL to the base and to the perturbing distribution", caption, figure, frame)


def _paths(axis: Axes, part: Frame, x_name: str, y_name: str, found: Findings, *, y_span: float) -> None:
    """One path per alignment volume and the control, with arrows on steps that are long enough, start and end marked."""
    colours, x_span = style.volume_colours(found.volumes), max(part[x_name].max(), 1e-9)
    for (arm, volume), own in part.groupby(["arm", "align_volume"], sort=True):
        own = own.sort_values("examples")
        colour = style.CONTROL if arm == "control" else colours[int(volume)]
        x, y = own[x_name].to_numpy(), own[y_name].to_numpy()
        axis.plot(x, y, color=colour, marker="s" if arm == "control" else "o", linewidth=1.3)
        for i in range(len(x) - 1):
            if np.hypot((x[i + 1] - x[i]) / x_span, (y[i + 1] - y[i]) / y_span) > 0.05:
                axis.annotate(
                    "",
                    ((x[i] + x[i + 1]) / 2, (y[i] + y[i + 1]) / 2),
                    (x[i], y[i]),
                    arrowprops={"arrowstyle": "->", "color": colour, "lw": 1.3, "shrinkA": 0},
                )
        for end, marker in ((slice(None, 1), "o"), (slice(-1, None), "D")):
            axis.plot(x[end], y[end], color=colour, marker=marker, markersize=8, fillstyle="none", linestyle="none")


def _base_mark(axis: Axes, y: float) -> None:
    look: dict[str, Any] = dict(marker="+", markersize=12, markeredgewidth=1.6, linestyle="none")
    axis.plot([0], [y], color=style.INK, zorder=5, **look)


def _path_marks() -> list[Line2D]:
    ring: dict[str, Any] = dict(color=style.MUTED, markersize=7, fillstyle="none", linestyle="none")
    cross: dict[str, Any] = dict(color=style.INK, marker="+", markersize=9, markeredgewidth=1.6, linestyle="none")
    return [
        Line2D([], [], label="base", **cross),
        Line2D([], [], marker="o", label="start", **ring),
        Line2D([], [], marker="D", label="end", **ring),
    ]


def pretraining(found: Findings) -> Drawing | None:
    rows = found.study.rows
    rows = rows[(rows.stage == "pretrain") & rows.measure.isin(["bits_per_token", "kl_data_model", "score"])]
    if rows.empty or rows.tokens.nunique() < 2:
        return None
    out = []
    # A point is a number of updates: seeds read other rows, so their tokens differ by a little.
    for key, part in rows.groupby(["measure", "split", "unit", "model", "updates"], sort=True):
        estimate = statistics.mean_interval(part.value.to_numpy(), found.level)
        out.append(
            dict(zip(["measure", "split", "unit", "model", "updates"], key, strict=True))
            | {
                "tokens": part.tokens.mean(),
                "mean": estimate.mean,
                "low": estimate.low,
                "high": estimate.high,
                "n": estimate.n,
            }
        )
    frame = table.frame(out, list(out[0]))
    titles = {
        "bits_per_token": "bits/token",
        "kl_data_model": "KL(data || model) (nats/token)",
        "score": SCORE,
    }
    measures = [m for m in titles if (frame.measure == m).any()]
    models = [model.name for model in found.study.models if (frame.model == model.name).any()]
    # Tasks of the experiment on orders have rows and samples of their own.
    tasks = [s for s in dict.fromkeys(frame.split) if s not in (*style.SPLIT_COLOURS, "samples")]
    looks = {split: (colour, "o") for split, colour in style.SPLIT_COLOURS.items()} | style.task_looks(tasks)
    if tasks:
        looks["samples"] = (style.INK, "o")
    figure, axes = style.grid(len(models), len(measures), height=2.4, gap=0.7, titles=len(models) > 1)
    for line, model in zip(axes, models, strict=True):
        for axis, measure in zip(line, measures, strict=True):
            own = frame[(frame.model == model) & (frame.measure == measure)]
            for split, part in own.groupby("split", sort=True):
                part = part.sort_values("tokens")
                colour, marker = looks.get(str(split), (style.INK, "o"))
                axis.plot(part.tokens, part["mean"], color=colour, marker=marker)
                if part.low.notna().any():
                    axis.fill_between(part.tokens, part.low, part.high, color=colour, alpha=0.15, linewidth=0)
            style.log_axis(axis, list(own.tokens), "pre-training (tokens)")
            if measure == "score":
                _score_axis(axis)
            else:
                _frame_y(axis, own, floor=0.0)
            axis.set_ylabel(titles[measure])
            _title(axis, model if len(models) > 1 else "")
    entries = [
        Line2D(
            [],
            [],
            color=colour,
            marker=marker,
            label=f"{split} rows" if split in style.SPLIT_COLOURS else split.replace("-", " "),
        )
        for split, (colour, marker) in looks.items()
        if (frame.split == split).any()
    ]
    style.legend(figure, entries, handlelength=1.5)
    return Drawing("pretraining", "Pre-training", "Held-out rows and samples. " + _band_note(found), figure, frame)


_BY_BASE = (
    ("base", "samples", "score of the base (probability)"),
    ("half_life_examples", "samples", "half-life (examples)"),
    ("rebound", "samples", "rebound (probability)"),
    ("initial_return", "samples", "initial return (1/update)"),
    ("kl_start", "pretrain", "KL(base || aligned) (nats/token)"),
    ("elasticity_ratio", "pretrain", "elasticity ratio |D_b| / |D_a|"),
)


def pretraining_volume(found: Findings) -> Drawing | None:
    """Quantities against what tells the bases apart, one line per alignment volume: tokens of pre-training, parameters where these
    alone differ, the names where nobody said how many tokens. None where the bases have the same of both, as variants of one base
    that was trained with other settings: their values stand in the table.
    """
    models = found.study.models
    frame = found.quantities
    frame = frame[(frame.arm != "control") & frame.quantity.isin({q for q, _, _ in _BY_BASE})]
    frame = frame[frame.split.isin(["samples", "pretrain"]) & (frame.measure != "kl_model_base")]
    models = [model for model in models if (frame.model == model.name).any()]
    along = _along(models)
    if along is None:
        return None
    # By name the bases stand side by side, in the order of the config.
    places = {m.name: float(getattr(m, along) if along else i) for i, m in enumerate(models)}
    frame = frame.assign(
        place=frame.model.map(places),
        pretrain_tokens=frame.model.map({m.name: m.pretrain_tokens for m in models}),
        params=frame.model.map({m.name: m.params for m in models}),
    )
    methods = sorted({(a, p) for a, p in frame[["align_method", "perturb_method"]].itertuples(index=False)})
    colours = style.volume_colours(found.volumes)
    figure, axes = style.grid(len(methods) * 2, 3, height=2.2, gap=0.9, left=0.9, titles=len(methods) > 1)
    for i, (align, perturb) in enumerate(methods):
        own = frame[(frame.align_method == align) & (frame.perturb_method == perturb)]
        for axis, (quantity, split, label) in zip(axes[2 * i : 2 * i + 2].ravel(), _BY_BASE, strict=True):
            part = own[(own.quantity == quantity) & (own.split == split)]
            if quantity == "base":  # the same whatever follows: shown once
                part = part[part.align_volume == part.align_volume.max()]
            for volume, rows in part.groupby("align_volume", sort=True):
                rows = rows.sort_values("place")
                colour = style.INK if quantity == "base" else colours[int(volume)]
                axis.plot(rows.place, rows["mean"], color=colour, marker="o")
                axis.vlines(rows.place, rows.low, rows.high, color=colour, linewidth=1.1)
                open_ = rows[rows["mean"].isna()]
                axis.plot(open_.place, open_.bound, color=colour, marker="^", fillstyle="none", linestyle="none")
            _place_axis(axis, places, along)
            axis.margins(y=0.15)
            axis.set_ylabel(label)
            _title(axis, ", ".join((align or "none", perturb)) if len(methods) > 1 else "")
    bound = Line2D([], [], color=style.MUTED, marker="^", fillstyle="none", linestyle="none")
    bound.set_label("not reached: value above")
    _legend(figure, found, frame.assign(base=np.nan), base=False, extra=[bound])
    caption = f"Dots: mean over seeds; bars: {found.level:.0%} Student t interval over seeds, none for one seed."
    if along == "params":
        tokens = models[0].pretrain_tokens
        caption += f" Every base has {short(float(tokens))} tokens of pre-training." if tokens else ""
    elif not along:
        caption += " Bases in the order of the config, since base.tokens does not say how much is behind each."
    elif len({model.params for model in models}) > 1:
        caption += " The bases differ in parameters too."
    return Drawing("pretraining_volume", _ALONG[along][0], caption, figure, frame)


# what a base is placed by -> title, label of the axis; "": the name
_ALONG = {
    "pretrain_tokens": ("Against the pre-training behind the base", "pre-training (tokens)"),
    "params": ("Against the size of the base", "parameters"),
    "": ("Against the pre-training behind the base", ""),
}


def _along(models: Sequence[Model]) -> str | None:
    """A key of `_ALONG`; None for one base, or bases that differ in neither."""
    tokens, params = {m.pretrain_tokens for m in models}, {m.params for m in models}
    if len(models) < 2:
        return None
    if len(tokens) > 1:
        return "pretrain_tokens" if 0 not in tokens else ""
    if len(params) > 1:
        return "params"
    return "" if tokens == {0} else None


def _place_axis(axis: Axes, places: Mapping[str, float], along: str) -> None:
    """Tokens of pre-training or parameters, or the bases by name."""
    at = list(places.values())
    if along:
        style.log_axis(axis, at, _ALONG[along][1])
        return
    axis.set_xticks(at, [name.rpartition("@")[2].rpartition("/")[2][-16:] for name in places], rotation=20)
    axis.set_xlim(at[0] - 0.4, at[-1] + 0.4)


_DOSE = (
    ("half_life_examples", "samples", "perturbation (examples)"),
    ("rebound", "samples", "way in score (probability)"),
    ("initial_return", "samples", "initial relative return (1/update)"),
    ("elasticity_ratio", "pretrain", "elasticity ratio |D_b| / |D_a|"),
)


def dose(found: Findings) -> Drawing | None:
    """Quantities against the alignment volume: one dot per seed, mean and interval, arrows where censored."""
    wanted = {q for q, _, _ in _DOSE} | {"overshoot"}
    values = found.per_seed[(found.per_seed.arm != "control") & found.per_seed.quantity.isin(wanted)]
    means = found.quantities[(found.quantities.arm != "control") & found.quantities.quantity.isin(wanted)]
    if values.empty:
        return None
    seeds = found.stacked(values).assign(row="seed")
    frame = table.stack([seeds, found.stacked(means).assign(row="mean")])
    frame = frame[(frame.split != "align") & (frame.split != "perturb")].reset_index(drop=True)
    names, colours = found.panel_names(frame), style.volume_colours(found.volumes)
    figure, axes = style.grid(len(names) * 2, 2, height=2.4, gap=0.75)
    for i, name in enumerate(names):
        for axis, (quantity, _, label) in zip(axes[2 * i : 2 * i + 2].ravel(), _DOSE, strict=True):
            part = frame[(frame.panel == name) & (frame.quantity == quantity)]
            _dose_panel(axis, part, colours, twin=quantity == "elasticity_ratio")
            if quantity == "rebound":
                beyond = frame[(frame.panel == name) & (frame.quantity == "overshoot")]
                _dose_panel(axis, beyond, colours, hollow=True)
                axis.axhline(0, color=style.MUTED, linewidth=0.8)
            style.log_axis(axis, found.volumes, "alignment (examples)", margin=0.45)
            axis.margins(y=0.15)
            shown = part[part.row == "seed"]
            marks = table.stack([shown.value, shown.bound]).dropna()
            if quantity in ("half_life_examples", "elasticity_ratio") and len(marks) and (marks > 0).all():
                axis.set_yscale("log", base=2)
                low, high = np.floor(np.log2(marks.min())) - 0.3, np.ceil(np.log2(marks.max())) + 0.3
                axis.set_ylim(2**low, 2**high)
                steps = np.arange(np.ceil(low), np.floor(high) + 1)
                ticks = 2.0 ** steps[:: max(1, int(np.ceil(len(steps) / 6)))]
                axis.set_yticks(ticks, [f"{t:.3g}" if t < 1 else short(float(t)) for t in ticks])
                axis.yaxis.set_minor_locator(style.NullLocator())
            axis.set_ylabel(label)
            titles = {
                "half_life_examples": "half-life",
                "rebound": "rebound (dots) and overshoot (diamonds)",
                "initial_return": "initial return",
                "elasticity_ratio": f"perturbation until KL < {found.eps:g}, per alignment example",
            }
            _title(axis, name, titles[quantity])
            if marks.empty:
                axis.set_yticks([])
                axis.text(
                    0.5,
                    0.5,
                    "no value: see the reasons in the table",
                    transform=axis.transAxes,
                    ha="center",
                    va="center",
                    color=style.MUTED,
                )
    marker = [
        Line2D(
            [],
            [],
            color=style.MUTED,
            marker="_",
            markersize=11,
            markeredgewidth=2,
            linestyle="none",
            label="mean and interval",
        ),
        Line2D([], [], color=style.MUTED, marker="o", alpha=0.5, linestyle="none", label="one seed"),
        Line2D(
            [],
            [],
            color=style.MUTED,
            marker="^",
            fillstyle="none",
            linestyle="none",
            label="not reached: value above",
        ),
    ]
    if (frame.measure == "kl_model_base").any():
        marker.append(Line2D([], [], color=style.MUTED, marker="x", linestyle="none", label="KL(model || base)"))
    height = figure.get_figheight()
    figure.legend(
        handles=marker,
        loc="center left",
        bbox_to_anchor=(0.68 / figure.get_figwidth(), 1 - 0.17 / height),
        ncols=len(marker),
        frameon=False,
        borderaxespad=0,
        handletextpad=0.4,
        columnspacing=1.4,
    )
    caption = f"Dots: seeds; bars: mean with {found.level:.0%} Student t interval; none for one seed."
    return Drawing("dose", "Against the alignment volume", caption, figure, frame)


def _dose_panel(axis: Axes, part: Frame, colours: dict[int, str], *, hollow: bool = False, twin: bool = False) -> None:
    for volume, own in part.groupby("align_volume", sort=True):
        colour = colours[int(volume)]
        for measure, rows in own.groupby("measure", sort=True):
            second = twin and measure == "kl_model_base"
            shift = 1.0 if not twin else (1.1 if second else 1 / 1.1)
            seeds, mean = rows[rows.row == "seed"], rows[rows.row == "mean"]
            x = float(volume) * shift
            axis.plot(
                [x] * len(seeds),
                seeds.value,
                color=colour,
                marker="x" if second else "D" if hollow else "o",
                alpha=0.6,
                linestyle="none",
                fillstyle="none" if hollow else "full",
            )
            axis.plot(
                [x] * len(seeds),
                seeds.bound,
                color=colour,
                marker="^",
                fillstyle="none",
                linestyle="none",
                markersize=6,
            )
            if len(mean) and np.isfinite(mean["mean"].iloc[0]):
                y, low, high = (float(mean[c].iloc[0]) for c in ("mean", "low", "high"))
                axis.plot([x], [y], color=colour, marker="_", markersize=11, markeredgewidth=1.8, linestyle="none")
                if np.isfinite([low, high]).all():
                    axis.plot([x, x], [low, high], color=colour, linewidth=1.3)


ALL: tuple[Callable[[Findings], Drawing | None], ...] = (
    rebound_curve,
    rebound_axes,
    further_scores,
    control_gap,
    divergence,
    phase,
    two_distances,
    dose,
    rates,
    data_divergence,
    pretraining,
    pretraining_volume,
)
