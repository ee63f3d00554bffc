"""How is training shown beside random changes of the weights of the same size?"""

import math
from collections.abc import Mapping
from typing import Any

from elastic_jax.analysis import noise, statistics, table
from elastic_jax.analysis.claims import noise as claims
from elastic_jax.analysis.table import Frame
from elastic_jax.report.findings import Findings
from elastic_jax.report.tables import interval

AXES = {"size": "parameters", "tokens": "tokens of pre-training"}


def frames(found: Findings) -> dict[str, Frame]:
    """The tables behind the section, by the name of their file; {} for a study without noise."""
    if not noise.has_runs(found.study):
        return {}
    values = claims.seeds_of(found.study)
    return {
        "noise": noise.compare(values, found.level),
        "noise_per_seed": values,
        "noise_trends": claims.trends(found.study, found.level),
        "noise_weights": _weights(found),
    }


def _weights(found: Findings) -> Frame:
    """How far training and noise moved the weights, over the norm of the aligned model's: means over seeds and intervals."""
    changes, rows = noise.changes(found.study), []
    for key, part in changes.groupby([*noise.ALIGNED, "examples"], sort=True):
        row = dict(zip([*noise.ALIGNED, "examples"], key, strict=True)) | dict(draws=int(part.draws.max()), n=len(part))
        for side in ("trained", "noise"):
            shares = (part[side] / part.weights).to_numpy()
            row |= statistics.mean_interval(shares, found.level).columns(side)
        rows.append(row)
    ends = statistics.columns(("trained", "noise"))
    return table.frame(rows, [*noise.ALIGNED, "examples", "draws", "n", *ends])


def section(tables: Mapping[str, Frame], found: Findings) -> dict[str, Any]:
    """What the page shows of `frames`; {} without noise.

    Returns:
      `rows` of the way back in score; `more`, all quantities; `trends` of every axis over all volumes, `trends_at` each volume;
      `verdicts` of the way back in score, one for each axis and group of models; `draws`, how many there are.
    """
    if not tables:
        return {}
    compared, trends, weights = tables["noise"], tables["noise_trends"], tables["noise_weights"]
    moved = {_key(row): row for row in weights.to_dict("records")}
    rows = [_row(found, row) for row in compared.to_dict("records")]
    for row, record in zip(rows, compared.to_dict("records"), strict=True):
        row["moved"] = interval(moved.get(_key(record), {}), "trained")
    along = [
        dict(axis=AXES[row["axis"]], where=", ".join(part for part in (row["where"], _methods(found, row)) if part))
        | dict(quantity=noise.QUANTITIES[row["quantity"]].text, unit=f"{row['unit']} per doubling")
        | {side: interval(row, side) for side in noise.SIDES}
        | dict(examples=f"{row['examples']:,}" if row["examples"] else "all", p=_p(row), n=row["n"])
        | dict(
            verdict=row["verdict"], reason=row["reason"], whole=not row["examples"], score=row["quantity"] == "score"
        )
        for row in trends.to_dict("records")
    ]
    return dict(
        rows=[row for row in rows if row["quantity"] == noise.QUANTITIES["score"].text],
        more=[row for row in rows if row["quantity"] != noise.QUANTITIES["score"].text],
        trends=[row for row in along if row["whole"]],
        trends_at=[row for row in along if not row["whole"]],
        verdicts=[row for row in along if row["whole"] and row["score"]],
        draws=int(weights.draws.max()) if len(weights) else 0,
    )


def lines(found: Findings) -> list[str]:
    """What stands in a terminal of it; [] without noise."""
    shown = section(frames(found), found)
    if not shown:
        return []
    rows = shown["rows"]
    more = sum(row["verdict"] == "training more" for row in rows)
    less = sum(row["verdict"] == "noise more" for row in rows)
    out = [
        f"Noise of the same size: of {len(rows)} places training went further back in {more}, noise in {less}; {len(rows) - more - less} undecided."
    ]
    return out + [
        f"Way back per doubling of {row['axis']}: training {row['trained']}, noise {row['noise']}, difference {row['difference']}: {row['verdict']}."
        for row in shown["verdicts"]
    ]


def _row(found: Findings, row: Mapping[str, Any]) -> dict[str, Any]:
    panel = (row["model"], row["align_method"], row["perturb_method"])
    share = row["share"]
    return (
        dict(panel=found.panel_name(panel), volume=f"{row['align_volume']:,}", examples=f"{row['examples']:,}")
        | dict(quantity=noise.QUANTITIES[row["quantity"]].text, unit=row["unit"])
        | {side: interval(row, side) for side in noise.SIDES}
        | dict(share="–" if math.isnan(share) else f"{share:.0%}".replace("-", "−"), p=_p(row), n=row["n"])
        | dict(verdict=row["verdict"], reason=row["reason"])
    )


def _key(row: Mapping[str, Any]) -> tuple:
    return tuple(row[name] for name in (*noise.ALIGNED, "examples"))


def _methods(found: Findings, row: Mapping[str, Any]) -> str:
    several = len({panel[1:] for panel in found.panels}) > 1
    return f"{row['align_method']}, {row['perturb_method']}" if several else ""


def _p(row: Mapping[str, Any]) -> str:
    return "–" if math.isnan(row["p"]) else f"{row['p']:.2g} ({row['p_least']:.2g})"
