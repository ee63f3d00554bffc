"""What would a study cost, and does it fit, before anything is trained?"""

import dataclasses
import tempfile
import time

import jax
import numpy as np

from elastic_jax import objectives
from elastic_jax.config import Config
from elastic_jax.parallel import hardware
from elastic_jax.parallel.mesh import batch_sharding
from elastic_jax.study import Study
from elastic_jax.study.tree import STAGES, Run
from elastic_jax.train import optim
from elastic_jax.train import state as state_lib
from elastic_jax.train.progress import format_duration
from elastic_jax.train.step import make_train_step

TIMED_UPDATES = 3


@dataclasses.dataclass(frozen=True)
class StageCost:
    """One stage of the plan; bytes are per device, seconds are of one update (None where it was not timed)."""

    stage: str
    runs: int
    updates: int
    tokens: int
    state_bytes: int
    temporary_bytes: int
    seconds: float | None


@dataclasses.dataclass(frozen=True)
class Plan:
    study: str
    params: int
    mesh: dict[str, int]
    stages: tuple[StageCost, ...]
    runs: tuple[tuple[Run, bool], ...]  # and whether it is done
    notes: tuple[str, ...]
    measured_points: int
    seconds_per_point: float | None

    def __str__(self) -> str:
        return text(self)

    @property
    def seconds(self) -> float | None:
        """Training and measuring of everything, with none of it done; compilation comes on top."""
        if any(stage.seconds is None for stage in self.stages) or self.seconds_per_point is None:
            return None
        return sum(s.updates * (s.seconds or 0) for s in self.stages) + self.measured_points * self.seconds_per_point


def plan(study: Study | Config, timed: bool | None = None) -> Plan:
    """Compile each stage's update for the mesh, and time it where it fits this host; `print` shows it as a table.

    Args:
      study: or a config, whose data are then prepared in a folder that is gone afterwards.
      timed: run a few updates of each stage and one measurement to estimate the time; by default where state and
        temporaries need less than half of the host's memory.
    """
    if not isinstance(study, Study):
        with tempfile.TemporaryDirectory() as scratch:
            return plan(Study(study, scratch), timed)
    study.check()
    stages = tuple(_stage(study, name, timed) for name in STAGES)
    seconds = _time_measure(study) if all(stage.seconds is not None for stage in stages) else None
    return Plan(
        study=study.config.name,
        params=study.model.size,
        mesh=dict(study.mesh.shape),
        stages=stages,
        runs=tuple((status.run, status.done) for status in study.status()),
        notes=tuple(study.notes),
        measured_points=sum(len(run.measures) for run in study.runs),
        seconds_per_point=seconds,
    )


def _batch(study: Study, run: Run) -> dict[str, np.ndarray]:
    """A batch of the right shapes made of the first rows, with zeros for what is computed from a reference."""
    arrays = study.data.train[run.role].arrays(run.batch_size)
    index = np.arange(run.batch_size) % len(next(iter(arrays.values())))
    batch = {name: values[index] for name, values in arrays.items()}
    objective = objectives.make(dict(run.objective))
    if objective.annotate is not None:
        annotate = objective.annotate
        extra = jax.eval_shape(lambda p, b: annotate(study.model, p, b), study.model.shapes, batch)
        batch.update({name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in extra.items()})
    return batch


def _stage(study: Study, stage: str, timed: bool | None) -> StageCost:
    runs = [run for run in study.runs if run.stage == stage]
    first = runs[0]
    tx = optim.make(first.optim, first.updates)
    step = make_train_step(study.model, objectives.make(dict(first.objective)), tx, study.mesh, first.accumulate)
    abstract = state_lib.abstract(study.model, tx, study.mesh)
    host = _batch(study, first)
    shapes = {k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=batch_sharding(study.mesh)) for k, v in host.items()}
    compiled = step.compile(abstract, shapes, jax.eval_shape(lambda: jax.random.key(0)))
    memory = compiled.memory_analysis()
    state_bytes, temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    limit = hardware.host_memory()
    fits = limit is None or (state_bytes + temporary) * study.mesh.size < limit / 2
    seconds = None
    if fits if timed is None else timed:
        params = study.model.init(jax.random.key(0), study.mesh)
        places = state_lib.shardings(study.model, tx, study.mesh)
        state = jax.jit(lambda p: state_lib.create(p, tx), out_shardings=places)(params)
        batch = {k: jax.device_put(v, batch_sharding(study.mesh)) for k, v in host.items()}
        key = jax.random.key(0)
        with jax.set_mesh(study.mesh):
            state, _ = compiled(state, batch, key)
            jax.block_until_ready(state)
            began = time.perf_counter()
            for _ in range(TIMED_UPDATES):
                state, _ = compiled(state, batch, key)
            jax.block_until_ready(state)
        seconds = (time.perf_counter() - began) / TIMED_UPDATES
    updates = sum(run.updates for run in runs)
    tokens = sum(run.updates * run.batch_size for run in runs) * study.config.data.seq_len
    return StageCost(stage, len(runs), updates, tokens, state_bytes, temporary, seconds)


def _time_measure(study: Study) -> float:
    params = study.model.init(jax.random.key(0), study.mesh)
    study.protocol.measure(params, params, 0)  # compiles
    began = time.perf_counter()
    study.protocol.measure(params, params, 0)
    return time.perf_counter() - began


def text(found: Plan) -> str:
    """The plan as a person reads it."""
    mesh = ", ".join(f"{axis}={size}" for axis, size in found.mesh.items())
    lines = [f"plan of {found.study}: {found.params:,} parameters, mesh {mesh}", ""]
    lines.append(
        f"{'stage':10} {'runs':>5} {'updates':>9} {'tokens':>9} {'state':>10} {'temporary':>10} {'s/update':>9}"
    )
    for s in found.stages:
        per_update = f"{s.seconds:.4f}" if s.seconds is not None else "-"
        lines.append(
            f"{s.stage:10} {s.runs:5} {s.updates:9,} {_count(s.tokens):>9} {_bytes(s.state_bytes):>10} "
            f"{_bytes(s.temporary_bytes):>10} {per_update:>9}"
        )
    lines.append("state and temporary: per device, from the compiler's own analysis")
    if found.seconds is not None:
        lines.append(
            f"estimated time: {format_duration(found.seconds)} for everything, without compilation "
            f"(timed here; {found.measured_points} measured points at {found.seconds_per_point:.2f} s)"
        )
    else:
        lines.append("estimated time: not timed, since an update does not fit half of this host's memory")
    lines += [f"  {note}" for note in found.notes]
    lines.append("")
    depth = {"": -1}
    for run, done in found.runs:
        level = depth[run.key] = depth[run.parent.key if run.parent else ""] + 1
        points = ", ".join(f"{point * run.batch_size:,}" for point in sorted(run.checkpoints))
        lines.append(
            f"{'  ' * level}{run.key}  {run.updates:,} updates of {run.batch_size}, kept at {points} examples"
            f"{'  [done]' if done else ''}"
        )
    return "\n".join(lines)


def _count(value: float) -> str:
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.1f}{unit}"
    return f"{value:.0f}"


def _bytes(value: int) -> str:
    for limit, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if value >= limit:
            return f"{value / limit:.1f} {unit}"
    return f"{value} B"
