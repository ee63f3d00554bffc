"""In what order do the things of training happen?

For every update, and the order matters:
 1. take the next batch: a thread has put it on the devices meanwhile, and begins with the one after it;
 2. launch the update; the call returns before the device is done;
 3. fetch the metrics of the update *before* it, so that the device never waits for the host;
 4. where something is due after this update, fetch its own metrics too: a state is never measured or saved before its loss
    is known to be finite;
 5. measure, and let the rows reach the disk: rows are always at least as new as the checkpoint, never older;
 6. save, also when the process is asked to stop, which it then does;
 7. log.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from elastic_jax.errors import UserError
from elastic_jax.train.interrupt import Interrupted
from elastic_jax.train.state import TrainState
from elastic_jax.train.step import Step


class NotFinite(UserError):
    """Training stopped at a loss or gradient that is NaN or infinite."""


@dataclasses.dataclass(frozen=True)
class Hooks:
    """What the loop calls; all of it host code.

    Attributes:
      put: batch of this process -> batch on the devices; called in a thread of its own.
      rollout: (params, batch, updates) -> batch, for on-policy objectives, or None.
      measure: (state, updates, tokens) at the numbers in `measure_at`; rows are on disk when it returns.
      save: (state, updates, tokens) at the numbers in `save_at`, and when `save_seconds` have passed.
      log: (updates, metrics, tokens) for every update, with host numbers.
      alive: (updates) when an update is known to be complete.
      interrupted: whether to save and stop here; asked after every update, and all processes have to answer alike.
      waiting: entered while the next batch is not ready yet.
      whole: what a step gave for a state -> the state, for `measure` and `save`.
    """

    put: Callable[[dict[str, np.ndarray]], dict[str, jax.Array]]
    measure: Callable[[TrainState, int, int], None]
    save: Callable[[TrainState, int, int], None]
    log: Callable[[int, dict[str, float], int], None]
    rollout: Callable[[Any, dict[str, jax.Array], int], dict[str, jax.Array]] | None = None
    measure_at: frozenset[int] = frozenset()
    save_at: frozenset[int] = frozenset()
    save_seconds: float = float("inf")
    clock: Callable[[], float] = time.monotonic
    alive: Callable[[int], None] = lambda number: None
    interrupted: Callable[[], bool] = lambda: False
    waiting: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
    whole: Callable[[Any], TrainState] = lambda state: state


@dataclasses.dataclass(frozen=True)
class Update:
    """An update that is to be launched: the arguments of a `Step`."""

    state: Any
    batch: dict[str, Any]
    key: jax.Array


Launch = Callable[[Any, dict[str, Any], jax.Array], tuple[Any, dict[str, Any]]]
# Yields what is to be launched and is sent what that gave: the state, and the metrics on the device.
Training = Generator[Update, tuple[Any, dict[str, Any]], Any]


@contextlib.contextmanager
def ahead(
    batches: Iterator[dict[str, np.ndarray]],
    put: Callable[[dict[str, np.ndarray]], dict[str, jax.Array]],
    count: int,
    waiting: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
) -> Iterator[Iterator[tuple[np.ndarray, dict[str, jax.Array]]]]:
    """The first `count` batches as (rows, batch on the devices), each made ready in a thread while the one before is in use.

    No more than `count` are taken. What fails in the thread is raised where that batch is asked for; the thread has ended when
    the context is left, however that happens.
    """

    def ready() -> tuple[np.ndarray, dict[str, jax.Array]]:
        batch = next(batches)
        return batch.pop("row"), put(batch)

    with ThreadPoolExecutor(1, "next-batch") as thread:

        def each() -> Iterator[tuple[np.ndarray, dict[str, jax.Array]]]:
            coming: Future | None = thread.submit(ready) if count > 0 else None
            for taken in range(1, count + 1):
                assert coming is not None
                with waiting():
                    here = coming.result()
                coming = thread.submit(ready) if taken < count else None
                yield here

        yield each()


def train(state: TrainState, step: Step, *args: Any, **kwargs: Any) -> TrainState:
    """`training` with this step, to its end."""
    return drive(training(state, *args, **kwargs), step)


def drive(course: Training, step: Launch) -> Any:
    """Launch what a course asks for until it ends; returns what it returns."""
    with contextlib.closing(course):
        try:
            update = next(course)
            while True:
                update = course.send(step(update.state, update.batch, update.key))
        except StopIteration as end:
            return end.value


def training(
    state: TrainState,
    batches: Iterator[dict[str, np.ndarray]],
    key: jax.Array,
    *,
    start: int,
    stop: int,
    tokens: int,
    hooks: Hooks,
) -> Training:
    """Updates `start` (exclusive) to `stop` (inclusive), launched by whoever drives this, alone or together with others.

    Args:
      batches: the batch of update `start + 1` first.
      tokens: tokens trained on so far in this run.

    Raises:
      NotFinite: with the update and the rows of its batch; what was saved before stays.
      Interrupted: `hooks.interrupted` asked for it, and the state is saved.
    """
    pending: tuple[int, dict[str, jax.Array], np.ndarray] | None = None
    last_save = hooks.clock()

    def settle() -> None:
        nonlocal pending, tokens
        if pending is None:
            return
        number, device_metrics, rows = pending
        pending = None
        metrics = {name: float(value) for name, value in jax.device_get(device_metrics).items()}
        if not metrics.pop("finite"):
            raise NotFinite(
                f"update {number}: loss {metrics['loss']}, gradient norm {metrics['grad_norm']} (not finite). The batch held "
                f"rows {rows.tolist()} of its data set. Lower optim.lr, keep optim.clip on, or look at those rows; without a "
                "change the same command stops here again."
            )
        tokens += int(metrics["tokens"])
        hooks.alive(number)
        hooks.log(number, metrics, tokens)

    if start in hooks.measure_at:
        hooks.measure(state, start, tokens)
    if start in hooks.save_at:
        hooks.save(state, start, tokens)
    with ahead(batches, hooks.put, stop - start, hooks.waiting) as ready:
        for number, (rows, batch) in enumerate(ready, start + 1):
            if hooks.rollout is not None:
                batch = hooks.rollout(state.params, batch, number)
            state, metrics = yield Update(state, batch, key)
            settle()
            pending = (number, metrics, rows)
            interrupted = hooks.interrupted()
            timed = hooks.clock() - last_save > hooks.save_seconds
            due = number in hooks.measure_at or number in hooks.save_at or timed or interrupted or number == stop
            if not due:
                continue
            settle()
            now = hooks.whole(state)
            if number in hooks.measure_at:
                hooks.measure(now, number, tokens)
            if number in hooks.save_at or timed or interrupted:
                hooks.save(now, number, tokens)
                last_save = hooks.clock()
            del now  # a copy where several runs share a state
            if interrupted:
                raise Interrupted(f"saved after update {number}")
    return state
