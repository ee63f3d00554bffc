"""What would a study cost, and does it fit, before anything is trained?

On the devices of this process every stage is compiled and, where it fits, timed. For a named topology, which need not be here,
the mesh is searched and the cost is a closed form (`study.estimate`), beside which `compiled=True` puts what the compiler says.
"""

import dataclasses
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elastic_jax import config as config_lib
from elastic_jax import objectives
from elastic_jax.config import Config
from elastic_jax.data import pipeline
from elastic_jax.data.tokenizers import load_pretrained
from elastic_jax.errors import UserError, first_line
from elastic_jax.models import adapted, flops
from elastic_jax.models.config import ModelConfig, model_config
from elastic_jax.models.transformer import Decoder
from elastic_jax.parallel import ahead, hardware
from elastic_jax.parallel import topology as topology_lib
from elastic_jax.parallel.mesh import batch_sharding, make_mesh
from elastic_jax.parallel.topology import Topology
from elastic_jax.study import Study, estimate, execute, search, tree
from elastic_jax.study.estimate import Estimate, Layout, Roofline, Work
from elastic_jax.study.tree import STAGES, Run
from elastic_jax.train import optim
from elastic_jax.train import state as state_lib
from elastic_jax.train.progress import format_duration
from elastic_jax.train.step import make_train_step

TIMED_UPDATES = 3
# What the field that says whether a stage is run says where it is not; of others "volumes" is empty.
_OFF = dict(resistance="slices is empty", order="volume is 0")


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of one update: bytes per device, and how long it took to say it.

    Attributes:
      arguments: of state and batch.
      temporary: of everything else.
      total: both, and results that are in place of no argument.
    """

    arguments: int
    temporary: int
    total: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class StageCost:
    """One stage of the plan; bytes are per device, seconds are of one update (None where they are not known).

    Attributes:
      seconds: timed here, or estimated for the topology.
      layout: how an update is spread.
      estimate: without the compiler.
      compiled: by the compiler; None where it was not asked.
      roofline: None without a topology.
      fits: whether the estimate, or what the compiler says, is within the device's memory.
    """

    stage: str
    runs: int
    updates: int
    tokens: int
    seconds: float | None
    layout: Layout
    estimate: Estimate
    compiled: Compiled | None = None
    roofline: Roofline | None = None
    fits: bool = True

    @property
    def state_bytes(self) -> int:
        return self.compiled.arguments if self.compiled else self.estimate.arguments

    @property
    def temporary_bytes(self) -> int:
        return self.compiled.temporary if self.compiled else self.estimate.of_update - self.estimate.arguments

    @property
    def hours(self) -> float | None:
        """Of all updates of the stage."""
        return None if self.seconds is None else self.updates * self.seconds / 3600

    @property
    def difference(self) -> float | None:
        """Estimated over compiled bytes of an update, minus one."""
        return self.estimate.of_update / self.compiled.total - 1 if self.compiled else None


@dataclasses.dataclass(frozen=True)
class Plan:
    """Prints as a table; `as_json` is the same for programs."""

    study: str
    params: int
    mesh: dict[str, int]
    stages: tuple[StageCost, ...]
    runs: tuple[tuple[Run, bool], ...]  # and whether it is done
    notes: tuple[str, ...]
    measured_points: int
    seconds_per_point: float | None
    topology: Topology | None = None
    hfu: float | None = None  # that the times assume

    def __str__(self) -> str:
        return text(self)

    @property
    def seconds(self) -> float | None:
        """Training and measuring of everything, with none of it done; compilation comes on top."""
        if any(stage.seconds is None for stage in self.stages) or self.seconds_per_point is None:
            return None
        return sum(s.updates * (s.seconds or 0) for s in self.stages) + self.measured_points * self.seconds_per_point

    @property
    def fits(self) -> bool:
        return all(stage.fits for stage in self.stages)

    @property
    def settings(self) -> dict[str, Any]:
        """The overrides of the config that make it run as planned."""
        found: dict[str, Any] = {f"mesh.{axis}": size for axis, size in self.mesh.items() if axis != "run"}
        found["model.remat"] = self.stages[0].layout.remat
        for cost in self.stages:
            found[f"{cost.stage}.accumulate"] = cost.layout.accumulate
            if cost.layout.accumulate > 1:
                found[f"{cost.stage}.reduce"] = cost.layout.reduce
        return found

    def as_json(self) -> dict[str, Any]:
        """Plain types: everything that is printed, and the bytes by category."""
        return dict(
            study=self.study,
            params=self.params,
            topology=self.topology.name if self.topology else None,
            devices=math.prod(self.mesh.values()),
            memory=self.topology.memory if self.topology else None,
            mesh=self.mesh,
            settings=self.settings,
            fits=self.fits,
            assumed_hfu=self.hfu,
            runs=len(self.runs),
            measured_points=self.measured_points,
            notes=list(self.notes),
            stages=[_stage_json(cost, self.topology) for cost in self.stages],
        )


def plan(
    study: Study | Config,
    timed: bool | None = None,
    *,
    topology: str | None = None,
    compiled: bool = False,
    hfu: float | None = None,
    stages: Sequence[str] | None = None,
) -> Plan:
    """What a study needs; `print` shows it as a table.

    Without a topology: compile each stage's update for the mesh of this process, and time it where it fits.

    Args:
      study: or a config. Its data are prepared, in a folder that is gone afterwards, only when there is no topology.
      timed: run a few updates of each stage and one measurement to estimate the time; by default where state and
        temporaries need less than half of the host's memory.
      topology: a name such as "v5e:16x16" or "h100:8" (`parallel.topology`); nothing of it has to be here.
      compiled: with a topology, also compile each stage's update ahead of time and report the compiler's memory.
      hfu: with a topology, the share of the peak that the times assume; by default `search.ASSUMED_HFU`.
      stages: with a topology, plan these alone; by default all that the config trains.

    Raises:
      UserError: the config cannot work on these devices. That it does not fit is no error here: see `Plan.fits` and `cure`.
    """
    if topology is not None:
        return _plan_topology(study, topology_lib.parse(topology), compiled, hfu, stages)
    if compiled or hfu is not None or stages is not None:
        raise UserError(
            "--compile, --hfu and --stage are for a --topology; without one the devices here are compiled for and timed."
        )
    if not isinstance(study, Study):
        with tempfile.TemporaryDirectory() as scratch:
            return plan(Study(study, scratch, weights=False), timed)
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
    batch.update(
        {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in _annotations(study.model, run, batch).items()}
    )
    return batch


def _annotations(model: Decoder, run: Run, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Shapes of what the run's objective computes once of every row and adds to its batches."""
    annotate = objectives.make(dict(run.objective)).annotate
    if annotate is None:
        return {}
    return jax.eval_shape(lambda p, b: annotate(model, p, b), model.shapes, dict(batch))


def _typical(runs: Sequence[Run]) -> Run:
    """The run that a stage is planned by: of the resistance experiment one that trains on answers, which most of its runs do."""
    return next((run for run in runs if run.cross), runs[0])


def _layout(study: Study, run: Run) -> Layout:
    """How the config spreads an update of the run over the devices here."""
    mesh = study.mesh.shape
    return Layout(mesh["data"], mesh["fsdp"], mesh["tensor"], run.accumulate, study.model.config.remat, run.reduce)


def _stage(study: Study, stage: str, timed: bool | None) -> StageCost:
    runs = [run for run in study.runs if run.stage == stage]
    first = _typical(runs)
    host = _batch(study, first)
    shapes = {k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=batch_sharding(study.mesh)) for k, v in host.items()}
    layout = _layout(study, first)
    compiled, found = _compile(study.model, first, study.mesh, shapes, layout)
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
    work = _work(study.config, study.model.config, first)
    return _cost(study.config, stage, runs, seconds, layout, estimate.estimate(work, layout), found)


def _cost(
    config: Config,
    stage: str,
    runs: list[Run],
    seconds: float | None,
    layout: Layout,
    found: Estimate,
    compiled: Compiled | None = None,
    **more: Any,
) -> StageCost:
    updates = sum(run.updates for run in runs)
    tokens = sum(run.updates * run.batch_size for run in runs) * config.data.seq_len
    return StageCost(stage, len(runs), updates, tokens, seconds, layout, found, compiled, **more)


def _compile(model: Decoder, run: Run, mesh: Any, batch: Mapping[str, Any], layout: Layout) -> tuple[Any, Compiled]:
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


def _time_measure(study: Study) -> float:
    params = study.model.init(jax.random.key(0), study.mesh)
    study.protocol.measure(params, params, 0)  # compiles
    began = time.perf_counter()
    study.protocol.measure(params, params, 0)
    return time.perf_counter() - began


def _work(config: Config, model: ModelConfig, run: Run) -> Work:
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


def _plan_topology(
    study: Study | Config, topology: Topology, compiled: bool, hfu: float | None, stages: Sequence[str] | None
) -> Plan:
    """The plan for devices that are not here; data that are not prepared are not read."""
    config = study.config if isinstance(study, Study) else study
    config_lib.validate(config)
    if hfu is not None and not 0 < hfu <= 1:
        raise UserError(f"--hfu={hfu}: expected a share of the peak, above 0 and up to 1.")
    wanted = config_lib.stages(config) if stages is None else stages
    for stage in wanted:
        if stage not in STAGES:
            raise UserError(f"--stage={stage}: expected one of {', '.join(STAGES)}.")
        if stage not in config_lib.stages(config):
            raise UserError(
                f"--stage={stage}: "
                + (
                    f"nothing is pre-trained with base.hf={config.base.hf}."
                    if stage == "pretrain"
                    else "it measures random changes of weights and trains nothing, so that there is nothing to plan."
                    if stage == "noise"
                    else f"{stage}.{_OFF.get(stage, 'volumes is empty')}, so that it is not run."
                )
                + f" Plan {' or '.join(config_lib.stages(config))}."
            )
    if compiled:
        ahead.devices(topology)  # before anything is computed, if it cannot work
    notes: list[str] = []
    model, everything = _model_and_runs(study, topology, notes)
    runs = everything if stages is None else [run for run in everything if run.stage in wanted]
    first = {stage: _typical([run for run in runs if run.stage == stage]) for stage in wanted}
    works = {
        stage: (_work(config, model, first[stage]), sum(run.updates for run in runs if run.stage == stage))
        for stage in wanted
    }
    fixed = search.Fixed(_given_mesh(config, notes), config.model.remat)
    accumulate = {stage: config[stage].accumulate for stage in wanted if config[stage].accumulate > 1}
    for stage, parts in accumulate.items():
        notes.append(f"{stage}.accumulate={parts} is the config's; 1 lets the plan choose")
    assumed = hfu or search.ASSUMED_HFU[topology.chip.platform]
    found = search.search(works, topology, fixed, accumulate, assumed)
    costs = []
    for stage in wanted:
        cost = found[stage]
        of_stage = [run for run in runs if run.stage == stage]
        exact, fits = None, cost.fits
        if compiled and cost.fits:
            exact = _ahead(model, first[stage], works[stage][0], cost.layout, topology)
            fits = exact.total + cost.estimate.memory["base model"] <= topology.memory
        costs.append(
            _cost(
                config,
                stage,
                of_stage,
                cost.seconds,
                cost.layout,
                cost.estimate,
                exact,
                roofline=cost.roofline,
                fits=fits,
            )
        )
    status = study.status() if isinstance(study, Study) else []
    done = {s.run.key for s in status if s.done}
    return Plan(
        study=config.name,
        params=flops.parameters(model),
        mesh=costs[0].layout.mesh,
        stages=tuple(costs),
        runs=tuple((run, run.key in done) for run in runs),
        notes=tuple(notes),
        measured_points=sum(len(run.measures) for run in runs),
        seconds_per_point=None,
        topology=topology,
        hfu=assumed,
    )


def _model_and_runs(study: Study | Config, topology: Topology, notes: list[str]) -> tuple[ModelConfig, list[Run]]:
    """The model and the tree, from the data where they are prepared, else from what the config says of them."""
    if isinstance(study, Study):
        model, runs = study.model.config, study.runs
        notes.extend(study.notes)
    elif study.base.hf:
        from elastic_jax.study import sources

        opened = sources.opened(study, weights=False)
        model = sources.model_config(opened, study)
        bases = [(base, "not read") for base in opened]
        runs, more = tree.build(study, model, dict.fromkeys(STAGES, "not prepared"), bases)
        notes.append("assumed, since data and weights were not read: enough rows for every volume")
        notes.extend(more)
    else:
        config = study
        vocabulary = _vocabulary(config)
        model = model_config(config_lib.model_section(config), vocabulary, config.data.seq_len)
        runs, more = tree.build(config, model, dict.fromkeys(STAGES, "not prepared"))
        what = f"vocabulary of {model.vocab_size:,}, " + (
            "that of the model" if model.vocab_size != vocabulary else "by the config"
        )
        notes.append(f"assumed, since the data were not read: {what}; enough rows for every volume")
        notes.extend(more)
    if model.layout == "unroll" and model.layers > 16 and topology.chip.platform != "cpu":
        notes.append(f"layout: planned with model.layout=scan; {model.layers} unrolled layers take minutes to compile")
        model = dataclasses.replace(model, layout="scan")
    return model, runs


def _vocabulary(config: Config) -> int:
    if config.data.kind == "text":
        named = config.data.tokenizer
        return load_pretrained(named.path, named.layout).vocab_size if named.path else named.vocab_size
    from elastic_jax.data.universe import Universe

    return Universe(topics=config.data.topics, size=config.data.size).tokenizer().vocab_size


def _given_mesh(config: Config, notes: list[str]) -> dict[str, int] | None:
    """The config's mesh, or None where it is the default: then it is searched."""
    default = dict(data=-1, fsdp=1, tensor=1)
    given = {axis: config.mesh[axis] for axis in default}
    if given == default:
        return None
    notes.append("the mesh is the config's; data=-1, fsdp=1, tensor=1 lets the plan choose")
    return given


def _ahead(model: ModelConfig, run: Run, work: Work, layout: Layout, topology: Topology) -> Compiled:
    """Compile one update for devices that are not here."""
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
    extra = _annotations(decoder, run, batch)
    batch |= {k: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place) for k, leaf in extra.items()}
    try:
        return _compile(decoder, run, mesh, batch, layout)[1]
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        largest = ", ".join(f"{name} {_bytes(size)}" for name, size in estimate.estimate(work, layout).largest())
        raise UserError(
            f"{run.stage} on {topology.name} ({layout}): the compiler runs out of memory: {first_line(error)}\n"
            f"The estimate's largest rows: {largest}. Set --config.model.remat=full, raise "
            f"--config.{run.stage}.accumulate, or choose a larger topology."
        ) from error


def cure(found: Plan) -> str:
    """Why a plan does not fit, and what would."""
    if found.topology is None or found.fits:
        return ""
    worst = max((s for s in found.stages if not s.fits), key=lambda s: s.estimate.total)
    needs = worst.compiled.total if worst.compiled else worst.estimate.total
    room = found.topology.memory
    largest = worst.estimate.largest()
    lines = [
        f"{found.study} does not fit {found.topology.name}: {worst.stage} needs {_bytes(needs)} of the {_bytes(room)} of a device "
        f"({search.MARGIN:.0%} of which are kept free), with the best that was found: {worst.layout}.",
        "Largest: " + ", ".join(f"{name} {_bytes(size)}" for name, size in largest) + ".",
    ]
    cures = []
    if bigger := topology_lib.larger(found.topology, needs / (room * (1 - search.MARGIN))):
        cures.append(f"a larger topology, for example --topology={bigger.name}")
    # What one row holds cannot be cut further by accumulation.
    held = {name for name, _ in largest}
    if {"saved activations", "layer at work"} & held and worst.layout.remat != "full":
        cures.append("--config.model.remat=full")
    if {"saved activations", "layer at work", "logits"} & held:
        cures.append("a shorter data.seq_len")
    if "moments" in held:
        cures.append(f"--config.{worst.stage}.optim.moments=bfloat16")
    if "logits" in held:
        cures.append("a smaller --config.model.loss_chunk")
    if worst.layout.fsdp < worst.layout.devices:
        cures.append("a batch size that more devices can share")
    return "\n".join([*lines, f"Use {', or '.join(cures)}."])


def out_of_memory(study: Study, stage: str) -> str:
    """What a stage that ran out of memory needs most of, for the message."""
    run = _typical([run for run in study.runs if run.stage == stage])
    layout = _layout(study, run)
    found = estimate.estimate(_work(study.config, study.model.config, run), layout)
    largest = ", ".join(f"{name} {_bytes(size)}" for name, size in found.largest())
    return f"{stage} needs about {_bytes(found.total)} of a device ({layout}); largest: {largest}."


def _stage_json(cost: StageCost, topology: Topology | None) -> dict[str, Any]:
    found = cost.estimate
    mfu = None
    if cost.seconds and topology is not None and topology.chip.flops:
        mfu = found.model_flops / (cost.seconds * topology.chip.flops)
    return dict(
        stage=cost.stage,
        runs=cost.runs,
        updates=cost.updates,
        tokens=cost.tokens,
        layout=dataclasses.asdict(cost.layout),
        fits=cost.fits,
        bytes=dict(found.memory),
        total_bytes=found.total,
        peak=found.peak,
        compiled=dataclasses.asdict(cost.compiled) if cost.compiled else None,
        difference=cost.difference,
        model_flops=found.model_flops,
        executed_flops=found.executed_flops,
        collectives=[dataclasses.asdict(exchange) for exchange in found.exchanges],
        roofline=dataclasses.asdict(cost.roofline) if cost.roofline else None,
        seconds=cost.seconds,
        mfu=mfu,
        device_hours=cost.hours * cost.layout.devices if cost.hours is not None else None,
    )


def text(found: Plan) -> str:
    """The plan as a person reads it."""
    mesh = ", ".join(f"{axis}={size}" for axis, size in found.mesh.items() if axis != "run" or size > 1)
    lines = [f"plan of {found.study}: {found.params:,} parameters, mesh {mesh}"]
    if found.topology is not None:
        chip = found.topology.chip
        lines.append(
            f"for {found.topology.name}: {found.topology.devices} devices of {_bytes(found.topology.memory)} ({chip.source})"
        )
    lines.append("")
    lines.append(
        f"{'stage':10} {'runs':>5} {'updates':>9} {'tokens':>9} {'state':>10} {'temporary':>10} {'s/update':>9}"
        + (f" {'device-h':>9}" if found.topology else "")
    )
    for s in found.stages:
        per_update = f"{s.seconds:.{4 if s.seconds > 1e-3 else 7}f}" if s.seconds is not None else "-"
        hours = f" {_number(s.hours * s.layout.devices) if s.hours is not None else '-':>9}" if found.topology else ""
        lines.append(
            f"{s.stage:10} {s.runs:5} {s.updates:9,} {_count(s.tokens):>9} {_bytes(s.state_bytes):>10} "
            f"{_bytes(s.temporary_bytes):>10} {per_update:>9}{hours}"
        )
    by_compiler = all(stage.compiled for stage in found.stages)
    lines.append(
        "state and temporary: per device, "
        + ("from the compiler's own analysis" if by_compiler else "estimated without a compiler")
    )
    lines += _memory_lines(found)
    if found.topology is not None:
        lines += _topology_lines(found)
    elif found.seconds is not None:
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
        # A plan of one stage does not list what it descends from.
        level = depth[run.key] = depth.get(run.parent.key if run.parent else "", -1) + 1
        points = ", ".join(f"{run.examples_at(point):,}" for point in sorted(run.checkpoints))
        name = run.name if found.topology is not None and not done else run.key
        what = f"{run.updates:,} updates of {run.batch_size}, kept at {points} examples"
        if run.base is not None:
            what = f"measured as it is, read from {run.base.where}" + (
                f" at {run.base.revision}" if run.base.revision else ""
            )
        if run.draw:
            sizes = ", ".join(f"{run.examples_at(point):,}" for point in sorted(run.measures))
            what = f"random change {run.draw} of the weights, as large as that of its parent at {sizes} examples"
        lines.append(f"{'  ' * level}{name}  {what}{'  [done]' if done else ''}")
    return "\n".join(lines)


def _memory_lines(found: Plan) -> list[str]:
    """Bytes per device by category, one column for each stage."""
    lines = ["", f"{'estimated, per device':22}" + "".join(f" {s.stage:>10}" for s in found.stages)]
    for name in estimate.CATEGORIES:
        sizes = [s.estimate.memory[name] for s in found.stages]
        if any(sizes):
            lines.append(f"  {name:20}" + "".join(f" {_bytes(size):>10}" for size in sizes))
    lines.append(f"  {'together':20}" + "".join(f" {_bytes(s.estimate.total):>10}" for s in found.stages))
    lines.append(f"  {'largest during':20}" + "".join(f" {s.estimate.peak:>10}" for s in found.stages))
    if any(s.compiled for s in found.stages):
        totals = [_bytes(s.compiled.total) if s.compiled else "-" for s in found.stages]
        lines.append(f"  {'by the compiler':20}" + "".join(f" {total:>10}" for total in totals))
        shares = [f"{s.difference:+.1%}" if s.difference is not None else "-" for s in found.stages]
        lines.append(f"  {'difference':20}" + "".join(f" {share:>10}" for share in shares))
    return [*lines, ""]


def _topology_lines(found: Plan) -> list[str]:
    assert found.topology is not None and found.hfu is not None
    lines = []
    for s in found.stages:
        exchanged = ", ".join(f"{e.kind} of {e.what} over {e.axis} {_bytes(e.size)}" for e in s.estimate.exchanges)
        lines.append(f"{s.stage}: {s.layout}")
        lines.append(
            f"  {_count(s.estimate.model_flops)}FLOP per update and device, {_count(s.estimate.executed_flops)}FLOP with "
            f"recomputation; exchanges: {exchanged or 'none'}"
        )
        if s.roofline is not None and s.roofline.compute is not None:
            lines.append(
                f"  at the peaks: compute {s.roofline.compute:.3g} s, memory {s.roofline.hbm:.3g} s, interconnect "
                f"{s.roofline.interconnect + s.roofline.exposed:.3g} s; bound by {s.roofline.bound}"
            )
    peak = found.topology.chip.flops
    hours = [s.hours for s in found.stages]
    if peak and all(hour is not None for hour in hours):
        total = sum(hour or 0.0 for hour in hours)
        seconds = sum(s.updates * (s.seconds or 0.0) for s in found.stages)
        done = sum(s.updates * s.estimate.model_flops for s in found.stages)
        lines.append(
            f"estimated time: {format_duration(total * 3600)} of {found.topology.devices} devices, "
            f"{_number(total * found.topology.devices)} device-hours for training, without compilation, measures and checkpoints"
        )
        lines.append(
            f"  assumed: {found.hfu:.0%} of the peak for what is executed, {search.ASSUMED_BANDWIDTH:.0%} of the bandwidths; that "
            f"is {done / (seconds * peak):.0%} MFU (causal). Not measured here."
        )
    else:
        lines.append(
            "estimated time: none, since a CPU has no peak to go by; plan without --topology to have it timed here"
        )
    lines.append("to run it so: " + " ".join(f"--config.{name}={value}" for name, value in found.settings.items()))
    return lines


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _count(value: float) -> str:
    for limit, unit in ((1e15, "P"), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.1f}{unit}"
    return f"{value:.0f}"


def _bytes(value: float) -> str:
    for limit, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if value >= limit:
            return f"{value / limit:.1f} {unit}"
    return f"{value:.0f} B"
