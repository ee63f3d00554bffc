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
    *((name, "base=a/b") for name in ("rebound.py", "kl_rebound.py", "resistance.py", "batch_semantics.py")),
    *((name, "base=a/b,task=safety,world=1") for name in ("kl_rebound.py", "batch_semantics.py")),
    *(("resistance.py", a) for a in ("base=a/b,task=imdb", "base=a/b,tiny")),
    *(("rebound.py", a) for a in ("base=a/b,reversed", "base=a/b,task=safety,reversed,tiny")),
    *(("order.py", a) for a in ("base=a/b,files=x+y+z", "base=a/b,task=safety,files=x+y+z,tiny")),
    *(("model_size.py", a) for a in ("base=a/b-0.5b+a/b-4b", "base=a/b,task=safety,tiny")),
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
    "rebound.py:base=a/b,task=refusal": "task=refusal: expected imdb or safety",
    "rebound.py:task=imdb": "task=imdb is real text, for a checkpoint: give base=",
    "rebound.py:world=4": "world=4 has no effect without base=",
    "rebound.py:base=a/b,world=0": "world=0: expected the number of GPUs",
    "model_size.py:base=a/b,rates=equal": "rates=equal has no effect with base",
    "order.py:base=a/b": "no text data of three tasks come along. Give files=",
    "order.py:base=a/b,opposed,files=x+y+z": "with opposed: refuse, help, praise and pan are tasks of the embedded universe",
    "order.py:files=x+y+z": "files=x+y+z has no effect without base=",
    "dials.py:base=a/b": "base=a/b: the theorem is about models that are trained on the union",
    "pretrain_tokens.py:base=a/b": "a pre-training of its own. configs/pretrain_volume.py takes published checkpoints",
    "pretrain_volume.py:steps=1000": "steps: those of Pythia",
}


@pytest.mark.parametrize("spec", WRONG)
def test_a_wrong_argument_is_named(spec: str) -> None:
    with pytest.raises(UserError) as caught:
        config_lib.load(f"{CONFIGS}/{spec}")
    assert WRONG[spec] in str(caught.value)


def test_with_a_base_a_recipe_has_the_released_settings_and_its_own_experiment() -> None:
    released = config_lib.load(f"{CONFIGS}/rebound_published.py")
    kl, rebound = (
        config_lib.load(f"{CONFIGS}/{name}.py:base={released.base.hf}") for name in ("kl_rebound", "rebound")
    )
    for c in (kl, rebound):
        for section in ("base", "data", "model", "align", "perturb"):
            assert c[section] == released[section]
    assert (kl.measures.per_octave, kl.measures.kl_eps, kl.published) == (2, 0.01, "table 3")
    crossed = config_lib.load(f"{CONFIGS}/resistance.py:base=a/b,task=imdb").resistance
    assert crossed.optim == released.align.optim and crossed.batch_size == released.align.batch_size
    released_safety = config_lib.load(f"{CONFIGS}/batch_semantics.py:base=a/b,task=safety")
    assert released_safety.perturb.volumes[:2] == (100, 200) and released_safety.perturb.batch_size == 256


def test_reversed_on_real_text_swaps_what_is_aligned_to() -> None:
    imdb, safety = (
        config_lib.load(f"{CONFIGS}/rebound.py:base=a/b,task={task},reversed") for task in ("imdb", "safety")
    )
    assert (imdb.data.labels.aligned, imdb.data.labels.opposite) == ("0", "1")
    assert (safety.data.columns.chosen, safety.data.columns.rejected) == ("rejected", "chosen")


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
