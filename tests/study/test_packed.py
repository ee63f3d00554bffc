"""Is a study whose batches are packed the same study, on fewer rows?"""

import pytest
import small_studies

from elastic_jax import config as config_lib
from elastic_jax.errors import UserError
from elastic_jax.study import execute

LONGER = {"data.seq_len": 80}  # three texts of the universe to a row
PACKED = {"data.pack.align": "best_fit", "data.pack.perturb": "best_fit"}


@pytest.mark.slow
def test_a_study_with_packed_batches_has_the_runs_and_the_numbers_of_the_unpacked_one(tmp_path):
    plain = small_studies.run(tmp_path / "plain", overrides=LONGER)
    packed = small_studies.run(tmp_path / "packed", overrides={**LONGER, **PACKED})
    assert [run.identity for run in packed.runs] == [run.identity for run in plain.runs]
    rows = {run.role: execute.packed_rows(packed.data, run, packed.mesh) for run in packed.runs}
    assert rows["pretrain"] is None and max(rows["align"] or 8, rows["perturb"] or 8) < 8
    found, wanted = (small_studies.table(tmp_path / name) for name in ("packed", "plain"))
    efficiency = [
        table[(table.measure == "token_efficiency") & (table.split == "align")].value.item()
        for table in (found, wanted)
    ]
    assert efficiency[0] == pytest.approx(efficiency[1] * 8 / rows["align"])
    small_studies.assert_close(*(table.loc[table.stage != "data"] for table in (found, wanted)))
    for run, losses in small_studies.losses(tmp_path / "plain").items():
        assert small_studies.losses(tmp_path / "packed")[run] == pytest.approx(losses, rel=small_studies.LOSS_RTOL)
    # The packed study finds what the other has done.
    with small_studies.watched() as trained:
        small_studies.run(tmp_path / "plain", overrides={**LONGER, **PACKED})
    assert trained == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data.pack.align": "bestfit"}, r"data\.pack\.align='bestfit': expected one of none, best_fit\. .*best_fit"),
        ({"data.pack.perturb": "concat"}, r"data\.pack\.perturb='concat'.*counted in examples"),
        (
            {"data.pack.align": "best_fit", "align.objective.name": "dpo"},
            r"data\.pack\.align='best_fit'.*pairs are never packed",
        ),
    ],
)
def test_what_cannot_be_packed_is_refused_before_any_data_is_read(overrides, message):
    with pytest.raises(UserError, match=message):
        config_lib.validate(small_studies.load("", overrides))
