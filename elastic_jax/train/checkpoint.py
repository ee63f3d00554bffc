"""How does a state reach the disk and come back, on whatever devices there are then?

Orbax `CheckpointManager`, asynchronous. A step folder holds `params`, `opt_state` and `meta` (JSON: lineage, data position,
volumes), so that parameters can be read without the moments, and the lineage without any array. Of a run that trains adapters,
parameters and moments are those of the adapters.

Training goes on at once: `save` launches a copy of the state on the devices, and where there are several its checksums, and
returns; fetching them, and everything that touches the disk or the bucket, happens in a thread. With several processes, whose
saves meet at barriers on the devices, or without memory for a copy, `save` returns when the host has the state, and only the
writing is left to a thread.
"""

import dataclasses
import functools
import logging
import os
import threading
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import Mesh

from elastic_jax.data import files
from elastic_jax.errors import UserError, first_line
from elastic_jax.models.adapted import Trained
from elastic_jax.models.transformer import Params
from elastic_jax.parallel import distributed, together
from elastic_jax.train import checksum
from elastic_jax.train import state as state_lib
from elastic_jax.train.state import TrainState

log = logging.getLogger(__name__)

# Orbax 0.12 numbers the saves of a process and looks up by the latest number what the current one waits for: of two at the same time, one
# may be taken for complete before it is.
_WRITING = threading.Lock()
# Those that write without a thread of ours. Orbax numbers its barriers in threads, for all managers of a process together: with two
# saves on their way two processes may number them differently, and then each waits for the other for ever. One at most.
_UNFINISHED: "set[Checkpoints]" = set()


class Damaged(Exception):
    """A checkpoint that exists and cannot be read."""


class Checkpoints:
    """The checkpoints of one run, by number of updates.

    Args:
      read_only: leave everything as it is, also what another process has not finished.
    """

    def __init__(self, folder: epath.PathLike, model: Trained, mesh: Mesh, read_only: bool = False):
        self.folder = files.absolute(epath.Path(folder))
        self._model, self._mesh = model, mesh
        # Weights and moments hardly compress (an eighth is saved), and zstd takes most of the time of a save and of a restore.
        # Who only reads has a host with room for the parameters once: few of them are on their way at a time.
        at_once = 1 + max(2 * leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(model.shapes)) // 10**9
        arrays = functools.partial(
            ocp.PyTreeCheckpointHandler,
            use_compression=False,
            restore_concurrent_gb=at_once if read_only else None,
        )
        self._manager = ocp.CheckpointManager(
            self.folder,
            item_handlers=dict(params=arrays(), opt_state=arrays(), meta=ocp.JsonCheckpointHandler()),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=None,  # the study decides which points stay
                create=not read_only,
                enable_async_checkpointing=not read_only,
                cleanup_tmp_directories=not read_only,
                read_only=read_only,
            ),
        )
        self._thread = ThreadPoolExecutor(1, "save")
        self._saving: Future[None] | None = None
        self._obsolete: set[int] = set()

    def updates(self) -> list[int]:
        """Complete checkpoints and the one being written, oldest first."""
        self._join()
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState, updates: int, meta: dict[str, Any], instead_of: Collection[int] = ()) -> None:
        """Start writing; `wait` or the next save waits for it. A checkpoint is there only when it is complete.

        Args:
          state: may be donated to the next update as soon as this returns.
          updates: its number.
          meta: JSON.
          instead_of: checkpoints to delete when this one is complete; done by the next save or `wait`.
        """
        self._join()
        in_thread = jax.process_count() == 1 and has_room(state)
        disk = (_copied if in_thread else _unstacked)(self._model, state)
        items = dict(params=disk.params, opt_state=disk.opt_state)
        # Launched from here where programs of several devices must reach all of them in one order. One device is given them by the
        # thread: it takes no more than some at a time, and there are as many as arrays.
        here = self._mesh.size > 1 or not in_thread
        sums = {name: checksum.start(item, self._mesh) for name, item in items.items()} if here else {}
        obsolete, self._obsolete = self._obsolete, set(instead_of)
        if in_thread:
            self._saving = self._thread.submit(self._write_alone, items, sums, updates, meta, obsolete)
        else:
            for other in list(_UNFINISHED - {self}):
                other._manager.wait_until_finished()
            _UNFINISHED.clear()
            self._write(items, sums, updates, meta, obsolete)
            _UNFINISHED.add(self)

    def _write_alone(self, *args: Any) -> None:
        """`_write` to its end, while no other run of this process is being written."""
        with _WRITING:
            self._write(*args)
            self._manager.wait_until_finished()

    def _write(
        self, items: dict[str, Any], sums: dict[str, Any], updates: int, meta: dict[str, Any], obsolete: Collection[int]
    ) -> None:
        self._delete_complete(obsolete)
        meta = {**meta, "updates": updates}
        started = {name: sums.get(name) or checksum.start(item, self._mesh) for name, item in items.items()}
        checksums = {name: checksum.finish(item, started[name]) for name, item in items.items()}
        checksums["meta"] = checksum.of_json(meta)
        arrays = {name: ocp.args.PyTreeSave(item) for name, item in items.items()}
        stated = ocp.args.JsonSave({**meta, "checksums": checksums})
        # By force: orbax leaves out, without a word, a step before the last one, such as a smaller volume that is asked for later.
        self._manager.save(updates, args=ocp.args.Composite(**arrays, meta=stated), force=True)

    def _delete_complete(self, numbers: Collection[int]) -> None:
        """Once what was saved instead of them is complete."""
        if numbers:
            self._manager.wait_until_finished()
            for number in sorted(set(numbers) & set(self._manager.all_steps())):
                self._manager.delete(number)

    def _join(self) -> None:
        """Wait until the thread is done, and raise what it raised."""
        if self._saving is not None:
            saving, self._saving = self._saving, None
            saving.result()

    def wait(self) -> None:
        """Until what was saved is complete, and what it replaces is gone."""
        self._join()
        self._manager.wait_until_finished()
        _UNFINISHED.discard(self)
        obsolete, self._obsolete = self._obsolete, set()
        self._delete_complete(obsolete)

    def delete(self, updates: int) -> None:
        self.wait()
        self._manager.delete(updates)

    def discard(self, updates: int, error: Damaged) -> None:
        """Give up a damaged checkpoint, and say so."""
        log.warning("%s Going back to the one before it.", error)
        self.delete(updates)

    def restore(self, updates: int, tx: optax.GradientTransformation) -> tuple[TrainState, dict[str, Any]]:
        """State on the current mesh, and the meta data.

        Raises:
          Damaged: a file of it is missing, truncated or fails its checksum.
        """
        target = self._on_disk(tx)
        items = self._read(
            updates,
            params=_into(target.params),
            opt_state=_into(target.opt_state),
            meta=ocp.args.JsonRestore(),
        )
        state = TrainState(jnp.asarray(items["meta"]["updates"], jnp.int32), items["params"], items["opt_state"])
        return self._in_memory(state, tx), items["meta"]

    def restore_params(self, updates: int) -> tuple[Params, dict[str, Any]]:
        """Parameters alone; raises as `restore` does."""
        tx = optax.identity()
        target = self._on_disk(tx)
        items = self._read(updates, params=_into(target.params), meta=ocp.args.JsonRestore())
        state = TrainState(jnp.zeros((), jnp.int32), items["params"], optax.EmptyState())
        return self._in_memory(state, tx).params, items["meta"]

    def close(self) -> None:
        """Waits for what is being written; what it replaces stays for whoever continues."""
        _UNFINISHED.discard(self)
        try:
            self._join()
        finally:
            self._thread.shutdown()
            self._manager.close()

    def _read(self, updates: int, **args: Any) -> dict[str, Any]:
        self._join()
        name = f"Checkpoint {self.folder / str(updates)}"
        if jax.process_count() > 1 and not files.is_remote(self.folder):
            seen = together.listing(self.folder / str(updates))
            together.same_for_all(name, seen, "The workdir has to be one folder that all hosts mount.")
        try:
            with together.all_or_none(name):
                items = dict(self._manager.restore(updates, args=ocp.args.Composite(**args)))
        except UserError:
            raise
        except Exception as error:  # orbax and tensorstore raise many kinds for one cause
            if distributed.lost_peer(error):  # nothing is wrong with the files
                raise
            raise Damaged(f"{name} cannot be read ({first_line(error, 200)}).") from error
        meta = items["meta"]
        saved = meta.pop("checksums", None)
        found = {"meta": checksum.of_json(meta)}
        found |= {name: checksum.of_arrays(item, self._mesh) for name, item in items.items() if name != "meta"}
        wrong = [name for name, value in found.items() if not saved or saved.get(name) != value]
        if wrong:
            raise Damaged(f"{name} cannot be read ({', '.join(wrong)}: wrong checksum).")
        return items

    def _on_disk(self, tx: optax.GradientTransformation) -> TrainState:
        """What the files hold, placed on the current mesh: an abstract tree never brings back the saved devices."""
        unrolled = dataclasses.replace(self._model, config=dataclasses.replace(self._model.config, layout="unroll"))
        return state_lib.abstract(unrolled, tx, self._mesh)

    def _in_memory(self, state: TrainState, tx: optax.GradientTransformation) -> TrainState:
        if self._model.config.layout == "unroll":
            return state
        places = state_lib.shardings(self._model, tx, self._mesh)
        return jax.jit(lambda tree: state_lib.from_disk(tree, self._model), out_shardings=places)(state)


def _into(target: Any) -> Any:
    """Restore arguments for a tree of abstract arrays; other shapes are an error."""
    return ocp.args.PyTreeRestore(target, restore_args=ocp.checkpoint_utils.construct_restore_args(target))


def has_room(tree: Any) -> bool:
    """Whether every device of this process has memory for a second copy of its part of `tree`, beside all it ever used at once."""
    needed: dict[Any, int] = {}  # by device
    for leaf in jax.tree.leaves(tree):
        for shard in leaf.addressable_shards:
            needed[shard.device] = needed.get(shard.device, 0) + shard.data.nbytes
    if all(device.platform == "cpu" for device in needed):
        # Twice: orbax makes one of its own while this one is alive.
        return 2 * sum(needed.values()) < os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for device, size in needed.items():
        stats = device.memory_stats() or {}
        if size > stats.get("bytes_limit", 0) - stats.get("peak_bytes_in_use", 0):
            return False
    return True


# One program each, so that launching takes a millisecond and not one per array.


@functools.partial(jax.jit, static_argnums=0)
def _copied(model: Trained, state: TrainState) -> TrainState:
    """As the files hold it, in new buffers: the old ones may be donated while these are written."""
    return jax.tree.map(jnp.copy, state_lib.to_disk(state, model))


@functools.partial(jax.jit, static_argnums=0)
def _slices(model: Trained, state: TrainState) -> TrainState:
    return state_lib.to_disk(state, model)


def _unstacked(model: Trained, state: TrainState) -> TrainState:
    """As the files hold it, without a copy where they hold what is in memory."""
    return state if model.config.layout == "unroll" else _slices(model, state)
