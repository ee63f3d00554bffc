"""How fast is each attention backend of this machine, and what memory does it take?

usage: python benchmarks/attention.py [--rounds=5] [--quick]
needs: nothing more; with torch installed its scaled_dot_product_attention runs beside ours

Forward, and forward with backward, of causal attention alone: our backends that can run here, `jax.nn.dot_product_attention`
(XLA) and torch. Each program runs in its own process; the processes take turns.
"""

import dataclasses
import functools
import json
import statistics
from collections.abc import Callable
from typing import Any

import common
import numpy as np

from elastic_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Case:
    """Rows of `length` tokens; a packed row holds four documents and ends in padding."""

    batch: int
    length: int
    kv_heads: int
    group: int
    head_dim: int
    dtype: str = "float32"
    packed: bool = False
    window: int = 0

    def segments(self) -> np.ndarray:
        ends = np.array([0.1, 0.15, 0.6, 0.95]) * self.length
        row = 1 + np.searchsorted(ends, np.arange(self.length), side="right")
        return np.broadcast_to(np.where(row > len(ends), 0, row), (self.batch, self.length)).astype(np.int32)

    def arrays(self) -> list[np.ndarray]:
        """Queries [b, t, k, g, h], keys and values [b, t, k, h], and the weight of each output."""
        rng = np.random.default_rng(0)
        rows = (self.batch, self.length, self.kv_heads)
        shapes = (rows + (self.group, self.head_dim), rows + (self.head_dim,), rows + (self.head_dim,))
        return [rng.standard_normal(shape, np.float32) for shape in (*shapes, shapes[0])]


def cases(platform: str, quick: bool) -> list[Case]:
    if quick:
        return [Case(1, 32, 2, 2, 8), Case(1, 32, 2, 2, 8, packed=True)]
    if platform == "cpu":  # the shapes of the sizes 1m, 10m and 34m, then one long row
        shapes = [Case(32, 128, 4, 1, 36), Case(16, 256, 5, 1, 64), Case(8, 256, 4, 2, 64), Case(1, 2048, 4, 2, 64)]
        packed = [dataclasses.replace(case, packed=True) for case in shapes[1:]]
        return [
            *shapes,
            *packed,
            dataclasses.replace(shapes[3], window=256),
            dataclasses.replace(shapes[2], dtype="bfloat16"),
        ]
    shapes = [
        Case(8, 4096, 8, 4, 64, "bfloat16"),
        Case(8, 4096, 8, 4, 128, "bfloat16"),
        Case(1, 16384, 8, 4, 128, "bfloat16"),
    ]
    return [
        *shapes,
        *(dataclasses.replace(case, packed=True) for case in shapes),
        dataclasses.replace(shapes[1], window=1024),
    ]


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--contestant", help="used by the script itself")
    args = parser.parse_args()
    if args.contestant:
        compete(**json.loads(args.contestant))
        return
    rounds = 2 if args.quick else args.rounds
    programs = ["reference", *optional_backends(), "xla", *(["torch"] if common.package_version("torch") else [])]
    contestants = {name: common.Contestant(__file__, dict(program=name, quick=args.quick)) for name in programs}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in programs}
    for number in range(rounds):
        for name in programs if number % 2 else reversed(programs):
            found[name].append(contestants[name].round())
    for contestant in contestants.values():
        contestant.close()
    import jax

    rows = []
    for number, case in enumerate(cases(jax.default_backend(), args.quick)):
        for name in programs:
            ready = contestants[name].ready["cases"][number]
            times = (
                {key: [one["cases"][number][key] for one in found[name]] for key in ("forward", "both")}
                if ready["runs"]
                else {}
            )
            features = ["packed"] * case.packed + [f"window {case.window}"] * bool(case.window)
            rows.append(
                dict(
                    shape=f"{case.batch} x {case.length}, {case.kv_heads} x {case.group} heads of {case.head_dim}",
                    features=", ".join(features) or "causal",
                    program=name,
                    forward_ms=1e3 * statistics.median(times["forward"]) if times else None,
                    both_ms=1e3 * statistics.median(times["both"]) if times else None,
                    memory_mb=ready.get("temporary", 0) / 1e6 if "temporary" in ready else None,
                    why=ready.get("why", ""),
                    rounds=times,
                    **dataclasses.asdict(case),
                )
            )
    for row in rows:
        rival = next(
            r
            for r in rows
            if r["program"] == "xla" and all(r[key] == row[key] for key in ("shape", "features", "dtype"))
        )
        row["speed"] = rival["both_ms"] / row["both_ms"] if row["both_ms"] and rival["both_ms"] else None
    common.report(
        "attention",
        "Attention backends",
        dict(
            shape="batch x tokens, key heads x queries each",
            features="asked",
            dtype="dtype",
            program="program",
            forward_ms="forward (ms)",
            both_ms="forward and backward (ms)",
            speed="speed relative to xla",
            memory_mb="temporaries, forward and backward (MB)",
            why="not run, since",
        ),
        rows,
        notes=[
            "Medians over rounds. xla: jax.nn.dot_product_attention(implementation='xla'), packed rows by a mask. torch: "
            "scaled_dot_product_attention(enable_gqa=True), is_causal where that is all that is asked, else a mask; eager.",
            "Temporaries are those of XLA's own memory analysis; torch has none to read.",
        ],
        out=args.out,
    )


def optional_backends() -> list[str]:
    """Our backends beside the reference that run on this machine's platform."""
    from elastic_jax.models.attention import BACKENDS
    from elastic_jax.parallel.device import current_device

    platform = current_device().platform
    return [name for name, backend in BACKENDS.items() if platform in backend.platforms]


def compete(program: str, quick: bool) -> None:
    """One program: everything compiled and warm, then each case once a round."""
    import jax

    runs: list[dict[str, Callable[[], Any]]] = []
    ready = []
    make = torch_runs if program == "torch" else functools.partial(jax_runs, program)
    for case in cases(jax.default_backend(), quick):
        try:
            run, facts = make(case)
        except UserError as error:  # this backend cannot do this case
            runs.append({})
            ready.append(dict(runs=False, why=str(error).partition(" Use ")[0]))
            continue
        for warm in run.values():
            warm()
        runs.append(run)
        ready.append(dict(facts, runs=True))

    def one_round() -> dict[str, Any]:
        return dict(cases=[{name: common.timed(call, 1 if quick else 3) for name, call in run.items()} for run in runs])

    common.serve(one_round, cases=ready)


def jax_runs(program: str, case: Case) -> tuple[dict[str, Callable[[], Any]], dict[str, Any]]:
    import jax
    import jax.numpy as jnp

    from elastic_jax.models.attention import View, attend

    given = [jnp.asarray(x, case.dtype) for x in case.arrays()]
    given.append(jnp.asarray(case.segments()) if case.packed else None)

    def forward(q: Any, k: Any, v: Any, weight: Any, segments: Any) -> Any:
        view = View(segments)
        if program != "xla":
            return attend(q, k, v, view, window=case.window, backend=program)
        return jax.nn.dot_product_attention(
            q.reshape(case.batch, case.length, -1, case.head_dim),
            k,
            v,
            mask=None if segments is None else view.mask(case.length, case.length)[:, None],
            is_causal=True,
            local_window_size=(case.window - 1, 0) if case.window else None,
            implementation="xla",
        ).reshape(q.shape)

    def both(q: Any, k: Any, v: Any, weight: Any, segments: Any) -> Any:
        def total(q: Any, k: Any, v: Any) -> Any:
            return jnp.sum((forward(q, k, v, weight, segments) * weight).astype(jnp.float32))

        return jax.value_and_grad(total, argnums=(0, 1, 2))(q, k, v)

    compiled = {name: jax.jit(f).lower(*given).compile() for name, f in (("forward", forward), ("both", both))}
    memory = compiled["both"].memory_analysis()
    facts = {} if memory is None else dict(temporary=memory.temp_size_in_bytes)
    run = {name: functools.partial(lambda f: jax.block_until_ready(f(*given)), f) for name, f in compiled.items()}
    return run, facts


def torch_runs(case: Case) -> tuple[dict[str, Callable[[], Any]], dict[str, Any]]:
    import torch

    device, dtype = "cuda" if torch.cuda.is_available() else "cpu", getattr(torch, case.dtype)
    q, k, v, weight = case.arrays()
    heads = (case.batch, case.length, -1, case.head_dim)
    # torch wants [b, n, t, h]; contiguous, as its projections would leave it at best
    q, k, v, weight = (
        torch.from_numpy(x.reshape(heads)).to(device, dtype).transpose(1, 2).contiguous() for x in (q, k, v, weight)
    )
    qkv = [x.requires_grad_() for x in (q, k, v)]
    mask = None
    if case.packed or case.window:
        at = torch.arange(case.length, device=device)
        mask = (at[:, None] >= at)[None, None]
        if case.window:
            mask = mask & (at[:, None] - at < case.window)
        if case.packed:
            rows = torch.from_numpy(case.segments().copy()).to(device)
            mask = mask & (rows[:, None, :, None] == rows[:, None, None, :])

    def attend() -> Any:
        return torch.nn.functional.scaled_dot_product_attention(
            *qkv, attn_mask=mask, is_causal=mask is None, enable_gqa=case.group > 1
        )

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def forward() -> None:
        with torch.no_grad():
            attend()
        wait()

    def both() -> None:
        torch.autograd.grad((attend() * weight).sum(), qkv)
        wait()

    return dict(forward=forward, both=both), {}


if __name__ == "__main__":
    main()
