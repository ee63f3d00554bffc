"""How fast is a state saved and restored beside the bare disk, and how long does training wait for it?

    python benchmarks/checkpoint.py [--quick] [--out=FOLDER] [--folder=FOLDER]

Parameters and both moments of AdamW in float32. The disk is written and read in the same minutes with the same bytes: one file,
fsync, and a cold cache for reading. Steps are timed without a save and with one after each second update, over the whole stretch
until the last state is on the disk or the steps are done, so that what the thread takes from the cores is counted too.
"""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import common
import jax
import jax.numpy as jnp
import numpy as np

from elastic_jax import objectives
from elastic_jax.models.config import ModelConfig
from elastic_jax.models.transformer import Decoder
from elastic_jax.parallel.mesh import make_mesh, put_local
from elastic_jax.train import optim
from elastic_jax.train import state as state_lib
from elastic_jax.train.checkpoint import Checkpoints
from elastic_jax.train.step import make_train_step

COLUMNS = dict(what="", megabytes="MB", seconds="s", rate="GB/s", share="of the disk", steps="of a step")
SOAK = 50


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder)")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="checkpoint-", dir=args.folder))
    try:
        rows, notes = measure(folder, quick=args.quick)
    finally:
        shutil.rmtree(folder)
    common.report("checkpoint", "Saving and restoring a state", COLUMNS, rows, notes=notes, out=args.out)


def measure(folder: Path, quick: bool) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of the table and the sentences below it."""
    size = dict(layers=2, embed=64, mlp=256) if quick else dict(layers=8, embed=512, mlp=2048)
    model = Decoder(ModelConfig(vocab_size=8192, seq_len=256, heads=8, kv_heads=8, head_dim=size["embed"] // 8, **size))
    mesh = make_mesh(devices=jax.devices()[:1])
    tx = optim.make(optim.OptimConfig(), 1000)
    step = make_train_step(model, objectives.sft(), tx, mesh)
    batch = put_local(_batch(2 if quick else 8, 256, 8192), mesh)
    state = _state(model, tx, mesh)
    key = jax.random.key(0)

    def train(state: Any, updates: int, save: Callable[[Any, int], None] = lambda state, number: None) -> Any:
        for number in range(updates):
            state, metrics = step(state, batch, key)
            jax.block_until_ready(metrics)
            save(state, number)
        return jax.block_until_ready(state)

    state = train(state, 2)  # compiles, and fills the moments
    rows = _throughput(folder, model, mesh, tx, state, rounds=1 if quick else 3)

    checkpoints = Checkpoints(folder / "train", model, mesh)
    checkpoints.save(state, 0, {})
    checkpoints.wait()
    updates = 2 if quick else 6
    began = time.perf_counter()
    state = train(state, updates)
    alone = (time.perf_counter() - began) / updates
    blocked = []

    def save(state: Any, number: int) -> None:
        if number % 2:
            return
        began = time.perf_counter()
        checkpoints.save(state, number + 1, {}, instead_of=[max(0, number - 1)])
        blocked.append(time.perf_counter() - began)

    began = time.perf_counter()
    state = train(state, updates, save)
    checkpoints.wait()
    extra = (time.perf_counter() - began - alone * updates) / len(blocked)
    checkpoints.close()
    waiting = float(np.median(blocked))
    rows += [
        dict(what="one update", seconds=alone),
        dict(what="a save: until training goes on", seconds=waiting, steps=f"{waiting / alone:.1%}"),
        dict(
            what="a save: all that it adds, with the cores that writing takes",
            seconds=extra,
            steps=f"{extra / alone:.1%}",
        ),
    ]
    first, last = soak(folder / "soak", SOAK)
    rows.append(dict(what=f"resident memory, saves 10 to {SOAK}", megabytes=last / 1e6, growth=(last - first) / 1e6))
    notes = [
        f"{model.size:,} parameters, batches of {batch['tokens'].shape[0]} x 256 tokens, one device.",
        f"Over saves 10 to {SOAK} of a state of 11 MB the resident memory grew by {(last - first) / 1e6:.1f} MB; "
        "a state that was kept by mistake would be 11 MB at each.",
    ]
    return rows, notes


def _throughput(
    folder: Path, model: Decoder, mesh: jax.sharding.Mesh, tx: Any, state: Any, rounds: int
) -> list[dict[str, Any]]:
    size = sum(leaf.nbytes for leaf in jax.tree.leaves((state.params, state.opt_state)))
    content = np.concatenate([np.asarray(leaf).reshape(-1).view(np.uint8) for leaf in jax.tree.leaves(state)])
    seconds: dict[str, list[float]] = {name: [] for name in ("disk write", "save", "disk read", "restore")}
    for number in range(rounds):  # in turns, so that a slow minute hits all
        checkpoints = Checkpoints(folder / "throughput", model, mesh)

        def saved(checkpoints: Checkpoints = checkpoints, number: int = number) -> None:
            checkpoints.save(state, number, {})
            checkpoints.wait()

        seconds["disk write"].append(_timed(lambda: _write(folder / "raw", content)))
        seconds["save"].append(_timed(saved))
        os.sync()
        for path in folder.rglob("*"):
            if path.is_file():
                _forget(path)
        seconds["disk read"].append(_timed(lambda: np.fromfile(folder / "raw", np.uint8)))
        seconds["restore"].append(
            _timed(lambda c=checkpoints, n=number: jax.block_until_ready(c.restore(n, tx)[0].params))
        )
        checkpoints.close()
    shutil.rmtree(folder / "throughput")
    best = {name: min(values) for name, values in seconds.items()}
    names = {
        "disk write": "the disk: write and fsync",
        "save": "save, until complete",
        "disk read": "the disk: read",
        "restore": "restore, with its checksums",
    }
    return [
        dict(
            what=names[name],
            megabytes=size / 1e6,
            seconds=value,
            rate=size / value / 1e9,
            share=f"{best['disk write' if name in ('disk write', 'save') else 'disk read'] / value:.0%}",
        )
        for name, value in best.items()
    ]


def soak(folder: Path, saves: int) -> tuple[int, int]:
    """Save a small state over and over, each instead of the one before.

    Returns:
      Resident memory in bytes after 10 saves and after all.
    """
    model = Decoder(
        ModelConfig(vocab_size=4096, seq_len=32, layers=2, embed=128, heads=4, kv_heads=4, head_dim=32, mlp=512)
    )
    mesh, tx = make_mesh(devices=jax.devices()[:1]), optim.make(optim.OptimConfig(), 10)
    state = _state(model, tx, mesh)
    checkpoints, sizes = Checkpoints(folder, model, mesh), []
    for number in range(saves):
        checkpoints.save(state, number, {}, instead_of=[number - 1])
        checkpoints.wait()
        sizes.append(_resident())
    assert checkpoints.updates() == [saves - 1]
    checkpoints.close()
    return sizes[9], sizes[-1]


def _state(model: Decoder, tx: Any, mesh: jax.sharding.Mesh) -> Any:
    """Numbers in the moments too: zeros would be kept in the index."""
    params = model.init(jax.random.key(0), mesh)
    state = state_lib.creator(model, tx, mesh)(params)
    return jax.tree.map(lambda x: x + jnp.asarray(1e-3, x.dtype) if x.ndim else x, state)


def _batch(rows: int, length: int, vocab: int) -> dict[str, np.ndarray]:
    tokens = np.random.default_rng(0).integers(2, vocab, (rows, length + 1)).astype(np.int32)
    return dict(tokens=tokens, mask=np.ones((rows, length), np.uint8))


def _write(path: Path, content: np.ndarray) -> None:
    with open(path, "wb") as file:
        file.write(content.data)
        file.flush()
        os.fsync(file.fileno())


def _forget(path: Path) -> None:
    """Out of the cache of the operating system, where that can be asked for."""
    if hasattr(os, "posix_fadvise"):
        handle = os.open(path, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _timed(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
