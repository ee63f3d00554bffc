"""Which update is a stage planned by, and what does it work on?"""

from collections.abc import Sequence
from typing import Any

from elastic_jax import objectives
from elastic_jax.config import Config
from elastic_jax.models.config import ModelConfig
from elastic_jax.study import Study
from elastic_jax.study.estimate import Estimate, Layout, Work
from elastic_jax.study.planning.cost import Compiled, StageCost
from elastic_jax.study.tree import Run


def typical(runs: Sequence[Run]) -> Run:
    """The run that a stage is planned by: of the resistance experiment one that trains on answers, which most of its runs do."""
    return next((run for run in runs if run.cross), runs[0])


def work_of(config: Config, model: ModelConfig, run: Run) -> Work:
    """One update of the run."""
    objective = objectives.make(dict(run.objective))
    return Work(
        model=model,
        optim=run.optim,
        rows=run.batch_size,
        answers=2 if objective.rows == "pair" else 1,
        packed=run.cross is None and config.data.pack.get(run.role, "none") != "none",
        extra=2 if objective.annotate is not None else 0,
        lora=run.lora,
        compared=run.parent is not None,
    )


def layout_of(study: Study, run: Run) -> Layout:
    """How the config spreads an update of the run over the devices here."""
    mesh = study.mesh.shape
    return Layout(mesh["data"], mesh["fsdp"], mesh["tensor"], run.accumulate, study.model.config.remat, run.reduce)


def cost_of(
    config: Config,
    stage: str,
    runs: list[Run],
    seconds: float | None,
    layout: Layout,
    found: Estimate,
    compiled: Compiled | None = None,
    **more: Any,
) -> StageCost:
    """What all runs of a stage cost, from what one update does; `more` are further fields of `StageCost`."""
    updates = sum(run.updates for run in runs)
    tokens = sum(run.updates * run.batch_size for run in runs) * config.data.seq_len
    return StageCost(stage, len(runs), updates, tokens, seconds, layout, found, compiled, **more)
