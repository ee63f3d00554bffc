"""How is a run brought to where the study needs it?

The rules of resuming:
 1. everything asked of the run is there: nothing is done;
 2. otherwise it continues from the newest checkpoint that is not beyond the first thing missing;
 3. a checkpoint that cannot be read is given up, said so, and the one before it is taken;
 4. without any it starts from its parent's point (pre-training: from random weights).
What was measured before stays: an update number means the same weights however often the run was interrupted.
"""

import dataclasses
import io
import logging
import time
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from elastic_jax import environment, objectives
from elastic_jax.data.build import StudyData
from elastic_jax.data.files import digest_of, write_bytes
from elastic_jax.data.pipeline import batches
from elastic_jax.measures.protocol import Protocol
from elastic_jax.models.transformer import Decoder, Params
from elastic_jax.objectives import Objective
from elastic_jax.parallel import hardware
from elastic_jax.parallel.mesh import batch_sharding, batch_shards, put_global, put_local, replicated
from elastic_jax.study.tree import Run
from elastic_jax.study.workdir import Workdir
from elastic_jax.train import loop, optim, state as state_lib
from elastic_jax.train.checkpoint import Checkpoints, Damaged
from elastic_jax.train.metrics import MetricWriter
from elastic_jax.train.progress import Progress
from elastic_jax.train.state import TrainState
from elastic_jax.train.step import Step, make_train_step

log = logging.getLogger(__name__)


def stage_key(run: Run) -> jax.Array:
    """fold_in(seed, stage): runs of one stage and seed share their randomness, so arms differ by their start alone."""
    return jax.random.fold_in(jax.random.key(np.uint32(run.seed)), zlib.crc32(run.stage.encode()))


def order_seed(run: Run) -> int:
    """Seed of the data order, likewise."""
    return zlib.crc32(f"{run.stage}/{run.seed}".encode())


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a study is executed; none of it changes a number."""

    checkpoint_seconds: float
    log_seconds: float
    tensorboard: bool


class Executor:
    """Runs of one study: the model, its data and protocol, and the compiled steps that runs share."""

    def __init__(
        self, workdir: Workdir, model: Decoder, mesh: Mesh, data: StudyData, protocol: Protocol, settings: Settings
    ):
        self._workdir, self._model, self._mesh, self._data = workdir, model, mesh, data
        self._protocol, self._settings = protocol, settings
        self._steps: dict[str, tuple[Step, optax.GradientTransformation]] = {}
        self._creators: dict[optax.GradientTransformation, Callable[[Params], TrainState]] = {}
        self._bases: dict[str, Params] = {}

    def is_done(self, run: Run) -> bool:
        done = self._workdir.read_run(run.key, "DONE")
        measured = set(done.get("measured", {}).get(self._protocol.digest, []))
        return run.checkpoints <= set(done.get("checkpoints", [])) and run.measures <= measured

    def execute(self, run: Run, progress: Callable[..., Progress]) -> None:
        """Bring `run` to its end; `progress` makes its display."""
        began = time.monotonic()
        main = jax.process_index() == 0
        folder = self._workdir.run(run.key)
        if main:
            self._workdir.write_run(run.key, "run.json", {**run.describe(), **_environment()})
        checkpoints = Checkpoints((folder / "checkpoints").absolute(), self._model, self._mesh)
        try:
            missing = self._missing(run, checkpoints)
            if missing:
                self._continue(run, checkpoints, missing, progress)
            kept = set(checkpoints.updates())
        finally:
            checkpoints.close()
        if main:
            done = self._workdir.read_run(run.key, "DONE")
            measured = done.get("measured", {})
            points = set(measured.get(self._protocol.digest, [])) | run.measures
            self._workdir.write_run(
                run.key,
                "DONE",
                dict(
                    updates=max(run.updates, done.get("updates", 0)),
                    checkpoints=sorted(kept),
                    measured={**measured, self._protocol.digest: sorted(points)},
                    wall_seconds=round(done.get("wall_seconds", 0.0) + time.monotonic() - began, 3),
                ),
            )

    def _missing(self, run: Run, checkpoints: Checkpoints) -> frozenset[int]:
        return (run.checkpoints - set(checkpoints.updates())) | (run.measures - self._measured(run))

    def _measured(self, run: Run) -> set[int]:
        rows = self._workdir.rows(run.key)
        return {int(number) for number in rows.updates[rows.protocol == self._protocol.digest]}

    def _continue(
        self, run: Run, checkpoints: Checkpoints, missing: frozenset[int], progress: Callable[..., Progress]
    ) -> None:
        step, tx = self._step(run)
        objective = objectives.make(dict(run.objective))
        state, start, tokens, temporary = self._start(run, checkpoints, min(missing), tx)
        stop = max(missing)
        measured = self._measured(run)
        base = self._base(run)
        reference = self._reference(run, objective)
        folder = self._workdir.run(run.key)
        kept = set(checkpoints.updates())

        with (
            MetricWriter(folder, tensorboard=self._settings.tensorboard) as writer,
            progress(run, start, stop) as display,
        ):
            writer.truncate(start)

            def measure(state: TrainState, number: int, tokens: int) -> None:
                with display.paused():
                    rows = self._protocol.measure(state.params, base if base is not None else state.params, run.seed)
                    if base is None:  # before there is a base model, the distance to it has no meaning
                        rows = [row for row in rows if row["measure"] not in ("kl_base_model", "kl_model_base")]
                    where = dict(
                        examples=number * run.batch_size,
                        updates=number,
                        tokens=tokens,
                        commit=environment.commit(),
                        protocol=self._protocol.digest,
                    )
                    if jax.process_index() == 0:
                        self._workdir.add_rows(run.key, [{**row, **where} for row in rows])
                    values = {f"{r['measure']}/{r['split']}": r["value"] for r in rows if r["measure"] != "sample"}
                    writer.write(number, values, kind="measure")

            def save(state: TrainState, number: int, tokens: int) -> None:
                nonlocal temporary
                with display.paused():
                    writer.flush()
                    passing = number not in run.checkpoints
                    meta = dict(run=run.key, identity=run.identity, parent=run.parent.key if run.parent else "",
                                examples=number * run.batch_size, tokens=tokens, temporary=passing)  # fmt: skip
                    checkpoints.save(state, number, meta)
                    if temporary is not None:
                        checkpoints.delete(temporary)
                    temporary = number if passing else None

            def note(number: int, metrics: dict[str, float], tokens: int) -> None:
                writer.write(number, {**metrics, "total_tokens": float(tokens)})
                display.update(number, metrics["loss"])

            hooks = loop.Hooks(
                put=lambda batch: put_local(batch, self._mesh),
                measure=measure,
                save=save,
                log=note,
                rollout=self._rollout(run, objective),
                measure_at=run.measures - measured,
                save_at=run.checkpoints - kept,
                save_seconds=self._settings.checkpoint_seconds,
            )
            stream = batches(
                self._data.train[run.role],
                batch_size=run.batch_size,
                seed=order_seed(run),
                start=start,
                process_index=jax.process_index(),
                process_count=jax.process_count(),
            )
            if reference:
                stream = ({**b, **{k: v[b["row"]] for k, v in reference.items()}} for b in stream)
            loop.train(state, step, stream, stage_key(run), start=start, stop=stop, tokens=tokens, hooks=hooks)
            if temporary is not None:
                checkpoints.delete(temporary)
            checkpoints.wait()

    def _start(
        self, run: Run, checkpoints: Checkpoints, first_missing: int, tx: optax.GradientTransformation
    ) -> tuple[TrainState, int, int, int | None]:
        """State, updates and tokens done, and the number of a temporary checkpoint to clear away."""
        for number in reversed([n for n in checkpoints.updates() if n <= first_missing]):
            try:
                state, meta = checkpoints.restore(number, tx)
            except Damaged as error:
                checkpoints.discard(number, error)
                continue
            log.info("%s: continuing after update %d", run.key, number)
            return state, number, meta["tokens"], number if meta["temporary"] else None
        params = self._fresh(run) if run.parent is None else self._parent_params(run)
        return self._creators[tx](params), 0, 0, None

    def _fresh(self, run: Run) -> Params:
        return self._model.init(jax.random.fold_in(jax.random.key(np.uint32(run.seed)), zlib.crc32(b"init")), self._mesh)

    def _parent_params(self, run: Run) -> Params:
        if run.parent is None:
            raise ValueError(f"{run.key} has no parent")
        return self.params_at(run.parent, run.parent_updates)

    def params_at(self, run: Run, updates: int) -> Params:
        """Parameters at a kept point of a finished run; a damaged point is trained again from the one before it."""
        checkpoints = Checkpoints((self._workdir.run(run.key) / "checkpoints").absolute(), self._model, self._mesh)
        try:
            return checkpoints.restore_params(updates)[0]
        except Damaged as error:
            checkpoints.discard(updates, error)
        finally:
            checkpoints.close()
        self.execute(run, quiet)
        checkpoints = Checkpoints((self._workdir.run(run.key) / "checkpoints").absolute(), self._model, self._mesh)
        try:
            return checkpoints.restore_params(updates)[0]
        finally:
            checkpoints.close()

    def _base(self, run: Run) -> Params | None:
        """The end of the pre-training run behind `run`; None for that run itself."""
        at, root = run.parent_updates, run.parent
        while root is not None and root.parent is not None:
            at, root = root.parent_updates, root.parent
        if root is None:
            return None
        key = f"{root.key}@{at}"
        if key not in self._bases:
            self._bases = {key: self.params_at(root, at)}  # one seed at a time
        return self._bases[key]

    def _step(self, run: Run) -> tuple[Step, optax.GradientTransformation]:
        key = digest_of([dict(run.objective), dataclasses.asdict(run.optim), run.schedule_updates, run.accumulate])
        if key not in self._steps:
            tx = optim.make(run.optim, run.updates)
            objective = objectives.make(dict(run.objective))
            self._steps[key] = make_train_step(self._model, objective, tx, self._mesh, run.accumulate), tx
            places = state_lib.shardings(self._model, tx, self._mesh)
            self._creators[tx] = jax.jit(lambda params: state_lib.create(params, tx), out_shardings=places)
        return self._steps[key]

    def _rollout(self, run: Run, objective: Objective) -> Any:
        if objective.rollout is None:
            return None
        rollout = objective.rollout
        key = jax.random.fold_in(stage_key(run), zlib.crc32(b"rollout"))
        return lambda params, batch, number: rollout(self._model, params, batch, jax.random.fold_in(key, number))

    def _reference(self, run: Run, objective: Objective) -> dict[str, np.ndarray]:
        """What the objective needs of the parameters the run starts from, once per row of its data, cached in its folder."""
        if objective.annotate is None:
            return {}
        path = self._workdir.run(run.key) / "reference.npz"
        if path.exists():
            with np.load(path) as stored:
                return dict(stored)
        annotate = objective.annotate
        jitted = jax.jit(
            lambda params, batch: annotate(self._model, params, batch), out_shardings=replicated(self._mesh)
        )
        params = self._parent_params(run) if run.parent else self._fresh(run)
        rows = self._data.train[run.role].arrays()
        n = len(next(iter(rows.values())))
        size = -(-256 // batch_shards(self._mesh)) * batch_shards(self._mesh)
        parts = []
        with jax.set_mesh(self._mesh):
            for begin in range(0, n, size):
                index = np.arange(begin, begin + size) % n
                batch = {k: put_global(v[index], batch_sharding(self._mesh)) for k, v in rows.items()}
                parts.append(jitted(params, batch))
        parts = jax.device_get(parts)
        reference = {k: np.concatenate([part[k] for part in parts])[:n] for k in parts[0]}
        if jax.process_index() == 0:
            _save_arrays(path, reference)
        return reference


def _save_arrays(path: Any, arrays: Mapping[str, np.ndarray]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_bytes(path, buffer.getvalue())


def _environment() -> dict[str, Any]:
    return dict(commit=environment.commit(), devices=[device.device_kind for device in jax.devices()])


def quiet(run: Run, start: int, stop: int) -> Progress:
    """No display, for a run that is repeated inside another."""
    return Progress(run.key, steps=stop, start=start, tokens_per_step=1, mode="off")


def display(
    run: Run, start: int, stop: int, *, model: Decoder, index: int, runs: int, study: tuple[int, int], seconds: float, count: int
) -> Progress:
    """The progress of one run in its study; `study` is tokens planned and done, `count` the devices."""
    length = model.config.seq_len
    peak = hardware.peak_flops(jax.devices()[0].device_kind)
    return Progress(
        run.name,
        steps=stop,
        start=start,
        tokens_per_step=run.batch_size * length,
        index=index,
        runs=runs,
        study_tokens=study[0],
        study_tokens_done=study[1],
        flops_per_token=model.config.flops_per_token(length),
        peak_flops=peak * count if peak else None,
        interval=seconds,
    )
