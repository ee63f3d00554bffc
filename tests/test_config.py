"""What does a config hold, and how is it loaded and overridden?"""

from pathlib import Path

import pytest
from ml_collections import ConfigDict

from elastic_jax import config as config_lib
from elastic_jax.errors import UserError

QUICKSTART = str(Path(__file__).resolve().parents[1] / "configs" / "quickstart.py")


@pytest.fixture
def config() -> ConfigDict:
    return config_lib.default()


@pytest.mark.parametrize("data", [config_lib.universe_data, config_lib.text_data])
def test_the_defaults_are_valid(data):
    config_lib.validate(config_lib.default(data()))


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("pretrain.batch_size", "32", 32),
        ("pretrain.tokens", "1e6", 1_000_000),
        ("pretrain.optim.lr", "1", 1.0),
        ("pretrain.optim.lr", "3e-4", 3e-4),
        ("perturb.control", "False", False),
        ("perturb.control", "true", True),
        ("seeds", "3", (3,)),
        ("seeds", "0,1", (0, 1)),
        ("align.volumes", "(16, 64)", (16, 64)),
        ("align.volumes", "[16, 64]", (16, 64)),
        ("name", "7", "7"),
        ("data.task", "refusal", "refusal"),
        ("model.layers", "3", 3),
        ("model.tie_embeddings", "false", False),
        ("model.size", "1m", "1m"),
        ("measures.scorers", "refusal", ("refusal",)),
        ("measures.scorers", "", ()),
        ("base.hf", "owner/name", "owner/name"),
        ("base.hf", "('a,b', 'c')", ("a,b", "c")),
        ("base.revision", "1e5", "1e5"),  # a commit, not a number
        ("base.tokens", "1000,2000", (1000, 2000)),
    ],
)
def test_an_override_has_the_type_of_what_it_replaces(config, field, text, value):
    found = config_lib.load(config, {field: text})
    for name in field.split("."):
        found = found[name]
    assert found == value and type(found) is type(value)


def test_an_override_of_a_group_replaces_it(config):
    found = config_lib.load(config, {"align.objective": "{'name': 'dpo', 'beta': 0.2}"})
    assert found.align.objective.to_dict() == {"name": "dpo", "beta": 0.2}
    assert config.align.objective.to_dict() == {"name": "sft"}  # the one that was given stays


def test_an_objective_takes_its_own_settings(config):
    found = config_lib.load(config, {"align.objective.name": "dpo", "align.objective.beta": "0.2"})
    assert found.align.objective.to_dict() == {"name": "dpo", "beta": 0.2}


def test_overrides_from_python_need_no_text(config):
    found = config_lib.load(config, {"align.volumes": [16, 32], "pretrain.optim.lr": 1, "model.layers": 2})
    assert tuple(found.align.volumes) == (16, 32) and found.pretrain.optim.lr == 1.0 and found.model.layers == 2


@pytest.mark.parametrize(
    ("field", "value"),
    [("pretrain.batch_size", "1.5"), ("perturb.control", 2), ("seeds", "a"), ("align", 3)],
)
def test_an_override_of_another_type_is_refused(config, field, value):
    with pytest.raises(UserError, match=f"--config.{field}="):
        config_lib.load(config, {field: value})


def test_a_file_takes_an_argument_after_the_colon():
    tiny = config_lib.load(QUICKSTART + ":tiny,task=refusal,objective=dpo")
    assert tiny.model.size == "50k" and tiny.data.task == "refusal" and tiny.align.objective.name == "dpo"
    assert len(config_lib.load(QUICKSTART).align.volumes) > len(tiny.align.volumes)


def test_only_a_field_of_the_model_may_be_none(config):
    config_lib.validate(config_lib.load(config, {"model.layers": "None"}))
    with pytest.raises(UserError, match="pretrain.batch_size=None: expected int, as in 64"):
        config_lib.validate(config_lib.load(config, {"pretrain.batch_size": "None"}))


def test_a_file_without_argument_refuses_one(tmp_path: Path):
    path = tmp_path / "plain.py"
    path.write_text("from elastic_jax import config\n\n\ndef get_config():\n    return config.default()\n")
    assert config_lib.load(str(path)).name == "study"
    with pytest.raises(UserError, match="takes no argument after the colon"):
        config_lib.load(f"{path}:tiny")
    assert not list(tmp_path.glob("__pycache__"))


def test_arguments_of_recipes():
    found = config_lib.parse_argument("big,steps=5,rate=2", "big", "small", steps=1, rate=0.5, name="x")
    assert found.to_dict() == dict(big=True, small=False, steps=5, rate=2.0, name="x")
    with pytest.raises(UserError, match="'bigg': unknown. Closest: big"):
        config_lib.parse_argument("bigg", "big")
    with pytest.raises(UserError, match="config argument steps=many: expected int"):
        config_lib.parse_argument("steps=many", steps=1)


def test_the_fingerprint_changes_with_every_field(config):
    before = config_lib.fingerprint(config)
    assert before == config_lib.fingerprint(config_lib.load(config, {"seeds": (0, 1, 2)}))
    for field, value in (
        ("seeds", (0, 1)),
        ("align.optim.lr", 1e-5),
        ("data.seed", 1),
        ("mesh.fsdp", 2),
        ("name", "b"),
    ):
        assert config_lib.fingerprint(config_lib.load(config, {field: value})) != before


def test_the_plain_config_is_json_and_comes_back(config):
    plain = config_lib.plain(config)
    assert plain["align"]["volumes"] == [256, 1024, 4096] and plain["model"]["layers"] is None
    again = config_lib.load(config, {"align.volumes": plain["align"]["volumes"]})
    assert config_lib.fingerprint(again) == config_lib.fingerprint(config)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"align.optim.final": 0.5}, "align.optim.final=0.5 has no effect with optim.schedule=constant"),
        ({"align.optim.name": "sgd", "align.optim.b2": 0.9}, "align.optim.b2=0.9 has no effect with optim.name=sgd"),
        ({"align.optim.name": "sgd", "align.optim.eps": 1e-6}, "align.optim.eps=1e-06 has no effect"),
        ({"align.optim.name": "sgd", "align.optim.weight_decay": 0.1}, "align.optim.weight_decay=0.1 has no effect"),
        ({"measures.temperature": 0.0, "measures.top_p": 0.5}, "measures.top_p=0.5 has no effect"),
    ],
)
def test_a_setting_that_would_be_ignored_is_refused(config, overrides, message):
    with pytest.raises(UserError, match=message):
        config_lib.validate(config_lib.load(config, overrides))


def test_settings_that_have_an_effect_are_not_refused(config):
    config_lib.validate(
        config_lib.load(config, {"align.optim.warmup": 5, "align.optim.name": "sgd", "align.optim.b1": 0.5})
    )
    config_lib.validate(config_lib.load(config, {"align.optim.schedule": "linear", "align.optim.final": 0.5}))
    config_lib.validate(config_lib.load(config, {"measures.temperature": 0.0}))


def test_a_field_that_a_recipe_adds_or_takes_away_is_named(config):
    added = config.copy_and_resolve_references()
    added.unlock()
    added.align.optimizer = "adam"
    with pytest.raises(UserError, match="align.optimizer: no such field. Closest: .*align|align.optimizer"):
        config_lib.validate(added)
    less = config.copy_and_resolve_references()
    del less.measures.keep
    with pytest.raises(UserError, match="measures.keep: missing"):
        config_lib.validate(less)


def test_the_size_of_a_study_of_ones_own_is_the_default_one_unless_something_says_otherwise(config):
    config.model.size = None
    assert config_lib.model_section(config) == {"size": config_lib.DEFAULT_SIZE}
    config.model.layers = 3
    assert config_lib.model_section(config) == {"size": config_lib.DEFAULT_SIZE, "layers": 3}
    config.model.update(embed=16, heads=2, kv_heads=2, head_dim=8, mlp=32)
    assert "size" not in config_lib.model_section(config)
