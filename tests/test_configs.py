"""Does every recipe in configs/ load, and can it be planned?"""

import re
from pathlib import Path

import pytest

from elastic_jax import config as config_lib
from elastic_jax.errors import UserError

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
RECIPES = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.py"))
# Arguments after the colon that are worth a test of their own.
ARGUMENTS = [
    *(("quickstart.py", a) for a in ("tiny", "tiny,task=refusal", "tiny,objective=dpo", "task=refusal,objective=dpo")),
    *(("rebound_published.py", a) for a in ("model=gemma-2b", "task=safety", "task=safety,world=1", "world=4", "tiny")),
    *(("rebound.py", a) for a in ("tiny", "reversed", "tiny,task=refusal,reversed")),
    *(("order.py", a) for a in ("tiny", "opposed", "tiny,opposed")),
    *(("model_size.py", a) for a in ("tiny", "rates=equal", "tiny,task=refusal")),
    *(("pretrain_tokens.py", a) for a in ("tiny", "intermediate", "tiny,intermediate")),
    *((name, a) for name in ("kl_rebound.py", "batch_semantics.py") for a in ("tiny", "task=refusal")),
    *(("pretrain_volume.py", a) for a in ("model=pythia-1b", "model=pythia-70m,steps=1000+2000,task=safety", "tiny")),
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

    config = next(iter(config_lib.variants(config_lib.load(str(CONFIGS / name))).values()))
    # The size of the data changes nothing of the plan, and takes a while to draw.
    least = max([16, *config.align.volumes, *config.perturb.volumes])
    config.data.pretrain.rows, config.data.heldout.rows = 256, 16
    config.data.align.rows = config.data.perturb.rows = least
    if config.pretrain.batch_size % 8 or config.align.batch_size % 8:
        config.mesh.data, config.mesh.fsdp = 1, -1
    plan = planning.plan(config, timed=False)
    assert [stage.stage for stage in plan.stages] == list(config_lib.stages(config))
    assert all(stage.updates > 0 and stage.state_bytes > 0 for stage in plan.stages)
    assert sum(run.trains for run, _ in plan.runs) == sum(stage.runs for stage in plan.stages)
    assert str(plan).startswith(f"plan of {config.name}: {plan.params:,} parameters")


WRONG = {
    "rebound_published.py:model=llama": "model=llama: not among these. Closest:",
    "rebound_published.py:task=poems": "task=poems: expected imdb or safety",
    "model_size.py:rates=sizes": "rates=sizes: expected width or equal",
    "pretrain_volume.py:model=pythia-2b": "model=pythia-2b: not among these",
    "pretrain_volume.py:model=pythia-1b,steps=1500": "steps=1500: expected thousands from 1000 to 143000",
    "pretrain_volume.py:steps=1000": "steps: those of Pythia",
}


@pytest.mark.parametrize("spec", WRONG)
def test_a_wrong_argument_is_named(spec: str) -> None:
    with pytest.raises(UserError) as caught:
        config_lib.load(f"{CONFIGS}/{spec}")
    assert WRONG[spec] in str(caught.value)


def test_only_size_and_rates_change_with_model_size() -> None:
    variants = config_lib.variants(config_lib.load(f"{CONFIGS}/model_size.py"))
    rates = [variants[name].perturb.optim.lr for name in ("25k", "50k", "100k", "300k")]
    assert (
        rates == sorted(rates, reverse=True)
        and variants["50k"].perturb.optim.lr == config_lib.default().perturb.optim.lr
    )
    plain = [config_lib.plain(variant) for variant in variants.values()]
    for one in plain:
        del one["name"], one["model"]
        for stage in ("pretrain", "align", "perturb"):
            del one[stage]["optim"]["lr"]
    assert all(one == plain[0] for one in plain)


def test_every_volume_of_pretraining_decays_at_its_own_end_but_for_the_intermediate_ones() -> None:
    for argument, schedules in (("", {"cosine"}), (":intermediate", {"constant", "cosine"})):
        variants = config_lib.variants(config_lib.load(f"{CONFIGS}/pretrain_tokens.py{argument}"))
        assert {variant.pretrain.optim.schedule for variant in variants.values()} == schedules
        tokens = [variant.pretrain.tokens for variant in variants.values()]
        assert tokens == sorted(tokens) and tokens[-1] <= 41_000 * 32  # no text is read twice


def test_the_released_settings_on_eight_gpus_leave_out_what_makes_no_update() -> None:
    safety = config_lib.load(f"{CONFIGS}/rebound_published.py:task=safety")
    assert safety.perturb.batch_size == 256
    assert safety.perturb.volumes == (256, 768, 1792)  # of 100, 200, 500, 1000, 2000
    imdb = config_lib.load(f"{CONFIGS}/rebound_published.py")
    assert [volume // 64 for volume in imdb.perturb.volumes] == [1, 3, 7, 15, 31]
