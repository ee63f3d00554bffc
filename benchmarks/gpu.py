"""How fast are pre-training, SFT and DPO of a 1.3B decoder on the GPU that is here?

usage: python benchmarks/gpu.py [--methods=pretrain,sft,dpo] [--rows=16] [--accumulate=4] [--steps=20] [--remat=POLICY] [--out=FOLDER] [--quick]
needs: pip install -e ".[cuda13]" and a GPU of 80 GB or more

One command for the whole table: the shape of the fastest published single-GPU run of JAX (24 layers, width 2048, vocabulary 128,256)
at 4,096 tokens in bfloat16, with the flags that runs set (parallel/flags.py). By our own estimate the four parts of a batch take 50 GiB, and one
part 98. Pre-training on whole rows; SFT on packed rows, documents of 64 to 2,048 tokens; DPO with the reference's
log-probabilities cached. Tokens per second of a device first, then MFU by causal FLOPs and by all pairs, and HFU. The aims are 55, 50
and 45 % causal MFU. Without a GPU it refuses, unless --quick asks for a tiny model on whatever is here.
"""

import sys
import time
from typing import Any

import common
import jax
import numpy as np

from elastic_jax import objectives
from elastic_jax.errors import UserError
from elastic_jax.models import flops
from elastic_jax.models.config import ModelConfig, model_config
from elastic_jax.models.transformer import Decoder
from elastic_jax.parallel import flags, hardware
from elastic_jax.parallel.mesh import batch_sharding, make_mesh
from elastic_jax.train import optim
from elastic_jax.train import state as state_lib
from elastic_jax.train.step import make_train_step

VOCABULARY = 128_256
AIMS = dict(pretrain=0.55, sft=0.50, dpo=0.45)


def main() -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--methods", default=",".join(AIMS))
    parser.add_argument("--rows", type=int, default=16, help="token rows of an update; DPO takes half as many pairs")
    parser.add_argument("--steps", type=int, default=20, help="timed updates, after two that are not")
    parser.add_argument("--remat", default="save_qkv_attn_mlp_in")
    parser.add_argument("--accumulate", type=int, default=4, help="parts of the rows, one after the other")
    args = parser.parse_args()
    flags.apply()
    if jax.default_backend() != "gpu" and not args.quick:
        print(
            f"error: no GPU here (jax sees {jax.devices()[0].device_kind}). Install the extra cuda13 where one is, or use --quick "
            "for a tiny model on this machine.",
            file=sys.stderr,
        )
        return 2
    if args.quick:
        config = model_config(dict(size="50k", dtype="bfloat16"), vocab_size=256, seq_len=64)
        rows, steps = 8, 2
    else:
        section = dict(size="record-1.3b", dtype="bfloat16", layout="scan", remat=args.remat)
        config, rows, steps = model_config(section, vocab_size=VOCABULARY, seq_len=4096), args.rows, args.steps
    found = []
    for method in args.methods.split(","):
        if method not in AIMS:
            raise UserError(f"--methods={method}: expected some of {', '.join(AIMS)}.")
        found.append(measure(method, config, rows, steps, args.accumulate))
    report(found, config, args.out)
    return 0


def measure(method: str, config: ModelConfig, rows: int, steps: int, accumulate: int) -> dict[str, Any]:
    """Time `steps` updates of one method on one device."""
    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    model, tx = Decoder(config), optim.make(optim.OptimConfig(), steps)
    objective = objectives.make("dpo" if method == "dpo" else "sft")
    step = make_train_step(model, objective, tx, mesh, accumulate)
    places = state_lib.shardings(model, tx, mesh)
    params = model.init(jax.random.key(0), mesh)
    state = jax.jit(lambda p: state_lib.create(p, tx), out_shardings=places, donate_argnums=0)(params)
    host = batch_of(method, config, rows)
    batch = {name: jax.device_put(values, batch_sharding(mesh)) for name, values in host.items()}
    key = jax.random.key(1)
    compiled = step.compile(state, batch, key)
    memory = compiled.memory_analysis()
    with jax.set_mesh(mesh):
        for _ in range(2):
            state, metrics = compiled(state, batch, key, step.frozen)
        jax.block_until_ready(metrics)
        began = time.perf_counter()
        for _ in range(steps):
            state, metrics = compiled(state, batch, key, step.frozen)
        jax.block_until_ready((state, metrics))
        seconds = (time.perf_counter() - began) / steps
    tokens = rows * config.seq_len
    counts = _counts(config, host)
    peak = hardware.peak_flops(jax.devices()[0].device_kind)
    share = (lambda count: flops.utilisation(tokens / seconds, count, peak)) if peak else lambda count: None
    return dict(
        method=method,
        rows=f"{rows} x {config.seq_len}",
        tokens_per_second=tokens / seconds,
        used=float(np.mean(_used(host))),
        mfu=share(counts.causal),
        mfu_full=share(counts.full),
        hfu=share(counts.executed),
        aim=AIMS[method],
        step_ms=seconds * 1e3,
        memory_gib=(memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 2**30,
        loss=float(metrics["loss"]),
        remat=config.remat,
    )


def _counts(config: ModelConfig, batch: dict[str, np.ndarray]) -> flops.PerToken:
    """FLOPs per token; in packed rows only pairs of one document are counted, except by the full convention."""
    counts = flops.per_token(config, config.seq_len)
    if "positions" not in batch:
        return counts
    masked = 3 * flops.attention_flops(config, config.seq_len)
    keys = float(np.mean(batch["positions"])) + 0.5
    attended = masked * keys / flops.attended_keys(config, config.seq_len)
    return flops.PerToken(counts.causal - masked + attended, counts.full, counts.executed - masked + attended)


def batch_of(method: str, config: ModelConfig, rows: int) -> dict[str, np.ndarray]:
    """Random tokens in the form that the method reads."""
    rng = np.random.default_rng(0)
    t = config.seq_len
    tokens = lambda n: rng.integers(1, config.vocab_size, (n, t + 1)).astype(np.int32)  # noqa: E731
    if method == "dpo":
        pairs = rows // 2
        first = np.arange(t)[None] >= rng.integers(0, t // 2, (pairs, 1))  # the prompt does not count
        mask = first.astype(np.uint8)
        cached = {f"ref_{name}": np.full(pairs, -float(t), np.float32) for name in ("chosen", "rejected")}
        return dict(
            chosen_tokens=tokens(pairs), chosen_mask=mask, rejected_tokens=tokens(pairs), rejected_mask=mask, **cached
        )
    batch = dict(tokens=tokens(rows), mask=np.ones((rows, t), np.uint8))
    if method == "sft":
        batch["segments"], batch["positions"] = np.zeros((2, rows, t), np.int32)
        for row in range(rows):
            at = number = 0
            while at < t:
                length = min(int(rng.integers(max(t // 64, 1), max(t // 2, 2))), t - at)
                number += 1
                batch["segments"][row, at : at + length] = number
                batch["positions"][row, at : at + length] = np.arange(length)
                at += length
    return batch


def _used(batch: dict[str, np.ndarray]) -> list[float]:
    return [float(np.mean(values != 0)) for name, values in batch.items() if name.endswith("mask")]


def report(found: list[dict[str, Any]], config: ModelConfig, out: Any) -> None:
    kind = jax.devices()[0].device_kind
    peak = hardware.peak_flops(kind)
    common.report(
        "gpu",
        f"Training a {flops.parameters(config) / 1e9:.2g}B decoder on {kind}",
        dict(
            method="method",
            rows="rows x tokens",
            tokens_per_second="tokens/s of the device",
            mfu="MFU, causal",
            mfu_full="MFU, all pairs",
            hfu="HFU",
            aim="aim, causal",
            step_ms="update (ms)",
            memory_gib="memory by the compiler (GiB)",
            used="share of targets that count",
            remat="remat",
        ),
        found,
        notes=[
            f"MFU against {peak / 1e12:.0f} TFLOP/s dense bfloat16."
            if peak
            else "No MFU: the peak of this device is not known.",
            "Causal FLOPs count the pairs of tokens that attend; in SFT's packed rows those of one document alone.",
        ],
        out=out,
    )


if __name__ == "__main__":
    raise SystemExit(main())
