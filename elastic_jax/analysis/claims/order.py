"""Three tasks one after the other: does the last one win, is the first one lost, and does the order matter beyond that?"""

from collections.abc import Iterable

from elastic_jax.analysis import order
from elastic_jax.analysis.claims.statement import Outcome, Settings, Statement, Test, Untested, Value
from elastic_jax.analysis.table import Study

_SOURCE = "not in the paper; commit 22f62fe of its repository evaluates the 15 models"
STATEMENTS = (
    Statement("order.recency", "A model does better on a task that came last than on the same task earlier", _SOURCE),
    Statement("order.lost", "Of what the first of three tasks taught, a part is lost", _SOURCE),
    Statement("order.kept", "Of what the first of three tasks taught, a part is left", _SOURCE),
    Statement(
        "order.beyond_last",
        "The order matters beyond the last task: of the two before it the second does better",
        _SOURCE,
    ),
)
_UNITS = {"rate": "bits/token", "score": "score"}
_WORDS = {"rate": "bits per token of its held-out texts, with the sign that more is better", "score": "its score"}
TESTS = tuple(
    Test(
        f"{statement.key.partition('.')[2]}_{quantity}",
        statement.key,
        f"{what}, {_WORDS[quantity]}",
        _UNITS[quantity],
        1,
    )
    for statement, what in zip(
        STATEMENTS,
        ("last − earlier", "alone − first of three", "first of three − base", "second − first, the same task last"),
        strict=True,
    )
    for quantity in order.QUANTITIES
)


def outcomes(study: Study, settings: Settings) -> Iterable[Outcome | Untested]:
    if not order.has_runs(study):
        for statement in STATEMENTS:
            yield Untested(statement.key, "no tasks are trained one after the other (order.volume)")
        return
    values = order.per_seed(study)
    for test in TESTS:
        effect, _, quantity = test.key.rpartition("_")
        own = values[(values.effect == effect) & (values.quantity == quantity) & (values.task == "")]
        for model, part in own.groupby("model", sort=False):
            numbers = {int(row.seed): Value(row.value, row.stderr, row.reason) for row in part.itertuples()}
            yield Outcome(test, numbers, (str(model), "", ""))
    if values.empty:
        for statement in STATEMENTS:
            yield Untested(statement.key, "no order has been measured yet")
