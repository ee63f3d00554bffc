"""Which rows does step n train on, and does every process of a job agree on it?

The order is a global permutation of all rows, a new one every epoch, computed first; processes take their
part of every global batch afterwards. So the order depends on (data set, seed, batch size) alone, and the
whole state of a pipeline is the number of the next step.

The examples of a batch may be packed into fewer rows. The batch then holds the same examples as it does
unpacked, and the loss is the same sum: only padding is left out.
"""

import functools
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np

from elastic_jax.data import packing
from elastic_jax.data.prepared import Prepared
from elastic_jax.errors import UserError

# A batch is one gather from memory, so a second thread would only wait for the first.
_READING = grain.ReadOptions(num_threads=1, prefetch_buffer_size=16)
_READING_FROM_DISK = grain.ReadOptions(num_threads=8, prefetch_buffer_size=64)
# grain's own endless repetition has 2**63 - 1 rows, which its batching rounds up in float64 and overflows.
_ROWS_AT_MOST = 2**52
_PADDING = 0  # of a packed batch; any token would do, since no loss and no document sees it


def batches(
    prepared: Prepared,
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    rows: int | None = None,
    threads: bool = True,
    examples: int | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """This process's part of every global batch from number `start` on, without end.

    Args:
      prepared: the data set.
      batch_size: B, examples of a *global* batch: rows of the data set.
      seed: of the permutations.
      start: number of the first batch, the number of steps already done.
      process_index: p; process p gets rows [p B/P, (p+1) B/P) of every global batch.
      process_count: P.
      rows: R; pack the B examples of a batch into R rows, of which process p gets [p R/P, (p+1) R/P). See
        `rows_needed`. By default every example is a row.
      threads: read ahead in background threads.
      examples: E; what comes after the first E examples is padding: its masks are zero. By default nothing is.

    Yields:
      The fields of the data set, [B/P, ...] each, and `row` [B/P] int64, the rows' numbers in it; with E also
      `real` [B/P] uint8, 1 for the first E examples and 0 for the rest. Packed: the
      fields that `elastic_jax.data.packing.fill` makes, [R/P, ...], and in `row` the examples that they hold.

    Raises:
      UserError: B or R does not divide by P, a number is out of range, or the rows are pairs or packed already.
    """
    if start < 0:
        raise UserError(f"start={start}: the number of the first batch is 0 or more.")
    steps = _steps(prepared, batch_size, seed, process_index, process_count, rows, examples)[start:]
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
    rows: int | None = None,
) -> dict[str, np.ndarray]:
    """Batch number `step`: what `batches(..., start=step)` yields first."""
    return _steps(prepared, batch_size, seed, process_index, process_count, rows)[step]  # pyright: ignore[reportReturnType]


def rows_needed(prepared: Prepared, *, batch_size: int, seed: int, stop: int, multiple: int = 1) -> int:
    """R: the fewest rows, a multiple of `multiple`, into which each of the first `stop` batches can be packed.

    Where `batch_size` is a multiple of `multiple` it is never more than that.

    Raises:
      UserError: as `batches`.
    """
    _check_packable(prepared)
    order = _order(prepared, seed)
    most = 0
    for step in range(stop):
        index = np.array([order[i] for i in range(step * batch_size, (step + 1) * batch_size)])
        most = max(most, int(packing.best_fit(prepared.sizes[index], prepared.seq_len).max()) + 1)
    return -(-max(most, 1) // multiple) * multiple


def _order(prepared: Prepared, seed: int) -> grain.MapDataset[Any]:
    """The rows' numbers, epoch after epoch."""
    epochs = _ROWS_AT_MOST // prepared.rows
    return grain.MapDataset.range(prepared.rows).seed(seed).shuffle().repeat(epochs)


def _steps(
    prepared: Prepared,
    batch_size: int,
    seed: int,
    process_index: int,
    process_count: int,
    rows: int | None,
    examples: int | None = None,
) -> grain.MapDataset[Any]:
    for name, count in (("batch_size", batch_size), ("rows", rows or process_count)):
        if count < 1 or count % process_count:
            raise UserError(
                f"{name}={count} does not divide over {process_count} processes. Use a multiple of {process_count}."
            )
    if not 0 <= process_index < process_count:
        raise UserError(f"process_index={process_index} is not one of {process_count} processes.")
    if not 0 <= seed < 2**32:
        raise UserError(f"seed={seed}: a whole number of 32 bits is expected.")
    # Row numbers are shuffled and batched, not rows: one gather per batch instead of B small reads.
    order = _order(prepared, seed)
    if rows is None:
        local = order.batch(batch_size // process_count)
        if examples is None:
            local = local.map(functools.partial(_rows, prepared.source()))
        else:
            local = local.map_with_index(functools.partial(_rows_up_to, prepared.source(), examples))
        return local[process_index::process_count]
    _check_packable(prepared)
    if examples is not None:
        raise UserError(
            f"examples={examples} with rows={rows}: padding examples are not packed. Leave one of them out."
        )
    share = rows // process_count
    mine = (process_index * share, (process_index + 1) * share)
    # Every process plans the whole batch, from lengths alone, and reads the examples of its own rows.
    return order.batch(batch_size).map(functools.partial(_packed, prepared, rows, mine))


def _rows(source: Any, index: np.ndarray) -> dict[str, np.ndarray]:
    return source.take(index) | {"row": np.asarray(index, np.int64)}


def _rows_up_to(source: Any, examples: int, number: int, index: np.ndarray) -> dict[str, np.ndarray]:
    """`number` is the batch's, among those of all processes."""
    rows = _rows(source, index)
    real = np.arange(number * len(index), (number + 1) * len(index)) < examples
    for name in rows:
        if name.endswith("mask"):
            rows[name] = rows[name] * real[:, None].astype(rows[name].dtype)
    return rows | {"real": real.astype(np.uint8)}


def _packed(prepared: Prepared, rows: int, mine: tuple[int, int], index: np.ndarray) -> dict[str, np.ndarray]:
    sizes = prepared.sizes[index]
    of_example = packing.best_fit(sizes, prepared.seq_len)
    if of_example.max() >= rows:
        raise UserError(
            f"rows={rows}: a batch of {len(index)} examples needs {of_example.max() + 1}. Use what rows_needed gives."
        )
    first, end = mine
    here = np.flatnonzero((of_example >= first) & (of_example < end))
    fields = prepared.source().take(index[here])
    width = np.arange(len(here))
    made = packing.fill(
        fields["tokens"].reshape(-1),
        width * (prepared.seq_len + 1),
        fields["mask"].reshape(-1),
        width * prepared.seq_len,
        sizes[here],
        of_example[here] - first,
        count=end - first,
        seq_len=prepared.seq_len,
        pad_id=_PADDING,
    )
    return made | {"row": np.asarray(index[here], np.int64)}


def _check_packable(prepared: Prepared) -> None:
    if prepared.kind == "pair":
        raise UserError(
            f"{prepared.folder}: pairs cannot be packed, since both answers of a pair are rows of one batch."
        )
    if prepared.packed:
        raise UserError(f"{prepared.folder}: these rows hold several documents already.")
