"""Are planted effects of training and noise told apart, and is what is none called none?"""

import numpy as np
import pytest
from planted_noise import SHAPE, Plant, study_of

from elastic_jax.analysis import claims, noise
from elastic_jax.analysis.claims import noise as trends
from elastic_jax.analysis.claims import statement
from elastic_jax.analysis.statistics import Estimate


def compared(study, quantity="score"):
    rows = noise.compare(noise.per_seed(study))
    return rows[rows.quantity == quantity]


def trend(study, quantity="score", examples=trends.ALL):
    rows = trends.trends(study)
    return rows[(rows.quantity == quantity) & (rows.examples == examples)].iloc[0]


def said(study):
    """Statement -> verdict, as the registry puts tests together, of this family alone."""
    found = list(trends.outcomes(study, statement.Settings()))
    out = {one.key: set() for one in trends.STATEMENTS}
    for one in found:
        if isinstance(one, statement.Outcome):
            out[one.test.statement].add(statement.judge(one)["verdict"])
    untested = {one.statement for one in found if isinstance(one, statement.Untested)}
    assert untested == {key for key, verdicts in out.items() if not verdicts}
    return {
        key: "not tested here" if not verdicts else verdicts.pop() if len(verdicts) == 1 else "undecided"
        for key, verdicts in out.items()
    }


def test_planted_ways_back_and_slopes_are_recovered_within_their_intervals(tmp_path):
    study = study_of(tmp_path, Plant(seeds=(0, 1, 2, 3)))
    rows = compared(study)
    assert len(rows) == 4 * 2 * 3 and set(rows.verdict) == {"training more"} and set(rows.n) == {4}
    for row in rows.itertuples():
        i = int(row.model[1])
        wanted = SHAPE[row.examples] * np.array([0.2 + 0.04 * i, 0.05, 0.15 + 0.04 * i])
        for side, value in zip(noise.SIDES, wanted, strict=True):
            low, high = getattr(row, f"{side}_low"), getattr(row, f"{side}_high")
            assert low - 1e-12 <= value <= high + 1e-12, (side, row)
        assert row.share == pytest.approx(row.noise / row.trained)
    found = trend(study)
    for side, value in dict(trained=0.04, noise=0.0, difference=0.04).items():
        assert found[f"{side}_low"] < value < found[f"{side}_high"], side
    assert found.verdict == "not under noise" and (found.axis, found["where"]) == ("tokens", "1,000 parameters")
    at = trend(study, examples=16)  # half of the mean over volumes, seed by seed
    assert at.trained == pytest.approx(found.trained / 2) and at.n == 4
    loss = trend(study, "loss_pretrain")
    assert loss.noise == pytest.approx(0.03) and loss.trained == pytest.approx(0.0, abs=1e-9)
    assert said(study) == {
        "noise.direction": "supported",
        "noise.size_sensitive": "not tested here",
        "noise.size_beyond": "not tested here",
        "noise.tokens_sensitive": "undecided",  # the loss is, the score is not
        "noise.tokens_beyond": "supported",
    }


@pytest.mark.parametrize(
    ("trained", "moved", "wanted"),
    [
        ((0.2, 0.04), (0.05, 0.04), "as under noise"),
        ((0.2, 0.08), (0.05, 0.03), "partly noise"),
        ((0.4, -0.05), (0.05, 0.0), "not under noise"),
        ((0.2, 0.0), (0.05, 0.05), "no trend"),
    ],
)
def test_trends_that_noise_shares_are_told_from_those_that_it_does_not(tmp_path, trained, moved, wanted):
    study = study_of(tmp_path, Plant(trained=trained, noise=moved))
    assert trend(study).verdict == wanted
    verdicts = said(study)
    sensitive = "supported" if moved[1] else "undecided"
    beyond = {"as under noise": "undecided", "partly noise": "supported", "no trend": "undecided"}
    assert verdicts["noise.tokens_sensitive"] == sensitive
    assert verdicts["noise.tokens_beyond"] == beyond.get(wanted, "contradicted")


def test_sizes_are_an_axis_of_their_own(tmp_path):
    study = study_of(tmp_path, Plant(axis="params", noise=(0.05, 0.03), trained=(0.2, 0.09)))
    assert trend(study)["axis"] == "size" and said(study)["noise.size_beyond"] == "supported"
    assert said(study)["noise.tokens_beyond"] == "not tested here"


def test_permuted_labels_give_no_effect(tmp_path):
    study = study_of(tmp_path / "a", Plant(seeds=(0, 1, 2, 3), flipped=(1, 2)))
    assert set(compared(study).verdict) == {"undecided"} and said(study)["noise.direction"] == "undecided"
    # With two against two both signs of the mean are as likely; exactly so but for the jitter.
    assert (compared(study).p > 0.5).all()
    orders = {0: (0, 1, 2, 3), 1: (3, 2, 1, 0), 2: (1, 3, 0, 2), 3: (2, 0, 3, 1)}
    shuffled = study_of(tmp_path / "b", Plant(seeds=(0, 1, 2, 3), order=orders))
    assert trend(shuffled).verdict == "no trend" and said(shuffled)["noise.tokens_beyond"] == "undecided"


def test_an_alignment_that_lowers_the_score_has_the_same_way_back(tmp_path):
    up, down = (compared(study_of(tmp_path / str(s), Plant(sign=s))) for s in (1.0, -1.0))
    for side in noise.SIDES:
        np.testing.assert_allclose(up[side], down[side])


def test_draws_are_averaged_and_points_that_not_all_have_are_left_out(tmp_path):
    study = study_of(tmp_path / "whole")
    (path, *_) = noise.trajectories(study)
    own = [
        study.points[run, "score", "samples"]["value"]
        for run, parent in study.ancestry.items()
        if parent == path.run or (study.stage_of[run] == "noise" and parent == study.ancestry[path.run])
    ]
    assert len(own) == 2
    assert path.arm == "noise" and path.points["examples"].tolist() == [0, 16, 64, 256]
    np.testing.assert_allclose(path.value[1:], np.mean(own, axis=0))

    def unfinished(rows):
        return rows[~(rows.run.str.startswith("noise-s1-a256-d2") & (rows.examples == 256))]

    part = study_of(tmp_path / "part", change=unfinished)
    assert {p.seed for p in noise.trajectories(part) if p.align_volume == 256} == {0, 2}
    assert {p.seed for p in noise.trajectories(part) if p.align_volume == 1024} == {0, 1, 2}
    assert np.isnan(trend(part).difference_low) or trend(part).n == 2
    assert said(part)["noise.tokens_beyond"] == "undecided"  # a seed lacks a volume


def test_a_run_for_each_volume_makes_one_trajectory(tmp_path):
    def cut(rows):
        late = rows.stage.isin(["perturb", "noise"]) & (rows.examples > 0)
        return rows.assign(run=rows.run.where(~late, rows.run + "-p" + rows.examples.astype(str)))

    whole, apart = study_of(tmp_path / "a"), study_of(tmp_path / "b", change=cut)
    for one, other in zip(noise.trajectories(whole), noise.trajectories(apart), strict=True):
        np.testing.assert_allclose(one.value, other.value)


def test_one_seed_gives_no_interval_and_no_verdict(tmp_path):
    study = study_of(tmp_path, Plant(seeds=(0,)))
    row, along = compared(study).iloc[0], trend(study)
    assert row.verdict == along.verdict == "undecided" and "one seed" in row.reason and "one seed" in along.reason
    assert set(said(study).values()) <= {"undecided", "not tested here"}


def test_an_alignment_that_did_not_move_the_score_has_no_way_back(tmp_path):
    study = study_of(tmp_path, Plant(aligned=0.501))
    row = compared(study).iloc[0]
    assert np.isnan(row.trained) and "did not move the measure" in row.reason and row.verdict == "undecided"
    assert not np.isnan(compared(study, "loss_pretrain").iloc[0].trained)


def test_weights_moved_are_those_written_down(tmp_path):
    changes = noise.changes(study_of(tmp_path))
    assert set(changes.draws) == {2} and set(changes.weights) == {10.0}
    assert (changes.trained == changes.noise).all() and changes.trained.tolist() == changes.examples.map(SHAPE).tolist()


def test_a_study_without_noise_says_why_nothing_is_tested(tmp_path):
    study = study_of(tmp_path, Plant(draws=0))
    assert not noise.has_runs(study) and noise.compare(noise.per_seed(study)).empty
    found = claims.tests(study)
    own = found[found.claim.str.startswith("noise.")]
    assert set(own.verdict) == {"not tested here"} and set(own.reason) == {
        "no noise beside the perturbations: noise.draws=0"
    }


def test_verdicts_need_intervals_on_one_side():
    above, zero, below = Estimate(1, 0.5, 1.5), Estimate(0, -1, 1), Estimate(-1, -1.5, -0.5)
    assert trends.verdict(above, zero, zero) == "undecided" and trends.verdict(above, below, above) == "not under noise"
    assert trends.verdict(zero, above, below) == "no trend" and trends.verdict(Estimate(1.0), zero, zero) == "undecided"
    assert noise.verdict(below) == "noise more"
