"""How is a run brought to where the study needs it?

The rules of resuming:
 1. everything asked of the run is there: nothing is done;
 2. otherwise it continues from the newest checkpoint that is not beyond the first thing missing;
 3. a checkpoint that cannot be read is given up, said so, and the one before it is taken;
 4. without any it starts from its parent's point (pre-training: from random weights).
What was measured before stays: an update number means the same weights however often the run was interrupted. For the same
reason a part that is trained again to repair a checkpoint leaves the record of metrics as it is.
"""

import dataclasses
import io
import logging
import time
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
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
from elastic_jax.parallel import distributed, hardware
from elastic_jax.parallel.mesh import batch_sharding, batch_shards, put_global, put_local, replicated
from elastic_jax.study import agree
from elastic_jax.study.tree import Run
from elastic_jax.study.workdir import Workdir
from elastic_jax.train import loop, optim
from elastic_jax.train import metrics as metrics_lib
from elastic_jax.train import state as state_lib
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
        return self._workdir.is_done(run.key, self._protocol.digest, run.checkpoints, run.measures)

    def execute(self, run: Run, progress: Callable[..., Progress]) -> None:
        """Bring `run` to its end; `progress` makes its display."""
        began = time.monotonic()
        folder = self._workdir.run(run.key)
        kept = self._kept(run)
        if distributed.is_main():
            written = {**run.describe(), **_environment(), "kept": sorted(kept)}
            self._workdir.write_run(run.key, "run.json", written)
        checkpoints = Checkpoints((folder / "checkpoints").absolute(), self._model, self._mesh)
        try:
            there, measured = agree.from_main(lambda: (checkpoints.updates(), sorted(self._measured(run))))
            missing = (run.checkpoints - set(there)) | (run.measures - set(measured))
            if missing:
                self._continue(run, checkpoints, missing, set(measured), kept, progress)
            there = set(agree.from_main(checkpoints.updates))
            for number in sorted(there - kept):
                checkpoints.delete(number)
        finally:
            checkpoints.close()
        if distributed.is_main():
            done = self._workdir.read_run(run.key, "DONE")
            points = done.get("measured", {})
            protocol = self._protocol.digest
            self._workdir.write_run(
                run.key,
                "DONE",
                dict(
                    updates=max(run.updates, done.get("updates", 0)),
                    checkpoints=sorted(there & kept),
                    measured={**points, protocol: sorted(run.measures | set(points.get(protocol, [])))},
                    wall_seconds=round(done.get("wall_seconds", 0.0) + time.monotonic() - began, 3),
                ),
            )

    def _kept(self, run: Run) -> set[int]:
        """The checkpoints that are not temporary: those of this study, and of every other that had a part in the run."""

        def kept() -> list[int]:
            asked = self._workdir.read_run(run.key, "run.json").get("kept", [])
            reached = self._workdir.read_run(run.key, "DONE").get("checkpoints", [])
            return sorted({*run.checkpoints, *asked, *reached})

        return set(agree.from_main(kept))

    def _measured(self, run: Run) -> set[int]:
        rows = self._workdir.rows(run.key)
        return {int(number) for number in rows.updates[rows.protocol == self._protocol.digest]}

    def _rows_at(self, run: Run, number: int) -> list[dict[str, Any]]:
        """What was measured at a point before; [] on processes other than 0, which write nothing."""
        if not distributed.is_main():
            return []
        rows = self._workdir.rows(run.key)
        rows = rows[(rows.protocol == self._protocol.digest) & (rows.updates == number)]
        return rows.to_dict("records")

    def _continue(
        self,
        run: Run,
        checkpoints: Checkpoints,
        missing: frozenset[int],
        measured: set[int],
        kept: set[int],
        progress: Callable[..., Progress],
    ) -> None:
        step, tx = self._step(run)
        objective = objectives.make(dict(run.objective))
        state, start, tokens = self._start(run, checkpoints, min(missing), tx)
        stop = max(missing)
        there = agree.from_main(checkpoints.updates)
        temporary = [number for number in there if number not in kept]
        base = self._base(run)
        reference = self._reference(run, objective)
        folder = self._workdir.run(run.key)

        with (
            MetricWriter(folder, tensorboard=self._settings.tensorboard) as writer,
            progress(run, start, stop) as display,
        ):
            repairing = distributed.is_main() and _recorded(folder) >= stop
            recorded = start or -1  # only a checkpoint vouches for the lines before it
            if not repairing:
                writer.truncate(recorded)

            def measure(state: TrainState, number: int, tokens: int) -> None:
                if number in measured:
                    rows = self._rows_at(run, number)
                else:
                    with display.paused():
                        rows = self._protocol.measure(
                            state.params, base if base is not None else state.params, run.seed
                        )
                    if base is None:  # before there is a base model, the distance to it has no meaning
                        rows = [row for row in rows if row["measure"] not in ("kl_base_model", "kl_model_base")]
                    where = dict(
                        examples=number * run.batch_size,
                        updates=number,
                        tokens=tokens,
                        commit=environment.commit(),
                        protocol=self._protocol.digest,
                    )
                    if distributed.is_main():
                        self._workdir.add_rows(run.key, [{**row, **where} for row in rows])
                if not repairing or number not in measured:
                    values = {f"{r['measure']}/{r['split']}": r["value"] for r in rows if r["measure"] != "sample"}
                    writer.write(number, values, kind="measure")

            def save(state: TrainState, number: int, tokens: int) -> None:
                if number in there:
                    return
                with display.paused():
                    writer.flush()
                    meta = dict(run=run.key, identity=run.identity, parent=run.parent.key if run.parent else "",
                                examples=number * run.batch_size, tokens=tokens)  # fmt: skip
                    checkpoints.save(state, number, meta)
                    while temporary:
                        checkpoints.delete(temporary.pop())
                    if number not in kept:
                        temporary.append(number)

            def note(number: int, metrics: dict[str, float], tokens: int) -> None:
                if not repairing:
                    writer.write(number, {**metrics, "total_tokens": float(tokens)})
                display.update(number, metrics["loss"])

            hooks = loop.Hooks(
                put=lambda batch: put_local(batch, self._mesh),
                measure=measure,
                save=save,
                log=note,
                rollout=self._rollout(run, objective),
                # One that is measured already is only written down again.
                measure_at=frozenset(n for n in run.measures if n > recorded or n not in measured),
                save_at=run.checkpoints - set(there),
                save_seconds=self._settings.checkpoint_seconds,
                clock=agree.clock(),
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
            try:
                loop.train(state, step, stream, stage_key(run), start=start, stop=stop, tokens=tokens, hooks=hooks)
            except loop.NotFinite as error:
                checkpoints.wait()
                good = max(checkpoints.updates(), default=None)
                where = checkpoints.folder / str(good) if good is not None else "none of this run yet"
                raise loop.NotFinite(
                    f"{run.key}, {error}\nData set: {self._data.train[run.role].folder}\nLast good checkpoint: {where}"
                ) from None
            checkpoints.wait()

    def _start(
        self, run: Run, checkpoints: Checkpoints, first_missing: int, tx: optax.GradientTransformation
    ) -> tuple[TrainState, int, int]:
        """State, and the updates and tokens that it has behind it."""
        there = agree.from_main(checkpoints.updates)
        for number in reversed([n for n in there if n <= first_missing]):
            try:
                state, meta = checkpoints.restore(number, tx)
            except Damaged as error:
                checkpoints.discard(number, error)
                continue
            log.info("%s: continuing after update %d", run.key, number)
            return state, number, meta["tokens"]
        params = self._fresh(run) if run.parent is None else self._parent_params(run)
        return self._creators[tx](params), 0, 0

    def _fresh(self, run: Run) -> Params:
        return self._model.init(
            jax.random.fold_in(jax.random.key(np.uint32(run.seed)), zlib.crc32(b"init")), self._mesh
        )

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
        sample = objective.rollout
        key = jax.random.fold_in(stage_key(run), zlib.crc32(b"rollout"))
        jitted = jax.jit(lambda params, batch, key: sample(self._model, params, batch, key))

        def rollout(params: Params, batch: Any, number: int) -> Any:
            with jax.set_mesh(self._mesh):
                return jitted(params, batch, jax.random.fold_in(key, number))

        return rollout

    def _reference(self, run: Run, objective: Objective) -> dict[str, np.ndarray]:
        """What the objective needs of the parameters the run starts from, once per row of its data, cached in its folder."""
        if objective.annotate is None:
            return {}
        path = self._workdir.run(run.key) / "reference.npz"
        if agree.from_main(lambda: _load_arrays(path) is not None):
            return _load_arrays(path) or {}
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
        if distributed.is_main():
            _save_arrays(path, reference)
        return reference


def _load_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """None where there is no such file, or it is damaged: what it holds can be computed again."""
    try:
        with np.load(path) as stored:
            return dict(stored)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        log.warning("%s cannot be read (%s); computing it again.", path, error)
        return None


def _save_arrays(path: Any, arrays: Mapping[str, np.ndarray]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **dict(arrays))  # type: ignore[arg-type]
    write_bytes(path, buffer.getvalue())


def _recorded(folder: Path) -> int:
    """The last update whose loss is written down."""
    return max(
        (row["updates"] for row in metrics_lib.read(folder / metrics_lib.FILE) if row["kind"] == "train"), default=0
    )


def _environment() -> dict[str, Any]:
    return dict(commit=environment.commit(), devices=[device.device_kind for device in jax.devices()])


def quiet(run: Run, start: int, stop: int) -> Progress:
    """No display, for a run that is repeated inside another."""
    return Progress(run.key, steps=stop, start=start, tokens_per_step=1, mode="off")


def display(
    run: Run,
    start: int,
    stop: int,
    *,
    model: Decoder,
    index: int,
    runs: int,
    study: tuple[int, int],
    seconds: float,
    count: int,
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
