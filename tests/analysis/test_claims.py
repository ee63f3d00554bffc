"""Do the tests of the paper's statements follow the planted truth, both ways?"""

import dataclasses

import numpy as np
import planted
import pytest

from elastic_jax.analysis import claims, rebound, statistics
from elastic_jax.analysis.claims import path as of
from elastic_jax.analysis.claims import statement
from elastic_jax.analysis.claims.statement import Outcome, Test, Value


def verdicts(study, test):
    found = claims.tests(study)
    return found[found.test == test].set_index("align_volume").verdict.to_dict()


def test_faster_with_more_alignment(study_of):
    found = claims.tests(study_of())
    row = found[found.test == "half_life"].iloc[0]
    assert row.verdict == "supported" and row.low < -0.5 < row.high  # one octave earlier per factor of 4
    before = found[found.test == "before"].iloc[0]
    assert before.verdict == "supported" and before["mean"] == pytest.approx(0.015)  # 0.03 per factor of 4


def test_slower_with_more_alignment_is_contradicted(study_of):
    plant = planted.Plant(speed=-0.5)
    assert verdicts(study_of(plant), "half_life") == {0: "contradicted"}


def test_final_level(study_of):
    assert set(verdicts(study_of(), "final").values()) == {"supported"}
    above = study_of(planted.Plant(points=(16, 32, 64)))
    assert verdicts(above, "final")[256] == "contradicted"


def test_reversed_direction_gives_the_same_verdicts(study_of):
    up, down = (claims.tests(study_of(planted.Plant(upside_down=flip))) for flip in (False, True))
    assert up.verdict.tolist() == down.verdict.tolist()
    assert up["mean"].to_numpy() == pytest.approx(down["mean"].to_numpy(), nan_ok=True)


def test_one_seed_decides_nothing(study_of):
    found = claims.tests(study_of(planted.Plant(seeds=(0,))))
    assert set(found.verdict) == {"undecided", "not tested here"} and found.reason.str.contains("one seed").any()
    assert set(claims.overall(found).values()) == {"undecided", "not tested here"}


def test_what_a_study_lacks_is_said(study_of):
    """Every statement has a row, and every statement without a test a reason."""
    found = claims.tests(study_of(planted.Plant(control=False, volumes=(256,))))
    assert list(dict.fromkeys(found.claim)) == list(claims.STATEMENTS)
    untested = found[found.test == ""].set_index("claim")
    assert (untested.verdict == "not tested here").all() and (untested.reason != "").all()
    assert "no control" in untested.reason["rebound.control"]
    assert "one volume of alignment" in untested.reason["kl.grows"]
    for key in (
        "rebound.faster",
        "rebound.after",
        "size.faster",
        "tokens.emerges",
        "theorem.balance",
        "resistance.raw",
    ):
        assert claims.overall(found)[key] == "not tested here"


def test_a_study_without_perturbation_tests_nothing(study_of):
    found = claims.tests(study_of(change=lambda rows: rows[rows.stage != "perturb"]))
    assert set(found.verdict) == {"not tested here"} and (found.reason != "").all()


def test_a_censored_seed_keeps_a_trend_open(study_of):
    row = claims.tests(study_of(planted.Plant(points=(16, 32, 64))))
    row = row[row.test == "half_life"].iloc[0]
    assert row.verdict == "undecided" and "not reached" in row.reason


def test_distance_from_the_base(study_of):
    """The planted KL starts 0.04 higher at each factor of 4, bottoms out at 0.004 and turns back there."""
    found = claims.tests(study_of())
    grows = found[found.test == "kl_start"]
    assert set(grows["where"]) == {"KL(base‖model)", "KL(model‖base)"} and set(grows.verdict) == {"supported"}
    assert grows["mean"].iloc[0] == pytest.approx(0.02, abs=1e-6)
    assert claims.overall(found)["kl.returns"] == "supported"  # 0.004 < 0.01
    assert claims.overall(claims.tests(study_of(), eps=0.002))["kl.returns"] == "contradicted"
    less = (
        found[(found.test == "kl_less_data") & (found["where"] == "KL(base‖model)")].set_index("align_volume").verdict
    )
    assert less.to_dict() == {256: "contradicted", 1024: "supported", 4096: "supported"}  # bottom at 512, 256 and 128


def test_a_neighbourhood_that_is_never_reached_is_not_tested_for_speed(study_of):
    found = claims.tests(study_of(planted.Plant(kl_floor=0.05)))
    row = found[found.claim == "kl.fewer"].iloc[0]
    assert row.verdict == "not tested here" and "reached by no seed" in row.reason


def test_a_distance_that_still_falls_leaves_the_return_open(study_of):
    found = claims.tests(study_of(planted.Plant(points=(16, 32, 64), kl_floor=0.02)))
    row = found[(found.test == "kl_lowest") & (found.align_volume == 256)].iloc[0]
    assert row.verdict == "undecided" and "still falling" in row.reason


def test_permuted_volumes_give_no_effect(study_of):
    """Each seed carries the labels of the volumes in another order; every order once, so that no label is favoured."""
    orders = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
    plant = planted.Plant(seeds=tuple(range(6)))

    def permute(rows):
        names = {
            s: dict(zip(plant.volumes, np.array(plant.volumes)[list(o)], strict=True)) for s, o in enumerate(orders)
        }
        own = (rows.stage == "perturb") & (rows.arm == "aligned")
        new = [names[s].get(v, v) for s, v in zip(rows.seed[own], rows.align_volume[own], strict=True)]
        rows.loc[own, "align_volume"] = new
        return rows

    found = claims.tests(study_of(plant, permute))
    across = found[found.test.isin(["before", "after", "half_life", "speed", "relative", "kl_start", "kl_fewer"])]
    assert len(across) == 9 and set(across.verdict) == {"undecided"}
    effect = claims.tests(study_of(plant))
    assert set(effect[effect.test.isin(["before", "half_life", "kl_start"])].verdict) == {"supported"}


def test_methods_and_direction_are_of_the_appendix(study_of):
    found = claims.tests(study_of(planted.Plant(methods=("sft", "dpo"), volumes=(256, 1024))))
    assert set(found[found.claim == "scope.methods"].align_method) == {"sft", "dpo"}
    assert claims.overall(found)["scope.methods"] == "supported"
    study = study_of()
    reverse = study.info | {"config": {"data": {"task": "sentiment_reversed"}}}
    said = claims.overall(claims.tests(dataclasses.replace(study, info=reverse)))
    assert said["scope.reversed"] == "supported" and said["scope.methods"] == "not tested here"


@pytest.mark.parametrize(
    ("low", "high", "side", "said"),
    [
        (0.1, 0.2, 1, "supported"),
        (0.1, 0.2, -1, "contradicted"),
        (-0.2, -0.1, 1, "contradicted"),
        (-1, 1, 1, "undecided"),
    ],
)
def test_verdict(low, high, side, said):
    estimate = statistics.Estimate((low + high) / 2, low, high, 3)
    assert claims.verdict(estimate, side) == said
    assert claims.verdict(estimate, side, complete=False) == "undecided"


TEST = Test("t", "s", "a number", "unit", 1)


def test_seeds_that_agree_more_closely_than_their_texts_decide_nothing():
    close = {seed: 0.10 + 0.001 * seed for seed in range(3)}
    sure = statement.judge(Outcome(TEST, {seed: Value(x, 0.01) for seed, x in close.items()}))
    unsure = statement.judge(Outcome(TEST, {seed: Value(x, 0.3) for seed, x in close.items()}))
    assert (sure["verdict"], unsure["verdict"]) == ("supported", "undecided")
    assert sure["low"] == unsure["low"] > 0 > unsure["texts_low"] and sure["texts_low"] > 0
    unknown = statement.judge(Outcome(TEST, {seed: Value(x) for seed, x in close.items()}))
    assert np.isnan(unknown["texts_low"]) and unknown["verdict"] == "supported"


def test_a_half_life_is_redrawn_with_its_texts(study_of):
    """Seeds agree to a hundredth of an octave; with errors of a third of the alignment their agreement is no evidence."""
    plant = planted.Plant(noise=0.002)

    def row(stderr):
        def change(rows):
            rows.loc[rows.measure == "score", "stderr"] = stderr
            return rows

        found = claims.tests(study_of(plant, change))
        return found[found.test == "half_life"].iloc[0]

    sure, unsure = row(0.01), row(0.08)
    assert sure["mean"] == unsure["mean"] and sure.low == unsure.low and sure.high < 0
    assert sure.verdict == "supported" and sure.texts_low < -0.5 < sure.texts_high < 0
    assert unsure.verdict == "undecided" and unsure.texts_low < -0.5 < 0 < unsure.texts_high
    unknown = row(np.nan)
    assert np.isnan(unknown.texts_low) and unknown.verdict == "supported"


def test_half_lives_that_only_texts_scatter_are_covered(study_of):
    """One curve for all seeds, its points redrawn: the bootstrap has to hold the planted slope by itself."""
    plant = planted.Plant(noise=0.0, control=False, samples=False)
    paths = [path for path in rebound.trajectories(study_of(plant)) if path.arm == "aligned"]
    rng, covered, wide = np.random.default_rng(8), 0, []
    for _ in range(40):
        values = {}
        for seed in plant.seeds:
            base, drawn = plant.base + 0.02 * rng.standard_normal(), []
            for path in (path for path in paths if path.seed == seed):
                value = path.value + 0.02 * rng.standard_normal(len(path.value))
                points = path.points | dict(value=value, stderr=np.full(len(value), 0.02))
                drawn.append(dataclasses.replace(path, points=points, base=base, base_stderr=0.02))
            values[seed] = statement.per_doubling(
                [path.align_volume for path in drawn], [of.log_half_life(path) for path in drawn]
            )
        row = statement.judge(Outcome(TEST, values))
        covered += row["texts_low"] <= -0.5 <= row["texts_high"]
        wide.append(row["texts_high"] - row["texts_low"])
    assert covered >= 36 and 0.05 < np.median(wide) < 0.5


def test_draws_are_those_of_the_scalar_definitions(study_of):
    """Redrawn one by one with `rebound`'s own functions."""
    path = next(path for path in rebound.trajectories(study_of()) if path.arm == "aligned")
    bases, cases = of.redrawn_base(path), 0
    for value, axis, scalar in (
        (of.log_half_life(path), "examples", lambda one: rebound.return_time(one, 0.5)),
        (of.log_own_half(path), "updates", rebound.own_half),
    ):
        _, records = of.redrawn(path, axis)
        assert value.draws is not None
        for i in range(50):
            one = dataclasses.replace(path, points=path.points | dict(value=records[i]), base=float(bases[i]))
            assert value.draws[i] == pytest.approx(np.log2(scalar(one).at), abs=1e-9)
            cases += 1
        assert value.stderr == pytest.approx(value.draws.std(), rel=1e-6)
    assert cases == 100


def test_what_two_numbers_share_is_drawn_alike_in_both():
    draws = np.random.default_rng(0).standard_normal(500)
    one, other = Value(1.0, 1.0, draws=1 + draws), Value(0.0, 1.0, draws=draws)
    assert statement.combine([1, -1], [one, other]).draws == pytest.approx(np.ones(500))
    assert statement.combine([1, -1], [one, Value(0.0, 1.0)]).draws is None


def test_the_sign_flip_test_says_what_so_many_seeds_can_give():
    row = statement.judge(Outcome(TEST, {seed: Value(0.1 + 0.01 * seed) for seed in range(6)}))
    assert row["p"] == row["p_least"] == 2 / 64
    assert statement.judge(Outcome(TEST, {0: Value(0.1), 1: Value(-0.1)}))["p"] == 1.0


def test_errors_and_reasons_are_carried_along():
    both = statement.combine([1, -1], [Value(3.0, 0.3), Value(1.0, 0.4)])
    assert both == Value(2.0, pytest.approx(0.5), "")
    lacking = statement.combine([1, -1], [Value(3.0, 0.3), statement.missing("not measured")])
    assert np.isnan(lacking.value) and lacking.reason == "not measured"
    slope = statement.per_doubling([1, 2, 4], [Value(0.0, 0.1), Value(1.0, 0.1), Value(2.0, 0.1)])
    assert slope.value == pytest.approx(1) and slope.stderr == pytest.approx(0.1 / 2**0.5)
    assert "no trend" in statement.per_doubling([2, 2], [Value(0.0), Value(1.0)]).reason
