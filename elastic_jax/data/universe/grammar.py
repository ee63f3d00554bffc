"""How does a grammar with hidden facts become an automaton that a text can take in only one way?

A grammar is an expression: a sequence of words and choices. Its weights are vectors over the Z values of the
latents, so one expression describes all of p(. | z). Reading a word turns an expression into what may follow
it, its derivative; alternatives that begin alike are kept together as one weighted choice until a later word
tells them apart. Expressions are then the states, and since the derivative by a word is unique the automaton
is deterministic. (Derivatives of regular expressions: Brzozowski 1964; weighted determinisation: Mohri 1997,
"Finite-state transducers in language and speech processing".)
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Union

import numpy as np

from elastic_jax.data.universe.automaton import EOS, PAD, Automaton

Expr = tuple[Union[str, "Choice"], ...]
Part = Union[str, "Choice", Expr]


@dataclasses.dataclass(frozen=True, eq=False)
class Choice:
    """One of several expressions. `weights` [options, Z] sums to one over the options for every z."""

    options: tuple[Expr, ...]
    weights: np.ndarray


def seq(*parts: Part) -> Expr:
    """Parts one after another; a string stands for the words it separates by spaces."""
    items: list[str | Choice] = []
    for part in parts:
        if isinstance(part, str):
            items += part.split()
        elif isinstance(part, Choice):
            items.append(part)
        else:
            items += part
    return tuple(items)


class Grammar:
    """Builds choices whose weights may depend on z: a weight is a number or an array [Z]."""

    def __init__(self, size: int):
        self.size = size

    def choose(self, options: Iterable[tuple[Part, float | np.ndarray]]) -> Choice:
        """One of the options, with probability proportional to its weight.

        Where every weight is zero for some z, the choice cannot be met under that z and is made uniform, so
        that every state of the automaton is normalised for every z.
        """
        parts, raw = zip(*options, strict=True)
        weights = np.stack([np.broadcast_to(np.asarray(w, np.float64), (self.size,)) for w in raw])
        return Choice(tuple(seq(p) for p in parts), _normalised(weights))

    def pick(self, table: Mapping[str, float | np.ndarray]) -> Choice:
        """One of the words or phrases of a table."""
        return self.choose(list(table.items()))

    def maybe(self, probability: float | np.ndarray, *parts: Part) -> Choice:
        """The parts with a probability, nothing otherwise."""
        probability = np.asarray(probability, np.float64)
        return self.choose([(seq(*parts), probability), ((), 1 - probability)])

    def compile(self, root: Expr) -> Automaton:
        """The deterministic automaton of an expression."""
        return _Compiler(self.size).compile(root)


def _normalised(weights: np.ndarray) -> np.ndarray:
    total = weights.sum(0)
    return np.where(total > 0, weights / np.where(total > 0, total, 1), 1 / len(weights))


class _Compiler:
    def __init__(self, size: int):
        self.ones = np.ones(size)
        self.edges: list[list[tuple[str, int, np.ndarray]]] = [[]]  # state 0: after the end
        self.states: dict[Expr, int] = {}
        self.merged: dict[tuple, Choice] = {}

    def compile(self, root: Expr) -> Automaton:
        self._visit(root)
        words = sorted({word for edges in self.edges for word, _, _ in edges} - {EOS})
        vocab = (PAD, EOS, *words)
        ids = {word: i for i, word in enumerate(vocab)}
        flat = [edge for edges in self.edges for edge in edges]
        return Automaton(
            vocab=vocab,
            edge_start=np.cumsum([0] + [len(edges) for edges in self.edges]),
            edge_word=np.array([ids[word] for word, _, _ in flat]),
            edge_target=np.array([target for _, target, _ in flat]),
            edge_prob=np.stack([weight for _, _, weight in flat]),
        )

    def _visit(self, expr: Expr) -> int:
        """The state of `expr`, numbered after its targets. The recursion is as deep as a text is long."""
        if expr in self.states:
            return self.states[expr]
        by_word: dict[str, dict[Expr, np.ndarray]] = {}
        for word, rest, weight in self._first(expr, self.ones):
            rests = by_word.setdefault(word, {})
            rests[rest] = rests[rest] + weight if rest in rests else weight
        edges = []
        for word, rests in by_word.items():
            target = 0 if word == EOS else self._visit(self._merge(rests))
            edges.append((word, target, np.sum(list(rests.values()), axis=0)))
        self.edges.append(edges)
        self.states[expr] = len(self.edges) - 1
        return self.states[expr]

    def _first(self, expr: Expr, weight: np.ndarray) -> list[tuple[str, Expr, np.ndarray]]:
        """Every (first word, what follows it, weight [Z]) of an expression; the empty one ends the text."""
        if not expr:
            return [(EOS, (), weight)]
        head, rest = expr[0], expr[1:]
        if isinstance(head, str):
            return [(head, rest, weight)]
        return [
            first
            for option, w in zip(head.options, head.weights, strict=True)
            for first in self._first(option + rest, weight * w)
        ]

    def _merge(self, rests: dict[Expr, np.ndarray]) -> Expr:
        if len(rests) == 1:
            return next(iter(rests))
        weights = _normalised(np.stack(list(rests.values())))
        key = (*rests, weights.tobytes())
        if key not in self.merged:
            self.merged[key] = Choice(tuple(rests), weights)
        return (self.merged[key],)
