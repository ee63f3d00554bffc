"""How are the models of the experiment on orders shown: tasks one after the other, each measured on all of them?"""

import math
from collections.abc import Mapping
from typing import Any

from elastic_jax.analysis import order
from elastic_jax.analysis.table import Frame
from elastic_jax.report.findings import Findings
from elastic_jax.report.tables import NONE, number, p_value

EFFECTS = {
    "recency": "last − earlier: what the last task is ahead by",
    "beyond_last": "second − first, with the same task last: what the order matters beyond the last",
    "lost": "alone − first of three: what is lost of the first",
    "kept": "first of three − base: what is left of the first",
    "retention": "the share that is left of the first",
    "transfer": "last of three − alone: what came before helps by",
}
_UNITS = {"rate": "bits/token", "score": "score"}


def frames(found: Findings) -> dict[str, Frame]:
    """The tables behind the section, by the name of their file; {} without the experiment."""
    if not order.has_runs(found.study):
        return {}
    cells = order.cells(found.study)
    values = order.per_seed(found.study, cells)
    return {
        "order": order.grid(cells, found.level),
        "order_effects": order.compare(values, found.level),
        "order_per_seed": values,
        "order_cells": cells,
    }


def section(tables: Mapping[str, Frame], found: Findings) -> dict[str, Any]:
    """What the page shows of `frames`; {} without the experiment.

    Returns:
      `tasks`; `volume`, examples of each; `rows`, one for each model and sequence, the base first; `has_scores`; `effects` over the
      tasks, and `more`, of each task.
    """
    if not tables:
        return {}
    names = order.tasks(found.study)
    grid, effects = tables["order"], tables["order_effects"]
    several = grid.model.nunique() > 1
    rows = []
    for (model, sequence), part in grid.groupby(["model", "sequence"], sort=False):
        cells = {(row["task"], row["measure"]): row for row in part.to_dict("records")}
        rows.append(
            dict(model=model if several else "", sequence=sequence or "base", depth=len(_split(sequence)))
            | dict(tasks=[_task_cell(cells, name) for name in names])
            | dict(scores=[_interval(cells.get((name, "score"))) for name in names])
            | dict(pretrain=_interval(cells.get(("", "bits_per_token"))))
            | dict(kl=_interval(cells.get(("", "kl_base_model"))))
        )
    place = {model: i for i, model in enumerate(dict.fromkeys(row["model"] for row in rows))}
    rows.sort(key=lambda row: (place[row["model"]], row["depth"]))
    shown = [
        dict(model=row["model"] if several else "", task=row["task"] or "all", what=EFFECTS[row["effect"]])
        | dict(quantity="" if row["effect"] == "retention" else _UNITS[row["quantity"]], of=row["quantity"])
        | dict(mean=_interval(row), n=row["n"], p=p_value(row), verdict=row["verdict"], reason=row["reason"])
        for row in effects.to_dict("records")
    ]
    volumes = {int(run["examples"]) for run in found.study.runs if run.get("sequence")}
    return dict(
        tasks=names,
        volume=" and ".join(f"{volume:,}" for volume in sorted(volumes)),
        rows=rows,
        has_scores=bool((grid.measure == "score").any()),
        effects=[row for row in shown if row["task"] == "all"],
        more=[row for row in shown if row["task"] != "all"],
    )


def lines(found: Findings) -> list[str]:
    """The effects over all tasks in bits per token, a line each, for a terminal; [] without the experiment."""
    return [
        f"Order{', ' + row['model'] if row['model'] else ''}: {row['what']}, {row['mean']}"
        + (f" {row['quantity']} ({row['verdict']})" if row["quantity"] else "")
        for row in section(frames(found), found).get("effects", [])
        if row["of"] == "rate"
    ]


def _split(sequence: str) -> list[str]:
    return [task for task in sequence.split(order.ARROW) if task]


def _task_cell(cells: Mapping[tuple[str, str], Mapping[str, Any]], name: str) -> dict[str, Any]:
    row = cells.get((name, "bits_per_token"))
    return dict(text=_interval(row), place=row["place"] if row else 0)


def _interval(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return NONE
    mean, low, high = (row[name] for name in ("mean", "low", "high"))
    text = _three(mean)
    return text if math.isnan(low) else f"{text} [{_three(low)}, {_three(high)}]"


def _three(x: float) -> str:
    return NONE if math.isnan(x) else number(x, "probability") if abs(x) < 1e3 else number(x)
