"""How much memory and how long does it take to import a checkpoint, beside reading its files into numpy?

    python benchmarks/imports.py [--quick] [--out=FOLDER] [--folder=FOLDER]

A synthetic Llama of 2 GB in five safetensors files, in bfloat16 and in float32, imported on one CPU device, where the arrays live in host
memory. Its peer reads every tensor of the same files with `safetensors` into numpy and keeps them. Each import and each reading is a
process of its own, in turns, and the files are in the cache of the operating system.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import common
import ml_dtypes
import numpy as np

COLUMNS = dict(
    what="",
    gigabytes="GB",
    seconds="s",
    rate="GB/s",
    ratio="of safetensors' time",
    peak="peak, GB above start",
    allowed="allowed, GB",
)
KINDS = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype(np.float32)}
FILES = 5


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--folder", type=Path, help="where to write the checkpoints (default: a temporary folder)")
    parser.add_argument("--contestant", help="used by the script itself")
    args = parser.parse_args()
    if args.contestant:
        print(json.dumps(contestant(**json.loads(args.contestant))))
        return
    folder = Path(tempfile.mkdtemp(prefix="imports-", dir=args.folder))
    try:
        rows, notes = measure(folder, 0.02e9 if args.quick else 2e9, rounds=1 if args.quick else 3)
    finally:
        shutil.rmtree(folder)
    common.report("imports", "Importing a checkpoint", COLUMNS, rows, notes=notes, out=args.out)


def hf_config(size: float, dtype: np.dtype) -> dict[str, Any]:
    """A Llama whose weights take about `size` bytes."""
    small = size < 1e9
    embed, mlp, vocab = (256, 704, 2048) if small else (2048, 5632, 32_000)
    heads, kv_heads = embed // 64, embed // 256
    layer = embed * (2 * embed + 2 * kv_heads * 64 + 3 * mlp)
    layers = max(1, round((size / dtype.itemsize - 2 * vocab * embed) / layer))
    return dict(
        architectures=["LlamaForCausalLM"],
        model_type="llama",
        hidden_size=embed,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocab,
        torch_dtype=str(dtype),
    )


def write(folder: Path, size: float, dtype: np.dtype) -> tuple[int, int]:
    """Writes a checkpoint of random numbers.

    Returns:
      Bytes of all tensors and of the largest.
    """
    from safetensors.numpy import save_file

    from elastic_jax.hf.tensors import INDEX
    from elastic_jax.models.config import ModelConfig
    from elastic_jax.models.families import family_of

    config = hf_config(size, dtype)
    family = family_of(config)
    model = ModelConfig(vocab_size=config["vocab_size"], seq_len=128, **family.fields(config))
    pieces = family.pieces(model)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(0)
    weight_map, sizes = {}, []
    for number in range(FILES):
        file = f"model-{number + 1:05d}-of-{FILES:05d}.safetensors"
        part = pieces[number::FILES]
        tensors = {piece.name: rng.standard_normal(piece.shape, np.float32).astype(dtype) for piece in part}
        save_file(tensors, folder / file)
        weight_map |= dict.fromkeys(tensors, file)
        sizes += [tensor.nbytes for tensor in tensors.values()]
    (folder / INDEX).write_text(json.dumps(dict(metadata=dict(total_size=sum(sizes)), weight_map=weight_map)))
    return sum(sizes), max(sizes)


def contestant(folder: str, how: str, layout: str = "unroll", dtype: str = "float32") -> dict[str, Any]:
    """One import, or one reading; seconds of it, and bytes by which the peak of resident memory rose."""
    if how == "safetensors":
        from safetensors import safe_open

        before, began = common.peak_memory(), time.perf_counter()
        read: dict[str, np.ndarray] = {}
        for path in sorted(Path(folder).glob("*.safetensors")):
            with safe_open(path, "numpy") as file:
                read |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return dict(seconds=time.perf_counter() - began, peak=common.peak_memory() - before)
    import jax

    from elastic_jax.hf.source import open_source
    from elastic_jax.models.transformer import Decoder
    from elastic_jax.parallel.mesh import make_mesh

    mesh = make_mesh(devices=jax.devices()[:1])
    source = open_source(folder)
    model = Decoder(source.model_config(0, 128, layout=layout, param_dtype=dtype))
    _ = model.shapes, model.shardings(mesh)
    before, began = common.peak_memory(), time.perf_counter()
    params = source.load_params(model, mesh)
    seconds = time.perf_counter() - began
    peak = common.peak_memory() - before
    return dict(seconds=seconds, peak=peak, size=sum(leaf.nbytes for leaf in jax.tree.leaves(params)))


def measure(folder: Path, size: float, rounds: int) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of the table and the sentences below it."""
    rows = []
    for kind, dtype in KINDS.items():
        where = folder / kind
        total, largest = write(where, size, dtype)
        contestants = {
            f"safetensors into numpy, {kind}": dict(how="safetensors"),
            f"import, {kind}": dict(how="import", dtype=kind),
            f"import, {kind}, layout=scan": dict(how="import", layout="scan", dtype=kind),
        }
        if kind == "bfloat16":
            contestants["import, bfloat16 as float32"] = dict(how="import", dtype="float32")
        found: dict[str, list[dict[str, Any]]] = {what: [] for what in contestants}
        for _ in range(rounds):
            for what, spec in contestants.items():
                found[what].append(_run(dict(spec, folder=str(where))))
        peer = next(iter(found.values()))
        for what, results in found.items():
            seconds = _median(result["seconds"] for result in results)
            row = dict(what=what, gigabytes=total / 1e9, seconds=seconds, rate=total / seconds / 1e9)
            row["ratio"] = _median(
                ours["seconds"] / theirs["seconds"] for ours, theirs in zip(results, peer, strict=True)
            )
            row["peak"] = max(result["peak"] for result in results) / 1e9
            if "size" in results[0]:
                scale = results[0]["size"] / total  # arrays of another dtype than the file's
                row["allowed"] = (results[0]["size"] + 2 * largest * max(scale, 1)) / 1e9
            rows.append(row)
        shutil.rmtree(where)
    notes = [
        f"{FILES} files each, in the page cache; medians of {rounds} rounds of one process each. The ratio is that of the two times of a "
        "round. The peak is the rise of VmHWM over what the process held before, which counts the mapped pages of the files as well "
        "as the arrays; of all processes the highest. Allowed are the size of the arrays and twice the largest tensor.",
        "The import transposes every matrix and joins queries, keys and values, gate and up, on the way; the peer copies.",
    ]
    return rows, notes


def _run(spec: dict[str, Any]) -> dict[str, Any]:
    environ = dict(os.environ, JAX_PLATFORMS="cpu", PYTHONPATH=os.pathsep.join(sys.path[1:]))
    command = [sys.executable, __file__, f"--contestant={json.dumps(spec)}"]
    done = subprocess.run(command, env=environ, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _median(values: Iterable[float]) -> float:
    return float(np.median(list(values)))


if __name__ == "__main__":
    main()
