"""Are variants of one config one study to look at, and does each keep its own numbers?"""

import planted
import pytest

from elastic_jax import report
from elastic_jax.analysis import rebound, table
from elastic_jax.errors import UserError


@pytest.fixture
def suite(tmp_path):
    """Two variants that share a pre-training run, in one file; the second one's alignment has half the speed."""
    frames, studies = [], {}
    for variant, plant in (("small", planted.Plant()), ("large", planted.Plant(speed=0.5))):
        rows, metadata = planted.table(plant)
        frames.append(rows.assign(study=f"size.{variant}"))
        studies[f"size.{variant}"] = metadata["studies"]["planted"]
    return planted.write(tmp_path / "measures.parquet", table.stack(frames), {"studies": studies})


def test_every_variant_keeps_its_trajectories(suite):
    whole = table.select(table.load(suite))
    assert whole.name == "size" and set(whole.rows[whole.rows.run != ""].model) == {"small", "large"}
    joined = rebound.trajectories(whole)
    for variant in ("small", "large"):
        alone = rebound.trajectories(table.select(table.load(suite), f"size.{variant}"))
        same = [path for path in joined if path.condition[0] == variant]
        assert len(same) == len(alone) > 0
        for one, other in zip(same, alone, strict=True):
            assert one.condition[1:] == other.condition[1:] and one.run == f"{variant}/{other.run}"
            assert one.base == other.base and (one.value == other.value).all()
    assert whole.progress() == tuple(2 * count for count in table.select(table.load(suite), "size.small").progress())


def test_equal_facts_are_kept_once_and_others_say_whose_they_are(suite):
    whole = table.select(table.load(suite), "size")
    facts = whole.rows[whole.rows.stage == "data"]
    assert len(facts) == len(table.select(table.load(suite), "size.small").rows.query("stage == 'data'"))
    path = suite.with_name("other.parquet")
    rows, metadata = table.load(suite).rows.drop(columns=[]), {"studies": dict(table.load(suite).studies)}
    changed = (rows.study == "size.large") & (rows.measure == "entropy")
    planted.write(path, rows.assign(value=rows.value.where(~changed, 2.5)), metadata)
    facts = table.select(table.load(path)).rows.query("stage == 'data'")
    assert {"small: pretrain", "large: pretrain"} <= set(facts.split)


def test_the_report_shows_a_panel_for_each(suite, tmp_path):
    page = report.render(suite, tmp_path / "report").read_text()
    assert "small" in page and "large" in page
    assert "small" in report.summary(suite)


def test_an_unknown_name_is_refused(suite):
    with pytest.raises(UserError, match="no such study"):
        table.select(table.load(suite), "siz")
