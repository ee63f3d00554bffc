"""Which responses begin alike, and how often does each beginning occur?

The token tree of a data set (paper, Definition 3.1) has a node for every beginning of a response and a leaf for every end: a
response of n tokens is a path of n + 1 symbols, the last of them EOS. Pruned at depth d (Definition 3.3) it keeps the first d
symbols of each path. So it has two kinds of leaves: *EOS leaves*, of responses that end within d symbols, and *truncated* ones,
where longer responses were cut.

The tree is stored as its leaves in lexicographic order, each with the number of symbols that it shares with the one before; every
layer can be read off that. They are sorted symbol by symbol, and only where responses are still alike: one radix pass per layer.
"""

import dataclasses
from collections.abc import Hashable, Sequence
from functools import cached_property
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Int

from elastic_jax.errors import UserError
from elastic_jax.theory.corpus import EOS, Corpus

Cut = Literal["documents", "blocks", "windows"]


@dataclasses.dataclass(frozen=True)
class Layer:
    """The nodes whose beginnings have `depth` tokens, in lexicographic order; layer 0 is the root.

    `weights` counts the responses through each node, `ends` those that end there (the weight of its EOS leaf), for every data
    set; `parents` is each node's parent in the layer above.
    """

    depth: int
    weights: Int[np.ndarray, "s n"]
    ends: Int[np.ndarray, "s n"]
    parents: Int[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True, eq=False)
class Tree:
    """The token tree of one or several data sets, pruned. `grow` makes one.

    Shapes: s data sets, m leaves.

    Attributes:
      symbols: the stream that the leaves are read from.
      depth: the most symbols of a path, EOS counted.
      cut: what a response is; see `grow`.
      alphabet, names: of the corpora.
      begins: where in `symbols` each leaf's path can be read.
      spans: symbols on it, EOS counted.
      ended: EOS leaves; the others are truncated nodes.
      shared: symbols that a leaf's path has in common with the path before.
      counts: responses that end in a leaf, or were cut there, for each data set.
    """

    symbols: Int[np.ndarray, " n"]
    depth: int
    cut: Cut
    alphabet: int
    names: tuple[Hashable, ...]
    begins: Int[np.ndarray, " m"]
    spans: Int[np.ndarray, " m"]
    ended: Bool[np.ndarray, " m"]
    shared: Int[np.ndarray, " m"]
    counts: Int[np.ndarray, "s m"]

    @property
    def leaves(self) -> int:
        """Leaves of the pruned tree of all data sets."""
        return len(self.begins)

    @cached_property
    def sizes(self) -> Int[np.ndarray, " s"]:
        """|D_i|: how many responses each data set has, in the sense of `cut`."""
        return self.counts.sum(axis=1)

    def masses(self, number: int | None = None) -> Float[np.ndarray, " m"]:
        """Probability of every leaf in one data set, or in all of them together: p_lj of the paper."""
        counts = self.counts.sum(axis=0) if number is None else self.counts[number]
        return counts / counts.sum()

    def path(self, leaf: int) -> tuple[Hashable, ...]:
        """The tokens from the root to a leaf, without EOS."""
        begin = int(self.begins[leaf])
        tokens = self.symbols[begin : begin + int(self.spans[leaf]) - bool(self.ended[leaf])] - 1
        return tuple(self.names[t] for t in tokens) if self.names else tuple(int(t) for t in tokens)

    def layer(self, depth: int) -> Layer:
        """The nodes below `depth` tokens, for depth 0 (the root) to the tree's own, whose nodes are the truncated leaves.

        Raises:
          UserError: a depth that the tree does not have.
        """
        if not 0 <= depth <= self.depth:
            raise UserError(f"depth={depth}: the tree has layers 0 to {self.depth}.")
        above, _ = self._nodes(max(depth - 1, 0))
        nodes, first = self._nodes(depth)
        ends = np.where(self.ended & (self.spans == depth + 1), self.counts, 0)
        return Layer(depth, _sums(self.counts, nodes, len(first)), _sums(ends, nodes, len(first)), above[first])

    def _nodes(self, depth: int) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " n"]]:
        """The node that each leaf's path goes through at `depth` (-1: it ended before), and a leaf of each node."""
        # A response that has ended shares less than `depth` symbols with both neighbours: it is a group of its own.
        begins = self.shared < depth
        begins[0] = True
        alive = ~self.ended | (self.spans > depth)
        number = np.cumsum(begins & alive) - 1
        return np.where(alive, number, -1), np.flatnonzero(begins & alive)

    def prune(self, depth: int) -> "Tree":
        """The same tree cut nearer to the root.

        Raises:
          UserError: a depth that it does not have, or a tree of blocks: other depths make other blocks.
        """
        if not 1 <= depth <= self.depth:
            raise UserError(f"depth={depth}: a tree of depth {self.depth} can be pruned at 1 to {self.depth}.")
        if self.cut == "blocks" and depth != self.depth:
            raise UserError(f"depth={depth}: blocks were cut for depth {self.depth}; grow a tree for each depth.")
        begins = self.shared < depth
        begins[0] = True
        first = np.flatnonzero(begins)
        spans = np.minimum(self.spans[first], depth)
        return dataclasses.replace(
            self,
            depth=depth,
            begins=self.begins[first],
            spans=spans,
            ended=self.ended[first] & (self.spans[first] <= depth),
            shared=np.minimum(self.shared[first], depth),
            counts=np.add.reduceat(self.counts, first, axis=1),
        )


def grow(corpora: Corpus | Sequence[Corpus], depth: int, cut: Cut = "documents") -> Tree:
    """The token tree of one data set, or of several that are compressed together, pruned at `depth`.

    Args:
      corpora: one alphabet for all of them.
      depth: d, in symbols of which EOS is one: a response of d - 1 tokens is the longest that is not truncated.
      cut: what is put into the tree. "documents": the beginning of every response (Definition 3.1). "blocks": every response cut
        into ceil(|x| / d) pieces of d symbols, as Theorem 3.4 codes it, |x| counting EOS. "windows": the d symbols from every
        position on, so that depth 1 holds the frequencies of tokens and depth d those of n-grams (for the mass distribution).

    Raises:
      UserError: a depth below 1, an unknown cut, no corpus, or different alphabets.

    >>> tree = grow(Corpus.from_sequences(["01", "01", "0", "110"]), depth=2)
    >>> [(tree.path(leaf), bool(tree.ended[leaf]), int(tree.counts[0, leaf])) for leaf in range(tree.leaves)]
    [(('0',), True, 1), (('0', '1'), False, 2), (('1', '1'), False, 1)]
    """
    corpora = [corpora] if isinstance(corpora, Corpus) else list(corpora)
    if not corpora:
        raise UserError("corpora: at least one data set is needed.")
    if depth < 1:
        raise UserError(f"depth={depth}: expected 1 or more.")
    if cut not in get_args(Cut):
        raise UserError(f"cut={cut!r}: expected one of {', '.join(get_args(Cut))}.")
    if len({corpus.names for corpus in corpora}) > 1:
        raise UserError("corpora: the data sets have different alphabets. Give all of them the same `alphabet`.")
    alphabet = max(corpus.alphabet for corpus in corpora)
    symbols = corpora[0].symbols if len(corpora) == 1 else np.concatenate([corpus.symbols for corpus in corpora])
    ends = np.flatnonzero(symbols == EOS)
    starts = _starts(symbols, ends, depth, cut)
    borders = np.cumsum([len(corpus.symbols) for corpus in corpora])
    order, shared = _sort(symbols, starts, depth, alphabet)
    first = np.flatnonzero(shared < depth)
    begins = order[first]
    # To the end of the response, which is included.
    whole = ends[np.searchsorted(ends, begins)] - begins + 1
    spans = np.minimum(whole, depth).astype(np.int32)
    return Tree(
        symbols=symbols,
        depth=depth,
        cut=cut,
        alphabet=alphabet,
        names=corpora[0].names,
        begins=begins,
        spans=spans,
        ended=whole <= depth,
        shared=np.append(0, shared[first[1:]]).astype(np.int32),
        counts=_counts(order, first, borders),
    )


def _starts(symbols: np.ndarray, ends: np.ndarray, depth: int, cut: Cut) -> Int[np.ndarray, " k"]:
    """Where the paths begin."""
    if cut == "windows":
        return np.arange(len(symbols))
    documents = np.append(0, ends[:-1] + 1)
    if cut == "documents":
        return documents
    blocks = -(-(ends - documents + 1) // depth)
    within = np.arange(blocks.sum()) - np.repeat(np.cumsum(blocks) - blocks, blocks)
    return np.repeat(documents, blocks) + depth * within


def _sort(
    symbols: np.ndarray, starts: np.ndarray, depth: int, alphabet: int
) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"]]:
    """Paths in lexicographic order, and the symbols that each shares with the one before it; `depth` where both are the same leaf.

    Groups of paths that agree so far are split by their next symbol, layer by layer; one that stands alone, or has ended, is done.
    """
    order = starts.copy()
    shared = np.full(len(order), depth, np.min_scalar_type(depth))
    shared[0] = 0
    places = np.arange(len(order))  # in `order`, of the paths that are still in a group
    group = np.zeros(len(order), np.int64)
    groups = 1
    for layer in range(depth):
        here = order[places]
        next_symbol = symbols[here + layer]
        by = _argsort(group, groups, next_symbol, alphabet + 1)
        next_symbol = next_symbol[by]
        order[places] = here[by]
        same_group = group[1:] == group[:-1]
        splits = same_group & (next_symbol[1:] != next_symbol[:-1])
        shared[places[1:][splits]] = layer
        runs = np.flatnonzero(np.concatenate([[True], splits | ~same_group]))
        sizes = np.diff(np.append(runs, len(places)))
        going_on = (sizes > 1) & (next_symbol[runs] != EOS)
        stays = np.repeat(going_on, sizes)
        places = places[stays]
        if not len(places):
            break
        groups = int(np.count_nonzero(going_on))
        group = np.repeat(np.arange(groups), sizes[going_on])
    return order, shared


def _argsort(group: np.ndarray, groups: int, symbol: np.ndarray, alphabet: int) -> Int[np.ndarray, " k"]:
    """Stable order by group and then by symbol; groups are in order already."""
    key = group * alphabet + symbol
    bits = (len(key) - 1).bit_length()
    if (groups * alphabet - 1).bit_length() + bits > 63:
        return np.argsort(key, kind="stable")
    # Values sort several times faster than an argsort does; the place rides in the low bits.
    packed = (key << bits) | np.arange(len(key))
    packed.sort()
    return packed & ((1 << bits) - 1)


def _counts(order: np.ndarray, first: np.ndarray, borders: np.ndarray) -> Int[np.ndarray, "s m"]:
    """Paths in every leaf, for each data set; `borders` are the ends of the data sets in the stream."""
    if len(borders) == 1:
        return np.diff(np.append(first, len(order)))[None]
    number = np.searchsorted(borders, order, side="right")
    return np.stack([np.add.reduceat((number == s).astype(np.int64), first) for s in range(len(borders))])


def _sums(values: np.ndarray, group: np.ndarray, groups: int) -> Int[np.ndarray, "s g"]:
    """Sums over the members of each group; -1 belongs to none."""
    inside = group >= 0
    out = np.zeros((len(values), groups), np.int64)
    for row, counts in zip(out, values, strict=True):
        np.add.at(row, group[inside], counts[inside])
    return out
