"""Do the recipes for published models run on tiny checkpoints and files of one's own?"""

from pathlib import Path

import checkpoints
import pytest
import small_studies

from elastic_jax import config as config_lib
from elastic_jax.analysis import table
from elastic_jax.study import Study

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
