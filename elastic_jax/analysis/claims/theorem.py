"""Theorem 4.2: do compression rates respond to k and l as the theorem says, jointly and one after the other?"""

import math
from collections.abc import Iterable

from elastic_jax.analysis import dials, table
from elastic_jax.analysis.claims.statement import (
    CONTRADICTED,
    SUPPORTED,
    UNDECIDED,
    Outcome,
    Settings,
    Statement,
    Test,
    Untested,
    Value,
)
from elastic_jax.analysis.statistics import Estimate
from elastic_jax.analysis.table import Frame, Study

_THEOREM = "Theorem 4.2"
STATEMENTS = (
    Statement(
        "theorem.signs",
        "Trained on everything at once, more perturbation data worsens alignment and improves pre-training",
        _THEOREM,
    ),
    Statement(
        "theorem.balance", "Trained on everything at once, forces balance: Σ |D_i| dγ_i = 0", f"{_THEOREM}; Hooke's law"
    ),
    Statement("theorem.slope", "Trained on everything at once, dγ_a / dγ_p grows as k", _THEOREM),
    Statement(
        "theorem.sequential_signs",
        "The same signs when stages follow one another",
        f"{_THEOREM}, as the experiments use it",
    ),
    Statement(
        "theorem.sequential_balance",
        "Forces balance when stages follow one another",
        f"{_THEOREM}, as the experiments use it",
    ),
)
NARROW = 0.5  # a slope's interval further from the predicted one does not tell growth as k from growth as its root
_PROTOCOLS = {dials.JOINT: "theorem.", dials.SEQUENTIAL: "theorem.sequential_"}


def outcomes(study: Study, settings: Settings) -> Iterable[Outcome | Untested]:
    values = dials.differences(study) if dials.has_dials(study) else table.frame([], ["protocol"])
    for protocol, prefix in _PROTOCOLS.items():
        own = values[values.protocol == protocol]
        if len(own):
            yield from _signs(own, prefix)
            yield from _balance(own, prefix, settings.level)
    if len(values):
        yield from _slopes(values, settings.level)
    why = "k and l do not vary (configs/dials.py varies them)"
    for statement in STATEMENTS:
        sequential = len(values) and statement.key.startswith("theorem.sequential")
        yield Untested(
            statement.key, "no stages follow one another at the k and l of the unions" if sequential else why
        )


def _where(k: float, l_from: float, l_to: float) -> str:
    return f"k = {k:g}, l from {l_from:g} to {l_to:g}"


def _signs(values: Frame, prefix: str) -> Iterable[Outcome]:
    per = "nats/text per unit of l"
    align = Test(f"{prefix}align", f"{prefix}signs", "dγ of alignment / dl", per, 1)
    pretrain = Test(f"{prefix}pretrain", f"{prefix}signs", "dγ of pre-training / dl", per, -1)
    for (k, l_from, l_to), part in values.groupby(["k", "l_from", "l_to"], sort=True):
        for test, role in ((align, "align"), (pretrain, "pretrain")):
            found = {int(seed): Value(float(value)) for seed, value in zip(part.seed, part[role], strict=True)}
            yield Outcome(test, found, where=_where(k, l_from, l_to))


def _balance(values: Frame, prefix: str, level: float) -> Iterable[Outcome]:
    """The rule of `dials.compare`: what is due lies inside the interval, and the interval is narrow enough to mean it."""
    test = Test(f"{prefix}share", f"{prefix}balance", "Σ |D_i| dγ_i over Σ |D_i| |dγ_i|", "share", 0)
    said = {"balanced": SUPPORTED, "unbalanced": CONTRADICTED}
    for row in dials.compare(values, level).to_dict("records"):
        due = row["exact_share"] if row["protocol"] == dials.JOINT else 0.0
        estimate = Estimate(row["share"], row["share_low"], row["share_high"], row["n"])
        remark = f"due {due:.3f}; balanced: that inside, and the interval within ±{dials.LEFT:g}"
        yield Outcome(test, where=_where(row["k"], row["l_from"], row["l_to"]), estimate=estimate,
                      verdict=said.get(row["verdict"], UNDECIDED), remark=remark)  # fmt: skip


def _slopes(values: Frame, level: float) -> Iterable[Outcome]:
    """As measured and corrected for finite l, each supported where its interval holds what is predicted and is narrow enough to mean
    it: within NARROW of the prediction, and without "does not depend on k"."""
    test = Test("theorem.slope", "theorem.slope", "slope of log |dγ_a / dγ_p| on log k", "", 0)
    found = dials.slopes(values, level)
    for row in found[found.protocol == dials.JOINT].to_dict("records"):
        l_from, l_to = row["l_from"], row["l_to"]
        low, high, predicted = row["low"], row["high"], row["predicted"]
        known = not any(math.isnan(x) for x in (low, high, predicted))
        inside = known and low <= predicted <= high
        narrow = low > max(0.0, predicted - NARROW) and high < predicted + NARROW
        said = CONTRADICTED if known and not inside else SUPPORTED if inside and narrow else UNDECIDED
        remark = (
            f"predicted {predicted:.3g}; supported: that inside, and the interval within ±{NARROW:g} of it, above 0"
            if known
            else ""
        )
        estimate = Estimate(row["mean"], low, high, int(row["n"]), reason=row["reason"])
        yield Outcome(test, where=f"{row['n']} values of k, l from {l_from:g} to {l_to:g}, {row['what']}", estimate=estimate,
                      verdict=said, remark=remark)  # fmt: skip
