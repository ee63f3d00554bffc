"""What does a study cost on the devices of this process, where its updates can be compiled and timed?"""

import time

import jax
import numpy as np

from elastic_jax import config as config_lib
from elastic_jax.data import pipeline
from elastic_jax.models import adapted
from elastic_jax.parallel import hardware
from elastic_jax.parallel.mesh import batch_sharding
from elastic_jax.study import Study, estimate, execute
from elastic_jax.study.planning import programs, work
from elastic_jax.study.planning.cost import Plan, StageCost
from elastic_jax.study.tree import Run
from elastic_jax.train import optim
from elastic_jax.train import state as state_lib

TIMED_UPDATES = 3


def plan(study: Study, timed: bool | None) -> Plan:
    """Compile each stage's update for the mesh of the study, and time it where it fits; see `planning.plan`."""
    study.check()
    costs = tuple(_stage(study, name, timed) for name in config_lib.stages(study.config))
    seconds = _time_measure(study) if all(cost.seconds is not None for cost in costs) else None
    return Plan(
        study=study.config.name,
        params=study.model.size,
        mesh=dict(study.mesh.shape),
        stages=costs,
        runs=tuple((status.run, status.done) for status in study.status()),
        notes=tuple(study.notes),
        measured_points=sum(len(run.measures) for run in study.runs),
        seconds_per_point=seconds,
    )


def _stage(study: Study, stage: str, timed: bool | None) -> StageCost:
    runs = [run for run in study.runs if run.stage == stage]
    first = work.typical(runs)
    host = _batch(study, first)
    shapes = {k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=batch_sharding(study.mesh)) for k, v in host.items()}
    layout = work.layout_of(study, first)
    compiled, found = programs.compile_update(study.model, first, study.mesh, shapes, layout)
    limit = hardware.host_memory()
    fits = limit is None or found.total * study.mesh.size < limit / 2
    seconds = None
    if fits if timed is None else timed:
        tx = optim.make(first.optim, first.updates)
        trained = adapted.trained(study.model, first.lora)
        params = trained.init(jax.random.key(0), study.mesh)
        state = state_lib.creator(trained, tx, study.mesh)(params)
        frozen = None
        if first.lora is not None:
            frozen = adapted.frozen_for(study.model, study.model.init(jax.random.key(0), study.mesh))
        batch = {k: jax.device_put(v, batch_sharding(study.mesh)) for k, v in host.items()}
        key = jax.random.key(0)
        with jax.set_mesh(study.mesh):
            state, _ = compiled(state, batch, key, frozen)
            jax.block_until_ready(state)
            began = time.perf_counter()
            for _ in range(TIMED_UPDATES):
                state, _ = compiled(state, batch, key, frozen)
            jax.block_until_ready(state)
        seconds = (time.perf_counter() - began) / TIMED_UPDATES
    done = estimate.estimate(work.work_of(study.config, study.model.config, first), layout)
    return work.cost_of(study.config, stage, runs, seconds, layout, done, found)


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


def _time_measure(study: Study) -> float:
    params = study.model.init(jax.random.key(0), study.mesh)
    study.protocol.measure(params, params, 0)  # compiles
    began = time.perf_counter()
    study.protocol.measure(params, params, 0)
    return time.perf_counter() - began
