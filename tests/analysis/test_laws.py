"""Does a study with planted laws show them?"""

import planted
import pytest

from elastic_jax.analysis import laws, rebound, table


def sizes(study):
    return study.rows[study.rows.run != ""].groupby("model", as_index=False).params.max().assign(pretrain_tokens=0)


def test_the_planted_exponent_of_the_alignment_volume_is_found(study_of):
    study = study_of(planted.Plant(noise=0.002))
    values = rebound.per_seed(study)
    found = laws.power_laws(values, sizes(study)).set_index("quantity")
    assert set(found.along) == {"align_volume"}  # one model: no law in its size
    for quantity in ("half_life_examples", "crossing_examples"):
        assert found["mean"][quantity] == pytest.approx(-0.5, abs=0.02)  # halved by every fourfold volume
        assert found.low[quantity] < found["mean"][quantity] < found.high[quantity] and found.r2[quantity] > 0.99
    predicted = laws.predictions(values, sizes(study))
    middle = predicted[(predicted.quantity == "half_life_examples") & (predicted.x == 1024)].iloc[0]
    assert middle.predicted == pytest.approx(64, rel=0.05) and middle.inside


def test_a_law_over_models_needs_three_of_them(study_of):
    study = study_of(planted.Plant(noise=0.002))
    values = rebound.per_seed(study)
    several = [
        values.assign(model=name, value=values.value * factor) for name, factor in (("a", 1), ("b", 2), ("c", 4))
    ]
    described = table.frame(
        [dict(model=m, params=p, pretrain_tokens=0) for m, p in (("a", 1e6), ("b", 4e6), ("c", 16e6))],
        ["model", "params", "pretrain_tokens"],
    )
    found = laws.power_laws(table.stack(several), described)
    over = found[(found.along == "params") & (found.quantity == "half_life_examples")]
    assert len(over) == 3 and over["mean"].tolist() == pytest.approx([0.5] * 3)
    assert laws.power_laws(table.stack(several[:2]), described).along.unique().tolist() == ["align_volume"]


def test_decays_are_given_for_every_condition(study_of):
    found = laws.decays(rebound.trajectories(study_of(planted.Plant())))
    assert sorted(zip(found.arm, found.align_volume, strict=True)) == [
        ("aligned", 256), ("aligned", 1024), ("aligned", 4096), ("control", 0),
    ]  # fmt: skip
    assert (
        (found.points == 24).all()
        and (found.n == 3).all()
        and found.verdict.isin(["one rate", "two rates", "undecided"]).all()
    )
    short = laws.decays(rebound.trajectories(study_of(planted.Plant(points=(16, 64), seeds=(0,)))))
    assert (short.verdict == "undecided").all() and short.reason.str.contains("need 8").all()
