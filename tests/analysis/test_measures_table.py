"""Is a table that is not ours refused, and does ours read the same in any row order?"""

import pandas as pd
import planted
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from elastic_jax.analysis import table
from elastic_jax.errors import UserError


def test_row_order_and_repeats_do_not_matter(study_of):
    straight = study_of()
    mixed = study_of(change=lambda rows: pd.concat([rows, rows.head(5)]).sample(frac=1, random_state=3))
    pd.testing.assert_frame_equal(straight.rows, mixed.rows)


def test_missing_file_names_the_way_out(tmp_path):
    with pytest.raises(UserError, match="elastic_jax.run"):
        table.load(tmp_path / "measures.parquet")


def test_no_parquet(tmp_path):
    (tmp_path / "measures.parquet").write_text("step,loss\n1,2\n")
    with pytest.raises(UserError, match="not a parquet file"):
        table.load(tmp_path / "measures.parquet")


def test_lacking_columns_are_named(tmp_path):
    rows, metadata = planted.table()
    with pytest.raises(UserError, match="align_volume, stderr"):
        table.load(planted.write(tmp_path / "m.parquet", rows.drop(columns=["align_volume", "stderr"]), metadata))


def test_without_metadata_it_is_not_ours(tmp_path):
    rows, _ = planted.table()
    pq.write_table(pa.Table.from_pandas(rows, preserve_index=False), tmp_path / "m.parquet")
    with pytest.raises(UserError, match="schema metadata"):
        table.load(tmp_path / "m.parquet")


def test_two_values_of_one_point_are_refused(study_of):
    def contradict(rows):
        row = rows[rows.measure == "score"].tail(1)
        return pd.concat([rows, row.assign(value=row.value + 0.1)])

    with pytest.raises(UserError, match="more than one value of score"):
        study_of(change=contradict)


def test_unknown_and_ambiguous_study(tmp_path):
    rows, metadata = planted.table(planted.Plant(seeds=(0,), volumes=(256,)))
    both = pd.concat([rows, rows.assign(study="second")])
    metadata["studies"]["second"] = metadata["studies"]["planted"]
    loaded = table.load(planted.write(tmp_path / "m.parquet", both, metadata))
    with pytest.raises(UserError, match="planted, second"):
        table.select(loaded)
    with pytest.raises(UserError, match="Closest: planted"):
        table.select(loaded, "plantd")
    assert set(table.select(loaded, "second").rows.study) == {"second"}


def test_lineage_leads_to_the_base_with_full_names_or_identities(study_of):
    for change in (None, lambda rows: rows.assign(parent=rows.parent.str.rpartition("-")[2])):
        study = study_of(change=change)
        run = next(r["run"] for r in study.runs if r["name"] == "perturb-4096")
        assert [study.stage_of[r] for r in study.lineage(run)] == ["perturb", "align", "pretrain"]


def test_base_is_found_without_pretraining_rows(study_of):
    whole = study_of()
    cut = study_of(change=lambda rows: rows[rows.stage != "pretrain"])
    for run in (r["run"] for r in whole.runs if r["stage"] == "perturb"):
        assert cut.base_point(run, "score", "samples") == whole.base_point(run, "score", "samples")


def test_progress_counts_runs_that_reach_their_last_point(study_of):
    assert study_of().progress() == (15 + 3, 18)
    short = study_of(change=lambda rows: rows[~((rows.stage == "perturb") & (rows.seed == 2) & (rows.examples > 64))])
    assert short.progress() == (14, 18)
