"""How is the response to the dials k and l shown beside what the elasticity theorem says?"""

import math
from collections.abc import Mapping
from typing import Any

from elastic_jax.analysis import dials
from elastic_jax.analysis.table import Frame
from elastic_jax.report.findings import Findings
from elastic_jax.report.tables import NONE, interval, number

_PROTOCOLS = {dials.JOINT: "joint, converged", dials.SEQUENTIAL: "one after the other"}
_WHAT = {"ratio": "as measured", "corrected": "without 1 + l (1 − B) / (1 − A)"}


def frames(found: Findings) -> dict[str, Frame]:
    """The tables behind the section, by the name of their file; {} for a study without dials."""
    if not dials.has_dials(found.study):
        return {}
    values = dials.differences(found.study)
    return {
        "dials": dials.compare(values, found.level),
        "dials_slopes": dials.slopes(values, found.level),
        "dials_rates": dials.cells(dials.rates(found.study), found.level),
        "dials_per_seed": values,
    }


def section(tables: Mapping[str, Frame]) -> dict[str, Any]:
    """What the page shows of `frames`; {} without dials.

    Returns:
      `rows`, one for each protocol, k and step of l; `slopes`; `rates` of every model; `worst`, by how much the joint model that is
      farthest from the optimum misses it, in nats per token.
    """
    if not tables:
        return {}
    rows = [
        dict(
            protocol=_PROTOCOLS[row["protocol"]],
            k=f"{row['k']:g}",
            l=f"{row['l_from']:g} to {row['l_to']:g}",
            n=row["n"],
        )
        | {name: interval(row, name) for name in ("align", "pretrain", "ratio", "residual", "share")}
        | {f"exact_{name}": number(row[f"exact_{name}"]) for name in ("align", "pretrain", "ratio", "residual")}
        | dict(closed_form=number(row["closed_form"]), joint=row["protocol"] == dials.JOINT, verdict=row["verdict"])
        for row in tables["dials"].to_dict("records")
    ]
    slopes = [
        dict(protocol=_PROTOCOLS[row["protocol"]], l=f"{row['l_from']:g} to {row['l_to']:g}", what=_WHAT[row["what"]])
        | dict(slope=_slope(row), predicted=number(row["predicted"]), reason=row["reason"])
        for row in tables["dials_slopes"].to_dict("records")
    ]
    rates = [
        dict(protocol=_PROTOCOLS[row["protocol"]], k=f"{row['k']:g}", l=f"{row['l']:g}", role=row["role"])
        | {name: number(row[name]) for name in ("gamma", "best", "excess")}
        for row in tables["dials_rates"].to_dict("records")
    ]
    excess = tables["dials_rates"].excess.dropna()
    return dict(rows=rows, slopes=slopes, rates=rates, worst=number(float(excess.max())) if len(excess) else NONE)


def _slope(row: Mapping[str, Any]) -> str:
    if math.isnan(row["low"]) or (math.isinf(row["low"]) and math.isinf(row["high"])):
        return NONE
    return f"{number(row['mean'])} [{number(row['low'])}, {number(row['high'])}]"
