"""How far is the plan's estimate from the compiler, for the fine-tuning of 7B to 70B models on TPU slices?

usage: python benchmarks/plans.py [--rows=MODEL@TOPOLOGY,...] [--out=FOLDER] [--quick]
needs: pip install -e ".[tpu]"   (libtpu compiles for TPUs; none has to be there)

Each row plans stage `align` of configs/scale_sft.py for a slice, compiles the update that was found for it, and compares the bytes per
device. A row takes minutes on two cores. Rows that a former call wrote into FOLDER stay, so that they can be made one at a time.
"""

import json
import time
from pathlib import Path
from typing import Any

import common

from elastic_jax import config as config_lib
from elastic_jax.parallel import ahead
from elastic_jax.study import planning

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "scale_sft.py"
ROWS = (
    "llama-2-7b@v5e:16x16",
    "llama-2-7b@v5p:4x4x4",
    "llama-2-7b@v6e:16x16",
    "llama-2-13b@v5e:16x16",
    "llama-2-13b@v5p:4x4x4",
    "llama-3-8b@v5e:16x16",
    "llama-3-8b@v5p:4x4x4",
    "llama-3-70b,rows=512@v5p:8x8x8",
)
QUICK = "100k@cpu:1"
GIB = 2**30


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--rows", default=";".join(ROWS), help="rows to make, separated by ;")
    args = parser.parse_args()
    rows = _former(args.out)
    for name in [QUICK] if args.quick else args.rows.split(";"):
        rows = [row for row in rows if row["row"] != name] + [row_of(name)]
        order = {row: number for number, row in enumerate(ROWS)}
        rows.sort(key=lambda row: order.get(row["row"], len(order)))
        write(rows, args.out)


def row_of(name: str) -> dict[str, Any]:
    """One line of the table."""
    argument, _, topology = name.rpartition("@")
    config = config_lib.load(f"{CONFIG}:{argument}")
    if name == QUICK:
        config.data.seq_len, config.align.batch_size, config.model.layout = 64, 16, "unroll"
    began = time.perf_counter()
    plan = planning.plan(config, topology=topology, compiled=True, stages=("align",))
    seconds = time.perf_counter() - began
    (stage,) = plan.stages
    detail = plan.as_json()["stages"][0]
    assert plan.topology is not None
    compiled = stage.compiled
    return dict(
        row=name,
        model=config.model.size,
        topology=topology,
        params=plan.params,
        mesh=" ".join(f"{axis}={size}" for axis, size in plan.mesh.items() if size > 1) or "one device",
        batch=f"{config.align.batch_size} x {config.data.seq_len}",
        remat=stage.layout.remat,
        parts=stage.layout.accumulate,
        room_gib=plan.topology.memory / GIB,
        estimate_gib=stage.estimate.of_update / GIB,
        compiler_gib=compiled.total / GIB if compiled else None,
        difference=f"{stage.difference:+.1%}" if stage.difference is not None else None,
        step_seconds=stage.seconds,
        mfu=f"{detail['mfu']:.0%}" if detail["mfu"] else None,
        compile_seconds=compiled.seconds if compiled else None,
        plan_seconds=seconds - (compiled.seconds if compiled else 0.0),
        libtpu=ahead.version(),
        commit=common.machine()["commit"],
        detail=detail,
    )


def _former(out: Path) -> list[dict[str, Any]]:
    try:
        return json.loads((out / "plans.json").read_text())["rows"]
    except FileNotFoundError:
        return []


def write(rows: list[dict[str, Any]], out: Path) -> None:
    common.report(
        "plans",
        "Planned and compiled: full fine-tuning on packed rows",
        dict(
            model="model",
            topology="topology",
            mesh="mesh",
            batch="batch x tokens",
            remat="remat",
            parts="parts",
            room_gib="device (GiB)",
            estimate_gib="estimate (GiB)",
            compiler_gib="compiler (GiB)",
            difference="difference",
            step_seconds="assumed s/update",
            mfu="assumed MFU",
            compile_seconds="compile (s)",
            commit="commit",
        ),
        rows,
        notes=[
            "GiB per device. Compiler: arguments, temporaries and results that replace no argument, by memory_analysis() of the update "
            f"compiled with libtpu {ahead.version() or '-'}; no TPU was there. Float32 parameters and AdamW moments, bfloat16 compute.",
            "Times and MFU (causal) follow from an assumed share of the peak and are no measurement. The commit below is that of the latest row.",
        ],
        out=out,
    )


if __name__ == "__main__":
    main()
