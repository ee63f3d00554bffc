"""How does a state reach the disk and come back, on whatever devices there are then?

Orbax `CheckpointManager`, asynchronous. A step folder holds `params`, `opt_state` and `meta` (JSON: lineage, data position,
volumes), so that parameters can be read without the moments, and the lineage without any array.
"""

import dataclasses
import logging
from typing import Any

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import Mesh

from elastic_jax.models.transformer import Decoder, Params
from elastic_jax.train import checksum
from elastic_jax.train import state as state_lib
from elastic_jax.train.state import TrainState

log = logging.getLogger(__name__)


class Damaged(Exception):
    """A checkpoint that exists and cannot be read."""


class Checkpoints:
    """The checkpoints of one run, by number of updates."""

    def __init__(self, folder: epath.PathLike, model: Decoder, mesh: Mesh):
        self.folder = epath.Path(folder)
        self._model, self._mesh = model, mesh
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=None,  # the study decides which points stay
                create=True,
                enable_async_checkpointing=True,
                cleanup_tmp_directories=True,
            ),
        )

    def updates(self) -> list[int]:
        """Complete checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState, updates: int, meta: dict[str, Any]) -> None:
        """Start writing; `wait` or the next save waits for it. Written under a temporary name and renamed when complete."""
        disk = state_lib.to_disk(state, self._model)
        meta = {**meta, "updates": updates}
        checksums = dict(
            params=checksum.of_arrays(disk.params, self._mesh),
            opt_state=checksum.of_arrays(disk.opt_state, self._mesh),
            meta=checksum.of_json(meta),
        )
        self._manager.save(
            updates,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(disk.params),
                opt_state=ocp.args.StandardSave(disk.opt_state),
                meta=ocp.args.JsonSave({**meta, "checksums": checksums}),
            ),
        )

    def wait(self) -> None:
        self._manager.wait_until_finished()

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
            params=ocp.args.StandardRestore(target.params),
            opt_state=ocp.args.StandardRestore(target.opt_state),
            meta=ocp.args.JsonRestore(),
        )
        state = TrainState(jnp.asarray(items["meta"]["updates"], jnp.int32), items["params"], items["opt_state"])
        return self._in_memory(state, tx), items["meta"]

    def restore_params(self, updates: int) -> tuple[Params, dict[str, Any]]:
        """Parameters alone; raises as `restore` does."""
        tx = optax.identity()
        target = self._on_disk(tx)
        items = self._read(updates, params=ocp.args.StandardRestore(target.params), meta=ocp.args.JsonRestore())
        state = TrainState(jnp.zeros((), jnp.int32), items["params"], optax.EmptyState())
        return self._in_memory(state, tx).params, items["meta"]

    def close(self) -> None:
        self._manager.close()

    def _read(self, updates: int, **args: Any) -> dict[str, Any]:
        try:
            items = dict(self._manager.restore(updates, args=ocp.args.Composite(**args)))
        except Exception as error:  # orbax and tensorstore raise many kinds for one cause
            reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
            raise Damaged(f"Checkpoint {self.folder / str(updates)} cannot be read ({reason}).") from error
        meta = items["meta"]
        saved = meta.pop("checksums", None)
        found = {"meta": checksum.of_json(meta)}
        found |= {name: checksum.of_arrays(item, self._mesh) for name, item in items.items() if name != "meta"}
        wrong = [name for name, value in found.items() if not saved or saved.get(name) != value]
        if wrong:
            raise Damaged(
                f"Checkpoint {self.folder / str(updates)} cannot be read ({', '.join(wrong)}: wrong checksum)."
            )
        return items

    def _on_disk(self, tx: optax.GradientTransformation) -> TrainState:
        """What the files hold, placed on the current mesh: an abstract tree never brings back the saved devices."""
        unrolled = Decoder(dataclasses.replace(self._model.config, layout="unroll"))
        return state_lib.abstract(unrolled, tx, self._mesh)

    def _in_memory(self, state: TrainState, tx: optax.GradientTransformation) -> TrainState:
        if self._model.config.layout == "unroll":
            return state
        places = state_lib.shardings(self._model, tx, self._mesh)
        return jax.jit(lambda tree: state_lib.from_disk(tree, self._model), out_shardings=places)(state)
