"""How do figures look, on white and on dark paper?

Figures are drawn once with the light colours. For the page every colour becomes a CSS variable, so one SVG
follows the reader's light or dark mode; the standalone files keep the light colours.
"""

import io
import re
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from elastic_jax.report.tables import short

INK, MUTED, GRID, CONTROL = "#1d2329", "#5c6670", "#e2e6ea", "#80868c"
_DARK = {INK: "#e6e9ec", MUTED: "#a3abb3", GRID: "#343a41", CONTROL: "#969da4"}
_NAMES = {INK: "ink", MUTED: "muted", GRID: "grid", CONTROL: "control"}
SPLIT_COLOURS = {"pretrain": "#0072b2", "align": "#d55e00", "perturb": "#009e73"}  # Okabe and Ito
_SPLIT_DARK = {"pretrain": "#56b4e9", "align": "#f28e52", "perturb": "#35c59b"}

RC = {
    "svg.hashsalt": "elastic_jax",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.7,
    "lines.markersize": 3.6,
    "lines.solid_capstyle": "round",
    "path.simplify": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


def volume_colours(volumes: Sequence[int]) -> dict[int, str]:
    """Align volume -> colour; sequential, darker with more alignment, and the same in every figure."""
    return _ramp(volumes, 0.80, 0.05)


def _ramp(volumes: Sequence[int], first: float, last: float) -> dict[int, str]:
    if not volumes:
        return {}
    at = np.linspace(first, last, len(volumes)) if len(volumes) > 1 else [0.35 if first > last else 0.7]
    return {v: to_hex(matplotlib.colormaps["plasma"](float(x))) for v, x in zip(volumes, at, strict=True)}


_TASKS = (
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#a6761d",
    "#7a8f2a",
    "#8a7fd6",
)  # those of Okabe and Ito that splits leave, then others
_MARKERS = ("s", "D", "^", "v", "P", "X")


def task_looks(tasks: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Task -> colour and marker, none of them a split's; beyond six tasks colours come again with other markers."""
    return {
        task: (_TASKS[i % len(_TASKS)], _MARKERS[(i + i // len(_TASKS)) % len(_MARKERS)])
        for i, task in enumerate(tasks)
    }


def css_colours(volumes: Sequence[int]) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """(colour -> variable name, variable -> light value, variable -> dark value)."""
    names, dark = dict(_NAMES), {_NAMES[colour]: value for colour, value in _DARK.items()}
    for split, colour in SPLIT_COLOURS.items():
        names[colour] = f"split-{split}"
        dark[f"split-{split}"] = _SPLIT_DARK[split]
    bright = _ramp(volumes, 0.42, 0.92)
    for i, (volume, colour) in enumerate(volume_colours(volumes).items()):
        names[colour] = f"volume-{i}"
        dark[f"volume-{i}"] = bright[volume]
    return names, {name: colour for colour, name in names.items()}, dark


def svg(figure: Figure) -> str:
    """The figure as a standalone SVG; the same figure gives the same text."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    # Families of the reader's system look native; they are narrower than DejaVu Sans, for which space was
    # reserved.
    return re.sub(r"'?DejaVu Sans'?(, [^;\"]*)?", "system-ui, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif", text)


def inline(text: str, name: str, title: str, colours: dict[str, str]) -> str:
    """A standalone SVG for use in a page: scales with the column, takes its colours, keeps its ids apart."""
    text = text[text.index("<svg") :]
    ids = set(re.findall(r'\bid="([^"]+)"', text))
    used = set(re.findall(r"url\(#([^)]+)\)", text)) | set(re.findall(r'href="#([^"]+)"', text))
    for one in sorted(ids - used):
        text = text.replace(f' id="{one}"', "")
    for one in sorted(ids & used):
        text = text.replace(f'id="{one}"', f'id="{name}-{one}"').replace(f"#{one})", f"#{name}-{one})")
        text = text.replace(f'href="#{one}"', f'href="#{name}-{one}"')
    for colour, variable in colours.items():
        text = text.replace(colour, f"var(--{variable})")
    head = f'<svg role="img" aria-label="{title}" style="width:100%;height:auto"'
    text = re.sub(r'<svg\b([^>]*?)\s(width)="[^"]*"', r"<svg\1", text, count=1)
    text = re.sub(r'<svg\b([^>]*?)\s(height)="[^"]*"', r"<svg\1", text, count=1)
    return text.replace("<svg", head, 1)


def grid(
    rows: int,
    columns: int,
    *,
    width: float = 9.2,
    height: float = 2.6,
    right: float = 0.2,
    gap: float = 0.62,
    left: float = 0.68,
    titles: bool = True,
):
    """A figure of small multiples with margins in inches: room for a legend above, titles and axis labels
    everywhere.

    Returns (figure, axes as an array [rows, columns]).
    """
    top, bottom, between = 0.68 if titles else 0.42, 0.56, 0.78
    total = top + bottom + rows * height + (rows - 1) * between
    figure = Figure(figsize=(width, total))
    axes = figure.subplots(rows, columns, squeeze=False)
    inner = (width - left - right - (columns - 1) * gap) / columns
    figure.subplots_adjust(
        left=left / width,
        right=1 - right / width,
        top=1 - top / total,
        bottom=bottom / total,
        wspace=gap / inner,
        hspace=between / height,
    )
    return figure, axes


def legend(figure: Figure, handles: Sequence[Artist], left: float = 0.68, **spacing: float) -> None:
    """One row of entries above the panels, `left` inches from the edge."""
    figure.legend(
        handles=handles,
        loc="center left",
        bbox_to_anchor=(left / figure.get_figwidth(), 1 - 0.17 / figure.get_figheight()),
        ncols=len(handles),
        frameon=False,
        borderaxespad=0,
        **spacing,  # type: ignore[arg-type]
    )


def _figure(axis: Axes) -> Figure:
    figure = axis.get_figure(root=True)
    assert isinstance(figure, Figure)
    return figure


def log_axis(axis: Axes, recorded: Sequence[float], label: str, *, margin: float = 0.15) -> None:
    """Logarithmic x from the first positive recorded value on, linear before it; ticks at recorded values.

    margin: room at both ends, in doublings of x.
    """
    values = sorted({float(x) for x in recorded if np.isfinite(x)})
    positive = [x for x in values if x > 0]
    first = positive[0] if positive else 1.0

    def forward(x):
        x = np.asarray(x, np.float64)
        return np.where(x < first, x / first, 1 + np.log2(np.maximum(x, first) / first))

    def inverse(u):
        u = np.asarray(u, np.float64)
        return np.where(u < 1, u * first, first * 2.0 ** (u - 1))

    axis.set_xscale("function", functions=(forward, inverse))
    last = positive[-1] if positive else 1.0
    span = float(forward(last)) - (0.0 if 0.0 in values else 1.0)
    room = max(axis.get_position().width * _figure(axis).get_figwidth(), 0.1)
    ticks: list[float] = []
    for x in reversed(values):
        if not ticks or float(forward(ticks[-1]) - forward(x)) * room / max(span, 1e-9) > 0.42:
            ticks.append(x)
    if values and values[0] == 0 and 0.0 not in ticks:
        ticks[-1] = 0.0
    axis.xaxis.set_major_locator(FixedLocator(ticks[::-1]))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xticks(ticks[::-1], [short(x) for x in ticks[::-1]])
    edge = max(0.03 * span, margin)
    low = 0.0 if 0.0 in values else 1.0
    axis.set_xlim(float(inverse(low - edge)), float(inverse(float(forward(last)) + edge)))
    axis.set_xlabel(label)


def end_labels(axis: Axes, labels: Sequence[tuple[float, str, str]]) -> None:
    """Names of lines at the right edge, at the height of their ends, moved apart where they would touch."""
    if not labels:
        return
    low, high = axis.get_ylim()
    inches = axis.get_position().height * _figure(axis).get_figheight()
    room = 0.165 / inches
    wanted = sorted(((y - low) / (high - low), text, colour) for y, text, colour in labels)
    placed = [min(max(y, 0.0), 1.0) for y, _, _ in wanted]
    for _ in range(200):
        pushed = False
        for i in range(1, len(placed)):
            lack = room - (placed[i] - placed[i - 1])
            if lack > 1e-6:
                placed[i - 1] -= lack / 2
                placed[i] += lack / 2
                pushed = True
        if placed[0] < 0:
            placed = [y - placed[0] for y in placed]
        if not pushed:
            break
    for y, (_, text, colour) in zip(placed, wanted, strict=True):
        axis.annotate(
            text,
            (1.0, y),
            xycoords="axes fraction",
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=8.5,
            annotation_clip=False,
        )
