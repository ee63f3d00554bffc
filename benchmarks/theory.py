"""How long do token trees of real text take, and how much memory?

usage: python benchmarks/theory.py [--tokens=10000000] [--depth=16] [--data=FOLDER] [--quick]
needs: for the rows of public text a folder with *.jsonl.gz (or ELASTIC_SHARED_DATA); without it they are left out

Every row runs in a process of its own, so that its peak of memory is its own: the tree of all windows of the stream, or of its blocks, with
the Huffman code, the Pareto fit and Vuong's test of its leaves.
"""

import gzip
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import common
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
EOS, VOCABULARY = 1, 16_384
FIELDS = ("text", "output", "answer", "chosen", "response")  # of public data sets: where a document's text is


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--tokens", type=int, default=10_000_000)
    parser.add_argument("--depth", type=int, default=16)
    default = os.environ.get("ELASTIC_SHARED_DATA", ROOT.parent / "shared" / "data")
    parser.add_argument("--data", type=Path, default=Path(default), help="folder with *.jsonl.gz of public text")
    parser.add_argument("--contestant", help="used by the script itself")
    args = parser.parse_args()
    if args.contestant:
        measure(**json.loads(args.contestant))
        return
    tokens = 20_000 if args.quick else args.tokens
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        streams = dict(zipf=zipf(tokens), phrases=phrases(tokens))
        if args.data.is_dir():
            streams["public text"] = public_text(args.data, tokens)
        for name, stream in streams.items():
            path = Path(folder) / "stream.npy"
            np.save(path, stream)
            for cut in ("windows", "blocks"):
                row = dict(stream=name, tokens=len(stream), depth=args.depth, cut=cut)
                contestant = common.Contestant(__file__, dict(path=str(path), depth=args.depth, cut=cut))
                rows.append(row | contestant.round())
                contestant.close()
                print(rows[-1], flush=True)
    common.report(
        "theory",
        "Token trees: sorted, coded and fitted",
        dict(
            stream="stream",
            tokens="tokens",
            depth="depth",
            cut="cut",
            leaves="leaves",
            grow_s="tree (s)",
            huffman_s="Huffman lengths (s)",
            fit_s="Pareto fit, Vuong (s)",
            total_s="all (s)",
            memory_mb="peak memory (MB)",
            entropy="entropy (bits/path)",
            huffman="Huffman (bits/path)",
            alpha="alpha",
            favours="Vuong",
        ),
        rows,
        notes=[
            "`zipf`: independent tokens, rank r with probability proportional to r^-1.05 out of 50,000, documents of 200 tokens on average. "
            "`phrases`: 200,000 phrases of such tokens, themselves repeated by Zipf's law, so that paths stay alike for long. `public "
            f"text`: documents of public data sets with a byte-level BPE vocabulary of {VOCABULARY:,} that was trained on them.",
            "The first row of a stream grows a path from every token on (`windows`), the second one from every sixteenth (`blocks`, as "
            "Theorem 3.4 cuts them). Making the corpus from the stream is part of the tree's time; tokenising is not.",
        ],
        out=args.out,
    )


def measure(path: str, depth: int, cut: str) -> None:
    from elastic_jax import theory

    stream = np.load(path)

    def run_round() -> dict[str, Any]:
        times = [time.perf_counter()]
        tree = theory.grow(theory.Corpus.from_stream(stream, eos=EOS), depth, cut)  # pyright: ignore[reportArgumentType]
        times.append(time.perf_counter())
        lengths = theory.huffman_lengths(tree.counts[0])
        times.append(time.perf_counter())
        fit = theory.fit_pareto(tree.counts[0])
        tested = theory.vuong(tree.counts[0], fit)
        times.append(time.perf_counter())
        found = theory.code_length(tree)
        assert abs(float(lengths @ tree.counts[0]) / tree.sizes[0] - found.huffman) < 1e-6
        grow_s, huffman_s, fit_s = np.diff(times).tolist()
        return dict(
            leaves=tree.leaves,
            grow_s=grow_s,
            huffman_s=huffman_s,
            fit_s=fit_s,
            total_s=times[-1] - times[0],
            memory_mb=common.peak_memory() / 1e6,
            entropy=found.entropy,
            huffman=found.huffman,
            alpha=fit.alpha,
            x_min=fit.x_min,
            favours=tested.favours,
        )

    common.serve(run_round)


def zipf(tokens: int) -> np.ndarray:
    """Independent tokens, each of them the end of a document with probability 1/200."""
    rng = np.random.default_rng(0)
    p = np.arange(1, 50_001) ** -1.05
    ranks = np.searchsorted(np.cumsum(p) / p.sum(), rng.random(tokens))
    stream = (np.minimum(ranks, len(p) - 1) + 2).astype(np.int32)
    stream[rng.random(tokens) < 1 / 200] = EOS
    return stream


def phrases(tokens: int) -> np.ndarray:
    """Phrases of up to 11 tokens, of which a few make most of the stream."""
    rng = np.random.default_rng(1)
    count = min(200_000, tokens // 6)
    sizes = rng.integers(1, 12, count)
    begins = np.cumsum(sizes) - sizes
    pool = zipf(int(sizes.sum()))
    p = 1 / np.arange(1, count + 1)
    picked = np.minimum(np.searchsorted(np.cumsum(p) / p.sum(), rng.random(tokens)), count - 1)
    picked = picked[np.cumsum(sizes[picked]) - sizes[picked] < tokens]
    lengths = sizes[picked]
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return pool[np.repeat(begins[picked], lengths) + within][:tokens]


def public_text(folder: Path, tokens: int) -> np.ndarray:
    """Documents of the folder, tokenised, as many as make so many tokens."""
    from elastic_jax.data.tokenizers import train_bpe

    texts, characters = [], 0
    for text in documents(folder):
        texts.append(text)
        characters += len(text)
        if characters > 6 * tokens:
            break
    tokenizer = train_bpe(texts[:: max(1, characters // 4_000_000)], VOCABULARY)
    parts, made = [], 0
    for begin in range(0, len(texts), 1000):
        for ids in tokenizer.encode(texts[begin : begin + 1000]):
            parts.append(np.array([*ids, EOS], np.int32))
            made += len(ids) + 1
        if made >= tokens:
            break
    return np.concatenate(parts)[:tokens]


def documents(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                text = next((row[field] for field in FIELDS if isinstance(row.get(field), str)), "")
                if text:
                    yield text


if __name__ == "__main__":
    main()
