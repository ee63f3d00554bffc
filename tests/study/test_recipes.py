"""Do the recipes for published models run on tiny checkpoints and files of one's own?"""

from pathlib import Path

import checkpoints
import pytest
import small_studies

from elastic_jax import config as config_lib
from elastic_jax.analysis import table
from elastic_jax.study import Study, planning
from elastic_jax.study.suite import Suite

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny checkpoints, labelled reviews and pairs."""
    folder = tmp_path_factory.mktemp("published")
    for seed in (1, 2):
        checkpoints.llama(folder / f"step{seed}", seed=seed)
    for name, seed in (("train", 0), ("test", 1)):
        checkpoints.reviews(folder / f"{name}.jsonl", 240, seed=seed)
        checkpoints.reviews(folder / f"{name}_pairs.jsonl", 240, seed=seed, pairs=True)
    for seed in range(3):
        checkpoints.reviews(folder / f"task{seed}.jsonl", 100, seed=5 + seed)
    return folder


def _run(spec: str, overrides: dict, workdir: Path):
    config = config_lib.load(f"{CONFIGS}/{spec}", {"log.tensorboard": False, **overrides})
    with small_studies.on_devices(1), pytest.MonkeyPatch.context() as patch:
        patch.setattr("elastic_jax.report.render", small_studies._no_figures)
        study = Study(config, workdir)
        study.run()
    return study


def test_the_recipe_of_published_models_runs_on_a_tiny_one(things: Path, tmp_path: Path) -> None:
    files = {"data.train": str(things / "train_pairs.jsonl"), "data.test": str(things / "test_pairs.jsonl")}
    study = _run("rebound_published.py:tiny,task=safety", {"base.hf": str(things / "step1"), **files}, tmp_path)
    assert all(status.done for status in study.status())
    prompts = study.data.tokenizer.decode(study.data.prompt_rows())
    assert all("BEGINNING OF CONVERSATION: USER: say" in text and text.endswith("ASSISTANT:") for text in prompts)


@pytest.mark.slow
def test_the_recipe_of_the_axis_runs_on_two_tiny_ones(things: Path, tmp_path: Path) -> None:
    files = {"data.train": str(things / "train.jsonl"), "data.test": str(things / "test.jsonl")}
    bases = {"base.hf": f"{things / 'step1'},{things / 'step2'}", "base.tokens": (1_000, 2_000)}
    study = _run("pretrain_volume.py:tiny", {**bases, **files}, tmp_path)
    assert all(status.done for status in study.status())
    rows = table.select(table.load(study.workdir.table))
    assert [(model.name, model.pretrain_tokens) for model in rows.models] == [("step1", 1_000), ("step2", 2_000)]


# recipe -> the stages that it trains on a checkpoint
ON_A_CHECKPOINT = {
    "rebound": ["align", "perturb"],
    "kl_rebound": ["align", "perturb"],
    "batch_semantics": ["align", "perturb"],
    "model_size": ["align", "perturb"],
    "resistance": ["align", "resistance"],
    "order": ["order"],
}


def _on_a_checkpoint(recipe: str, things: Path):
    base = "+".join(str(things / f"step{seed}") for seed in ((1, 2) if recipe == "model_size" else (1,)))
    more = ",files=" + "+".join(str(things / f"task{i}.jsonl") for i in range(3)) if recipe == "order" else ""
    files = {"data.train": str(things / "train.jsonl"), "data.test": str(things / "test.jsonl")}
    spec = f"{CONFIGS}/{recipe}.py:tiny,task=imdb,base={base}{more}"
    return config_lib.load(spec, {"log.tensorboard": False, **files})


@pytest.mark.parametrize("recipe", ON_A_CHECKPOINT)
def test_with_a_base_a_recipe_is_planned_on_a_tiny_one(recipe: str, things: Path, tmp_path: Path) -> None:
    with small_studies.on_devices(1):
        suite = Suite(_on_a_checkpoint(recipe, things), tmp_path)
        for study in suite.studies.values():
            study.check()
            plan = planning.plan(study, topology="h100:1")
            assert [stage.stage for stage in plan.stages] == ON_A_CHECKPOINT[recipe] and plan.fits
            assert all(run.updates for run in study.runs if run.parent) and study.runs[0].base is not None


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["kl_rebound", "batch_semantics", "model_size", "resistance", "order"])
def test_with_a_base_a_recipe_runs_to_its_report_on_a_tiny_one(recipe: str, things: Path, tmp_path: Path) -> None:
    with small_studies.on_devices(1):
        suite = Suite(_on_a_checkpoint(recipe, things), tmp_path)
        page = suite.run()
    assert page is not None and all(status.done for study in suite.studies.values() for status in study.status())
    found = table.select(table.load(suite.workdir.table), suite.config.name)
    assert set(ON_A_CHECKPOINT[recipe]) <= set(found.rows.stage)
    assert [model.name for model in found.models] == ([*suite.studies] if "" not in suite.studies else ["step1"])
