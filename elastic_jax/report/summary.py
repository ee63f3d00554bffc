"""Which few numbers belong in a terminal and in a README?"""

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from elastic_jax.analysis import rebound, table
from elastic_jax.analysis.rescored import by_scorer
from elastic_jax.report import noise, order, resistance, tables
from elastic_jax.report.findings import Findings

_SHOWN = (
    "start",
    "final",
    "half_life_examples",
    "half_life_updates",
    "crossing_examples",
    "overshoot",
    "elasticity_ratio",
)


def summary(
    measures_path: epath.PathLike,
    study: str | None = None,
    *,
    markdown: bool = False,
    eps: float = rebound.EPS,
    score: str = "",
) -> str:
    """The key numbers of a study as a text table, or as a Markdown one.

    Args:
      measures_path: the `measures.parquet` of a workdir.
      study: which one, when the table holds several.
      markdown: pipes instead of aligned columns.
      eps: neighbourhood of the base for the elasticity ratio, KL(base || model) in nats per token.
      score: a further scorer, to be taken for the score; "": the data's own.

    Raises:
      UserError: the file is missing or not ours, or the study is not in it; or it has no such scorer.
    """
    selected = table.select(table.load(measures_path), study)
    found = Findings(by_scorer(selected, score) if score else selected, eps=eps)
    return text(found, markdown=markdown)


def text(found: Findings, *, markdown: bool = False) -> str:
    """As `summary`, for findings already at hand."""
    picked = [
        (i, name, unit)
        for i, (quantity, measure, name, unit) in enumerate(tables.KEY_COLUMNS)
        if quantity in _SHOWN and measure != "kl_model_base"
    ]
    records = tables.key_numbers(found)
    head = ["alignment examples", *(f"{name} ({unit})" for _, name, unit in picked), "seeds"]
    panels = len({record["panel"] for record in records}) > 1
    rows = []
    for record in records:
        label = record["label"] + (f" ({record['panel']})" if panels else "")
        rows.append([label, *(str(record["cells"][i]) for i, _, _ in picked), str(record["n"])])
    models = tables.models(found, records)
    sizes = ", ".join(f"{m['name']} ({_size(m)})" for m in models)
    seeds = "1 seed" if len(found.seeds) == 1 else f"{len(found.seeds)} seeds"
    title = f"Study {found.study.name}: {sizes or 'no model'}; {seeds}; "
    several = len(models) > 1
    bases = ", ".join(f"{m['base']} ({m['name']})" for m in models) if several else tables.base_score(records)
    title += f"base score {bases}"
    notes = [
        f"[low, high]: {found.level:.0%} Student t interval over seeds. > x: not reached within the record "
        f"by some seed. Elasticity ratio: |D_b|/|D_a| until KL(base‖model) < {found.eps:g} nats/token."
    ]
    notes += resistance.lines(found)
    notes += noise.lines(found)
    notes += order.lines(found)
    notes += found.missing()
    body = _markdown(head, rows) if markdown else _aligned(head, rows)
    lead = f"**{title}**" if markdown else title
    foot = "\n".join(f"- {note}" for note in notes) if markdown else "\n".join(notes)
    return f"{lead}\n\n{body}\n\n{foot}\n" if rows else f"{lead}\n\n{foot}\n"


def _size(model: Mapping[str, Any]) -> str:
    behind = f", {model['tokens']} tokens of pre-training" if model["tokens"] else ""
    return f"{model['params']} parameters{behind}"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    first, *rest = [list(line) for line in zip(head, *rows, strict=True)]
    lines = [first, [":---", *["---:"] * len(rows)], *rest]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _width(cell: str) -> int:
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in cell)


def _aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Conditions as columns: a terminal has room for few conditions and many quantities."""
    lines = [list(line) for line in zip(head, *rows, strict=True)]
    widths = [max(_width(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell + " " * (width - _width(cell)) if i == 0 else " " * (width - _width(cell)) + cell
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
