"""How does every task fare in every order?"""

import math

from matplotlib.lines import Line2D

from elastic_jax.analysis import order
from elastic_jax.report import style
from elastic_jax.report.figures import Drawing
from elastic_jax.report.findings import Findings

# place of the task in the sequence, from its end -> (what it is called, colour, marker)
_LOOKS = {
    0: ("not trained", style.CONTROL, "x"),
    1: ("trained last", style.SPLIT_COLOURS["align"], "o"),
    2: ("one task since", style.SPLIT_COLOURS["perturb"], "s"),
    3: ("two tasks since", style.SPLIT_COLOURS["pretrain"], "D"),
}


def task_orders(found: Findings) -> Drawing | None:
    """What every sequence of tasks (lines) changed in bits per token of every task (columns), a row of panels for each base."""
    if not order.has_runs(found.study):
        return None
    frame = order.grid(order.cells(found.study), found.level)
    frame = frame[(frame.task != "") & (frame.measure == "bits_per_token") & (frame.sequence != order.BASE)]
    frame = frame[frame.change.notna()].reset_index(drop=True)
    if frame.empty:
        return None
    models, names = list(dict.fromkeys(frame.model)), order.tasks(found.study)
    sequences = sorted(set(frame.sequence), key=lambda s: (s.count(order.ARROW), _places(s, names)))
    height = {sequence: -i for i, sequence in enumerate(sequences)}
    figure, axes = style.grid(
        len(models), len(names), height=0.21 * len(sequences) + 0.2, left=1.9, gap=0.25, titles=True
    )
    for line, model in zip(axes, models, strict=True):
        for axis, name in zip(line, names, strict=True):
            part = frame[(frame.model == model) & (frame.task == name)]
            for row in part.itertuples():
                since = row.sequence.count(order.ARROW) + 2 - row.place if row.place else 0
                _, colour, marker = _LOOKS[since]
                y = height[row.sequence]
                axis.plot([row.change], [y], marker=marker, color=colour, markersize=5, linestyle="none", zorder=4)
                if not math.isnan(row.change_low):
                    axis.plot([row.change_low, row.change_high], [y, y], color=colour, linewidth=1.1, zorder=3)
            if len(part):  # intervals of few seeds are cut where they would flatten the differences
                low, high = min(0.0, part.change.min()), max(0.0, part.change.max())
                room = 0.25 * max(high - low, 1e-3)
                axis.set_xlim(low - room, high + room)
            axis.axvline(0, color=style.INK, linestyle=(0, (5, 3)), linewidth=1.1, zorder=1)
            first = axis is line[0]
            axis.set_yticks([height[s] for s in sequences], sequences if first else [])
            axis.set_ylim(-len(sequences) + 0.4, 0.6)
            axis.set_xlabel("bits/token − base")
            axis.set_title(f"on {name}" + (f", {model}" if len(models) > 1 else ""), loc="left", color=style.INK)
    handles = [Line2D([], [], color=c, marker=m, linestyle="none", label=label) for label, c, m in _LOOKS.values()]
    style.legend(figure, handles, left=0.1)
    caption = (
        "Held-out bits per token of each task after each sequence of tasks, minus those of the base with the same seed (dashed line); less "
        f"is better. Bars: {found.level:.0%} Student t interval over seeds, cut at the frame; none for one seed."
    )
    return Drawing("task_orders", "Every task after every order", caption, figure, frame)


def _places(sequence: str, names: list[str]) -> list[int]:
    return [names.index(task) for task in sequence.split(order.ARROW) if task]
