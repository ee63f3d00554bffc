"""How is a run brought to where the study needs it?

The rules of resuming:
 1. everything asked of the run is there: nothing is done;
 2. otherwise it continues from the newest checkpoint that is not beyond the first thing missing;
 3. a checkpoint that cannot be read is given up, said so, and the one before it is taken;
 4. without any it starts from its parent's point (pre-training: from random weights).
A base (`base.hf`) is the same kind of run with nothing to train: it is measured, and read from its source wherever it is needed. So is
noise (`study.noise`), whose points are made of those of its parent whenever they are measured.
What was measured before stays: an update number means the same weights however often the run was interrupted. For the same
reason a part that is trained again to repair a checkpoint leaves the record of metrics as it is.
"""

import contextlib
import dataclasses
import functools
import itertools
import logging
import threading
import time
import weakref
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from elastic_jax import environment, objectives
from elastic_jax.data import facts
from elastic_jax.data.arrays import read_arrays, write_arrays
from elastic_jax.data.build import StudyData
from elastic_jax.data.pipeline import batches, rows_needed
from elastic_jax.data.prepared import Prepared
from elastic_jax.errors import UserError
from elastic_jax.measures.protocol import Protocol
from elastic_jax.models import adapted, flops
from elastic_jax.models.adapted import Adapted, Trained
from elastic_jax.models.transformer import Decoder, Params
from elastic_jax.objectives import Objective
from elastic_jax.parallel import distributed, hardware
from elastic_jax.parallel.mesh import batch_sharding, batch_shards, put_global, put_local, replicated
from elastic_jax.parallel.rows import in_batches
from elastic_jax.study import agree, answers, noise, population
from elastic_jax.study.population import Program
from elastic_jax.study.session import Session
from elastic_jax.study.tree import Run
from elastic_jax.study.workdir import Workdir
from elastic_jax.train import account, goodput, interrupt, loop
from elastic_jax.train import metrics as metrics_lib
from elastic_jax.train.checkpoint import Checkpoints, Damaged
from elastic_jax.train.goodput import Ledger
from elastic_jax.train.metrics import MetricWriter
from elastic_jax.train.progress import Group, Progress
from elastic_jax.train.state import TrainState
from elastic_jax.train.watchdog import Watchdog

if TYPE_CHECKING:
    from elastic_jax.study.sources import Sources

log = logging.getLogger(__name__)

# Seconds that an interruption waits for a measurement, after which the training would be saved. Schedulers leave 30 and more.
PATIENCE = 10.0
# Rows at a time through what an objective asks of the parameters that a run starts from.
_REFERENCE_BATCH = 256


def stage_key(run: Run) -> jax.Array:
    """fold_in(seed, stage): runs of one stage and seed share their randomness, so arms differ by their start alone."""
    return jax.random.fold_in(jax.random.key(np.uint32(run.seed)), zlib.crc32(run.randomness.encode()))


def order_seed(run: Run) -> int:
    """Seed of the data order, likewise."""
    return zlib.crc32(f"{run.randomness}/{run.seed}".encode())


def packed_rows(data: StudyData, run: Run, mesh: Mesh) -> int | None:
    """Into how many rows the examples of each of the run's batches are packed (`data.pack`); None where each is a row."""
    if run.role not in data.packed_batches:
        return None
    least = batch_shards(mesh) * run.accumulate
    # In steps of a sixteenth of the batch: so most seeds and volumes need the same number, and share one compiled program.
    multiple = least * max(1, run.batch_size // (16 * least))
    needed = rows_needed(
        data.train[run.role], batch_size=run.batch_size, seed=order_seed(run), stop=run.updates, multiple=multiple
    )
    return min(needed, run.batch_size)


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a study is executed; none of it changes a number."""

    checkpoint_seconds: float
    log_seconds: float
    tensorboard: bool
    watchdog_factor: float = 0.0  # off
    watchdog_floor: float = 0.0
    watchdog_patience: float = 0.0


Display = Callable[[Run, int, int], contextlib.AbstractContextManager[Any]]


class _Base:
    """Parameters that several runs are compared with, and that their adapters adapt, while one of them needs them."""

    def __init__(self, params: Params, model: Decoder):
        self.params, self._model = params, model

    @functools.cached_property
    def frozen(self) -> Params:
        """As training reads them: the same arrays, or where the model computes in another dtype one more copy for all runs."""
        return adapted.frozen_for(self._model, self.params)


class Executor:
    """Runs of one study: the model, its data and protocol, and the compiled steps that runs share.

    Args:
      sources: where the parameters of the bases are, in a study that does not pre-train.
      asking: how the answers are written that runs are trained on.
      session: what it shares with other studies.

    Runs may be executed in several threads at the same time.
    """

    def __init__(
        self,
        workdir: Workdir,
        model: Decoder,
        mesh: Mesh,
        data: StudyData,
        protocol: Protocol,
        settings: Settings,
        sources: "Sources | None" = None,
        asking: "answers.Settings | None" = None,
        session: Session | None = None,
    ):
        self._workdir, self._model, self._mesh, self._data = workdir, model, mesh, data
        self._protocol, self._settings, self._sources = protocol, settings, sources or {}
        self._session = session or Session()
        self._lock = threading.RLock()  # of what runs share: a base that is read, a point that is repaired
        self.halt = threading.Event()  # set, it lets runs save and end
        self._bases: weakref.WeakValueDictionary[str, _Base] = weakref.WeakValueDictionary()
        self._last_base: _Base | None = None
        self._mine: Collection[str] | None = None
        self._answers = answers.Library(workdir, model, protocol.mesh, data, asking, self.params_at) if asking else None
        self._rows: dict[str, int | None] = {}  # every batch of a run has to be looked at to know it

    def is_done(self, run: Run) -> bool:
        return self._workdir.is_done(run.key, self._protocol.digest, run.checkpoints, run.measures)

    def execute(self, run: Run, progress: Display, mine: Collection[str] | None = None) -> None:
        """Bring `run` to its end; `progress` makes its display.

        Args:
          mine: keys of the runs that this process may write; None: all.
        """
        self._mine = mine
        if not run.trains:
            self._measure_alone(run, progress)
        else:
            loop.drive(self._executing(run, progress), self._program(run).alone(run, lambda: self._frozen(run)))

    def execute_together(
        self, runs: Sequence[Run], progress: Display, width: int, mine: Collection[str] | None = None
    ) -> None:
        """Bring runs of one kind to their ends as a population of `width` lanes; each ends as `execute` would end it."""
        self._mine = mine
        lanes = population.Population(self._program(runs[0]), width, frozen=lambda: self._frozen(runs[0]))
        population.together(lanes, runs, lambda run: self._executing(run, progress, together=True))

    def _executing(self, run: Run, progress: Display, together: bool = False) -> loop.Training:
        began = time.monotonic()
        kept = self._kept(run)
        self._write_beginning(run, kept)
        checkpoints = self._checkpoints(run)
        try:
            there, measured = agree.from_main(lambda: (checkpoints.updates(), sorted(self._measured(run))))
            missing = (run.checkpoints - set(there)) | (run.measures - set(measured))
            if missing:
                with Ledger() as ledger:
                    try:
                        yield from self._continue(
                            run, checkpoints, missing, set(measured), kept, progress, ledger, together
                        )
                    finally:
                        self._account(run, ledger)
            there = set(agree.from_main(checkpoints.updates))
            for number in sorted(there - kept):
                checkpoints.delete(number)
        finally:
            checkpoints.close()
        self._write_done(run, there & kept, time.monotonic() - began)

    def _measure_alone(self, run: Run, progress: Display) -> None:
        """All that there is to do of a run that trains nothing."""
        began = time.monotonic()
        self._write_beginning(run, set())
        measured = set(agree.from_main(lambda: sorted(self._measured(run))))
        missing = sorted(run.measures - measured)
        if missing:
            folder = self._workdir.run(run.key)
            with (
                Ledger() as ledger,
                MetricWriter(folder, tensorboard=self._settings.tensorboard) as writer,
                progress(run, 0, run.updates) as display,
            ):
                writer.truncate(-1)
                try:
                    with ledger.during("restore"):
                        base, states = self._base(run), self._untrained(run, missing)
                    tokens = self._tokens(run.parent)
                    for number in sorted(run.measures):
                        if self.halt.is_set():
                            raise interrupt.Interrupted(f"{run.key} stopped before update {number} was measured")
                        if number in measured:  # only written down again
                            rows = self._rows_at(run, number)
                        else:
                            with ledger.during("restore"):
                                params, more = next(states)
                            with ledger.during("measure"):
                                rows = self._measure(params, base, run.seed) + more
                            del params  # before the next point is made
                            self._add_rows(run, rows, number, tokens.get(number, 0))
                        writer.write(number, _values(rows), kind="measure")
                        display.update(number)
                finally:
                    self._account(run, ledger)
        self._write_done(run, set(), time.monotonic() - began)

    def _untrained(self, run: Run, numbers: Sequence[int]) -> Iterator[tuple[Params, list[dict[str, Any]]]]:
        """Parameters of a run that trains nothing at each of these points, and rows about how they were made."""
        if run.draw:
            return noise.points(run, numbers, self._model, self._mesh, self.params_at)
        return iter([(self._kept_base(run, 0).params, [])])

    def _tokens(self, run: Run | None) -> dict[int, int]:
        """Tokens behind every point that was measured before; none without a run, and on processes that write nothing."""
        if run is None or not distributed.is_main():
            return {}
        return {
            int(updates): int(most)
            for updates, most in self._workdir.rows(run.key).groupby("updates").tokens.max().items()
        }

    def _measure(self, params: Params, base: "_Base | None", seed: int) -> list[dict[str, Any]]:
        """What the protocol says of a checkpoint; `base` is None before there is a base model."""
        rows = self._protocol.measure(params, base.params if base is not None else params, seed)
        if base is None:  # the distance to it has no meaning
            rows = [row for row in rows if row["measure"] not in self._protocol.of_base]
        return rows

    def _add_rows(self, run: Run, rows: list[dict[str, Any]], number: int, tokens: int) -> None:
        where = dict(
            examples=run.examples_at(number),
            updates=number,
            tokens=tokens,
            commit=environment.commit(),
            protocol=self._protocol.digest,
        )
        if distributed.is_main():
            self._workdir.add_rows(run.key, [{**row, **where} for row in rows])

    def _write_beginning(self, run: Run, kept: set[int]) -> None:
        if distributed.is_main():
            written = {**run.describe(), **_environment(), "kept": sorted(kept)}
            self._workdir.write_run(run.key, "run.json", written)

    def _write_done(self, run: Run, checkpoints: set[int], seconds: float) -> None:
        if not distributed.is_main():
            return
        done = self._workdir.read_run(run.key, "DONE")
        points, protocol = done.get("measured", {}), self._protocol.digest
        self._workdir.write_run(
            run.key,
            "DONE",
            dict(
                updates=max(run.updates, done.get("updates", 0)),
                checkpoints=sorted(checkpoints),
                measured={**points, protocol: sorted(run.measures | set(points.get(protocol, [])))},
                wall_seconds=round(done.get("wall_seconds", 0.0) + seconds, 3),
            ),
        )

    def _account(self, run: Run, ledger: Ledger) -> None:
        """Add the seconds of this session to those of the run."""
        seconds = ledger.seconds()
        if distributed.is_main():
            there = self._workdir.read_run(run.key, goodput.FILE)
            self._workdir.write_run(run.key, goodput.FILE, goodput.add(there, seconds))
            self._session.account.add(account.of_run(run.stage, seconds))
        if jax.default_backend() != "cpu" and (remark := goodput.remark(seconds)):
            log.warning("%s: %s", run.key, remark)

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
        progress: Display,
        ledger: Ledger,
        together: bool,
    ) -> loop.Training:
        objective = objectives.make(dict(run.objective))
        with ledger.during("restore"):
            state, start, tokens = self._start(run, checkpoints, min(missing))
        stop = max(missing)
        there = agree.from_main(checkpoints.updates)
        temporary = [number for number in there if number not in kept]
        with ledger.during("measure"):
            train = self._train_rows(run)
        base = None if run.cross else self._base(run)
        reference = self._reference(run, objective)
        folder = self._workdir.run(run.key)

        with (
            MetricWriter(folder, tensorboard=self._settings.tensorboard) as writer,
            progress(run, start, stop) as display,
            Watchdog(
                run.name,
                factor=self._settings.watchdog_factor,
                floor=self._settings.watchdog_floor,
                patience=self._settings.watchdog_patience,
                folder=folder,
                phase=lambda: ledger.phase,
            ) as watchdog,
        ):
            repairing = distributed.is_main() and _recorded(folder) >= stop
            recorded = start or -1  # only a checkpoint vouches for the lines before it
            if not repairing:
                writer.truncate(recorded)

            def measure(state: TrainState, number: int, tokens: int) -> None:
                if number in measured:
                    rows = self._rows_at(run, number)
                else:
                    with display.paused(), ledger.during("measure"), interrupt.at_once(PATIENCE):
                        params = self._whole(run, state.params)
                        if run.cross:
                            writer.flush()
                            rows = self._of_answers(run, params, number)
                        else:
                            rows = self._measure(params, base, run.seed)
                    self._add_rows(run, rows, number, tokens)
                if not repairing or number not in measured:
                    writer.write(number, _values(rows), kind="measure")

            def save(state: TrainState, number: int, tokens: int) -> None:
                if number in there:
                    return
                with display.paused(), ledger.during("save"):
                    self._workdir.check_lock()
                    writer.flush()
                    meta: dict[str, Any] = dict(
                        run=run.key,
                        identity=run.identity,
                        parent=run.parent.key if run.parent else "",
                        examples=run.examples_at(number),
                        tokens=tokens,
                    )
                    if run.lora is not None:  # how these adapters are to be read
                        meta["lora"] = run.lora.identity
                    checkpoints.save(state, number, meta, instead_of=temporary)
                    temporary[:] = [] if number in kept else [number]

            def note(number: int, metrics: dict[str, float], tokens: int) -> None:
                if not repairing:
                    writer.write(number, {**metrics, "total_tokens": float(tokens)})
                display.update(number, metrics["loss"])

            # Lanes take host arrays, to put those of all of them on the devices at once.
            whole_rows = together or self._mesh.shape["run"] > 1
            put = (lambda batch: batch) if together else self._put_whole if whole_rows else self._put_local
            pulse = agree.Pulse(lambda: interrupt.requested() or self.halt.is_set())
            compiling = contextlib.ExitStack()  # until the first update is done there is nothing to save

            def alive(number: int) -> None:
                compiling.close()
                watchdog.alive(number)

            hooks = loop.Hooks(
                put=put,
                measure=measure,
                save=save,
                log=note,
                rollout=self._rollout(run, objective),
                # One that is measured already is only written down again.
                measure_at=frozenset(n for n in run.measures if n > recorded or n not in measured),
                save_at=run.checkpoints - set(there),
                save_seconds=self._settings.checkpoint_seconds,
                clock=pulse.clock,
                alive=alive,
                interrupted=pulse.interrupted,
                waiting=lambda: ledger.during("stall"),
                whole=lambda state: state.cut() if isinstance(state, population.Lane) else state,
            )
            reading = functools.partial(
                batches,
                train,
                batch_size=run.batch_size,
                seed=order_seed(run),
                process_index=0 if whole_rows else jax.process_index(),
                process_count=1 if whole_rows else jax.process_count(),
                threads=not together,  # the loop has one of its own for each run
                rows=self.rows(run),
                examples=run.examples_at(run.updates) if run.last_rows else None,
            )
            stream = _in_parts(reading, run.parts, start) if run.parts else reading(start=start)
            if reference:
                stream = ({**b, **{k: v[b["row"]] for k, v in reference.items()}} for b in stream)
            try:
                with interrupt.deferred(), compiling, ledger.during("step"):
                    compiling.enter_context(interrupt.at_once())
                    yield from self._training(run, state, stream, start=start, stop=stop, tokens=tokens, hooks=hooks)
            except interrupt.Interrupted as error:
                with ledger.during("save"):
                    checkpoints.wait()
                raise interrupt.Interrupted(f"{run.key} {error}") from None
            except loop.NotFinite as error:
                checkpoints.wait()
                good = max(checkpoints.updates(), default=None)
                where = checkpoints.folder / str(good) if good is not None else "none of this run yet"
                raise loop.NotFinite(
                    f"{run.key}, {error}\nData set: {train.folder}\nLast good checkpoint: {where}"
                ) from None
            with ledger.during("save"):
                checkpoints.wait()

    def _train_rows(self, run: Run) -> Prepared:
        """What the run trains on; answers are written first."""
        if run.cross is None:
            return self._data.train[run.role]
        assert self._answers is not None
        return self._answers.trained(run.cross)

    def _of_answers(self, run: Run, params: Params, number: int) -> list[dict[str, Any]]:
        """What is measured of a run that trains on answers; on process 0 with the losses that were written down so far."""
        assert self._answers is not None
        path = self._workdir.run(run.key) / metrics_lib.FILE
        written = metrics_lib.read(path) if distributed.is_main() else []
        losses = [row["loss"] for row in written if row["kind"] == "train"]
        return self._answers.rows(run, params, number, losses)

    def _training(self, run: Run, state: TrainState, stream: Any, **where: Any) -> loop.Training:
        return (yield from loop.training(state, stream, stage_key(run), **where))

    def _put_local(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        return put_local(batch, self._mesh)

    def _put_whole(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        return {name: put_global(rows, batch_sharding(self._mesh)) for name, rows in batch.items()}

    def _start(self, run: Run, checkpoints: Checkpoints, first_missing: int) -> tuple[TrainState, int, int]:
        """State, and the updates and tokens that it has behind it."""
        program = self._program(run)
        there = agree.from_main(checkpoints.updates)
        for number in reversed([n for n in there if n <= first_missing]):
            try:
                state, meta = checkpoints.restore(number, program.tx)
            except Damaged as error:
                checkpoints.discard(number, error)
                continue
            log.info("%s: continuing after update %d", run.key, number)
            return state, number, meta["tokens"]
        return program.create(self._first(run)), 0, 0

    def _first(self, run: Run) -> Params:
        """What the run begins to train: parameters, or adapters, of its parent's point, or fresh ones.

        Fresh adapters are the same for all runs of a seed: arms differ by their start alone.
        """
        if run.parent is not None and run.parent.lora == run.lora:
            return self._saved(run.parent, run.parent_updates)
        key = jax.random.key(np.uint32(run.seed))
        if run.lora is None:
            return self._model.init(jax.random.fold_in(key, zlib.crc32(b"init")), self._mesh)
        return self._trained(run).init(jax.random.fold_in(key, zlib.crc32(b"adapters")), self._mesh)

    def _trained(self, run: Run) -> Trained:
        return adapted.trained(self._model, run.lora)

    def _checkpoints(self, run: Run) -> Checkpoints:
        return Checkpoints(self._workdir.run(run.key) / "checkpoints", self._trained(run), self._mesh)

    def _frozen(self, run: Run) -> Params | None:
        """What the run's adapters adapt."""
        base = self._base(run) if run.lora is not None else None
        return base.frozen if base is not None else None

    def _whole(self, run: Run, params: Params) -> Params:
        """All parameters of the model, of what the run trains."""
        trained = self._trained(run)
        if not isinstance(trained, Adapted):
            return params
        base = self._base(run)
        assert base is not None
        return trained.merger(self._mesh)(base.params, params)

    def params_at(self, run: Run, updates: int, *, repair: bool = True) -> Params:
        """Parameters at a kept point of a finished run, with its adapters merged; those of a base are read from its source.

        Args:
          repair: False where nothing may be trained: then a damaged point is an error.
        """
        if not repair:
            self._mine = ()
        return self._whole(run, self._saved(run, updates))

    def _saved(self, run: Run, updates: int) -> Params:
        """What the run had trained at a kept point; a damaged point is trained again from the one before it."""
        if run.base is not None:
            return self._sources[run.base].load_params(self._model, self._mesh)
        with self._lock:
            return self._restored(run, updates)

    def _restored(self, run: Run, updates: int) -> Params:
        checkpoints = self._checkpoints(run)
        try:
            return checkpoints.restore_params(updates)[0]
        except Damaged as error:
            if self._mine is not None and run.key not in self._mine:
                raise UserError(f"{error} Run --only={run.key} first, which repairs it.") from error
            checkpoints.discard(updates, error)
        finally:
            checkpoints.close()
        self.execute(run, quiet, self._mine)
        checkpoints = self._checkpoints(run)
        try:
            return checkpoints.restore_params(updates)[0]
        finally:
            checkpoints.close()

    def _base(self, run: Run) -> "_Base | None":
        """The end of the pre-training run behind `run`; None for that run itself."""
        at, root = run.parent_updates, run.parent
        while root is not None and root.parent is not None:
            at, root = root.parent_updates, root.parent
        return None if root is None else self._kept_base(root, at)

    def _kept_base(self, root: Run, at: int) -> "_Base":
        """The base's parameters, kept for as long as a run needs them, and for the next one."""
        key = root.base.label if root.base is not None else f"{root.key}@{at}"  # one of others serves every seed
        with self._lock:
            base = self._bases.get(key)
            if base is None:
                self._last_base = None  # there may not be room for two
                base = self._bases[key] = self._last_base = _Base(self._saved(root, at), self._model)
            return base

    def rows(self, run: Run) -> int | None:
        """`packed_rows` of the run."""
        if run.key not in self._rows:
            self._rows[run.key] = packed_rows(self._data, run, self._mesh)
        return self._rows[run.key]

    def positions(self, run: Run) -> int:
        """Positions that one update of the run computes, padding included."""
        return (self.rows(run) or run.batch_size) * self._model.config.seq_len

    def data_facts(self, runs: Sequence[Run]) -> list[facts.Fact]:
        """What is known about the data; where batches are packed, how well the runs' batches fill their rows."""
        packed = {}
        for role in self._data.packed_batches:
            prepared = self._data.train[role]
            each = prepared.counts["loss_tokens"] / prepared.rows
            shares = [run.batch_size * each / self.positions(run) for run in runs if run.role == role and run.trains]
            packed[role] = facts.fact("token_efficiency", float(np.mean(shares)), "fraction", role, n=len(shares))
        return [packed.get(f["split"], f) if f["measure"] == "token_efficiency" else f for f in self._data.facts]

    def _program(self, run: Run) -> Program:
        key = population.kind(run, self.rows(run))
        what = "update", self._model.config, self._mesh, key
        return self._session.once(what, lambda: Program(self._model, self._mesh, run))

    def _rollout(self, run: Run, objective: Objective) -> Any:
        if objective.rollout is None:
            return None
        sample = objective.rollout
        key = jax.random.fold_in(stage_key(run), zlib.crc32(b"rollout"))
        trained = self._trained(run)
        jitted = jax.jit(
            lambda params, batch, key, frozen: sample(self._model, adapted.joined(trained, frozen, params), batch, key)
        )

        def rollout(params: Params, batch: Any, number: int) -> Any:
            with jax.set_mesh(self._mesh):
                return jitted(params, batch, jax.random.fold_in(key, number), self._frozen(run))

        return rollout

    def _reference(self, run: Run, objective: Objective) -> dict[str, np.ndarray]:
        """What the objective needs of the parameters the run starts from, once per row of its data, cached in its folder."""
        if objective.annotate is None:
            return {}
        path = self._workdir.run(run.key) / "reference.npz"
        if agree.from_main(lambda: read_arrays(path) is not None):
            return read_arrays(path) or {}
        annotate, trained = objective.annotate, self._trained(run)
        jitted = jax.jit(
            # As the loss computes them: what is merged rounds differently.
            lambda params, batch, frozen: annotate(adapted.policy(trained, frozen), params, batch),
            out_shardings=replicated(self._mesh),
        )
        params, frozen = self._first(run), self._frozen(run)
        rows = self._train_rows(run).arrays()
        reference = in_batches(lambda batch: jitted(params, batch, frozen), rows, self._mesh, _REFERENCE_BATCH)
        if distributed.is_main():
            write_arrays(path, reference)
        return reference


def _in_parts(
    reading: Callable[..., Iterator[dict[str, np.ndarray]]], parts: Sequence[tuple[int, int]], start: int
) -> Iterator[dict[str, np.ndarray]]:
    """The batches of these ranges, one range after the other, without the first `start` of them."""
    for begin, end in parts:
        left = max(end - begin - start, 0)
        start -= end - begin - left
        if left:
            yield from itertools.islice(reading(start=end - left), left)


def _values(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """For the log of metrics."""
    return {f"{row['measure']}/{row['split']}": row["value"] for row in rows if row["measure"] != "sample"}


def _recorded(folder: epath.Path) -> int:
    """The last update whose loss is written down."""
    return max(
        (row["updates"] for row in metrics_lib.read(folder / metrics_lib.FILE) if row["kind"] == "train"), default=0
    )


def _environment() -> dict[str, Any]:
    return dict(commit=environment.commit(), devices=[device.device_kind for device in jax.devices()])


def quiet(run: Run, start: int, stop: int) -> Progress:
    """No display, for a run that is repeated inside another."""
    return Progress(run.key, steps=stop, start=start, tokens_per_step=1, mode="off")


@contextlib.contextmanager
def display_together(
    runs: Sequence[Run], show: Callable[[Run, int, int], Progress], pausing: bool = True
) -> Iterator[Display]:
    """One line for several runs: its steps are those of all of them.

    Args:
      pausing: whether all of them wait while one is measured or saved.
    """
    name = runs[0].name if len(runs) == 1 else f"{runs[0].name} and {len(runs) - 1} more"
    updates = sum(run.updates for run in runs)
    with Group(show(dataclasses.replace(runs[0], name=name), 0, updates), pausing) as group:
        yield lambda run, start, stop: group.member(start, stop, run.updates)


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
    tokens_per_step: int,
) -> Progress:
    """The progress of one run in its study; `study` is tokens planned and done, `count` the devices."""
    length, trained = model.config.seq_len, adapted.trained(model, run.lora)
    counts = trained.per_token(length) if isinstance(trained, Adapted) else flops.per_token(model.config, length)
    peak = hardware.peak_flops(jax.devices()[0].device_kind)
    return Progress(
        run.name,
        steps=stop,
        start=start,
        tokens_per_step=tokens_per_step,
        index=index,
        runs=runs,
        study_tokens=study[0],
        study_tokens_done=study[1],
        flops_per_token=counts,
        peak_flops=peak * count if peak else None,
        devices=count,
        interval=seconds,
    )
