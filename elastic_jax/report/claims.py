"""How are the verdicts on the paper's statements shown, and the tests behind each?"""

import math
from collections.abc import Mapping
from typing import Any

from elastic_jax.analysis import claims
from elastic_jax.analysis.claims.statement import CONTRADICTED, SUPPORTED, UNDECIDED, UNTESTED
from elastic_jax.report.findings import Findings
from elastic_jax.report.tables import NONE, Cell, number, p_value, short

VERDICTS = (SUPPORTED, CONTRADICTED, UNDECIDED, UNTESTED)
_SIDES = {1: "> 0", -1: "< 0", 0: "as predicted"}
_FEW = 4  # tests that are shown without being asked for


def section(found: Findings) -> dict[str, Any]:
    """What the page shows.

    Returns:
      `statements`, in the order of the registry: text, source, verdict, what its tests say, why it is not tested, and the tests;
      `counts`, verdict -> number of statements; `tests`, how many there are.
    """
    tests, said = found.tests, claims.overall(found.tests)
    statements = []
    for key, statement in claims.STATEMENTS.items():
        own = tests[tests.claim == key]
        rows = [_row(found, row) for row in own[own.test != ""].to_dict("records")]
        statements.append(
            dict(key=key.replace(".", "-").replace("_", "-"), text=statement.text, source=statement.source)
            | dict(verdict=said[key], style=said[key].partition(" ")[0], tests=rows, open=len(rows) <= _FEW)
            | dict(say=_counts([row["verdict"] for row in rows]), reason="" if rows else str(own.reason.iloc[0]))
        )
    counts = {verdict: sum(one["verdict"] == verdict for one in statements) for verdict in VERDICTS}
    return dict(statements=statements, counts=counts, tests=int((tests.test != "").sum()))


def _row(found: Findings, row: Mapping[str, Any]) -> dict[str, Any]:
    panel = (row["model"], row["align_method"], row["perturb_method"])
    place = found.panel_name(panel) if panel in found.panels else row["model"]
    volume = f"{short(float(row['align_volume']))} alignment examples" if row["align_volume"] else ""
    where = ", ".join(part for part in (place, volume, row["where"]) if part)
    return dict(statistic=row["statistic"], unit=row["unit"], side=_SIDES[row["side"]], verdict=row["verdict"]) | dict(
        where=where or "all volumes",
        cell=Cell(number(row["mean"]), _interval(row, "low", "high"), int(row["n"]), row["reason"]),
        texts=_interval(row, "texts_low", "texts_high") or NONE,
        p=p_value(row),
    )


def _interval(row: Mapping[str, Any], low: str, high: str) -> str:
    return "" if math.isnan(row[low]) else f"[{number(row[low])}, {number(row[high])}]"


def _counts(verdicts: list[str]) -> str:
    """ "3 supported, 1 undecided"; "" without tests."""
    return ", ".join(f"{verdicts.count(one)} {one}" for one in VERDICTS if one in verdicts)
