"""Do the statements beside Figure 4 follow what is planted for them, and do permuted labels give none of it?"""

import dataclasses

import planted
import planted_dials
import pytest
from test_resistance_analysis import study_of as slices_of

from elastic_jax.analysis import claims, laws, table
from elastic_jax.analysis.claims import bases, batches, decay, resistance, theorem
from elastic_jax.analysis.claims.statement import Outcome, Settings, judge


def judged(family, study):
    """statement -> its tests as rows; the key of an untested one -> its reason."""
    rows, why = [], {}
    for one in family.outcomes(study, Settings()):
        if isinstance(one, Outcome):
            rows.append(judge(one))
        else:
            why.setdefault(one.statement, one.reason)
    return table.frame(rows, claims.COLUMNS), why


def said(family, study, statement):
    return set(judged(family, study)[0].query("claim == @statement").verdict)


# -- Table 1 -------------------------------------------------------------------------------------------------


def test_resistance_is_a_divergence_and_not_an_entropy(tmp_path):
    study = slices_of(tmp_path, lambda arm, k, n: 0.3 + 0.1 * (arm == "forward"), lambda k: 1.0)
    assert said(resistance, study, "resistance.divergence") == {"supported"}
    study = slices_of(
        tmp_path, lambda arm, k, n: 0.3, lambda k: 0.5 + 0.5 * k
    )  # later slices write less predictable texts
    assert said(resistance, study, "resistance.raw") == {"supported"}
    assert said(resistance, study, "resistance.divergence") == {"undecided"}


def test_directions_under_each_other_s_names_do_not_resist(tmp_path):
    study = slices_of(
        tmp_path, lambda arm, k, n: 0.3 + 0.1 * (arm == "forward"), lambda k: 1.0, seeds=(0, 1, 2, 3), flipped=(1, 2)
    )
    rows, _ = judged(resistance, study)
    assert set(rows.verdict) == {"undecided"} and (rows[rows.claim == "resistance.divergence"].p == 1.0).all()


# -- Figures 5 and 6 -----------------------------------------------------------------------------------------


def sized(tmp_path, speeds, order=None, field="params", seeds=(0, 1, 2)):
    """As `placed`, of curves that are shifted by `speeds` octaves."""
    plants = [planted.Plant(seeds=seeds, speed=speed, control=False, samples=False) for speed in speeds]
    return placed(tmp_path, plants, order, field)


def placed(tmp_path, plants, order=None, field="params"):
    """Variants, each at twice the place of the one before.

    Args:
      order: seed -> the variants that the places 0, 1, ... are given to in it.
    """
    frames, studies = [], {}
    for place, plant in enumerate(plants):
        rows, metadata = planted.table(plant)
        name = f"planted.v{place}"
        rows = rows.assign(study=name, pretrain_tokens=1000, params=500)
        rows[field] = 1000 * 2**place
        frames.append(rows)
        studies[name] = metadata["studies"]["planted"]
    whole = table.stack(frames)
    if order:
        names = {
            (f"planted.v{old}", seed): f"planted.v{new}"
            for seed, places in order.items()
            for new, old in enumerate(places)
        }
        study = [
            names.get((name, seed), name) if run else name
            for name, seed, run in zip(whole.study, whole.seed, whole.run, strict=True)
        ]
        whole = whole.assign(study=study)
        whole[field] = [1000 * 2 ** int(name[-1]) for name in whole.study]
        studies = {name: dict(info, runs=[]) for name, info in studies.items()}
    path = planted.write(tmp_path / "measures.parquet", whole, {"studies": studies})
    return table.select(table.load(path))


@pytest.mark.parametrize(
    ("field", "axis", "other"), [("params", "size", "tokens"), ("pretrain_tokens", "tokens", "size")]
)
def test_trends_over_bases(tmp_path, field, axis, other):
    """The mean half-life over volumes is half an octave shorter at each doubling."""
    rows, why = judged(bases, sized(tmp_path, (0.0, 0.5, 1.0), field=field))
    half = rows[rows.test == f"{axis}_half_life"].iloc[0]
    assert half.verdict == "supported" and half.low <= -0.5 <= half.high
    assert set(why) >= {f"{other}.faster"} and not (rows.claim.str.startswith(other)).any()
    reverse, _ = judged(bases, sized(tmp_path, (1.0, 0.5, 0.0), field=field))
    assert set(reverse[reverse.test == f"{axis}_half_life"].verdict) == {"contradicted"}


def test_bases_in_another_order_in_each_seed_have_no_trend(tmp_path):
    order = {0: (0, 1, 2), 1: (1, 2, 0), 2: (2, 0, 1)}  # each variant once at each place
    rows, _ = judged(bases, sized(tmp_path, (0.0, 0.5, 1.0), order))
    assert len(rows) == 5 and set(rows.verdict) == {"undecided"} and (rows.n == 3).all()


def beside_control(speeds, falls, seeds=(0, 1, 2)):
    """Plants whose aligned models return earlier by `speeds` octaves and whose control falls by `falls`."""
    return [
        planted.Plant(seeds=seeds, speed=speed, control_fall=fall, samples=False, stderr=0.002, stream=11 + i)
        for i, (speed, fall) in enumerate(zip(speeds, falls, strict=True))
    ]


def way(plant, volume):
    return plant.score(volume, 0) - plant.score(volume, 1024)


def mean_way(plant):
    return sum(way(plant, volume) for volume in plant.volumes) / len(plant.volumes)


def control_rows(study, axis="tokens"):
    rows = judged(bases, study)[0]
    return rows[rows.claim == f"{axis}.beyond_control"].set_index("test")


@pytest.mark.parametrize(("field", "axis"), [("params", "size"), ("pretrain_tokens", "tokens")])
def test_a_trend_that_the_control_does_not_have_is_beyond_it(tmp_path, field, axis):
    plants = beside_control((0.0, 0.5, 1.0), (0.5, 0.5, 0.5))
    rows = control_rows(placed(tmp_path, plants, field=field), axis)
    slope = (mean_way(plants[2]) - mean_way(plants[0])) / 2
    found = rows.loc[f"{axis}_control_way"]
    assert (
        found.verdict == "supported" and found.low < slope < found.high and found.texts_low < slope < found.texts_high
    )
    assert found.reason == f"aligned {found['mean']:.3g}, control 0"
    half = rows.loc[f"{axis}_control_half"]  # their own ways become faster, the control's does not
    assert half.verdict == "supported" and half.texts_low < half.low < half.high < half.texts_high < 0
    reverse = control_rows(placed(tmp_path, plants[::-1], field=field), axis)
    assert set(reverse.loc[[f"{axis}_control_way", f"{axis}_control_half"]].verdict) == {"contradicted"}


def test_a_trend_that_the_control_shares_is_not_beyond_it(tmp_path):
    """The control falls further by just as much at each place; or by more."""
    speeds = (0.0, 0.5, 1.0)
    alone = beside_control(speeds, (0.5, 0.5, 0.5))
    unit = way(planted.Plant(), 0)
    shared = tuple(0.5 + (mean_way(plant) - mean_way(alone[0])) / unit for plant in alone)
    rows = control_rows(placed(tmp_path, beside_control(speeds, shared), field="pretrain_tokens"))
    same = rows.loc["tokens_control_way"]
    assert same.verdict == "undecided" and same["mean"] == pytest.approx(0, abs=0.005)
    more = control_rows(placed(tmp_path, beside_control((0.0, 0.0, 0.0), (0.4, 0.7, 1.0)), field="pretrain_tokens"))
    assert more.loc["tokens_control_way"].verdict == "contradicted"
    assert more.loc["tokens_control_way"]["mean"] == pytest.approx(-0.3 * unit, abs=0.005)


def test_an_alignment_that_lowers_the_score_is_beside_a_control_that_rises(tmp_path):
    plants = beside_control((0.0, 0.5, 1.0), (0.4, 0.5, 0.6))
    up, down = (
        control_rows(
            placed(tmp_path, [dataclasses.replace(p, upside_down=flip) for p in plants], field="pretrain_tokens")
        )
        for flip in (False, True)
    )
    assert up["mean"].to_numpy() == pytest.approx(down["mean"].to_numpy(), abs=1e-12)


def test_bases_under_each_other_s_names_are_not_beyond_the_control(tmp_path):
    order = {0: (0, 1, 2), 1: (1, 2, 0), 2: (2, 0, 1)}
    rows = control_rows(placed(tmp_path, beside_control((0.0, 0.5, 1.0), (0.4, 0.4, 0.4)), order, "pretrain_tokens"))
    assert len(rows) == 3 and set(rows.verdict) == {"undecided"} and (rows.n == 3).all()


def test_a_control_that_lacks_a_base_or_is_not_there_is_said(tmp_path):
    study = placed(tmp_path, beside_control((0.0, 0.5), (0.5, 0.5)), field="pretrain_tokens")
    lost = (study.rows.arm == "control") & (study.rows.model == "v1") & (study.rows.seed == 2)
    rows = control_rows(dataclasses.replace(study, rows=study.rows[~lost]))
    assert set(rows.verdict) == {"undecided"} and rows.reason.str.contains("v1: no control with this seed").all()
    _, why = judged(bases, sized(tmp_path, (0.0, 0.5), field="pretrain_tokens"))
    assert why["tokens.beyond_control"] == "no control was run (perturb.control=False)"
    assert why["size.beyond_control"] == "no two bases differ in parameters alone"


def test_bases_that_differ_in_both_are_not_compared(study_of, tmp_path):
    study = sized(tmp_path, (0.0, 1.0))
    rows = study.rows.assign(pretrain_tokens=study.rows.params)
    _, why = judged(bases, dataclasses.replace(study, rows=rows))
    assert (
        why["size.faster"]
        == "no two bases differ in parameters alone"
        == why["tokens.faster"].replace("pre-training", "parameters")
    )


# -- the theorem ---------------------------------------------------------------------------------------------


def test_the_theorem_holds_of_rates_that_follow_it_and_not_of_stages_that_do_not():
    study = planted_dials.study(noise=2e-5, forces=dict(pretrain=0.2, align=0.9, perturb=-1.0))
    assert said(theorem, study, "theorem.signs") == said(theorem, study, "theorem.balance") == {"supported"}
    slopes = judged(theorem, study)[0].query("claim == 'theorem.slope'")
    assert len(slopes) == 2 and set(slopes.verdict) == {"supported"}  # as measured, and corrected for finite l
    assert said(theorem, study, "theorem.sequential_balance") == {"contradicted"}
    assert said(theorem, study, "theorem.sequential_signs") == {
        "supported",
        "contradicted",
    }  # of alignment, of pre-training


def test_a_slope_that_could_be_almost_anything_is_undecided():
    """The interval holds what is predicted and leaves zero out, and still does not tell k from its root."""
    rows = judged(theorem, planted_dials.study(noise=6e-4))[0].query("claim == 'theorem.slope'")
    corrected = rows[rows["where"].str.endswith("corrected")].iloc[0]
    assert 0 < corrected.low < 1 < corrected.high and corrected.high - corrected.low > 1
    assert set(rows.verdict) == {"undecided"} and rows.reason.str.contains("within ±0.5").all()


def test_values_of_l_under_each_other_s_names_have_the_wrong_signs():
    study = planted_dials.study(noise=2e-5)
    names = {"l0": "l0_25", "l0_25": "l0"}
    swapped = study.rows.model.map(
        lambda name: "-".join([name.split("-")[0], names[name.split("-")[1]]]) if "-l" in name else name
    )
    found = said(theorem, dataclasses.replace(study, rows=study.rows.assign(model=swapped)), "theorem.signs")
    assert found == {"contradicted"}


# -- batches and decay ---------------------------------------------------------------------------------------


def batched(tmp_path, flat):
    """Three ways with the last batch; the dropped one makes no update in its first two points and, if `flat`, does not move there."""
    frames, studies = [], {}
    for how in ("drop", "flush", "pad"):
        rows, metadata = planted.table(planted.Plant(volumes=(256,), control=False, samples=False))
        name, info = f"planted.{how}", metadata["studies"]["planted"]
        own = (rows.stage == "perturb") & rows.examples.isin([16, 32])
        if how == "drop":
            rows.loc[own, "updates"] = 0
        elif flat:
            rows.loc[own & (rows.measure == "score"), "value"] -= 0.1
        frames.append(rows.assign(study=name))
        studies[name] = info | dict(config=dict(perturb=dict(last_batch=how)))
    path = planted.write(tmp_path / "measures.parquet", table.stack(frames), {"studies": studies})
    return table.select(table.load(path))


def test_a_flat_start_is_the_batch_s_where_the_others_move(tmp_path):
    rows, _ = judged(batches, batched(tmp_path, flat=True))
    assert len(rows) == 4 and set(rows.verdict) == {"supported"}  # two volumes against two ways
    assert rows["mean"].to_numpy() == pytest.approx(0.1, abs=1e-9)
    assert said(batches, batched(tmp_path, flat=False), "batches.flat") == {"undecided"}


def test_one_way_with_the_last_batch_is_not_tested(study_of):
    assert "one way" in judged(batches, study_of())[1]["batches.flat"]


def test_two_rates_are_said_by_the_fit(study_of, monkeypatch):
    study = study_of()
    assert said(decay, study, "decay.about_base") <= {"supported", "undecided", "contradicted"}
    real = laws.decays_of(study)
    for verdict, expected in (("two rates", "supported"), ("one rate", "contradicted"), ("undecided", "undecided")):
        monkeypatch.setattr(laws, "decays_of", lambda *_, verdict=verdict: real.assign(verdict=verdict))
        assert said(decay, study, "decay.two_rates") == {expected}
    monkeypatch.setattr(laws, "decays_of", lambda *_: real.assign(verdict="two rates", n=1))
    assert said(decay, study, "decay.two_rates") == {"undecided"}
