"""What does the compiler say of an update, for devices that are here or are not?"""

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from elastic_jax import objectives
from elastic_jax.errors import UserError, first_line
from elastic_jax.models import adapted
from elastic_jax.models.config import ModelConfig
from elastic_jax.models.transformer import Decoder
from elastic_jax.parallel import ahead
from elastic_jax.parallel.mesh import batch_sharding, make_mesh
from elastic_jax.parallel.topology import Topology
from elastic_jax.study import estimate
from elastic_jax.study.estimate import Layout, Work
from elastic_jax.study.planning import units
from elastic_jax.study.planning.cost import Compiled
from elastic_jax.study.tree import Run
from elastic_jax.train import optim
from elastic_jax.train import state as state_lib
from elastic_jax.train.step import make_train_step


def annotations(model: Decoder, run: Run, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Shapes of what the run's objective computes once of every row and adds to its batches."""
    annotate = objectives.make(dict(run.objective)).annotate
    if annotate is None:
        return {}
    return jax.eval_shape(lambda p, b: annotate(model, p, b), model.shapes, dict(batch))


def compile_update(
    model: Decoder, run: Run, mesh: Any, batch: Mapping[str, Any], layout: Layout
) -> tuple[Any, Compiled]:
    """The compiled update of a run, and what it needs."""
    tx = optim.make(run.optim, run.updates)
    objective = objectives.make(dict(run.objective))
    trained = adapted.trained(model, run.lora)
    frozen = adapted.abstract_frozen(trained, mesh)
    step = make_train_step(trained, objective, tx, mesh, layout.accumulate, layout.reduce, frozen)  # type: ignore[arg-type]
    state = state_lib.abstract(trained, tx, mesh)
    began = time.perf_counter()
    compiled = step.compile(state, batch, jax.eval_shape(lambda: jax.random.key(0)))
    seconds = time.perf_counter() - began
    memory = compiled.memory_analysis()
    arguments, temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    total = arguments + temporary + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return compiled, Compiled(arguments, temporary, total, seconds)


def compile_ahead(model: ModelConfig, run: Run, work: Work, layout: Layout, topology: Topology) -> Compiled:
    """Compile one update for devices that are not here.

    Raises:
      UserError: the compiler finds no room for it.
    """
    mesh = make_mesh(**layout.mesh, devices=ahead.devices(topology))
    decoder = Decoder(dataclasses.replace(model, remat=layout.remat))  # type: ignore[arg-type]
    place = batch_sharding(mesh)
    rows, length = work.rows, work.length
    fields: dict[str, tuple[tuple[int, ...], Any]] = {}
    for prefix in ("chosen_", "rejected_") if work.answers == 2 else ("",):
        fields[f"{prefix}tokens"] = (rows, length + 1), jnp.int32
        fields[f"{prefix}mask"] = (rows, length), jnp.uint8
    if work.packed:
        fields["segments"] = fields["positions"] = (rows, length), jnp.int32
    batch = {k: jax.ShapeDtypeStruct(shape, dtype, sharding=place) for k, (shape, dtype) in fields.items()}
    extra = annotations(decoder, run, batch)
    batch |= {k: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place) for k, leaf in extra.items()}
    try:
        return compile_update(decoder, run, mesh, batch, layout)[1]
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        largest = ", ".join(f"{name} {units.size(size)}" for name, size in estimate.estimate(work, layout).largest())
        raise UserError(
            f"{run.stage} on {topology.name} ({layout}): the compiler runs out of memory: {first_line(error)}\n"
            f"The estimate's largest rows: {largest}. Set --config.model.remat=full, raise "
            f"--config.{run.stage}.accumulate, or choose a larger topology."
        ) from error
