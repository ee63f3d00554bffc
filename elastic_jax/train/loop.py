"""In what order do the things of training happen?

For every update, and the order matters:
 1. take the next batch (already in memory: the pipeline reads ahead);
 2. launch the update; the call returns before the device is done;
 3. fetch the metrics of the update *before* it, so that the device never waits for the host;
 4. where something is due after this update, fetch its own metrics too: a state is never measured or saved before its loss
    is known to be finite;
 5. measure, and let the rows reach the disk: rows are always at least as new as the checkpoint, never older;
 6. save;
 7. log.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from elastic_jax.errors import UserError
from elastic_jax.train.state import TrainState
from elastic_jax.train.step import Step


class NotFinite(UserError):
    """Training stopped at a loss or gradient that is NaN or infinite."""


@dataclasses.dataclass(frozen=True)
class Hooks:
    """What the loop calls; all of it host code.

    Attributes:
      put: batch of this process -> batch on the devices.
      rollout: (params, batch, updates) -> batch, for on-policy objectives, or None.
      measure: (state, updates, tokens) at the numbers in `measure_at`; rows are on disk when it returns.
      save: (state, updates, tokens) at the numbers in `save_at`, and when `save_seconds` have passed.
      log: (updates, metrics, tokens) for every update, with host numbers.
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


def train(
    state: TrainState,
    step: Step,
    batches: Iterator[dict[str, np.ndarray]],
    key: jax.Array,
    *,
    start: int,
    stop: int,
    tokens: int,
    hooks: Hooks,
) -> TrainState:
    """Run updates `start` (exclusive) to `stop` (inclusive).

    Args:
      batches: the batch of update `start + 1` first.
      tokens: tokens trained on so far in this run.

    Raises:
      NotFinite: with the update and the rows of its batch; what was saved before stays.
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
        hooks.log(number, metrics, tokens)

    if start in hooks.measure_at:
        hooks.measure(state, start, tokens)
    if start in hooks.save_at:
        hooks.save(state, start, tokens)
    for number in range(start + 1, stop + 1):
        batch = next(batches)
        rows = batch.pop("row")
        on_device = hooks.put(batch)
        if hooks.rollout is not None:
            on_device = hooks.rollout(state.params, on_device, number)
        state, metrics = step(state, on_device, key)
        settle()
        pending = (number, metrics, rows)
        timed = hooks.clock() - last_save > hooks.save_seconds
        due = number in hooks.measure_at or number in hooks.save_at or timed or number == stop
        if not due:
            continue
        settle()
        if number in hooks.measure_at:
            hooks.measure(state, number, tokens)
        if number in hooks.save_at or timed:
            hooks.save(state, number, tokens)
            last_save = hooks.clock()
    return state
