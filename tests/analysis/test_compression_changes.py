"""Do changes of compression point the way they were planted?"""

import planted
import pytest

from elastic_jax.analysis import compression

EXACT = planted.Plant(noise=0.0)


def test_changes_along_both_stages(study_of):
    table = compression.aggregate(compression.changes(study_of(EXACT)))
    table = table[table.measure == "bits_per_token"].set_index(["stage", "split", "align_volume"])
    for volume in EXACT.volumes:
        moved = EXACT.kl(volume, 0)
        assert table.loc[("align", "pretrain", volume), "mean"] == pytest.approx(moved)
        assert table.loc[("align", "align", volume), "mean"] == pytest.approx(-moved)
        back = EXACT.kl(volume, 1024) - moved
        assert table.loc[("perturb", "pretrain", volume), "mean"] == pytest.approx(back)
    assert table.loc[("perturb", "pretrain", 0), "mean"] == pytest.approx(EXACT.kl(0, 1024))


def test_align_curve_starts_at_the_base(study_of):
    curve = compression.align_curves(study_of(EXACT), "bits_per_token", "align")
    assert curve.examples.tolist() == [0, *EXACT.volumes] and set(curve.n) == {3}
    assert curve["mean"].iloc[0] == pytest.approx(2.8)
