"""What does the loss over the vocabulary cost, in time and in memory, plain and in chunks?

usage: python benchmarks/loss.py [--vocabularies=2048,32768,131072] [--rounds=5] [--quick]
needs: torch for its rows; without it they are left out

Loss and gradient of hidden states and head, from hidden states to the end, float32. Ours run here, taking turns; torch runs in a
process of its own on the same numbers, turn by turn with them, so that neither's threads disturb the other.
"""

import importlib.util
import json
import statistics
import time
from typing import Any

import common
import numpy as np

WIDTH = 256
# So many tokens that the plain logits take half a GiB at most.
TOKENS = {512: 256, 2048: 8192, 32_768: 4096, 131_072: 1024}
CHUNKS = (128, 512, 2048)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--vocabularies", default="2048,32768,131072")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--contestant", help="used by the script itself")
    args = parser.parse_args()
    if args.contestant:
        torch_side(**json.loads(args.contestant))
        return
    vocabularies, rounds = [int(v) for v in args.vocabularies.split(",")], args.rounds
    if args.quick:
        vocabularies, rounds = [512], 2
    rows = [row for vocabulary in vocabularies for row in compare(vocabulary, rounds)]
    common.report(
        "loss",
        "Cross-entropy with its gradients: plain, in chunks, and torch",
        dict(
            vocabulary="vocabulary",
            tokens="tokens",
            program="program",
            ms="time, median (ms)",
            fastest_ms="fastest (ms)",
            speed="speed relative to plain",
            temporary_mb="temporary memory (MB)",
            logits_mb="float32 logits (MB)",
        ),
        rows,
        notes=[
            f"Width {WIDTH}, float32. `plain`: optax.softmax_cross_entropy_with_integer_labels on all logits, differentiated by "
            "jax. `chunk n`: models.cross_entropy.nll_sum with n tokens at a time; `chunk 0` is the default, whose size is chosen; "
            "`log_probs`: the same for losses that need every token's own value.",
            "Temporary memory: the compiler's own, without arguments and results; torch has no such number. torch: a matrix product "
            "and torch.nn.functional.cross_entropy, eager.",
        ],
        out=args.out,
    )


def arrays(vocabulary: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    n = TOKENS.get(vocabulary, 1024)
    hidden = rng.standard_normal((n, WIDTH), np.float32)
    head = rng.standard_normal((WIDTH, vocabulary), np.float32) / WIDTH**0.5
    return hidden, head, rng.integers(0, vocabulary, n).astype(np.int32)


def compare(vocabulary: int, rounds: int) -> list[dict[str, Any]]:
    hidden, head, targets = arrays(vocabulary)
    runs: dict[str, tuple[Any, float | None]] = {}
    for name, function in programs(len(hidden)).items():
        compiled = function.lower(hidden, head, targets).compile()
        runs[name] = compiled, compiled.memory_analysis().temp_size_in_bytes / 1e6
    import jax

    placed = jax.device_put((hidden, head, targets))
    times: dict[str, list[float]] = {name: [] for name in runs}
    torch = common.Contestant(__file__, dict(vocabulary=vocabulary)) if importlib.util.find_spec("torch") else None
    if torch:
        times["torch"] = []
    for _ in range(rounds + 1):
        for name, (compiled, _) in runs.items():
            began = time.perf_counter()
            jax.block_until_ready(compiled(*placed))
            times[name].append(time.perf_counter() - began)
        if torch:
            times["torch"].append(torch.round()["seconds"])
    if torch:
        torch.close()
    times = {name: seconds[1:] for name, seconds in times.items()}  # the first of each warms up
    plain = statistics.median(times["plain"])
    return [
        dict(
            vocabulary=vocabulary,
            tokens=len(hidden),
            program=name,
            ms=1e3 * statistics.median(seconds),
            fastest_ms=1e3 * min(seconds),
            speed=plain / statistics.median(seconds),
            temporary_mb=runs[name][1] if name in runs else None,
            logits_mb=4e-6 * len(hidden) * vocabulary,
        )
        for name, seconds in times.items()
    ]


def programs(tokens: int) -> dict[str, Any]:
    """Name to a jitted (hidden, head, targets) -> (loss, gradients)."""
    import jax
    import jax.numpy as jnp
    import optax

    from elastic_jax.models import cross_entropy

    def plain(hidden: Any, head: Any, targets: Any) -> Any:
        return jnp.sum(optax.softmax_cross_entropy_with_integer_labels(hidden @ head, targets))

    def chunked(chunk: int) -> Any:
        settings = cross_entropy.Head(chunk=chunk)
        return lambda hidden, head, targets: cross_entropy.nll_sum(
            hidden, head, targets, jnp.ones(len(targets)), settings
        )

    def each(hidden: Any, head: Any, targets: Any) -> Any:
        return -jnp.sum(cross_entropy.log_probs(hidden, head, targets, cross_entropy.Head()))

    losses = {"plain": plain, "chunk 0": chunked(0)}
    losses |= {f"chunk {chunk}": chunked(chunk) for chunk in CHUNKS if chunk < tokens}
    return {name: jax.jit(jax.value_and_grad(loss, (0, 1))) for name, loss in (losses | {"log_probs": each}).items()}


def torch_side(vocabulary: int) -> None:
    import torch

    hidden, head, targets = (torch.from_numpy(array) for array in arrays(vocabulary))
    hidden, head, targets = hidden.requires_grad_(), head.requires_grad_(), targets.long()

    def run_round() -> dict[str, float]:
        hidden.grad = head.grad = None
        began = time.perf_counter()
        torch.nn.functional.cross_entropy(hidden @ head, targets, reduction="sum").backward()
        return dict(seconds=time.perf_counter() - began)

    common.serve(run_round)


if __name__ == "__main__":
    main()
