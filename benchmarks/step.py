"""How fast is one training step beside the same model in transformers on torch?

usage: python benchmarks/step.py [--sizes=1m,10m,34m] [--dtypes=float32,bfloat16] [--rounds=8] [--quick]
needs: pip install -e ".[bench]"   (torch and transformers; without them only our own times are taken)

Forward, backward, clip of the gradient norm and AdamW, on the same tokens, the same architecture (Llama) and the same number of
weights. Each runs in its own process; the processes take turns.
"""

import json
import os
import statistics
import time
from typing import Any

import common
import numpy as np

from elastic_jax.parallel import huge_pages

VOCAB = {"50k": 512, "1m": 2048, "10m": 8192, "34m": 8192}
BATCH = {"50k": (4, 32), "1m": (32, 128), "10m": (16, 256), "34m": (8, 256)}
STEPS = {"50k": 2, "1m": 8, "10m": 2, "34m": 1}  # of one round


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--sizes", default="1m,10m,34m")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--contestant", help="used by the script itself")
    args = parser.parse_args()
    if args.contestant:
        compete(json.loads(args.contestant))
        return
    sizes, dtypes, rounds = args.sizes.split(","), args.dtypes.split(","), args.rounds
    if args.quick:
        sizes, dtypes, rounds = ["50k"], ["float32"], 2
    names = ["elastic_jax", "transformers"] if common.package_version("transformers") else ["elastic_jax"]
    rows = [row for size in sizes for dtype in dtypes for row in duel(size, dtype, names, rounds)]
    common.report(
        "step",
        "A training step beside transformers on torch",
        dict(
            size="size",
            dtype="compute dtype",
            program="program",
            params="parameters",
            batch="batch x tokens",
            step_ms="step, median (ms)",
            fastest_ms="fastest (ms)",
            tokens_per_second="tokens/s",
            speed="speed relative to transformers",
            peak_gb="peak memory (GB)",
            ready_seconds="start to first step (s)",
        ),
        rows,
        notes=[
            "Float32 weights and moments in both. bfloat16 is torch.autocast there and model.dtype=bfloat16 here. transformers: "
            "LlamaForCausalLM with sdpa attention, torch.optim.AdamW(fused=True), clip_grad_norm_(1.0), eager.",
            "A round is one update that is not timed and then those that are.",
            "elastic_jax runs as its command line does, with large pages and memory that is kept (parallel/huge_pages.py); torch as it comes.",
            "Relative speed: the median over rounds of the ratio of the two step times of a round, higher is faster here.",
        ],
        out=args.out,
    )


def duel(size: str, dtype: str, names: list[str], rounds: int) -> list[dict[str, Any]]:
    contestants = {}
    for name in names:
        began = time.perf_counter()
        environ = huge_pages.environment(os.environ) if name == "elastic_jax" else {}
        contestants[name] = common.Contestant(__file__, dict(program=name, size=size, dtype=dtype), environ)
        contestants[name].ready["ready_seconds"] = time.perf_counter() - began
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names if number % 2 else reversed(names):
            found[name].append(contestants[name].round())
    rows = []
    b, t = BATCH[size]
    for name in names:
        contestants[name].close()
        seconds = [one["seconds"] for one in found[name]]
        peers = [one["seconds"] for one in found[names[-1]]]
        rows.append(
            dict(
                size=size,
                dtype=dtype,
                program=name,
                params=contestants[name].ready["params"],
                batch=f"{b} x {t}",
                step_ms=1e3 * statistics.median(seconds),
                fastest_ms=1e3 * min(seconds),
                tokens_per_second=b * t / statistics.median(seconds),
                speed=statistics.median([p / s for p, s in zip(peers, seconds, strict=True)])
                if len(names) > 1
                else None,
                peak_gb=found[name][-1]["peak_memory"] / 1e9,
                ready_seconds=contestants[name].ready["ready_seconds"],
                losses=[one["loss"] for one in found[name]],
                rounds=seconds,
            )
        )
    return rows


def compete(spec: dict[str, Any]) -> None:
    """One contestant: build, warm up, then rounds on demand."""
    size = spec["size"]
    b, t = BATCH[size]
    tokens = np.random.default_rng(0).integers(2, VOCAB[size], (b, t + 1)).astype(np.int32)
    make = elastic_jax_step if spec["program"] == "elastic_jax" else transformers_step
    params, run = make(size, spec["dtype"], tokens)
    for _ in range(3):
        run()

    def one_round() -> dict[str, float]:
        run()  # memory that went cold while the other had its turn
        began = time.perf_counter()
        for _ in range(STEPS[size]):
            loss = run()
        return dict(seconds=(time.perf_counter() - began) / STEPS[size], loss=float(loss))

    common.serve(one_round, params=params)


def elastic_jax_step(size: str, dtype: str, tokens: np.ndarray) -> tuple[int, Any]:
    import jax

    from elastic_jax import objectives
    from elastic_jax.models.config import model_config
    from elastic_jax.models.transformer import Decoder
    from elastic_jax.parallel.mesh import make_mesh, put_local
    from elastic_jax.train import optim, state
    from elastic_jax.train.step import make_train_step

    model = Decoder(model_config(dict(size=size, dtype=dtype), VOCAB[size], tokens.shape[1] - 1))
    mesh = make_mesh()
    tx = optim.make(optim.OptimConfig(lr=1e-4, weight_decay=0.01), 1000)
    step = make_train_step(model, objectives.make("sft"), tx, mesh)
    held = [state.create(model.init(jax.random.key(0), mesh), tx)]
    batch = put_local(dict(tokens=tokens, mask=np.ones((tokens.shape[0], tokens.shape[1] - 1), np.uint8)), mesh)
    key = jax.random.key(0)

    def run() -> float:
        held[0], metrics = step(held[0], batch, key)
        return float(metrics["loss"])

    return model.size, run


def transformers_step(size: str, dtype: str, tokens: np.ndarray) -> tuple[int, Any]:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from elastic_jax.models.config import model_config

    ours = model_config(dict(size=size), VOCAB[size], tokens.shape[1] - 1)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=ours.vocab_size,
            hidden_size=ours.embed,
            intermediate_size=ours.mlp,
            num_hidden_layers=ours.layers,
            num_attention_heads=ours.heads,
            num_key_value_heads=ours.kv_heads,
            head_dim=ours.head_dim,
            max_position_embeddings=ours.seq_len,
            tie_word_embeddings=ours.tie_embeddings,
            attn_implementation="sdpa",
            use_cache=False,
        )
    )
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.01, fused=True)
    ids, labels = torch.from_numpy(tokens[:, :-1]).long(), torch.from_numpy(tokens[:, 1:]).long()

    def run() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            logits = model(input_ids=ids).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return sum(p.numel() for p in model.parameters()), run


if __name__ == "__main__":
    main()
