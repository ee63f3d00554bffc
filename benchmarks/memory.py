"""On which machine does each of the named models fit, for full fine-tuning and for LoRA?

usage: python benchmarks/memory.py [--models=NAME,...] [--out=FOLDER] [--quick]

A row plans stage `align` of configs/rebound_published.py (IMDb: 64 rows of 512 tokens in an update) for one machine after another,
smallest first, until the estimate fits. Only a config.json is needed: that of a model is written from `elastic_jax/models/sizes.py`.
Nothing is compiled and no device is asked. A few minutes on two cores.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import common

from elastic_jax import config as config_lib
from elastic_jax.models import families
from elastic_jax.models.config import model_config
from elastic_jax.models.sizes import MODELS
from elastic_jax.parallel import topology as topology_lib
from elastic_jax.study import planning

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "rebound_published.py"
GIB = 2**30
RANK = 16
# Smallest first.
GPUS = ("h100:1", "h200:1", "h100:2", "h100:4", "h100:8", "h200:8", "h100:32", "h100:64")
TPUS = ("v5e:2x2", "v5e:2x4", "v5e:4x4", "v5e:4x8", "v5e:8x8", "v5e:8x16", "v5e:16x16")


SHAPES = {name: fields for name, fields in MODELS.items() if name not in ("llama-3-70b", "record-1.3b")}
QUICK = ("pythia-70m",)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--models", default=",".join(SHAPES))
    args = parser.parse_args()
    names = QUICK if args.quick else args.models.split(",")
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            folder = Path(scratch) / name
            _write_config(folder, SHAPES[name])
            rows += [row_of(name, folder, lora) for lora in (False, True)]
            print(f"{name}: {rows[-2].get('gpu')}, {rows[-1].get('gpu')} with LoRA", flush=True)
    write(rows, args.out)


def _write_config(folder: Path, fields: dict[str, Any]) -> None:
    model = model_config(fields, vocab_size=fields["vocab_size"], seq_len=512)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(families.family_for(model).hf_config(model)))


def row_of(name: str, folder: Path, lora: bool) -> dict[str, Any]:
    """One line of the table."""
    config = config_lib.load(f"{CONFIG}", {"base.hf": str(folder)})
    if lora:
        config.lora.rank = RANK
        config.base.dtype = "bfloat16"
    row: dict[str, Any] = dict(model=name, method=f"LoRA, rank {RANK}" if lora else "full")
    for kind, machines in (("gpu", GPUS), ("tpu", TPUS)):
        for machine in machines:
            plan = planning.plan(config, topology=machine, stages=("align",))
            row["params"] = plan.params
            if plan.fits:
                (stage,) = plan.stages
                needs = stage.estimate.total / GIB
                row |= {kind: machine, f"{kind}_gib": needs, f"{kind}_room": topology_lib.parse(machine).memory / GIB}
                row |= {f"{kind}_layout": str(stage.layout), f"{kind}_bytes": dict(stage.estimate.memory)}
                break
    return row


def write(rows: list[dict[str, Any]], out: Path) -> None:
    common.report(
        "memory",
        "Planned: the smallest machine that each model fits",
        dict(
            model="model",
            params="parameters",
            method="fine-tuning",
            gpu="GPUs",
            gpu_gib="a GPU needs (GiB)",
            gpu_room="has (GiB)",
            tpu="TPUs",
            tpu_gib="a TPU needs (GiB)",
            tpu_room="holds (GiB)",
        ),
        rows,
        notes=[
            "Estimated, not measured: 64 rows of 512 tokens in an update, of which a device holds a part at a time; full: float32 "
            "parameters, gradients and AdamW moments, and the base beside them in float32; LoRA: the base in bfloat16, adapters in "
            "float32; bfloat16 compute, recomputation in the backward pass.",
            f"GPUs tried: {', '.join(GPUS)}; TPUs: {', '.join(TPUS)}. A tenth of each device is kept free.",
        ],
        out=out,
    )


if __name__ == "__main__":
    main()
