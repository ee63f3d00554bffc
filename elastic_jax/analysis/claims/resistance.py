"""Table 1: is a later slice of an alignment easier to train back than an earlier one is to train forward?"""

from collections.abc import Iterable

from elastic_jax.analysis import resistance
from elastic_jax.analysis.claims.statement import Outcome, Settings, Statement, Test, Untested, Value, missing
from elastic_jax.analysis.table import Study

STATEMENTS = (
    Statement("resistance.raw", "The training loss of inverse alignment is below that of forward alignment", "Table 1"),
    Statement(
        "resistance.divergence",
        "Inverse alignment stays easier when what belongs to the texts is taken off the losses",
        "Definition of resistance; the paper compares raw losses",
    ),
)
TESTS = {
    "raw": Test("resistance_raw", "resistance.raw", "forward − inverse, mean training loss of the epoch", "nats/token", 1),
    "above_self": Test("resistance_self", "resistance.divergence", "forward − inverse, minus the author's own loss", "nats/token", 1),
    "above_entropy": Test("resistance_entropy", "resistance.divergence",
                          "forward − inverse, minus the entropy of what was drawn from", "nats/token", 1),
}  # fmt: skip


def outcomes(study: Study, settings: Settings) -> Iterable[Outcome | Untested]:
    if resistance.has_runs(study):
        found = resistance.per_seed(study)
        found = found[(found.quantity == resistance.MAIN[0]) & (found.line != resistance.OTHER)]
        for (model, line), part in found.groupby(["model", "line"], sort=True):
            # The mean over pairs where there is one; a line of two slices has a single pair.
            whole = part[part.earlier == 0] if (part.earlier == 0).any() else part
            for version, test in TESTS.items():
                own = whole[whole.version == version]
                values = {
                    int(row["seed"]): Value(row["difference"])
                    if row["difference"] == row["difference"]
                    else missing("not measured")
                    for row in own.to_dict("records")
                }
                name = (
                    f"{model}, slices {', '.join(line)}" if found.model.nunique() > 1 else f"slices {', '.join(line)}"
                )
                yield Outcome(test, values, where=name)
    for statement in STATEMENTS:
        yield Untested(statement.key, "no slices were trained on one another's answers (configs/resistance.py does)")
