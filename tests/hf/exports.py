"""Which studies do the tests of export write down, and which models of our own?"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import checkpoints
import jax
import tiny

from elastic_jax import config as config_lib
from elastic_jax import study as study_lib
from elastic_jax.hf import export as export_lib
from elastic_jax.parallel.mesh import make_mesh
from elastic_jax.study import Study

SMALL = str(Path(__file__).parents[1] / "study" / "small.py")
LORA = {"lora.rank": 2, "lora.alpha": 8.0, "perturb.control": False}


def run(config: Any, workdir: Path) -> Study:
    """To its end on one device; no page is drawn."""
    few = functools.partial(make_mesh, devices=jax.devices()[:1])
    page = mock.Mock(return_value=None)
    with mock.patch.object(study_lib, "make_mesh", few), mock.patch.object(study_lib.report, "render", page):
        study = Study(config, workdir)
        study.run()
    return study


def own(workdir: Path, overrides: Mapping[str, Any] | None = None) -> Study:
    """A study that pre-trains, with tables that are larger than its vocabulary, and adapters."""
    return run(config_lib.load(SMALL, {**LORA, "model.vocab_size": 272, **(overrides or {})}), workdir)


def based(workdir: Path, base: Path) -> Study:
    """A study of adapters on a published model."""
    checkpoints.llama(base, seed=3)
    train = checkpoints.reviews(base.parent / "train.jsonl", 160, seed=0)
    test = checkpoints.reviews(base.parent / "test.jsonl", 80, seed=1)
    c = config_lib.default(config_lib.text_data())
    c.name, c.seeds = "based", (0,)
    c.base.hf = str(base)
    c.data.update(train=str(train), test=str(test), seq_len=24)
    c.data.rows.update(align=16, perturb=16, scorer=32, heldout=8, prompts=4)
    for stage in (c.align, c.perturb):
        stage.batch_size, stage.volumes, stage.optim.lr = 8, (8, 16), 0.01
    c.measures.update(samples=4, batch_size=8, sample_tokens=4, keep=1)
    c.log.tensorboard = False
    return run(config_lib.load(c, LORA), workdir)


def params_of(study: Study, name: str, updates: int | None = None) -> Any:
    """What the study holds at a point, whole."""
    (found,) = [run for run in study.runs if run.name == name]
    return study._executor.params_at(found, found.updates if updates is None else updates)


# Of every family a model of our own: name -> (fields, the class of transformers).
MODELS: dict[str, tuple[dict[str, Any], str]] = {
    "llama": (dict(tie_embeddings=False), "LlamaForCausalLM"),
    "mistral": (dict(window=5), "MistralForCausalLM"),
    "qwen2": (dict(qkv_bias=True, rope_theta=1e6), "Qwen2ForCausalLM"),
    "qwen3": (dict(qk_norm="head", tie_embeddings=False), "Qwen3ForCausalLM"),
    "gemma": (dict(norm_offset=1.0, embed_scale=True, activation="gelu_tanh"), "GemmaForCausalLM"),
    "neox": (
        dict(norm="layer", activation="gelu", gated=False, parallel_residual=True, rotary_fraction=0.5, qkv_bias=True)
        | dict(out_bias=True, mlp_bias=True, tie_embeddings=False, kv_heads=4, head_dim=4),
        "GPTNeoXForCausalLM",
    ),
    "olmo2": (dict(norm_place="post", qk_norm="full", tie_embeddings=False), "Olmo2ForCausalLM"),
}


def model(name: str, **more: Any) -> tuple[Any, Any]:
    """One of `MODELS` with padded tables, and random parameters of layout "unroll"."""
    fields, _ = MODELS[name]
    made = tiny.decoder("llama", **{"vocab_size": 48, "used_vocab": 40, "seq_len": 16, **fields, **more})
    return made, tiny.random_params(made)


def write(folder: Path, made: Any, params: Any, **more: Any) -> Path:
    folder.mkdir()
    export_lib.write_model(folder, params, dataclasses.replace(made.config, layout="unroll"), **more)
    return folder
