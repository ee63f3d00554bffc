"""How is a number about the data written down for the report?"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from elastic_jax.data.examples import COUNTS
from elastic_jax.data.prepared import Prepared

Fact = dict[str, Any]


def fact(
    measure: str,
    value: float,
    unit: str,
    split: str,
    *,
    stderr: float = math.nan,
    n: int = 0,
    seed: int = 0,
    text: str = "",
) -> Fact:
    """One row of stage "data" of the table of measures; columns that are not here do not apply."""
    return dict(
        stage="data",
        measure=measure,
        split=split,
        unit=unit,
        value=float(value),
        stderr=float(stderr),
        n=int(n),
        seed=int(seed),
        text=text,
    )


def counts_of(sets: Mapping[str, Prepared], suffix: str = "") -> list[Fact]:
    """Rows, tokens, truncated and dropped ones of every set, and how well they fill the rows.

    `suffix` tells held-out sets apart. Sets whose rows hold several documents also say how many.
    """
    found = []
    for name, prepared in sets.items():
        counts, split = prepared.counts, name + suffix
        found += [fact(measure, counts[measure], "count", split) for measure in COUNTS]
        found += [fact(m, counts[m], "count", split) for m in ("documents", "split_documents") if m in counts]
        sides = 2 if prepared.kind == "pair" else 1
        found.append(efficiency(split, counts["loss_tokens"], prepared.rows * prepared.seq_len * sides))
    return found


def efficiency(split: str, targets: float, positions: int) -> Fact:
    """Which share of what the model computes is a target that the loss counts."""
    return fact("token_efficiency", targets / positions, "fraction", split)


def overlaps(roles: Mapping[str, Iterable[Any]]) -> list[Fact]:
    """For every two roles the number of distinct texts that both have."""
    sets = {name: frozenset(keys) for name, keys in roles.items()}
    names = list(sets)
    return [
        fact("overlap", len(sets[first] & sets[second]), "count", f"{first}&{second}")
        for place, first in enumerate(names)
        for second in names[place + 1 :]
    ]
