"""Do the files hold what is known of the published numbers?"""

import numpy as np
import pytest

from elastic_jax import published


def test_inverse_alignment_was_easier_in_every_pair_of_table_1():
    rows = published.resistance()
    assert len(rows) == 27 and (rows.later > rows.earlier).all()
    gap = rows.forward / rows.inverse - 1
    assert (gap > 0).all() and round(100 * gap.median(), 1) == 8.4
    assert round(100 * gap.min(), 1) == 0.1 and round(100 * gap.max()) == 42


def test_every_curve_is_flat_from_100_to_200_examples():
    rows = published.rebound()
    wide = rows.pivot_table(index=["item", "data", "model", "align_volume"], columns="perturb_volume", values="score")
    both = wide.dropna(subset=[100, 200])
    assert len(both) == 28
    assert (np.abs(both[100] - both[200]) <= 0.011).all()


@pytest.mark.parametrize("model,old,new", [("Gemma-2B", -9.2, -12.2), ("Llama2-7B", -8.05, -11.05)])
def test_versions_differ_where_they_are_known_to(model, old, new):
    def score(version: str, volume: str, perturb: int) -> float:
        rows = published.rebound(version)
        chosen = rows[(rows.item == "figure 4") & (rows.data == "BeaverTails") & (rows.model == model)]
        chosen = chosen[(chosen.align_volume == volume) & (chosen.perturb_volume == perturb)]
        assert len(chosen) == 1
        return float(chosen.score.iloc[0])

    assert (score("2024-05", "0", 0), score("ACL", "0", 0)) == (old, new)
    exchanged = model == "Gemma-2B"
    assert (score("2024-05", "2000", 2000) == score("ACL", "10000", 2000)) == exchanged
    assert score("2024-05", "1000", 2000) == score("ACL", "1000", 2000)


def test_a_version_has_one_number_for_each_cell():
    for version in published.VERSIONS:
        rows = published.rebound(version)
        assert not rows.duplicated(["item", "data", "model", "align_volume", "perturb_volume"]).any()
        assert set(rows.covered) == {"yes", "no"}
    with pytest.raises(ValueError, match="expected one of 2024-05, ACL"):
        published.rebound("v1")


def test_more_alignment_needed_fewer_unsafe_examples_in_table_3():
    for _, rows in published.kl_rebound().groupby("model"):
        assert rows.kl.is_monotonic_increasing and rows.examples_to_eps.is_monotonic_decreasing
