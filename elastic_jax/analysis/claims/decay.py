"""Is the return fast at first and slow later?"""

import math
from collections.abc import Iterable

from elastic_jax.analysis import laws, rebound
from elastic_jax.analysis.claims import path as of
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
    combine,
)
from elastic_jax.analysis.decay import EVIDENCE
from elastic_jax.analysis.rebound import Trajectory
from elastic_jax.analysis.statistics import Estimate
from elastic_jax.analysis.table import Study

STATEMENTS = (
    Statement(
        "decay.about_base", "The return is fast before the base's level and slow after it", "abstract; section 5"
    ),
    Statement("decay.two_rates", "The score decays at two rates, a fast and a slow one", "abstract, as a law of decay"),
)
SCORE = Test(
    "slowing_score", "decay.about_base", "speed before − speed after crossing the base's level", "score/update", 1
)
ODDS = Test(
    "slowing_odds", "decay.about_base", "speed in log-odds before − after crossing the base's level", "nats/update", 1
)
RATES = Test("rates", "decay.two_rates", "AICc of one exponential − AICc of two with a common sign", "", 1)
_SAID = {"two rates": SUPPORTED, "one rate": CONTRADICTED}


def outcomes(study: Study, settings: Settings) -> Iterable[Outcome | Untested]:
    paths = [path for path in rebound.trajectories(study) if path.arm == "aligned"]
    for condition in sorted({path.condition for path in paths}):
        here = {path.seed: path for path in paths if path.condition == condition}
        for test, odds in ((SCORE, False), (ODDS, True)):
            yield Outcome(test, {s: _slowing(p, odds) for s, p in here.items()}, condition[:3], condition[4])
    for row in laws.decays_of(study, settings.level).to_dict("records"):
        if row["arm"] != "aligned":
            continue
        found = Estimate(row["evidence"], n=row["n"], reason=row["reason"])
        # The fit is of all seeds together and gives an interval of its times, not of the evidence: no p-value beside it.
        said = _SAID.get(row["verdict"], UNDECIDED) if row["n"] > 1 else UNDECIDED
        beyond = "within" if said == UNDECIDED else "beyond"
        remark = "one seed" if row["n"] == 1 else "" if math.isnan(row["evidence"]) else f"{beyond} ±{EVIDENCE:g}"
        panel = (row["model"], row["align_method"], row["perturb_method"])
        yield Outcome(RATES, {}, panel, row["align_volume"], estimate=found, verdict=said, remark=remark)
    for statement in STATEMENTS:
        yield Untested(statement.key, "no aligned model has been perturbed")


def _slowing(path: Trajectory, odds: bool) -> Value:
    before, after = of.speeds_about_base(path, odds=odds)
    return combine([1, -1], [before, after])
