"""Which documents share a row, and where in it does each of them stand?

Documents lie back to back and share the `<eos>` between them: "eos a b eos c d eos". A document of n tokens, both `<eos>`
counted, therefore takes n-1 of the T inputs of a row, its *size*, and no token is wasted. Where a document does not begin with the
token that ends the one before it, it takes n inputs, of which the last has no target: "bos a b eos bos c d eos".
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Int, UInt8

from elastic_jax.errors import UserError, closest

# How the rows of a role may be filled. Pre-training is counted in tokens, so its packed rows are made once and stored. The other
# two are counted in examples: what is packed there is the examples of one batch, which stay the same (`pipeline.batches`).
CHOICES = {
    "pretrain": ("none", "concat", "best_fit"),
    "align": ("none", "best_fit"),
    "perturb": ("none", "best_fit"),
}
# Index arrays are eight times as large as what they index: rows are filled in blocks of about so many tokens.
_TOKENS_AT_ONCE = 1 << 18


def check(pack: Mapping[str, str], kinds: Mapping[str, str]) -> None:
    """Nothing, when the section `data.pack` can be done.

    Args:
      kinds: of the rows that "align" and "perturb" train on, "text" or "pair".

    Raises:
      UserError: an unknown way, or pairs are to be packed.
    """
    for role, choices in CHOICES.items():
        field, way = f"data.pack.{role}", pack[role]
        if way not in choices:
            why = (
                " Its volume is counted in examples, and joined documents are cut anywhere." if way == "concat" else ""
            )
            raise UserError(f"{field}={way!r}: expected one of {', '.join(choices)}.{why} {closest(way, choices)}")
        if way != "none" and kinds.get(role) == "pair":
            raise UserError(
                f"{field}={way!r}: the objective of stage {role} compares the two answers of a pair, and pairs are never packed. "
                f'Use {field}="none", or an objective on single texts.'
            )


def best_fit(sizes: Int[np.ndarray, " n"], capacity: int) -> Int[np.ndarray, " n"]:
    """Best-fit decreasing: from the largest document to the smallest, each goes to the fullest row that still holds it.

    Needs at most 11/9 of the fewest rows possible and four more (Johnson et al. 1974, doi 10.1137/0203025). Documents of one size
    are placed together, so that the work grows with the number of distinct sizes rather than with that of documents.

    Args:
      sizes: from 1 to `capacity`.
      capacity: T, of every row.

    Returns:
      The row of every document; rows are numbered from 0 without gaps. It depends on the arguments alone.
    """
    sizes = np.asarray(sizes)
    if sizes.size and not 1 <= sizes.min() <= sizes.max() <= capacity:
        raise ValueError(f"sizes from {sizes.min()} to {sizes.max()} for rows of {capacity}")
    order = np.argsort(-sizes, kind="stable")
    distinct, firsts = np.unique(-sizes[order], return_index=True)
    bounds = [*firsts.tolist(), len(order)]
    of_document = np.empty(len(order), np.int64)
    waiting: dict[int, list[int]] = {}  # free inputs -> rows that have so many
    some = 0  # bit c is set when waiting[c] is not empty
    rows = 0

    def put_back(free: int, those: list[int]) -> None:
        nonlocal some
        if free and those:
            waiting.setdefault(free, []).extend(those)
            some |= 1 << free

    for size, begin, end in zip((-distinct).tolist(), bounds, bounds[1:], strict=False):
        while begin < end:
            fitting = some >> size
            if fitting:
                free = size + (fitting & -fitting).bit_length() - 1
                there = waiting[free]
            else:
                free, there = capacity, None
            # After one document of this size its row is the fullest that holds the next one: a row takes all it can.
            each = free // size
            needed = -(-(end - begin) // each)
            if there is None:
                taken = list(range(rows, rows + needed))
                rows += needed
            else:
                taken = there[-needed:]
                del there[-needed:]
                if not there:
                    some ^= 1 << free
            placed = min(end - begin, len(taken) * each)
            of_document[order[begin : begin + placed]] = np.repeat(taken, each)[:placed]
            begin += placed
            last = placed - (len(taken) - 1) * each  # only the last row may have taken fewer than it could
            put_back(free - each * size, taken[:-1])
            put_back(free - last * size, taken[-1:])
    return of_document


def offsets(rows: Int[np.ndarray, " n"], sizes: Int[np.ndarray, " n"]) -> tuple[np.ndarray, np.ndarray]:
    """(first input, number in the row from 1) of every document; those of a row stand in the order they are given in."""
    order = np.argsort(rows, kind="stable")
    sorted_rows, sorted_sizes = rows[order], sizes[order]
    before = np.cumsum(sorted_sizes) - sorted_sizes
    begins = np.flatnonzero(np.diff(sorted_rows, prepend=-1))
    group = np.repeat(np.arange(len(begins)), np.diff(begins, append=len(order)))
    first, number = np.empty(len(order), np.int64), np.empty(len(order), np.int64)
    first[order] = before - before[begins][group]
    number[order] = np.arange(len(order)) - begins[group] + 1
    return first, number


def fill(
    tokens: Int[np.ndarray, " all_tokens"],
    token_begins: Int[np.ndarray, " n"],
    mask: UInt8[np.ndarray, " all_targets"],
    mask_begins: Int[np.ndarray, " n"],
    sizes: Int[np.ndarray, " n"],
    rows: Int[np.ndarray, " n"],
    *,
    count: int,
    seq_len: int,
    pad_id: int,
) -> dict[str, np.ndarray]:
    """Packed rows.

    Args:
      tokens, token_begins: document i is `tokens[token_begins[i] :][: sizes[i] + 1]`.
      mask, mask_begins: `mask[mask_begins[i] :][: sizes[i]]` says which of its targets the loss counts.
      rows: as `best_fit` gives them, each document in the row of this number.
      count: R, how many rows; those without a document are padding.
      seq_len: T.

    Returns:
      `tokens` [R, T+1] int32, `mask` [R, T] uint8, and of the inputs `segments` [R, T] int32 (documents of the row from 1, padding
      0) and `positions` [R, T] int32 (in the document; padding 0).
    """
    made = dict(
        tokens=np.full((count, seq_len + 1), pad_id, np.int32),
        mask=np.zeros((count, seq_len), np.uint8),
        segments=np.zeros((count, seq_len), np.int32),
        positions=np.zeros((count, seq_len), np.int32),
    )
    flat = {name: array.reshape(-1) for name, array in made.items()}
    first, number = offsets(rows, sizes)
    ends = np.cumsum(sizes)
    # The last token of every document: <eos>, or what is left of a text that was cut. The document after it comes later and writes
    # its own first token there.
    flat["tokens"][rows * (seq_len + 1) + first + sizes] = tokens[token_begins + sizes]
    begin = 0
    while begin < len(sizes):
        done = ends[begin] - sizes[begin]
        end = max(int(np.searchsorted(ends, done + _TOKENS_AT_ONCE, "right")), begin + 1)
        part = slice(begin, end)
        size = sizes[part]
        within = np.arange(int(size.sum())) - np.repeat(ends[part] - size - done, size)
        source = np.repeat(token_begins[part], size) + within
        row, place = np.repeat(rows[part], size), np.repeat(first[part], size) + within
        flat["tokens"][row * (seq_len + 1) + place] = tokens[source]
        target = row * seq_len + place
        flat["mask"][target] = mask[np.repeat(mask_begins[part], size) + within]
        flat["segments"][target] = np.repeat(number[part], size)
        flat["positions"][target] = within
        begin = end
    return made
