"""Does every recipe in configs/ load, and can it be planned?"""

import re
from pathlib import Path

import pytest

from elastic_jax import config as config_lib

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
RECIPES = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.py"))
# Arguments after the colon that are worth a test of their own.
ARGUMENTS = [
    ("quickstart.py", a) for a in ("tiny", "tiny,task=refusal", "tiny,objective=dpo", "task=refusal,objective=dpo")
]


@pytest.mark.parametrize(("name", "argument"), [*((name, "") for name in RECIPES), *ARGUMENTS])
def test_a_recipe_is_valid(name: str, argument: str) -> None:
    config = config_lib.load(f"{CONFIGS / name}:{argument}" if argument else str(CONFIGS / name))
    config_lib.validate(config)
    assert config.name


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_what_it_is_and_defines_nothing_else(name: str) -> None:
    source = (CONFIGS / name).read_text()
    assert source.startswith('"""')
    assert not re.search(r"^class ", source, re.MULTILINE)


@pytest.mark.parametrize(
    "name", [name for name in RECIPES if config_lib.load(str(CONFIGS / name)).data.kind == "universe"]
)
def test_a_recipe_on_the_universe_is_planned(name: str) -> None:
    from elastic_jax.study import planning

    config = config_lib.load(str(CONFIGS / name))
    # The size of the data changes nothing of the plan, and takes a while to draw.
    least = max(config.align.volumes[-1], config.perturb.volumes[-1])
    config.data.pretrain.rows, config.data.heldout.rows = 256, 16
    config.data.align.rows = config.data.perturb.rows = least
    if config.pretrain.batch_size % 8 or config.align.batch_size % 8:
        config.mesh.data, config.mesh.fsdp = 1, -1
    plan = planning.plan(config, timed=False)
    assert {stage.stage for stage in plan.stages} == {"pretrain", "align", "perturb"}
    assert all(stage.updates > 0 and stage.state_bytes > 0 for stage in plan.stages)
    assert len(plan.runs) == sum(stage.runs for stage in plan.stages)
    assert str(plan).startswith(f"plan of {config.name}: {plan.params:,} parameters")
