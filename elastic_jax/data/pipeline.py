"""Which rows does step n train on, and does every process of a job agree on it?

The order is a global permutation of all rows, a new one every epoch, computed first; processes take their
part of every global batch afterwards. So the order depends on (data set, seed, batch size) alone, and the
whole state of a pipeline is the number of the next step.
"""

import functools
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np

from elastic_jax.data.prepared import Prepared
from elastic_jax.errors import UserError

# A batch is one gather from memory, so a second thread would only wait for the first.
_READING = grain.ReadOptions(num_threads=1, prefetch_buffer_size=16)
_READING_FROM_DISK = grain.ReadOptions(num_threads=8, prefetch_buffer_size=64)
# grain's own endless repetition has 2**63 - 1 rows, which its batching rounds up in float64 and overflows.
_ROWS_AT_MOST = 2**52


def batches(
    prepared: Prepared,
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    threads: bool = True,
) -> Iterator[dict[str, np.ndarray]]:
    """This process's part of every global batch from number `start` on, without end.

    Args:
      prepared: the data set.
      batch_size: B, rows of a *global* batch.
      seed: of the permutations.
      start: number of the first batch, the number of steps already done.
      process_index: p; process p gets rows [p B/P, (p+1) B/P) of every global batch.
      process_count: P.
      threads: read ahead in background threads.

    Yields:
      The fields of the data set, [B/P, ...] each, and `row` [B/P] int64, the rows' numbers in it.

    Raises:
      UserError: B does not divide by P, or a number is out of range.
    """
    if start < 0:
        raise UserError(f"start={start}: the number of the first batch is 0 or more.")
    steps = _steps(prepared, batch_size, seed, process_index, process_count)[start:]
    reading = _READING if prepared.source().in_memory else _READING_FROM_DISK
    if not threads:
        reading = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    return iter(steps.to_iter_dataset(reading))


def batch_at(
    prepared: Prepared,
    step: int,
    *,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> dict[str, np.ndarray]:
    """Batch number `step`: what `batches(..., start=step)` yields first."""
    return _steps(prepared, batch_size, seed, process_index, process_count)[step]  # pyright: ignore[reportReturnType]


def _steps(
    prepared: Prepared, batch_size: int, seed: int, process_index: int, process_count: int
) -> grain.MapDataset[Any]:
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f"batch_size={batch_size} does not divide over {process_count} processes. "
            f"Use a multiple of {process_count}."
        )
    if not 0 <= process_index < process_count:
        raise UserError(f"process_index={process_index} is not one of {process_count} processes.")
    if not 0 <= seed < 2**32:
        raise UserError(f"seed={seed}: a whole number of 32 bits is expected.")
    # Row numbers are shuffled and batched, not rows: one gather per batch instead of B small reads.
    epochs = _ROWS_AT_MOST // prepared.rows
    order = grain.MapDataset.range(prepared.rows).seed(seed).shuffle().repeat(epochs)
    local = order.batch(batch_size // process_count).map(functools.partial(_rows, prepared.source()))
    return local[process_index::process_count]


def _rows(source: Any, index: np.ndarray) -> dict[str, np.ndarray]:
    return source.take(index) | {"row": np.asarray(index, np.int64)}
