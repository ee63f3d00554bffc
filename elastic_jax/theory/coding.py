"""How many bits does a response take, when the leaves of the tree are coded?

Definition 3.3 of the paper compresses a data set by pruning its tree and giving every leaf a Huffman code word; Theorem 3.4 states
the length that this has in expectation. All lengths are in bits.
"""

import dataclasses
import heapq
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float, Int

from elastic_jax.errors import UserError
from elastic_jax.theory.tree import Tree

Reading = Literal["all", "eos", "printed"]


@dataclasses.dataclass(frozen=True)
class CodeLength:
    """What a path of the pruned tree takes, in bits.

    Attributes:
      entropy: - sum p log2 p over the leaves of the reading.
      huffman: mean length of a code word; entropy <= huffman < entropy + 1, but for the reading "printed", whose terms are not those
        of a distribution.
      ideal: the entropy rounded up, as Theorem 3.4 has it.
      leaves: with a positive mass.
      mass: share of all paths that these leaves hold; 1 unless only EOS leaves count.
    """

    entropy: float
    huffman: float
    ideal: int
    leaves: int
    mass: float


def entropy(p: Float[np.ndarray, " m"]) -> float:
    """- sum p log2 p, in bits; 0 log 0 is 0."""
    p = np.asarray(p, np.float64)
    return -float(np.sum(p * np.log2(p, where=p > 0, out=np.zeros_like(p)))) + 0.0


def code_length(tree: Tree, reading: Reading = "all", data_set: int | None = None) -> CodeLength:
    """Length of one path of the pruned tree: a response, a block or a window, as the tree was cut.

    Args:
      reading: the formula of Theorem 3.4 runs over "the leaf (EOS) of the j-th node of layer l" and leaves open what becomes of the
        responses that are cut. "all": truncated nodes are leaves as well; this is a distribution and can be coded. "eos": EOS leaves
        alone, their masses divided by their sum. "printed": the sum as it is printed, over EOS leaves with their masses undivided: the
        terms of the truncated nodes are missing from it.
      data_set: one of a tree of several; None: all of them together.

    Raises:
      UserError: an unknown reading, or EOS leaves are asked for and every response is longer than the tree is deep.
    """
    if reading not in get_args(Reading):
        raise UserError(f"reading={reading!r}: expected one of {', '.join(get_args(Reading))}.")
    counts = tree.counts.sum(axis=0) if data_set is None else tree.counts[data_set]
    total = int(counts.sum())
    if reading != "all":
        counts = counts[tree.ended]
    counts = counts[counts > 0]
    held = int(counts.sum())
    if not held:
        raise UserError(
            f"reading={reading!r}: no response ends within depth {tree.depth}. Grow a deeper tree, or read all leaves."
        )
    bits = entropy(counts / (total if reading == "printed" else held))
    huffman = mean_length(counts) * (held / total if reading == "printed" else 1.0)
    return CodeLength(bits, huffman, _ceil(bits), len(counts), held / total)


def ideal_code_length(symbols: int, depth: int, entropy: float) -> int:
    """Theorem 3.4: E[L(x)] = ceil(|x| / d) * ceil(H), in bits.

    A response of |x| `symbols`, EOS counted, is cut into blocks of `depth` symbols, and each takes ceil(H). With H over all leaves this
    is right within one bit for each block, since a Huffman code has H <= E[L] < H + 1.

    >>> ideal_code_length(20, 8, 6.47)
    21
    """
    if symbols < 1 or depth < 1 or not entropy >= 0:
        raise UserError(f"symbols={symbols}, depth={depth}, entropy={entropy}: expected 1, 1 and 0 or more.")
    return -(-symbols // depth) * _ceil(entropy)


def _ceil(bits: float) -> int:
    """A sum of logarithms that is a whole number but for its rounding is not rounded up."""
    nearest = round(bits)
    return nearest if math.isclose(bits, nearest, rel_tol=1e-12, abs_tol=1e-12) else math.ceil(bits)


def mean_length(weights: Any) -> float:
    """Mean length of a Huffman code for these weights, in bits: the weights of all inner nodes over that of the root."""
    values, counts = np.unique(_positive(weights), return_counts=True)
    merges = _huffman(values, counts)
    return sum(merge.weight * merge.count for merge in merges) / merges[-1].weight if merges else 0.0


def huffman_lengths(weights: Any) -> Int[np.ndarray, " m"]:
    """Length of the Huffman code word of every leaf, in bits.

    Equal weights are merged together, so that the work grows with the number of *different* weights: ten million leaves, most of
    which occur once or twice, take as long as some thousand.

    Args:
      weights: positive counts, exact however large, or masses.

    Raises:
      UserError: no weights, or one that is not positive: what never occurs has no code word.

    >>> huffman_lengths([5, 2, 1, 1]).tolist()
    [1, 2, 3, 3]
    """
    weights = _positive(weights)
    values, which, counts = np.unique(weights, return_inverse=True, return_counts=True)
    merges = _huffman(values, counts)
    # How many nodes of a pool lie at which depth; from the root down, since parents were made after their children.
    depths: list[Counter[int]] = [Counter() for _ in range(len(values) + len(merges))]
    depths[-1][0] = 1
    for number, merge in zip(range(len(depths) - 1, len(values) - 1, -1), reversed(merges), strict=True):
        for child in merge.children:
            for depth, count in depths[number].items():
                depths[child][depth + 1] += count
    found = [np.repeat(list(at), list(at.values())) for at in depths[: len(values)]]
    lengths = np.empty(len(weights), np.int64)
    lengths[np.argsort(which.reshape(-1), kind="stable")] = np.concatenate(found)
    return lengths


class _Merge(NamedTuple):
    """A pool of `count` inner nodes of equal weight, each with one child from either pool of `children`.

    Pools are numbered: first those of the leaves, one for each value, then the merges in their order.
    """

    weight: Any
    count: int
    children: tuple[int, int]


def _huffman(values: np.ndarray, counts: np.ndarray) -> list[_Merge]:
    """Huffman's algorithm on pools of equal weights; the last merge is the root, and a single leaf needs none.

    While two nodes of the least weight are left, they are what Huffman merges next: the whole pool is paired up at once.
    """
    merges: list[_Merge] = []
    heap = [
        (value, number, count)
        for number, (value, count) in enumerate(zip(values.tolist(), counts.tolist(), strict=True))
    ]

    def merge(weight: Any, count: int, first: int, second: int) -> None:
        heapq.heappush(heap, (weight, len(values) + len(merges), count))
        merges.append(_Merge(weight, count, (first, second)))

    while True:
        weight, pool, count = heapq.heappop(heap)
        if count > 1:
            if count % 2:
                heapq.heappush(heap, (weight, pool, 1))
            merge(2 * weight, count // 2, pool, pool)
        elif heap:
            other, second, left = heapq.heappop(heap)
            if left > 1:
                heapq.heappush(heap, (other, second, left - 1))
            merge(weight + other, 1, pool, second)
        else:
            return merges


def _positive(weights: Any) -> np.ndarray:
    weights = np.asarray(weights)
    if weights.ndim != 1 or not weights.size or not (weights > 0).all():
        raise UserError("weights: expected one positive number for each leaf; drop the leaves that never occur.")
    return weights


def code_words(lengths: Sequence[int] | Int[np.ndarray, " m"]) -> list[str]:
    """The canonical prefix code with these lengths, as strings of 0 and 1.

    Raises:
      UserError: no prefix code has such lengths (Kraft's inequality).

    >>> code_words([1, 2, 3, 3])
    ['0', '10', '110', '111']
    """
    words = [""] * len(lengths)
    code = last = 0
    for leaf in sorted(range(len(lengths)), key=lambda leaf: (lengths[leaf], leaf)):
        length = int(lengths[leaf])
        code <<= length - last
        last = length
        if code >> length:
            raise UserError("lengths: no prefix code has these; sum of 2**-length is above 1.")
        words[leaf] = format(code, f"0{length}b") if length else ""
        code += 1
    return words
