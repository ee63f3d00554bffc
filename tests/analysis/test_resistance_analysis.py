"""Is planted resistance found, and is what is none called none?"""

import json

import numpy as np
import planted
import pytest

from elastic_jax.analysis import resistance, table

PAIRS = ((1, 2), (2, 3), (1, 3))
UPDATES = 8


def study_of(tmp_path, kl, entropy, seeds=(0, 1, 2), lines=("123",), flipped=(), noise=0.004, reached=UPDATES):
    """A study whose runs on answers have these losses: entropy(author) + kl(direction, earlier, later) + noise.

    Args:
      flipped: seeds whose two directions carry each other's names.
    """
    rng, rows, runs = np.random.default_rng(5), [], []
    for seed in seeds:
        for line in lines:
            for earlier, later in PAIRS:
                for arm, author in (("inverse", earlier), ("forward", later)):
                    divergence = kl(arm, earlier, later) + noise * rng.standard_normal()
                    own = entropy(author) + 0.05 * rng.standard_normal()
                    name = arm if seed not in flipped else {"inverse": "forward", "forward": "inverse"}[arm]
                    run = f"{name}-s{seed}-{line}-{earlier}{later}-00"
                    runs.append(
                        dict(
                            run=run,
                            stage="resistance",
                            arm=name,
                            seed=seed,
                            line=line,
                            pair=[earlier, later],
                            updates=UPDATES,
                        )
                        | dict(parent="", examples=UPDATES * 16, points=[])
                    )

                    def add(measure, split, updates, value, run=run, name=name, seed=seed):
                        fact = planted._fact(split, measure, "nats/token", value)
                        fact |= dict(run=run, stage="resistance", arm=name, seed=seed, model="m", params=7)
                        rows.append(fact | dict(updates=updates, examples=updates * 16, stderr=0.01, n=64))

                    for suffix, less in (("", 0.0), ("_above_self", own), ("_above_entropy", own - 0.01)):
                        for split in ("answers", "answers_heldout"):
                            add("answer_loss" + suffix, split, 0, own + divergence - less)
                        if reached == UPDATES:
                            add("answer_loss" + suffix, "answers_heldout", UPDATES, own + divergence / 2 - less)
                            add("epoch_loss" + suffix, "answers", UPDATES, own + 0.75 * divergence - less)
                            add("epoch_slope" + suffix, "answers", UPDATES, -divergence / 2)
                    add("self_loss", "answers", 0, own)
                    add("answer_total", "answers", 0, 640)
    info = dict(runs=runs, config={})
    path = planted.write(
        tmp_path / "measures.parquet", table.frame(rows, list(rows[0])), {"studies": {"planted": info}}
    )
    return table.select(table.load(path))


def found(study, pair=(0, 0), quantity="epoch", version="above_self", line="123"):
    rows = resistance.compare(resistance.per_seed(study))
    chosen = rows[(rows.quantity == quantity) & (rows.version == version) & (rows.line == line)]
    return chosen[(chosen.earlier == pair[0]) & (chosen.later == pair[1])].iloc[0]


def test_planted_resistance_is_recovered_within_its_interval(tmp_path):
    harder = {(1, 2): 0.1, (2, 3): 0.2, (1, 3): 0.4}
    study = study_of(tmp_path, lambda arm, k, n: 0.3 + harder[k, n] * (arm == "forward"), lambda k: 1.0)
    for (k, n), wanted in harder.items():
        row = found(study, (k, n), "initial")
        assert row.difference_low < wanted < row.difference_high and row.verdict == "resists"
        assert found(study, (k, n), "slope").difference == pytest.approx(-wanted / 2, abs=0.01)
    row = found(study)  # 0.75 of the divergence in the epoch, mean of the pairs
    assert row.difference_low < 0.75 * 0.7 / 3 < row.difference_high and row.verdict == "resists"
    assert (row.n, row.p, row.p_least) == (3, 0.25, 0.25)
    assert resistance.overall(resistance.compare(resistance.per_seed(study))) == {("m", "123"): "resists"}


def test_texts_that_differ_in_entropy_alone_resist_only_in_the_raw_loss(tmp_path):
    study = study_of(tmp_path, lambda arm, k, n: 0.3, lambda k: 0.5 + 0.5 * k)
    raw = found(study, version="raw")
    assert raw.verdict == "resists" and raw.difference_low < 2 / 3 < raw.difference_high
    for quantity in resistance.QUANTITIES:
        for version in ("above_self", "above_entropy"):
            assert found(study, quantity=quantity, version=version).verdict == "undecided"
    assert set(resistance.overall(resistance.compare(resistance.per_seed(study))).values()) == {"undecided"}


def test_an_effect_the_other_way_round_is_no_resistance(tmp_path):
    study = study_of(tmp_path, lambda arm, k, n: 0.3 + 0.1 * (arm == "inverse"), lambda k: 1.0)
    assert found(study).verdict == "does not"


def test_permuted_labels_give_no_effect(tmp_path):
    study = study_of(
        tmp_path, lambda arm, k, n: 0.3 + 0.1 * (arm == "forward"), lambda k: 1.0, seeds=(0, 1, 2, 3), flipped=(1, 2)
    )
    row = found(study)
    assert row.verdict == "undecided" and row.p == 1.0


def test_lines_are_told_apart(tmp_path):
    study = study_of(tmp_path, lambda arm, k, n: 0.3 + 0.1 * (arm == "forward"), lambda k: 1.0, lines=("123", "321"))
    assert {line for _, line in resistance.overall(resistance.compare(resistance.per_seed(study)))} == {"123", "321"}


def test_one_seed_gives_no_interval_and_no_verdict(tmp_path):
    row = found(study_of(tmp_path, lambda arm, k, n: 0.3 + 0.1 * (arm == "forward"), lambda k: 1.0, seeds=(0,)))
    assert np.isnan(row.difference_low) and row.verdict == "undecided" and "one seed" in row.reason


def test_runs_that_have_only_begun_have_an_initial_loss_and_no_epoch(tmp_path):
    study = study_of(tmp_path, lambda arm, k, n: 0.3, lambda k: 1.0, reached=0)
    assert np.isnan(found(study).difference) and found(study, quantity="initial").difference == pytest.approx(
        0, abs=0.02
    )


def test_counts_of_what_was_trained_on(tmp_path):
    texts = resistance.texts(study_of(tmp_path, lambda arm, k, n: 0.3, lambda k: 1.0))
    totals = texts[(texts.measure == "answer_total") & (texts.split == "answers")]
    assert (totals.value == 640).all() and len(totals) == 18
    assert json.dumps(sorted(set(texts.direction))) == '["forward", "inverse"]'


def test_a_study_without_the_experiment_has_none(plant, tmp_path):
    rows, metadata = planted.table(plant)
    study = table.select(table.load(planted.write(tmp_path / "measures.parquet", rows, metadata)))
    assert not resistance.has_runs(study) and resistance.compare(resistance.per_seed(study)).empty


def test_versions_that_disagree_leave_it_undecided(tmp_path):
    study = study_of(tmp_path, lambda arm, k, n: 0.3 + 0.1 * (arm == "forward"), lambda k: 1.0)
    compared = resistance.compare(resistance.per_seed(study))
    assert set(resistance.verdicts(compared).values()) == {"resists"}
    other = (compared.quantity == "epoch") & (compared.version == "above_entropy")
    compared.loc[other, "verdict"] = "does not"
    assert set(resistance.verdicts(compared).values()) == {"undecided"}


def test_two_tasks_can_differ_but_not_resist(tmp_path):
    study = study_of(tmp_path, lambda arm, k, n: 0.3 + 0.1 * (arm == "forward"), lambda k: 1.0, lines=("123", "other"))
    said = resistance.overall(resistance.compare(resistance.per_seed(study)))
    assert said == {("m", "123"): "resists", ("m", "other"): "differs"}
