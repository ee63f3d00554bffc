"""How are the two directions of the resistance experiment shown, and what did the paper print of them?"""

import math
from collections.abc import Mapping
from typing import Any

from elastic_jax import published
from elastic_jax.analysis import resistance
from elastic_jax.analysis.table import Frame
from elastic_jax.report.findings import Findings
from elastic_jax.report.tables import NONE, interval, number, p_value

QUANTITIES = {
    "epoch": "mean training loss of the epoch",
    "initial": "loss before training",
    "heldout_initial": "held-out loss before training",
    "heldout_final": "held-out loss after training",
    "slope": "slope of the training loss, per epoch",
}
VERSIONS = {"raw": "raw", "above_self": "minus self-loss", "above_entropy": "minus entropy"}
_SUB = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
_TEXTS = {
    "answer_total": "tokens trained on",
    "answer_tokens": "tokens an answer",
    "distinct_answers": "different answers",
    "self_loss": "self-loss",
    "answer_entropy": "entropy",
}


def frames(found: Findings) -> dict[str, Frame]:
    """The tables behind the section, by the name of their file; {} without the experiment."""
    if not resistance.has_runs(found.study):
        return {}
    values = resistance.per_seed(found.study)
    return {
        "resistance": resistance.compare(values, found.level),
        "resistance_per_seed": values,
        "resistance_texts": resistance.texts(found.study),
    }


def section(tables: Mapping[str, Frame]) -> dict[str, Any]:
    """What the page shows of `frames`; {} without the experiment.

    Returns:
      `verdicts`, one for each model and line; `rows` of the main table, of the epoch's mean; `more`, all quantities; `texts`, what was
      trained on; `published`, Table 1 of the paper.
    """
    if not tables:
        return {}
    compared = tables["resistance"]
    several = compared.model.nunique() > 1
    verdicts = [
        dict(model=model if several else "", line=line_name(line), verdict=said)
        for (model, line), said in resistance.overall(compared).items()
    ]
    said_of = resistance.verdicts(compared)
    rows = []
    for key, part in compared[compared.quantity == "epoch"].groupby(list(resistance.PAIR), sort=False):
        by_version = {row["version"]: row for row in part.to_dict("records")}
        raw, main = by_version["raw"], by_version["above_self"]
        rows.append(
            dict(model=key[0] if several else "", line=line_name(key[1]), pair=arrows(*key[1:]))
            | dict(whole=not key[2] or not (compared[compared.line == key[1]].earlier == 0).any())
            | dict(inverse=_interval(raw, "inverse"), forward=_interval(raw, "forward"))
            | dict(differences=[_interval(by_version[v], "difference") for v in VERSIONS])
            | dict(raw=raw["verdict"], verdict=said_of[key], p=p_value(main), n=main["n"], reason=main["reason"])
        )
    more = [
        dict(
            model=row["model"] if several else "",
            line=line_name(row["line"]),
            pair=arrows(row["line"], row["earlier"], row["later"]),
        )
        | dict(quantity=QUANTITIES[row["quantity"]], version=VERSIONS[row["version"]])
        | {name: _interval(row, name) for name in (*resistance.DIRECTIONS, "difference")}
        | dict(p=p_value(row), n=row["n"], verdict=row["verdict"] if row["quantity"] != "slope" else "")
        for row in compared.to_dict("records")
    ]
    return dict(
        verdicts=verdicts,
        rows=rows,
        more=more,
        texts=_texts(tables["resistance_texts"], several),
        published=_published(),
    )


def lines(found: Findings) -> list[str]:
    """The verdicts with their numbers, a line each, for a terminal; [] without the experiment."""
    tables = frames(found)
    out = []
    for row in section(tables).get("rows", []):
        if row["whole"]:
            name = ", ".join(part for part in (row["model"], row["line"]) if part)
            raw, own, drawn = row["differences"]
            out.append(
                f"Resistance, {name}: {row['verdict']}; forward − inverse {own} nats/token minus self-loss, {drawn} minus entropy, "
                f"{raw} raw."
            )
    return out


def arrows(line: str, earlier: int, later: int) -> str:
    """Inverse and forward as the paper writes them: who is trained → whose answers.

    >>> arrows("123", 1, 2)
    'θ₂→θ₁ : θ₁→θ₂'
    """
    if not earlier:
        return "all pairs"
    first, second = (f"θ{i}".translate(_SUB) for i in (earlier, later))
    if line == resistance.OTHER:
        first, second = "θ", "θ′"
    return f"{second}→{first} : {first}→{second}"


def line_name(line: str) -> str:
    """The order of the slices, or the control, in words."""
    return "two tasks" if line == resistance.OTHER else f"slices {', '.join(line)}"


def _texts(texts: Frame, several: bool) -> list[dict[str, Any]]:
    out = []
    texts = texts[texts.split == "answers"]
    for key, part in texts.groupby(list(resistance.PAIR), sort=True):
        mean = part.groupby(["measure", "direction"]).value.mean()
        cells = [
            " : ".join(number(mean.get((name, direction), math.nan)) for direction in resistance.DIRECTIONS)
            for name in _TEXTS
        ]
        out.append(dict(model=key[0] if several else "", line=line_name(key[1]), pair=arrows(*key[1:]), cells=cells))
    return out


def text_names() -> list[str]:
    return list(_TEXTS.values())


def _published() -> list[dict[str, Any]]:
    """Table 1, a record for each data set and model: the pairs in the order of the paper."""
    out = []
    for (data, model), part in published.resistance().groupby(["data", "model"], sort=False):
        pairs = [
            dict(
                pair=arrows("123", int(row.earlier), int(row.later)),
                values=f"{row.inverse:.4f} : {row.forward:.4f}",
                difference=f"{row.forward - row.inverse:.4f}",
            )
            for row in part.itertuples()
        ]
        out.append(dict(data=data, model=model, pairs=pairs))
    return out


def _interval(row: Mapping[str, Any], name: str) -> str:
    return interval(row, name, _four)


def _four(x: float) -> str:
    return NONE if math.isnan(x) else f"{x:.4f}".replace("-", "−")
