"""What did the paper print where this study measured?

A config names the item that it answers (`published`), and the report draws both beside one another: ours with its seeds, the paper's as
read off its pictures, in every version that differs (`elastic_jax.published`). The scores have other scorers and other units, so that
shapes can be compared and levels cannot.
"""

import re
from collections.abc import Iterable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from elastic_jax import published
from elastic_jax.analysis import rebound, resistance, table
from elastic_jax.analysis.table import Frame
from elastic_jax.report import figures, style
from elastic_jax.report.figures import Drawing
from elastic_jax.report.findings import Findings
from elastic_jax.report.resistance import arrows, line_name

OURS, THEIRS = "this study", "paper"  # column `source` of the tables behind the figures
FIGURES = ("figure 4", "figure 5", "figure 6")
_UNITS = {"IMDb": "P(positive), IMDb", "BeaverTails": "average safe score"}
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito


def item_of(found: Findings) -> str:
    """The published item that the study's config names; "" for none."""
    config = found.study.info.get("config") or {}
    configs = config.get("variants") if "data" not in config else None
    return str((next(iter(configs.values())) if configs else config).get("published") or "")


def published_curves(found: Findings) -> Drawing | None:
    """Figures 4, 5 and 6: score against perturbation."""
    item = item_of(found)
    ours = found.curves("score", "samples")
    if item not in FIGURES or ours.empty:
        return None
    return _grid(found, ours) if item == "figure 4" else _means(found, ours, item)


def _grid(found: Findings, ours: Frame) -> Drawing:
    """One line per alignment volume, as Figure 4."""
    theirs = _both_versions("figure 4")
    panels = [(m, d) for d in _UNITS for m in _by_number(theirs.model)]
    figure, axes = style.grid(3, 2, height=2.6, right=0.75)
    left = ours[(ours.panel == found.panel_names(ours)[0])]
    labels = figures._lines(axes[0, 0], left, "examples", found)
    style.log_axis(axes[0, 0], list(left.examples), "perturbation (examples)")
    figures._score_axis(axes[0, 0])
    axes[0, 0].set_title("this study", loc="left", color=style.INK)
    style.end_labels(axes[0, 0], labels if len(labels) <= 6 else [])
    axes[0, 1].axis("off")
    may = Line2D([], [], color=style.MUTED, marker="o", **_MAY, label="May 2024, where it differs")
    acl = Line2D([], [], color=style.MUTED, marker="o", label="ACL version")
    _legend(axes[0, 1], [acl, may, _base()])
    for axis, (model, data) in zip(axes[1:].T.ravel(), panels, strict=True):
        own = theirs[(theirs.model == model) & (theirs.data == data)]
        volumes = sorted((v for v in set(own.align_volume) if v != _PRETRAINED), key=int)
        for colour, volume in zip(_COLOURS, volumes, strict=False):
            part = own[own.align_volume == volume]
            acl = part[part.versions.str.contains("ACL")]
            _marked(axis, acl, colour, "-", volume)
            may = part[part.versions.str.contains("2024-05")].sort_values("examples")
            if not may.versions.equals(acl.sort_values("examples").versions):
                axis.plot(may.examples, may["mean"], color=colour, marker="o", zorder=3, **_MAY)
        _published_axis(axis, own, f"{model}, {data} (paper)", data)
    caption = (
        "Left above: mean over seeds with bands as before. Below: Ji et al., Figure 4, read off the pictures (error 0.02 on IMDb, 0.15 on "
        "safety; hollow: covered by another marker), one line per alignment volume. Rings: the version of May 2024 where it differs; on "
        "Gemma-2B its curves of 2,000 and 10,000 safe examples lie where the ACL version has 10,000 and 2,000. The paper gives one seed "
        "and no intervals. Its values at 100 and 200 examples are equal in every curve."
    )
    data = _stacked(left.assign(align_volume=left.align_volume.astype(int).astype(str)), theirs)
    return Drawing("published_curves", "Beside Figure 4 of the paper", caption, figure, data)


def _means(found: Findings, ours: Frame, item: str) -> Drawing:
    """Mean over the alignment volumes with its standard deviation over them, one line per model, as Figures 5 and 6."""
    theirs = _both_versions(item)
    aligned = ours[ours.arm != "control"]
    volumes = aligned.groupby(["model", "examples"])["mean"]
    mean = volumes.agg(["mean", "std", "count"]).reset_index()
    mean = mean.assign(base=mean.model.map(ours.groupby("model").base.mean()), align_volume="mean")
    figure, axes = style.grid(1, 3, height=3.0, right=0.3, gap=0.75)
    names = [m.name for m in found.study.models if (mean.model == m.name).any()]
    handles = []
    for i, name in enumerate(names):
        part, colour = mean[mean.model == name], _COLOURS[i % len(_COLOURS)]
        axes[0, 0].plot(part.examples, part["mean"], color=colour, marker="o")
        spread = part["std"].fillna(0)
        axes[0, 0].fill_between(
            part.examples, part["mean"] - spread, part["mean"] + spread, color=colour, alpha=0.12, linewidth=0
        )
        axes[0, 0].axhline(part.base.iloc[0], color=colour, linestyle=(0, (5, 3)), linewidth=0.9)
        handles.append(Line2D([], [], color=colour, marker="o", label=name))
    style.log_axis(axes[0, 0], list(mean.examples), "perturbation (examples)")
    figures._score_axis(axes[0, 0])
    axes[0, 0].set_title("this study", loc="left", color=style.INK)
    axes[0, 0].legend(handles=handles, frameon=False, loc="best")
    single = theirs[~theirs.align_volume.isin(["mean", _PRETRAINED])]
    for axis, data in zip(axes[0, 1:], _UNITS, strict=True):
        own = theirs[theirs.data == data]
        for i, model in enumerate(_by_number(own.model)):
            here = own[own.model == model]
            for _, part in here[here.index.isin(single.index)].groupby("align_volume"):
                part = part.sort_values("examples")
                axis.plot(part.examples, part["mean"], color=_COLOURS[i], **_LIGHT)
            _marked(axis, here[here.align_volume == "mean"], _COLOURS[i], "-", model)
        _published_axis(axis, own, f"{data} (paper)", data)
        axis.legend(frameon=False, loc="lower left", fontsize=7)
    light = " Light: single alignment volumes of the version of May 2024." if len(single) else ""
    caption = (
        f"Mean over the alignment volumes; band: standard deviation over them, as in the paper (of ours: of the means over seeds). Dashed: "
        f"base. Right: Ji et al., {item.capitalize()}, ACL version, read off the pictures (hollow: covered by another marker).{light}"
    )
    data = _stacked(mean, theirs)
    return Drawing("published_curves", f"Beside {item.capitalize()} of the paper", caption, figure, data)


_PRETRAINED = "0"  # the alignment volume of the paper's pre-trained models
# The version of May 2024 is drawn over the ACL version: rings, through which the markers below stay visible.
_MAY: dict[str, Any] = {"linestyle": ":", "linewidth": 1.6, "markersize": 7.5, "fillstyle": "none"}
_LIGHT: dict[str, Any] = {"linestyle": "--", "linewidth": 0.8, "alpha": 0.45, "marker": ".", "markersize": 3.0}


def _both_versions(item: str) -> Frame:
    """The rows of both versions, each once, with `versions` saying which have it; perturbation in `examples` and the score in
    `mean`, as in our curves."""
    frames = [published.rebound(version) for version in published.VERSIONS]
    rows = table.stack(frames).drop_duplicates()
    rows = rows.rename(columns={"version": "versions", "perturb_volume": "examples", "score": "mean"})
    return rows[rows["item"] == item].reset_index(drop=True)


def _stacked(ours: Frame, theirs: Frame) -> Frame:
    """Both in one table, as drawn: column `source` says whose."""
    frame = table.stack([ours.assign(source=OURS), theirs.assign(source=THEIRS)])
    return frame[["source", *(name for name in frame.columns if name != "source")]]


def _by_number(names: Iterable[str]) -> list[str]:
    """Each once, numbers in them by size: 2T before 2.5T."""

    def key(name: str) -> list[tuple[float, str]]:
        parts = re.split(r"(\d+(?:\.\d+)?)", name)
        return [(float(part), "") if i % 2 else (-1.0, part) for i, part in enumerate(parts)]

    return sorted(set(names), key=key)


def _marked(axis: Axes, part: Frame, colour: str, line: str, label: str) -> None:
    part = part.sort_values("examples")
    axis.plot(part.examples, part["mean"], color=colour, linestyle=line, linewidth=1.3, label=label or None)
    for covered, fill in (("no", colour), ("yes", "none")):
        own = part[part.covered == covered]
        axis.plot(own.examples, own["mean"], color=colour, marker="o", markerfacecolor=fill, linestyle="none")


def _published_axis(axis: Axes, own: Frame, title: str, data: str) -> None:
    for version, line in (("2024-05", ":"), ("ACL", (0, (5, 3)))):
        base = own[(own.align_volume == _PRETRAINED) & own.versions.str.contains(version)]["mean"]
        for value in sorted(set(base)):
            axis.axhline(value, color=style.INK, linestyle=line, linewidth=0.9, zorder=1)
    style.log_axis(axis, list(own.examples), "perturbation (examples)")
    axis.set_ylabel(_UNITS[data])
    axis.set_title(title, loc="left", color=style.INK)


def _base() -> Line2D:
    return Line2D([], [], color=style.INK, linestyle=(0, (5, 3)), linewidth=0.9, label="base (dotted: May 2024)")


def _legend(axis: Axes, fixed: list[Line2D]) -> None:
    volumes = ("1000", "2000", "5000", "10000")
    lines = [
        Line2D([], [], color=c, marker="o", label=f"{int(v):,} (paper)")
        for v, c in zip(volumes, _COLOURS, strict=False)
    ]
    axis.legend(handles=[*lines, *fixed], loc="center left", frameon=False, handlelength=3.2)


def published_kl(found: Findings) -> Drawing | None:
    """Table 3: KL after alignment, and perturbation examples until the KL to the base is below eps."""
    if item_of(found) != "table 3":
        return None
    values = found.quantities
    values = values[
        (values.measure.isin(rebound.DIRECTIONS)) & (values.split == "pretrain") & (values.arm != "control")
    ]
    if values.empty:
        return None
    shown = {"kl_start": "KL after alignment (nats)", "elasticity_examples": f"examples until KL < {found.eps:g}"}
    values = values[values.quantity.isin(list(shown))]
    printed = published.kl_rebound().rename(columns={"kl": "kl_start", "examples_to_eps": "elasticity_examples"})
    keep = [name for name in printed.columns if name not in shown]
    theirs = printed.melt(keep, list(shown), "quantity", "mean")
    each = rebound.tokens_of_a_text(found.study)
    figure, axes = style.grid(1, 2, height=3.0, right=0.3, gap=0.9 if each is None else 1.5)
    places = sorted({*theirs.align_volume, *values.align_volume})
    for axis, (quantity, label) in zip(axes[0], shown.items(), strict=True):
        for measure, line in zip(rebound.DIRECTIONS, ("-", "--"), strict=True):
            part = values[(values.quantity == quantity) & (values.measure == measure)].sort_values("align_volume")
            axis.plot(
                part.align_volume,
                part["mean"],
                color=_COLOURS[0],
                linestyle=line,
                marker="o",
                label=f"ours, {figures.KL_NAMES[measure]}",
            )
            axis.vlines(part.align_volume, part.low, part.high, color=_COLOURS[0], linewidth=1)
            late = part[part["mean"].isna() & part.bound.notna()]
            axis.plot(late.align_volume, late.bound, color=_COLOURS[0], marker="^", fillstyle="none", linestyle="none")
        own = theirs[theirs.quantity == quantity]
        for colour, model in zip(_COLOURS[1:], _by_number(own.model), strict=False):
            part = own[own.model == model]
            axis.plot(part.align_volume, part["mean"], color=colour, marker="s", label=f"{model} (paper)")
        style.log_axis(axis, places, "alignment (examples)")
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
    axes[0, 0].legend(frameon=False, fontsize=7.5, handlelength=4)
    if each is not None:
        right = axes[0, 0].secondary_yaxis("right", functions=(lambda kl: kl * each, lambda kl: kl / each))
        right.set_ylabel("nats per text (ours)")
    length = f"; a text has {each:.1f} tokens, and the right axis counts them together" if each is not None else ""
    caption = (
        f"Ours: nats per token on held-out pre-training text{length}, mean over seeds with {found.level:.0%} intervals; triangles: not reached within "
        "the record, the value is above. Paper: Table 3, whose direction, prompts and unit (token or sequence) are not said."
    )
    return Drawing("published_kl", "Beside Table 3 of the paper", caption, figure, _stacked(values, theirs))


_MARKS = {(1, 2): "o", (2, 3): "s", (1, 3): "D"}  # the pairs of the paper


def published_resistance(found: Findings) -> Drawing | None:
    """Table 1: forward - inverse, ours with intervals and with what belongs to the texts taken off, theirs as printed."""
    if item_of(found) != "table 1" or not resistance.has_runs(found.study):
        return None
    compared = resistance.compare(resistance.per_seed(found.study), found.level)
    ours = compared[(compared.quantity == resistance.MAIN[0]) & (compared.line != resistance.OTHER)]
    colours = {"raw": _COLOURS[1], "above_entropy": _COLOURS[0]}
    ours = ours[ours.version.isin(list(colours))]
    theirs = published.resistance()
    theirs = theirs.assign(difference=theirs.forward - theirs.inverse)
    lines = list(ours.groupby(["model", "line"], sort=True))
    printed = list(theirs.groupby(["data", "model"], sort=False))
    figure, axes = style.grid(1, 2, height=0.32 * max(len(lines), len(printed)) + 0.3, left=1.6, right=0.2, gap=1.9)
    for place, (_, part) in enumerate(lines):
        for (version, colour), shift in zip(colours.items(), (0.14, -0.14), strict=True):
            _differences(axes[0, 0], part[part.version == version], shift - place, colour)
    for place, (_, part) in enumerate(printed):
        for row in part.itertuples():
            mark = _MARKS[row.earlier, row.later]
            axes[0, 1].plot([row.difference], [-place], color=_COLOURS[1], marker=mark, fillstyle="none")
    several = ours.model.nunique() > 1
    names = [f"{model}, {line_name(line)}" if several else line_name(line) for (model, line), _ in lines]
    for axis, labels, title in (
        (axes[0, 0], names, "this study"),
        (axes[0, 1], [f"{data}, {model}" for (data, model), _ in printed], "Table 1 (paper), raw losses"),
    ):
        axis.axvline(0, color=style.INK, linewidth=0.9, linestyle=(0, (5, 3)))
        axis.set_yticks([-i for i in range(len(labels))], labels)
        axis.set_ylim(0.4 - max(len(labels), 2), 0.6)
        axis.set_xlabel("forward − inverse (nats/token)")
        axis.set_title(title, loc="left", color=style.INK)
        axis.margins(x=0.12)
    handles = [Line2D([], [], color=_COLOURS[1], label="raw"), Line2D([], [], color=_COLOURS[0], label="minus entropy")]
    for pair, mark in _MARKS.items():
        label = arrows("123", *pair)
        handles.append(Line2D([], [], color=style.MUTED, marker=mark, fillstyle="none", linestyle="none", label=label))
    place = (0.02, 1 - 0.17 / figure.get_figheight())
    figure.legend(handles=handles, loc="center left", bbox_to_anchor=place, ncols=5, frameon=False, borderaxespad=0)
    caption = (
        f"Above zero, inverse is easier, as resistance says. Left: mean of all pairs with its {found.level:.0%} interval over seeds; "
        "hollow: single pairs. Right: Ji et al., Table 1, all 27 printed pairs: one seed each, no intervals, raw losses on texts that "
        "differ in entropy. Signs compare and sizes do not: models and data are others."
    )
    return Drawing("published_resistance", "Beside Table 1 of the paper", caption, figure, _stacked(ours, theirs))


def _differences(axis: Axes, part: Frame, y: float, colour: str) -> None:
    """The mean over pairs with its interval, and each pair; a line of two slices has one pair and no mean."""
    for row in part.to_dict("records"):
        if not row["earlier"] or len(part) == 1:
            axis.plot([row["difference_low"], row["difference_high"]], [y, y], color=colour, linewidth=1.6)
            axis.plot([row["difference"]], [y], color=colour, marker="|", markersize=9, markeredgewidth=2)
        else:
            mark = _MARKS.get((int(row["earlier"]), int(row["later"])), "o")
            axis.plot([row["difference"]], [y], color=colour, marker=mark, fillstyle="none", alpha=0.7)
