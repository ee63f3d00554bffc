"""Do the experiments of configs/ run from beginning to report, in their tiny variants?"""

from pathlib import Path

import pytest

from elastic_jax import config as config_lib
from elastic_jax.analysis import table
from elastic_jax.study.suite import Suite

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
BESIDE = {
    "figure 4": "Beside Figure 4",
    "figure 5": "Beside Figure 5",
    "figure 6": "Beside Figure 6",
    "table 3": "Beside Table 3",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec",
    [
        "rebound.py:tiny,reversed",
        "kl_rebound.py:tiny",
        "model_size.py:tiny",
        "pretrain_tokens.py:tiny,intermediate",
        "batch_semantics.py:tiny",
        "order.py:tiny",
    ],
)
def test_an_experiment_runs_to_its_report(spec, tmp_path):
    config = config_lib.load(str(CONFIGS / spec))
    suite = Suite(config, tmp_path / "work")
    page = suite.run()
    assert page is not None
    text, found = page.read_text(), table.select(table.load(suite.workdir.table), config.name)
    done, planned = found.progress()
    assert done == planned > 0
    assert [model.name for model in found.models] == list(dict.fromkeys(model.name for model in found.models))
    if list(suite.studies) != [""]:
        assert {model.name for model in found.models} == set(suite.studies)
    if config.published:
        assert BESIDE[config.published] in text
    for study in suite.studies.values():
        if study.config.order.volume:  # one task, two and three in every order, for every seed
            rows = found.rows[(found.rows.stage == "order") & (found.rows.examples == study.config.order.volume)]
            assert len(rows.run.unique()) == 15 * len(study.config.seeds)
            assert {f"task-{task}" for task in study.config.data.tasks.names} <= set(rows.split)
        for stage in ("align", "perturb"):  # each volume is somewhere in the table
            rows = found.rows[(found.rows.stage == stage)]
            assert set(study.config[stage].volumes) <= set(rows.examples)
