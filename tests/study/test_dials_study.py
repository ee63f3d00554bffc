"""Does the recipe of the dials give every (k, l) of both protocols, measured and compared with the optimum?"""

from pathlib import Path

import pandas as pd
import pytest

from elastic_jax import config as config_lib
from elastic_jax.analysis import dials, table
from elastic_jax.study.suite import Suite

RECIPE = Path(__file__).resolve().parents[2] / "configs" / "dials.py"


@pytest.mark.slow
def test_the_tiny_recipe_is_run_and_compared(tmp_path):
    suite = Suite(config_lib.load(f"{RECIPE}:tiny"), tmp_path)
    joint = [name for name in suite.studies if name != "sequential"]
    assert all([run.stage for run in suite.studies[name].runs] == ["pretrain"] * 2 for name in joint)
    page = suite.run()
    assert page is not None and 'id="dials"' in page.read_text()
    study = table.select(table.load(suite.workdir.table), "dials_tiny")
    rates = dials.rates(study)
    per_protocol = rates.groupby("protocol").size()
    assert per_protocol[dials.JOINT] == per_protocol[dials.SEQUENTIAL] == 2 * 2 * 2 * 3  # k, l, seeds, roles
    of_joint = rates[rates.protocol == dials.JOINT]
    assert (of_joint.gamma > of_joint.best).all() and (of_joint.per_text > 5 * of_joint.gamma).all()
    written = pd.read_csv(suite.workdir.report / "tables" / "dials.csv")
    assert len(written) == 4 and written.exact_ratio.lt(0).all()
    assert (written.n == 2).all()


def test_the_mixtures_are_those_that_the_dials_name():
    config = config_lib.load(str(RECIPE))
    updates = set()
    for name, variant in config_lib.variants(config).items():
        data = variant.data
        if name == "sequential":
            pretrain = variant.pretrain.tokens // data.seq_len
            ks = [pretrain / volume for volume in variant.align.volumes]
            assert [p / a for p, a in zip(variant.perturb.volumes, variant.align.volumes, strict=True)] == [0.25] * 4
            assert sorted(ks) == [1, 2, 4, 8]
            continue
        rows = data.pretrain.rows * (1 + data.joint.align + data.joint.perturb)
        updates.add(variant.pretrain.tokens // (variant.pretrain.batch_size * data.seq_len))
        assert rows == pytest.approx(variant.pretrain.batch_size * 640, abs=4)  # each text once
    assert updates == {640}
