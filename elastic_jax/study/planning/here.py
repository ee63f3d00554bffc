"""What does a study cost on the devices of this process, where its updates can be compiled and timed?"""

import math
from typing import Any

import jax
import numpy as np

from elastic_jax import config as config_lib
from elastic_jax.data import pipeline
from elastic_jax.models import adapted
from elastic_jax.parallel import hardware
from elastic_jax.parallel.mesh import batch_sharding
from elastic_jax.study import Study, estimate, execute
from elastic_jax.study.estimate import Estimate
from elastic_jax.study.planning import programs, several, work
from elastic_jax.study.planning.cost import Plan, StageCost
from elastic_jax.study.tree import Run
from elastic_jax.train import optim
from elastic_jax.train import state as state_lib

# Updates are timed until they make so many FLOPs on a device: a few of a small model would tell of the moment, not of the model.
TIMED_FLOPS = 2e10
LEAST_UPDATES, MOST_UPDATES = 3, 30


def plan(study: Study, timed: bool | None) -> Plan:
    """Compile each stage's update for the mesh of the study, and time it where it fits; see `planning.plan`."""
    study.check()
    at_once = several.at_once(study.config, study.mesh, study.model.size, len(study.runs))
    costs = tuple(_stage(study, name, timed, at_once) for name in config_lib.stages(study.config))
    seconds = _time_measure(study, at_once) if all(cost.seconds is not None for cost in costs) else None
    return Plan(
        study=study.config.name,
        params=study.model.size,
        mesh=dict(study.mesh.shape),
        stages=costs,
        runs=tuple((status.run, status.done) for status in study.status()),
        notes=tuple(study.notes),
        measured_points=sum(len(run.measures) for run in study.runs),
        seconds_per_point=seconds,
        at_once=at_once,
    )


def _stage(study: Study, stage: str, timed: bool | None, at_once: int) -> StageCost:
    runs = [run for run in study.runs if run.stage == stage]
    first = work.typical(runs)
    host = _batch(study, first)
    shapes = {k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=batch_sharding(study.mesh)) for k, v in host.items()}
    layout = work.layout_of(study, first)
    closed = estimate.estimate(work.work_of(study.config, study.model.config, first), layout)
    compiled, found = programs.compile_update(study.model, first, study.mesh, shapes, layout)
    limit = hardware.host_memory()
    fits = limit is None or found.total * study.mesh.size * at_once < limit / 2
    seconds = None
    if fits if timed is None else timed:
        seconds = _time_update(study, first, compiled, host, _timed_updates(closed), at_once)
    return work.cost_of(study.config, stage, runs, seconds, layout, closed, found)


def _timed_updates(found: Estimate) -> int:
    """The same number on every process: they exchange in each."""
    return min(MOST_UPDATES, max(LEAST_UPDATES, math.ceil(TIMED_FLOPS / found.executed_flops)))


def _time_update(
    study: Study, run: Run, compiled: Any, host: dict[str, np.ndarray], updates: int, at_once: int
) -> float:
    """Seconds of the study's time for an update of the run, with as many runs side by side as the study trains."""
    mesh, key = study.mesh, jax.random.key(0)
    tx = optim.make(run.optim, run.updates)
    trained = adapted.trained(study.model, run.lora)
    create = state_lib.creator(trained, tx, mesh)
    states = [create(trained.init(key, mesh)) for _ in range(at_once)]
    frozen = None if run.lora is None else adapted.frozen_for(study.model, study.model.init(key, mesh))
    batch = {k: jax.device_put(v, batch_sharding(mesh)) for k, v in host.items()}

    def update(number: int) -> None:
        with jax.set_mesh(mesh):
            states[number], _ = compiled(states[number], batch, key, frozen)
            jax.block_until_ready(states[number])

    for number in range(at_once):  # the first of a program allocates
        update(number)
    return several.seconds_each(at_once, updates, update)


def _batch(study: Study, run: Run) -> dict[str, np.ndarray]:
    """A batch of the right shapes made of the first rows, with zeros for what is computed from a reference."""
    if run.cross is not None:  # of rows that nobody has written yet
        length = study.config.data.seq_len
        return dict(
            tokens=np.zeros((run.batch_size, length + 1), np.int32), mask=np.ones((run.batch_size, length), np.uint8)
        )
    prepared, rows = study.data.train[run.role], execute.packed_rows(study.data, run, study.mesh)
    if rows is not None:
        seed = execute.order_seed(run)
        packed = pipeline.batch_at(prepared, 0, batch_size=run.batch_size, seed=seed, rows=rows)
        return {name: values for name, values in packed.items() if name != "row"}
    arrays = prepared.arrays(run.batch_size)
    index = np.arange(run.batch_size) % len(next(iter(arrays.values())))
    batch = {name: values[index] for name, values in arrays.items()}
    if run.last_rows:
        batch["real"] = np.ones(run.batch_size, np.uint8)
    extra = programs.annotations(study.model, run, batch)
    return batch | {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in extra.items()}


def _time_measure(study: Study, at_once: int) -> float:
    """Seconds of the study's time for one measured point."""
    params = study.model.init(jax.random.key(0), study.mesh)
    # Nearly all points are compared with a base, which has to be another model: nothing is computed for a comparison with itself.
    compared = any(run.parent is not None for run in study.runs)
    base = study.model.init(jax.random.key(1), study.mesh) if compared else params
    study.protocol.make_ready()

    def measure(_: int) -> None:
        study.protocol.measure(params, base, 0)

    measure(0)  # compiles
    rounds = 3 if at_once > 1 else 1  # single ones of several threads would overlap in part only
    return several.seconds_each(at_once, rounds, measure)
