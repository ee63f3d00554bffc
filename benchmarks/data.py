"""Is the data pipeline ever the bottleneck, and what does preparing data cost?

usage: python benchmarks/data.py [--out=FOLDER] [--quick]

Two tables. `data`: tokens/s of `batches(...)` beside what a training step of a 1M model takes in on the same machine in the same run;
at least 20 times as much is the aim. `data_prepare`: tokenising, packing and writing, and the memory that a whole preparation needs.
"""

import itertools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import numpy as np
import step

from elastic_jax.data import build, examples, packing, pipeline, prepared
from elastic_jax.data.tokenizers import BpeTokenizer, WordTokenizer, train_bpe

SEQ_LEN = 128
AIM = 20  # times the step's consumption


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--prepare", help="used by the script itself")
    args = parser.parse_args()
    if args.prepare:
        print(json.dumps(prepare_whole(json.loads(args.prepare))))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        read(folder, args)
        prepare(folder, args)


def read(folder: Path, args: Any) -> None:
    seconds = 0.2 if args.quick else 3.0
    size, (b, t) = ("50k", step.BATCH["50k"]) if args.quick else ("1m", step.BATCH["1m"])
    consumed = consumption(size, b, t, 2 if args.quick else 6)
    rows = []
    sets = written(folder, 2_000 if args.quick else 40_000)
    sizes = (8, 64) if args.quick else (8, 64, 512)
    for where, batch_size, (pack, made) in itertools.product(("memory", "disk"), sizes, sets.items()):
        # Where rows are served from is decided when a data set is first read.
        prepared.IN_MEMORY_BYTES = 0 if where == "disk" else 1 << 30
        opened = prepared.open_prepared(made.folder)
        ways: list[tuple[str, int | None]] = [(f"stored, {pack}", None)]
        stop = (4_000 if args.quick else 80_000) // batch_size
        if pack == "none":
            needed = pipeline.rows_needed(opened, batch_size=batch_size, seed=0, stop=stop)
            ways.append(("best_fit of each batch", needed))
        for way, packed in ways:
            speed, targets, batches = flow(opened, batch_size, packed, seconds, stop)
            rows.append(
                dict(
                    where=where,
                    pack=way,
                    examples=batch_size,
                    rows=packed or batch_size,
                    tokens_per_second=speed,
                    efficiency=targets,
                    milliseconds=1e3 / batches,
                    times=speed / consumed,
                    enough=bool(speed / consumed >= AIM),
                )
            )
    common.report(
        "data",
        f"The pipeline beside the step of a {size} model",
        dict(
            where="read from",
            pack="packing",
            examples="rows or examples in a batch",
            rows="rows of the model's batch",
            tokens_per_second="tokens/s",
            efficiency="of them targets",
            milliseconds="a batch (ms)",
            times="times what the step takes in",
        ),
        rows,
        notes=[
            f"The step: {b} rows of {t} tokens in float32, {consumed:,.0f} tokens/s. The pipeline: rows of {SEQ_LEN} tokens, padding "
            "counted as the step counts it, consumed as fast as they come.",
            f"Slowest: {min(row['times'] for row in rows):,.0f} times what the step takes in (aim: {AIM}).",
        ],
        out=args.out,
    )


def consumption(size: str, b: int, t: int, times: int) -> float:
    """Tokens/s of a training step."""
    tokens = np.random.default_rng(0).integers(2, step.VOCAB[size], (b, t + 1)).astype(np.int32)
    _, run = step.elastic_jax_step(size, "float32", tokens)
    for _ in range(2):
        run()
    return b * t / common.timed(run, times)


def flow(
    made: prepared.Prepared, batch_size: int, rows: int | None, seconds: float, most: int
) -> tuple[float, float, float]:
    """(tokens/s, share of targets, batches/s) of a stream that is read for so long, or for so many batches."""
    tokens = targets = count = 0
    stream = pipeline.batches(made, batch_size=batch_size, seed=0, rows=rows)
    next(stream)  # opens the file
    began = time.perf_counter()
    for batch in itertools.islice(stream, most - 1):
        tokens += batch["mask"].size
        targets += int(batch["mask"].sum())
        count += 1
        if time.perf_counter() - began > seconds:
            break
    spent = time.perf_counter() - began
    return tokens / spent, targets / tokens, count / spent


def documents(count: int) -> list[dict[str, str]]:
    """Texts whose lengths spread as those of answers do: half of them below 40 words, some beyond a row."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(40), 0.7, count).astype(int), 1, 400)
    words = np.array([f"w{i}" for i in range(2000)])
    text = words[np.minimum(rng.geometric(0.01, lengths.sum()), 2000) - 1]
    ends = np.cumsum(lengths).tolist()
    return [
        dict(id=str(i), prompt="", answer=" ".join(text[end - length : end]))
        for i, (end, length) in enumerate(zip(ends, lengths.tolist(), strict=True))
    ]


def written(folder: Path, count: int) -> dict[str, prepared.Prepared]:
    rows, tokenizer = documents(count), WordTokenizer([f"w{i}" for i in range(2000)])
    return {
        pack: prepared.write(
            folder / pack,
            examples.tokenize(rows, tokenizer, seq_len=SEQ_LEN, pack=pack),
            tokenizer_digest=tokenizer.digest,
        )
        for pack in ("none", "best_fit")
    }


def prepare(folder: Path, args: Any) -> None:
    count = 2_000 if args.quick else 50_000
    rows = documents(count)
    tokenizer = train_bpe([row["answer"] for row in rows[:2000]], 2048)
    found = [parts(folder, rows, tokenizer, pack) for pack in ("none", "concat", "best_fit")]
    wholes = [(1, "best_fit")] if args.quick else [(m, pack) for m in (4, 32) for pack in ("concat", "best_fit")]
    found += [whole(megabytes, pack) for megabytes, pack in wholes]
    found.append(plan(20_000 if args.quick else 1_000_000))
    common.report(
        "data_prepare",
        "Preparing data",
        dict(
            what="what",
            pack="packing",
            documents="documents",
            tokens="tokens",
            seconds="seconds",
            tokens_per_second="tokens/s",
            efficiency="of the positions targets",
            memory_mb="memory (MB)",
        ),
        found,
        notes=[
            "Tokenise, pack and write: byte-level BPE of 2,048 tokens. The whole preparation also trains the tokenizer, separates the "
            "roles and fits the scorer; its memory is the peak above what the program has when it is loaded, and includes some 190 MB "
            "of libraries that are loaded later."
        ],
        out=args.out,
    )


def parts(folder: Path, rows: list[dict[str, str]], tokenizer: BpeTokenizer, pack: examples.Pack) -> dict[str, Any]:
    began = time.perf_counter()
    made = examples.tokenize(rows, tokenizer, seq_len=SEQ_LEN, pack=pack)
    prepared.write(folder / f"bpe-{pack}", made, tokenizer_digest=tokenizer.digest)
    seconds = time.perf_counter() - began
    counts = made.counts
    return dict(
        what="tokenise, pack, write",
        pack=pack,
        documents=len(rows),
        tokens=counts["tokens"],
        seconds=seconds,
        tokens_per_second=counts["tokens"] / seconds,
        efficiency=counts["loss_tokens"] / (counts["rows"] * SEQ_LEN),
    )


def plan(count: int) -> dict[str, Any]:
    sizes = np.clip(np.random.default_rng(0).lognormal(np.log(350), 1.0, count).astype(int), 1, 2048)
    began = time.perf_counter()
    rows = packing.best_fit(sizes, 2048)
    seconds = time.perf_counter() - began
    tokens = int(sizes.sum())
    return dict(
        what="the plan alone, rows of 2,048",
        pack="best_fit",
        documents=count,
        tokens=tokens,
        seconds=seconds,
        tokens_per_second=tokens / seconds,
        efficiency=tokens / (2048 * (int(rows.max()) + 1)),
    )


def whole(megabytes: int, pack: str) -> dict[str, Any]:
    """A preparation in a process of its own, for its memory."""
    rng = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as scratch:
        texts = iter(documents(400 + megabytes * 6000))
        for name, share in (("train", 0.05), ("test", 0.05), ("prose", 0.9)):
            with open(Path(scratch) / f"{name}.jsonl", "w") as file:
                while file.tell() < share * megabytes * 1e6:
                    row = dict(text=next(texts)["answer"], label=str(int(rng.integers(2))))
                    file.write(json.dumps(row) + "\n")
        spec = json.dumps(dict(folder=scratch, pack=pack))
        command = [sys.executable, __file__, f"--prepare={spec}"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
    return dict(
        what=f"a whole preparation, {megabytes} MB of text",
        pack=pack,
        tokens_per_second=found["tokens"] / found["seconds"],
        **found,
    )


def prepare_whole(spec: dict[str, Any]) -> dict[str, Any]:
    """In that process."""
    folder = Path(spec["folder"])
    config = dict(
        kind="text",
        **{name: str(folder / f"{name}.jsonl") for name in ("train", "test", "prose")},
        seq_len=512,
        rows=dict(pretrain=40, align=20, perturb=20, scorer=40, heldout=8, prompts=8),
        tokenizer=dict(vocab_size=2048, rows=2000),
        pack=dict(pretrain=spec["pack"]),
    )
    before = common.peak_memory()
    began = time.perf_counter()
    made = build.build(config, folder / "data", objectives={}).train["pretrain"]
    tokens = made.counts["loss_tokens"]
    return dict(
        documents=len(made.ids),
        tokens=tokens,
        seconds=time.perf_counter() - began,
        efficiency=tokens / (made.rows * made.seq_len),
        memory_mb=(common.peak_memory() - before) / 1e6,
    )


if __name__ == "__main__":
    main()
