"""How does the time of a step grow with the model, and how does it change over more devices?

usage: python benchmarks/scaling.py [--sizes=300k,1m,3m,10m,34m] [--devices=1,2,4,8] [--rounds=3] [--quick]

On one host the simulated devices share its cores: the second table shows what a mesh costs (collectives, smaller parts), not what
more hardware gains.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

import common
import numpy as np

LENGTH = 128
MESHES = {1: [(1, 1, 1)], 2: [(2, 1, 1), (1, 2, 1), (1, 1, 2)], 4: [(4, 1, 1), (1, 4, 1), (2, 1, 2)], 8: [(8, 1, 1), (1, 8, 1), (2, 2, 2)]}  # fmt: skip


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--sizes", default="300k,1m,3m,10m,34m")
    parser.add_argument("--devices", default="1,2,4,8")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", help="used by the script itself")
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(**json.loads(args.measure))), flush=True)
        return
    sizes, devices, rounds = args.sizes.split(","), [int(n) for n in args.devices.split(",")], args.rounds
    if args.quick:
        sizes, devices, rounds = ["50k", "100k"], [1, 2], 1
    rows = [_row("model size", size, (1, 1, 1), 1, rounds) for size in sizes]
    exponent = slope([row["flops"] for row in rows], [row["seconds"] for row in rows])
    small = sizes[min(1, len(sizes) - 1)]
    rows += [_row("devices", small, mesh, n, rounds) for n in devices for mesh in MESHES[n]]
    common.report(
        "scaling",
        "Step time over model size and over simulated devices",
        dict(
            what="varied",
            size="model",
            params="parameters",
            mesh="mesh (data, fsdp, tensor)",
            batch="rows of the global batch",
            ms="step (ms)",
            tokens_per_second="tokens/s",
            gflops="training GFLOP/s",
        ),
        rows,
        notes=[
            f"Over model size, one device: step time ~ FLOPs^{exponent:.2f} (least squares on logarithms; 1 would be a machine "
            "that is equally busy at every size).",
            "Over devices: all of them are threads of one host, the global batch is the same, so a perfect mesh keeps the time.",
        ],
        out=args.out,
    )


def slope(x: list[float], y: list[float]) -> float:
    """Exponent of the power law through the points."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def _row(what: str, size: str, mesh: tuple[int, int, int], devices: int, rounds: int) -> dict[str, Any]:
    flag = f"--xla_force_host_platform_device_count={devices}"
    environ = dict(os.environ, JAX_PLATFORMS="cpu", XLA_FLAGS=f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip())
    spec = json.dumps(dict(size=size, mesh=mesh, rounds=rounds))
    command = [sys.executable, __file__, f"--measure={spec}"]
    done = subprocess.run(command, env=environ, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return dict(found, what=what, size=size, mesh=" x ".join(map(str, mesh)))


def measure(size: str, mesh: list[int], rounds: int) -> dict[str, Any]:
    import jax

    from elastic_jax import objectives
    from elastic_jax.models.config import model_config
    from elastic_jax.models.transformer import Decoder
    from elastic_jax.parallel.mesh import make_mesh, put_local
    from elastic_jax.train import optim, state
    from elastic_jax.train.step import make_train_step

    batch_size = 16
    # Whole on every mesh here: heads and vocabulary divide by two.
    model = Decoder(model_config(dict(size=size), 2048, LENGTH))
    devices = make_mesh(*mesh)
    tx = optim.make(optim.OptimConfig(lr=1e-4), 1000)
    step = make_train_step(model, objectives.make("sft"), tx, devices)
    held = state.creator(model, tx, devices)(model.init(jax.random.key(0), devices))
    tokens = np.random.default_rng(0).integers(2, 2048, (batch_size, LENGTH + 1)).astype(np.int32)
    batch = put_local(dict(tokens=tokens, mask=np.ones((batch_size, LENGTH), np.uint8)), devices)
    key = jax.random.key(0)
    for _ in range(2):
        held, metrics = step(held, batch, key)
    jax.block_until_ready(metrics)
    seconds = []
    for _ in range(rounds):
        steps = 3
        began = time.perf_counter()
        for _ in range(steps):
            held, metrics = step(held, batch, key)
        jax.block_until_ready((held, metrics))
        seconds.append((time.perf_counter() - began) / steps)
    best = statistics.median(seconds)
    flops = model.config.flops_per_token(LENGTH) * batch_size * LENGTH
    return dict(
        params=model.size,
        batch=batch_size,
        seconds=best,
        ms=1e3 * best,
        flops=flops,
        gflops=flops / best / 1e9,
        tokens_per_second=batch_size * LENGTH / best,
    )


if __name__ == "__main__":
    main()
