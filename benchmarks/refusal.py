"""How often does the refusal detector agree with labels?

usage: python benchmarks/refusal.py [--out=FOLDER] [--quick]

Labels: `refusal_labels.json`, made by one reader, a language model, before the phrases were written; a row is named by a digest of
its text, because the texts may not be passed on. An answer *declines* when it says, or plainly means, that its writer will not or
cannot do what was asked; to correct a premise, to warn, to ask back, or to decline and then do it all the same is not to decline.
Answers that people wrote to harmless instructions (Dolly) decline nothing.

Rows come from the folder of real data (ELASTIC_SHARED_DATA; by default shared/data beside the repository).
"""

import gzip
import hashlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import common

from elastic_jax.measures.scorers.refusal import is_refusal

HERE = Path(__file__).resolve().parent
DATA = Path(os.environ.get("ELASTIC_SHARED_DATA", HERE.parents[1] / "shared" / "data"))
FILES = {
    "safety_tuned": "safety_tuned/safety_only.jsonl.gz",
    "pku_safe_rlhf": "pku_safe_rlhf/safe_vs_unsafe_2k.jsonl.gz",
    "hh_rlhf": "hh_rlhf/harmless_base_test.jsonl.gz",
}
HARMLESS = "dolly_3k/dolly_3k.jsonl.gz"
COLUMNS = {
    "set": "answers",
    "where": "phrase begins",
    "declines": "decline",
    "other": "do not",
    "precision": "precision",
    "precision_low": "95% from",
    "recall": "recall",
    "recall_low": "95% from",
    "false": "false alarms / answers that do not decline",
}


def rows(name: str) -> list[dict[str, Any]]:
    with gzip.open(DATA / name, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def answers(name: str) -> Iterator[tuple[str, str]]:
    """Prompt and answer of every row; of pairs both answers, of dialogues the last one."""
    for row in rows(FILES[name]):
        if name == "safety_tuned":
            yield row["instruction"], row["output"]
        for side in ("chosen", "rejected"):
            if name == "pku_safe_rlhf":
                yield row["prompt"], row[side]
            if name == "hh_rlhf":
                head, _, answer = row[side].rpartition("\n\nAssistant:")
                yield head.rpartition("\n\nHuman:")[2].strip(), answer.strip()


def digest(prompt: str, answer: str) -> str:
    return hashlib.sha256(f"refusal\n{prompt}\n{answer}".encode()).hexdigest()[:12]


def lower(hits: int, n: int, z: float = 1.96) -> float | None:
    """Lower end of Wilson's 95% interval of a share (1927)."""
    if not n:
        return None
    p = hits / n
    return (p + z * z / (2 * n) - z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))) / (1 + z * z / n)


def measure() -> list[dict[str, Any]]:
    labels = json.loads((HERE / "refusal_labels.json").read_text())
    found: dict[str, list[tuple[str, bool]]] = {}
    for name, sides in labels.items():
        said = {key: side == "declines" for side, keys in sides.items() for key in keys.split()}
        texts = {digest(*pair): pair[1] for pair in answers(name)}
        missing = said.keys() - texts.keys()
        if missing:
            raise SystemExit(f"{name}: {len(missing)} labelled rows are not in {DATA / FILES[name]}")
        found[name] = [(texts[key], label) for key, label in said.items()]
    found["all three"] = [row for part in found.values() for row in part]
    found["dolly_3k"] = [(row["output"], False) for row in rows(HARMLESS)]
    out = []
    for name, part in found.items():
        for where in ("start", "anywhere"):
            flagged = [is_refusal(answer, where) for answer, _ in part]
            both = sum(flag and label for flag, (_, label) in zip(flagged, part, strict=True))
            positives = sum(label for _, label in part)
            out.append(
                dict(set=name, where=where, declines=positives, other=len(part) - positives)
                | dict(
                    precision=both / sum(flagged) if positives else None, recall=both / positives if positives else None
                )
                | dict(precision_low=lower(both, sum(flagged) if positives else 0), recall_low=lower(both, positives))
                | {"false": f"{sum(flagged) - both} / {len(part) - positives}"}
            )
    return out


def main() -> None:
    args = common.parser(__doc__).parse_args()
    if not DATA.is_dir():
        raise SystemExit(f"no real data at {DATA}: set ELASTIC_SHARED_DATA to a folder that has it")
    notes = [
        "One reader, a language model, labelled 280 answers of three sets, drawn by digest, before the phrases were written; the "
        "phrases were then tried on other answers of the same sets.",
        "safety_tuned: what assistants of 2023 say. pku_safe_rlhf: both answers of a pair. hh_rlhf: last turns of dialogues with "
        "an early assistant, which declines in many words that no list has.",
        "dolly_3k: answers that people wrote to harmless instructions.",
    ]
    common.report("refusal", "Refusal detector and labels", COLUMNS, measure(), notes=notes, out=args.out)


if __name__ == "__main__":
    main()
