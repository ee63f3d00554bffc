"""Are planted effects of the order of three tasks recovered, and is what is none called none?"""

import itertools
import math

import numpy as np
import planted_order
import pytest
from planted_order import GAIN, LEFT, ORDERS, TASKS

from elastic_jax.analysis import claims, order, table

MEAN = sum(GAIN.values()) / 3
ALONE, SINCE_ONE, SINCE_TWO = LEFT
TRUTH = dict(  # in shares of what a task by itself gains
    recency=ALONE - (SINCE_ONE + SINCE_TWO) / 2,
    beyond_last=SINCE_ONE - SINCE_TWO,
    lost=ALONE - SINCE_TWO,
    kept=SINCE_TWO,
    transfer=0.0,
)


@pytest.fixture
def study_of(tmp_path):
    def make(**what):
        return table.select(table.load(planted_order.write(tmp_path / "measures.parquet", **what)))

    return make


def found(study, effect, quantity="rate", task="", level=0.95):
    rows = order.compare(order.per_seed(study), level)
    return rows[(rows.effect == effect) & (rows.quantity == quantity) & (rows.task == task)].iloc[0]


def wanted(effect, task, quantity):
    if effect == "retention":
        return SINCE_TWO
    return TRUTH[effect] * (GAIN[task] if task else MEAN) * (1.0 if quantity == "rate" else 0.25)


def test_planted_effects_are_recovered_within_their_intervals(study_of):
    """24 experiments of three seeds: of the intervals at 0.95, 23 are expected to hold the truth, and fewer than 18 once in thousands."""
    values = order.per_seed(study_of(seeds=range(72), noise=0.01))
    compared = [order.compare(values[values.seed // 3 == group]) for group in range(24)]
    assert len(compared[0]) == 2 * len(order.EFFECTS) * 4
    for i, first in enumerate(compared[0].itertuples()):
        truth = wanted(first.effect, first.task, first.quantity)
        rows = [part.iloc[i] for part in compared]
        if first.quantity == "score":  # planted without noise
            assert all(row["mean"] == pytest.approx(truth, abs=1e-12) for row in rows)
        else:
            assert sum(row.low < truth < row.high for row in rows) >= 18, first
            assert np.mean([row["mean"] for row in rows]) == pytest.approx(truth, abs=0.02)
        said = {row.verdict for row in rows if row.quantity == "rate" and not row.task}
        assert said <= (
            {""} if first.effect == "retention" else {"above"} if truth else {"undecided", "above", "below"}
        )


def test_every_model_is_in_the_grid_with_its_change_from_the_base_of_its_seed(study_of):
    grid = order.grid(order.cells(study_of(noise=0.0)))
    rates = grid[grid.measure == "bits_per_token"]
    assert set(rates.sequence) == {order.BASE, *(order.ARROW.join(sequence) for sequence in ORDERS)}
    for sequence, task in itertools.product(ORDERS, TASKS):
        (row,) = rates[(rates.sequence == order.ARROW.join(sequence)) & (rates.task == task)].to_dict("records")
        wanted = -GAIN[task] * planted_order.left(sequence, task)
        assert row["change"] == pytest.approx(wanted, abs=1e-12)
        assert row["change_low"] == pytest.approx(wanted, abs=1e-9)  # the seeds differ by their bases alone
        assert row["mean"] == pytest.approx(5.3 + wanted, abs=1e-12) and row["high"] > row["mean"] + 0.5
        assert row["place"] == (sequence.index(task) + 1 if task in sequence else 0)
    base = grid[(grid.sequence == order.BASE) & (grid.measure == "kl_base_model")]
    assert base["mean"].tolist() == [0.0]


def test_a_last_task_that_loses_what_was_learnt_last_is_below(study_of):
    upside_down = dict(zip(LEFT, (0.4, 0.7, 1.0), strict=True))
    study = study_of(share=lambda s, t: upside_down.get(planted_order.left(s, t), 0.0))
    assert found(study, "recency").verdict == found(study, "beyond_last").verdict == "below"


def test_an_order_that_matters_by_its_last_task_alone_says_so(study_of):
    study = study_of(share=lambda s, t: 0.0 if t not in s else 1.0 if s[-1] == t else 0.5)
    assert found(study, "recency").verdict == "above"
    assert found(study, "recency")["mean"] == pytest.approx(MEAN / 2, abs=0.01)
    beyond = found(study, "beyond_last", level=0.999)
    assert beyond.verdict == "undecided" and abs(beyond["mean"]) < 0.01


def test_permuted_labels_give_no_effect(study_of):
    """Each seed's triples under the names of one another, so that over the six seeds every triple bears every name."""
    triples = ORDERS[-6:]

    def renamed(seed, sequence):
        return triples[(triples.index(sequence) + seed) % 6] if sequence in triples else sequence

    study = study_of(seeds=range(6), renamed=renamed)
    for effect in ("recency", "beyond_last"):
        row = found(study, effect)
        assert row.verdict == "undecided" and abs(row["mean"]) < 0.01 and row.p > 0.05, row
    said = claims.overall(claims.tests(study))
    assert said["order.recency"] == said["order.beyond_last"] == "undecided"
    assert said["order.kept"] == said["order.lost"] == "supported"  # which do not depend on those names


def test_statements_have_the_verdicts_of_what_was_planted(study_of):
    tests = claims.tests(study_of())
    said = claims.overall(tests)
    for name in ("recency", "lost", "kept", "beyond_last"):
        assert said[f"order.{name}"] == "supported"
    own = tests[tests.claim == "order.recency"]
    assert own.test.tolist() == ["recency_rate", "recency_score"] and (own.n == 3).all() and (own.p == 0.25).all()
    assert (own.texts_low > 0).all()
    opposite = claims.overall(claims.tests(study_of(share=lambda s, t: -planted_order.left(s, t))))
    assert opposite["order.recency"] == opposite["order.kept"] == opposite["order.lost"] == "contradicted"


def test_a_study_without_tasks_tests_none_of_it(plant, tmp_path):
    import planted

    rows, metadata = planted.table(plant)
    study = table.select(table.load(planted.write(tmp_path / "measures.parquet", rows, metadata)))
    assert not order.has_runs(study) and order.per_seed(study).empty
    own = claims.tests(study)
    own = own[own.claim.str.startswith("order.")]
    assert set(own.verdict) == {"not tested here"} and own.reason.str.contains("order.volume").all()


def test_orders_that_are_not_measured_leave_a_gap_and_no_number(study_of):
    study = study_of(reached=lambda seed, sequence: seed < 2 or sequence != TASKS)
    row = found(study, "recency")
    assert row.n == 2 and "not all orders are measured" in row.reason and "1 of 3 seeds" in row.reason
    values = order.per_seed(study)
    assert math.isnan(values[(values.effect == "recency") & (values.seed == 2) & (values.task == "")].value.iloc[0])
    alone = values[
        (values.effect == "kept") & (values.seed == 2) & (values.task == TASKS[1]) & (values.quantity == "rate")
    ]
    assert alone.value.notna().all()  # nothing of it is missing


def test_one_seed_gives_no_interval(study_of):
    row = found(study_of(seeds=(0,)), "recency")
    assert np.isnan(row.low) and row.verdict == "undecided" and "one seed" in row.reason


def test_a_task_that_gains_nothing_has_no_share_left(study_of):
    study = study_of(share=lambda s, t: 0.0 if t == "kind" else planted_order.left(s, t), noise=0.0)
    row = found(study, "retention", task="kind")
    assert math.isnan(row["mean"]) and "within twice its error" in row.reason
    assert found(study, "retention")["mean"] == pytest.approx(SINCE_TWO)
