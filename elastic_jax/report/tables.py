"""How are numbers with their uncertainty written?"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

from elastic_jax.analysis import compressors, laws, rebound, statistics
from elastic_jax.analysis.table import Frame
from elastic_jax.report.findings import Findings

NONE = "–"


@dataclasses.dataclass(frozen=True)
class Cell:
    """A number as text, its interval as text, how many seeds, and why something is missing."""

    value: str
    interval: str = ""
    n: int = 0
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.value} {self.interval}".strip()


def number(x: float, unit: str = "") -> str:
    """Three significant digits; probabilities with three decimals; whole thousands without an exponent.

    >>> number(0.51234, "probability"), number(1234.5), number(0.00012345), number(float("nan"))
    ('0.512', '1,230', '0.000123', '–')
    """
    if x is None or math.isnan(x):
        return NONE
    if math.isinf(x):
        return "∞" if x > 0 else "−∞"
    if unit == "probability":
        text = f"{x:.3f}"
    elif x == 0:
        text = "0"
    elif abs(x) >= 1e6 or abs(x) < 1e-4:
        text = f"{x:.2e}"
    else:
        rounded = float(f"{x:.3g}")
        digits = max(0, 2 - math.floor(math.log10(abs(rounded))))
        text = f"{rounded:,.{digits}f}"
    return text.replace("-", "−") if text.strip("-0.") != "" else text.replace("-", "")


def cell(row: Mapping[str, Any] | None) -> Cell:
    """An aggregated quantity: mean and interval, or what is known instead of a mean."""
    if row is None:
        return Cell(NONE, reason="not measured")
    unit, n, reason = str(row["unit"]), int(row["n"]), str(row["reason"])
    if math.isnan(row["mean"]):
        if row.get("censored", 0):
            shown = f"median {number(row['median'], unit)}" if not math.isnan(row["median"]) else ""
            return Cell(f"> {number(row['bound'], unit)}", shown, n, reason)
        return Cell(NONE, "", n, reason)
    if math.isnan(row["low"]):
        return Cell(number(row["mean"], unit), "", n, reason)
    return Cell(number(row["mean"], unit), f"[{number(row['low'], unit)}, {number(row['high'], unit)}]", n, reason)


def interval(row: Mapping[str, Any], name: str, form: Callable[[float], str] = number) -> str:
    """An estimate in columns of `statistics.columns`, as text: the mean, and the interval where there is one."""
    mean, low, high = (row.get(column, math.nan) for column in statistics.columns([name]))
    return form(mean) if math.isnan(low) else f"{form(mean)} [{form(low)}, {form(high)}]"


def p_value(row: Mapping[str, Any]) -> str:
    """That of a sign-flip test, with the least that so many seeds can give."""
    return NONE if math.isnan(row["p"]) else f"{row['p']:.3g} (≥ {row['p_least']:.3g})"


def short(x: float) -> str:
    """A count in few characters: 0, 512, 4,096, 65.5k, 2M, 300B, 2.5T."""
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if x >= limit:
            return f"{x / limit:.3g}{unit}"
    if x >= 1e4:
        return f"{x / 1e3:.3g}k"
    return f"{x:,.0f}" if x >= 100 or float(x).is_integer() else f"{x:.3g}"


KEY_COLUMNS: tuple[tuple[str, str, str, str], ...] = (
    ("start", "score", "score before", "probability"),
    ("final", "score", "score at the end", "probability"),
    ("half_life_examples", "score", "half-life", "examples"),
    ("half_life_updates", "score", "half-life", "updates"),
    ("crossing_examples", "score", "base's level crossed", "examples"),
    ("rebound", "score", "rebound", "probability"),
    ("overshoot", "score", "overshoot", "probability"),
    ("minus_control", "score", "minus control at the end", "probability"),
    ("kl_start", "kl_base_model", "KL(base‖model) before", "nats/token"),
    ("kl_start_per_text", "kl_base_model", "KL(base‖model) before", "nats/text"),
    ("kl_minimum", "kl_base_model", "lowest KL(base‖model)", "nats/token"),
    ("kl_minimum_per_text", "kl_base_model", "lowest KL(base‖model)", "nats/text"),
    ("elasticity_ratio", "kl_base_model", "elasticity ratio, KL(base‖model)", "ratio"),
    ("elasticity_ratio", "kl_model_base", "elasticity ratio, KL(model‖base)", "ratio"),
)


def key_numbers(found: Findings) -> list[dict[str, Any]]:
    """One record per condition: name, volume, cells in the order of KEY_COLUMNS, number of seeds."""
    frame = found.stacked(found.quantities)
    frame = frame[(frame.split == "samples") | (frame.split == "pretrain")]
    out = []
    for condition in found.conditions().to_dict("records"):
        own = frame
        for name in condition:
            own = own[own[name] == condition[name]]
        cells = []
        for quantity, measure, _, _ in KEY_COLUMNS:
            row = own[(own.quantity == quantity) & (own.measure == measure)]
            cells.append(cell(row.iloc[0].to_dict()) if len(row) else Cell(NONE))
        seeds = int(own[own.quantity.isin(["start", "kl_start"])].n.max()) if len(own) else 0
        control = condition["arm"] == "control"
        label = "control" if control else short(float(condition["align_volume"]))
        out.append(
            {
                "panel": condition["panel"],
                "model": condition["model"],
                "label": label,
                "cells": cells,
                "n": seeds,
                "control": control,
                "volume": int(condition["align_volume"]),
                "base": _base(own),
            }
        )
    return out


def _base(own: Frame) -> Cell:
    row = own[own.quantity == "base"]
    return cell(row.iloc[0].to_dict()) if len(row) else Cell(NONE)


def base_score(records: list[dict[str, Any]]) -> Cell:
    """The base's score over the seeds of the condition that has most of them."""
    known = [record["base"] for record in records if record["base"].value != NONE]
    return max(known, key=lambda cell: cell.n, default=Cell(NONE))


def models(found: Findings, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every base of the study: name, parameters, tokens of pre-training ("" where not known) and its score."""
    return [
        {
            "name": model.name,
            "params": f"{model.params:,}",
            "tokens": short(float(model.pretrain_tokens)) if model.pretrain_tokens else "",
            "base": base_score([record for record in records if record["model"] == model.name]),
        }
        for model in found.study.models
    ]


def quantity_rows(found: Findings) -> list[dict[str, Any]]:
    """Every aggregated quantity of every condition."""
    frame = found.stacked(found.quantities)
    return [
        {
            "panel": row["panel"],
            "condition": "control" if row["arm"] == "control" else short(float(row["align_volume"])),
            "quantity": row["quantity"].replace("_", " "),
            "measure": row["measure"],
            "split": row["split"],
            "unit": row["unit"],
            "cell": cell(row),
            "median": number(row["median"], row["unit"]),
        }
        for row in frame.to_dict("records")
    ]


def change_rows(found: Findings) -> list[dict[str, Any]]:
    """Change of every rate along align and perturb runs."""
    return [
        {
            "stage": row["stage"],
            "panel": ", ".join(
                dict.fromkeys(p for p in (row["model"], row["align_method"], row["perturb_method"]) if p)
            ),
            "condition": "control" if row["arm"] == "control" else short(float(row["align_volume"])),
            "measure": row["measure"],
            "split": row["split"],
            "unit": row["unit"],
            "cell": cell(row),
        }
        for row in found.changes.to_dict("records")
    ]


def decay_rows(found: Findings) -> list[dict[str, Any]]:
    """One rate against two, for every condition."""

    def time(row: Mapping[str, Any], name: str) -> Cell:
        low, high = row[f"{name}_low"], row[f"{name}_high"]
        interval = "" if math.isnan(row[name]) else f"[{number(low)}, {number(high)}]"
        return Cell(number(row[name]), interval, int(row["n"]), row["reason"])

    return [
        {
            "panel": row["panel"],
            "condition": "control" if row["arm"] == "control" else short(float(row["align_volume"])),
            "one": time(row, "one"),
            "fast": time(row, "fast"),
            "slow": time(row, "slow"),
            "share": number(row["share_fast"]),
            "r2": f"{number(row['r2_one'])}, {number(row['r2_two'])}",
            "evidence": number(row["evidence"]),
            "verdict": row["verdict"],
            "reason": row["reason"],
        }
        for row in found.stacked(found.decays).to_dict("records")
    ]


def law_rows(found: Findings) -> list[dict[str, Any]]:
    """Power laws, each with how many of its places were predicted by the others."""
    said = found.predictions
    rows = []
    for row in found.power_laws.to_dict("records"):
        own = said[(said.quantity == row["quantity"]) & (said.along == row["along"]) & (said["where"] == row["where"])]
        checked = own[own.predicted.notna()]
        fit = Cell(number(row["mean"]), f"[{number(row['low'])}, {number(row['high'])}]", int(row["n"]), row["reason"])
        rows.append(
            {
                "quantity": laws.QUANTITIES[row["quantity"]],
                "along": laws.ALONG[row["along"]],
                "where": row["where"],
                "exponent": fit if not math.isnan(row["mean"]) else Cell(NONE, "", int(row["n"]), row["reason"]),
                "r2": number(row["r2"]),
                "cells": f"{int(row['cells'])}" + (f", {int(row['censored'])} censored" if row["censored"] else ""),
                "predicted": f"{int(checked.inside.sum())} of {len(checked)}" if len(checked) else NONE,
            }
        )
    return rows


def prediction_rows(found: Findings) -> list[dict[str, Any]]:
    """Every place of a law that could be checked: predicted from the other places, with its interval, and as it was measured."""
    checked = found.predictions[found.predictions.predicted.notna()]
    return [
        {
            "quantity": laws.QUANTITIES[row["quantity"]],
            "where": row["where"],
            "place": f"{short(row['x'])} {laws.ALONG[row['along']]}",
            "predicted": Cell(number(row["predicted"]), f"[{number(row['low'])}, {number(row['high'])}]"),
            "observed": number(row["observed"]),
            "inside": "inside" if row["inside"] else "outside",
        }
        for row in checked.to_dict("records")
    ]


def data_roles(found: Findings) -> tuple[list[str], list[dict[str, Any]], list[dict[str, Any]]]:
    """(measure names, one record per role, everything else about the data)."""
    rows = found.study.rows
    rows = rows[rows.stage == "data"]
    order = [
        "rows",
        "tokens",
        "loss_tokens",
        "truncated_rows",
        "truncated_tokens",
        "dropped_rows",
        "dropped_tokens",
        "token_efficiency",
        "entropy",
    ]
    names = [m for m in order if (rows.measure == m).any()]
    table, rest = [], []
    roles = list(dict.fromkeys(rows[rows.measure.isin(names)].split))
    known = ["pretrain", "prose", "align", "perturb", "heldout", "scorer", "prompts"]
    for role in sorted(roles, key=lambda r: (known.index(r) if r in known else len(known), r)):
        own = rows[rows.split == role].drop_duplicates("measure").set_index("measure")
        values = []
        for name in names:
            if name not in own.index:
                values.append(NONE)
                continue
            value, error = float(own.value[name]), float(own.stderr[name])
            text = f"{value:,.0f}" if own.unit[name] == "count" else number(value)
            values.append(text if math.isnan(error) else f"{text} ± {number(error)}")
        table.append({"role": role, "values": values})
    elsewhere = [m for m in set(rows.measure) if m in names or m.startswith(compressors.MEASURE)]
    for row in rows[~rows.measure.isin(elsewhere)].to_dict("records"):
        text = f"{row['value']:,.0f}" if row["unit"] == "count" else number(row["value"])
        more = f", n = {row['n']:,}" if row["n"] else ""
        rest.append(
            {
                "name": row["measure"].replace("_", " "),
                "split": row["split"],
                "value": text + more,
                "unit": row["unit"],
            }
        )
    return names, table, rest


def compressor_rows(found: Findings) -> list[dict[str, Any]]:
    """Models and general-purpose compressors on the same held-out text."""
    several = len(found.study.models) > 1
    return [
        {"name": ", ".join(p for p in (row["compressor"], row["model"] if several else "") if p)}
        | {"cell": cell({**row, "unit": "bits/byte", "reason": ""})}
        for row in compressors.beside_models(found.study, found.level).to_dict("records")
    ]


def curve_rows(found: Findings) -> list[dict[str, Any]]:
    """The score at every recorded point, for reading without a figure."""
    out = []
    for row in found.curves("score", "samples").to_dict("records"):
        out.append(
            {
                "panel": row["panel"],
                "condition": "control" if row["arm"] == "control" else short(row["align_volume"]),
            }
            | {axis: short(row[axis]) for axis in ("examples", "updates", "tokens")}
            | {"cell": cell(row | {"unit": "probability"}), "stderr": number(row["stderr"], "probability")}
        )
    return out


_FURTHER = ("base", "start", "final", "half_life_examples", "rebound", "overshoot")


def further_rows(found: Findings) -> list[dict[str, Any]]:
    """Every further scorer in every condition: base, start and end of the perturbation, and what lies between."""
    frame = found.stacked(found.further)
    frame = frame[frame.quantity.isin(_FURTHER)]
    out = []
    for (measure, panel, arm, volume), part in frame.groupby(["measure", "panel", "arm", "align_volume"], sort=True):
        own = {row["quantity"]: row for row in part.to_dict("records")}
        out.append(
            {
                "measure": str(measure).removeprefix(rebound.FURTHER).replace("_", " "),
                "unit": own["start"]["unit"],
                "panel": panel,
                "condition": "control" if arm == "control" else short(float(volume)),
                "late": arm == "control",
                "cells": [cell(own.get(name)) if name in own else Cell(NONE) for name in _FURTHER],
            }
        )
    return sorted(out, key=lambda row: (row["measure"], row["panel"], row["late"]))


def tree(found: Findings) -> list[dict[str, Any]]:
    """Runs as nested records: run, what it is, recorded points, children."""
    study = found.study
    reached = study.rows[study.rows.run != ""].groupby("run").examples.max().to_dict()
    children: dict[str, list] = {}
    for run in study.runs:
        children.setdefault(study.ancestry.get(run["run"], ""), []).append(run)

    def node(run: dict[str, Any]) -> dict[str, Any]:
        points = sorted({int(x) for x in run.get("points") or []})
        at = reached.get(run["run"])
        end = max([*points, int(run.get("examples") or 0)])
        state = "planned" if at is None else ("" if at >= end else f"at {at:,} of {end:,}")
        wall = run.get("wall_seconds")
        own = sorted(children.get(run["run"], []), key=_run_order)
        return {
            "name": run.get("name") or run["run"].rpartition("-")[0],
            "id": run.get("id") or run["run"].rpartition("-")[2],
            "stage": run.get("stage", ""),
            "arm": run.get("arm", ""),
            "method": run.get("method", ""),
            "seed": run.get("seed"),
            "from": run.get("parent_examples"),
            "points": [f"{x:,}" for x in points],
            "updates": f"{int(run.get('updates') or 0):,}",
            "state": state,
            "wall": f"{wall:,.1f} s" if isinstance(wall, int | float) else "",
            "children": [node(child) for child in own],
        }

    return [node(run) for run in sorted(children.get("", []), key=_run_order)]


def _run_order(run: Mapping[str, Any]) -> tuple:
    return (
        run.get("seed") or 0,
        str(run.get("stage")) == "perturb",
        run.get("arm") == "control",
        run.get("method") or "",
        run.get("align_volume") or 0,
        run.get("examples") or 0,
        run["run"],
    )


def samples(found: Findings, per_stage: int = 3) -> list[dict[str, Any]]:
    """A few texts of the base, aligned, perturbed and control models of the first seed, each with its score.

    Texts of a group are in the order of their score, and shown are those at even steps through it, from
    lowest to highest.
    """
    rows = found.study.rows
    rows = rows[(rows.measure == "sample") & (rows.text != "")]
    if rows.empty:
        return []
    rows = rows[rows.seed == rows.seed.min()]
    out = []
    names = [model.name for model in found.study.models if (rows.model == model.name).any()]
    kinds = (
        ("pretrain", "base", "base"),
        ("align", "aligned", "aligned"),
        ("perturb", "aligned", "perturbed"),
        ("perturb", "control", "control, perturbed from the base"),
    )
    for name, (stage, arm, title) in itertools.product(names, kinds):
        part = rows[(rows.model == name) & (rows.stage == stage) & (rows.arm == arm)]
        if part.empty:
            continue
        part = part[part.align_volume == part.align_volume.max()]
        ends = sorted(set(part.examples))
        # Under perturbation the middle of the path says as much as its end.
        chosen = (
            list(dict.fromkeys([ends[len(ends) // 2], ends[-1]]))
            if title == "perturbed" and len(ends) > 1
            else ends[-1:]
        )
        for examples in chosen:
            own = part[(part.examples == examples) & (part.run == part.run.iloc[0])]
            own = own.sort_values(["value", "text"], kind="stable").drop_duplicates("text")
            if own.empty:
                continue
            count = min(per_stage, len(own))
            picked = own.iloc[[round(i * (len(own) - 1) / max(count - 1, 1)) for i in range(count)]]
            where = (
                f", alignment {int(part.align_volume.iloc[0]):,} examples"
                if stage != "pretrain" and arm != "control"
                else ""
            )
            where += f", perturbation {examples:,} examples" if stage == "perturb" else ""
            where += f", {name}" if len(names) > 1 else ""
            texts = []
            for row in picked.itertuples():
                prompt, arrow, rest = str(row.text).partition("⟶")
                texts.append(
                    {
                        "score": number(float(row.value), "probability"),
                        "prompt": prompt.strip() if arrow else "",
                        "text": rest.strip() if arrow else prompt,
                    }
                )
            out.append({"title": title + where, "run": own.run.iloc[0], "texts": texts})
    return out
