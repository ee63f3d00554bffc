"""Are the variants of a config run in one place, sharing what is equal, and reported as one?"""

import pytest
import small

from elastic_jax import config as config_lib
from elastic_jax import plan
from elastic_jax.analysis import table
from elastic_jax.config import ConfigDict
from elastic_jax.errors import UserError
from elastic_jax.study import Study
from elastic_jax.study.suite import Suite


def suite_config(variants):
    config = small.get_config()
    config.name = "rates"
    config.variants = ConfigDict(variants)
    return config


def test_a_suite_shares_runs_and_is_reported_as_one(with_data):
    config = suite_config(
        {"same": dict(perturb=dict(optim=dict(lr=0.02))), "slow": dict(perturb=dict(optim=dict(lr=0.002)))}
    )
    suite = Suite(config, with_data("suite"))
    same, slow = suite.studies.values()
    shared = {run.key for run in same.runs} & {run.key for run in slow.runs}
    assert {run.stage for run in same.runs if run.key in shared} == {"pretrain", "align"}
    page = suite.run()
    assert page is not None and "slow" in page.read_text()
    before = page.stat().mtime
    trained = {path.name: (path / "DONE").stat().mtime for path in (suite.workdir.path / "runs").iterdir()}
    assert len(trained) == len({run.key for study in suite.studies.values() for run in study.runs})
    whole = table.select(table.load(suite.workdir.table), "rates")
    assert (
        set(whole.rows[whole.rows.run != ""].model) == {"same", "slow"} and whole.progress()[0] == whole.progress()[1]
    )
    again = Suite(config, suite.workdir.path).run()
    assert again is not None and again.stat().mtime == before  # nothing was left to do
    assert all((suite.workdir.path / "runs" / k / "DONE").stat().mtime == t for k, t in trained.items())


def test_only_finds_the_study_of_a_run(with_data):
    config = suite_config({"a": dict(perturb=dict(optim=dict(lr=0.01))), "b": dict(perturb=dict(optim=dict(lr=0.002)))})
    suite = Suite(config, with_data("only"))
    base = suite.studies["a"].runs[0].key
    assert suite.run(only=[base]) is None and suite.studies["b"].status()[0].done
    with pytest.raises(UserError, match="no such run in rates"):
        suite.run(only=["pretrain-s7-0123"])


@pytest.mark.parametrize(
    "variants,message",
    [
        ({"a b": dict(seeds=(0,))}, "'a b' is no name"),
        ({"a": 3}, "variants.a=3: expected the fields that differ"),
        ({"a": dict(perturb=dict(optim=dict(rate=1)))}, "perturb.optim.rate: no such field in the config .variants.a."),
        ({"a": dict(name="other")}, "variants.a.name: a variant has the name"),
        ({"a": dict(align=dict(volumes=(7,)))}, "variants.a: align.volumes: 7 examples in batches of 8"),
    ],
)
def test_a_wrong_variant_is_named(variants, message):
    with pytest.raises(UserError, match=message):
        config_lib.validate(suite_config(variants))


def test_one_study_is_not_a_suite(tmp_path):
    with pytest.raises(UserError, match="rates has variants .a., which are a study each"):
        Study(suite_config({"a": dict(seeds=(0,))}), tmp_path)
    assert list(config_lib.variants(small.get_config())) == [""]


def test_a_field_of_a_variant_is_set_from_the_command_line():
    config = suite_config({"a": dict(perturb=dict(optim=dict(lr=0.01)))})
    changed = config_lib.load(config, {"variants.a.perturb.optim.lr": "0.5"})
    assert config_lib.variants(changed)["a"].perturb.optim.lr == 0.5


def test_the_plan_shows_every_variant(capsys, tmp_path):
    path = tmp_path / "two.py"
    path.write_text(
        "from ml_collections import ConfigDict\nfrom elastic_jax import config\n\n\ndef get_config():\n    c = config.default()\n"
        "    c.variants = ConfigDict({'small': {'model': {'size': '50k'}}, 'large': {'model': {'size': '300k'}}})\n    return c\n"
    )
    assert plan.main([f"--config={path}", "--topology=cpu:1"]) == 0
    out = capsys.readouterr().out
    assert "study.small" in out and "study.large" in out
