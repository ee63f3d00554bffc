"""What is the probability of a text, given everything hidden?

One deterministic automaton serves every value of the latents: which path a text takes never depends on z, how
likely each step is does. The arrays have one row per edge; an edge labelled `<eos>` ends the text.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from elastic_jax.errors import UserError

PAD, EOS = "<pad>", "<eos>"
EOS_ID = 1
UNKNOWN = -1  # a word outside the vocabulary


@dataclasses.dataclass(frozen=True, eq=False)
class Automaton:
    """A word-labelled acyclic automaton with transition probabilities for each of Z latents.

    States are numbered so that every edge leads to a smaller number: 0 is the end, the largest is the start.

    Attributes:
      vocab: `<pad>`, `<eos>`, then the words in alphabetical order.
      edge_start: [states + 1]; the edges of state s are `edge_start[s] : edge_start[s + 1]`.
      edge_word: [edges] word id. edge_target: [edges] state.
      edge_prob: [edges, Z] p(edge | state, z); sums to one over the edges of a state for every z.
    """

    vocab: tuple[str, ...]
    edge_start: np.ndarray
    edge_word: np.ndarray
    edge_target: np.ndarray
    edge_prob: np.ndarray

    @property
    def states(self) -> int:
        return len(self.edge_start) - 1

    @property
    def start(self) -> int:
        return self.states - 1

    @property
    def latents(self) -> int:
        return self.edge_prob.shape[1]

    @functools.cached_property
    def ids(self) -> dict[str, int]:
        """Word to id, the specials left out: they are not words of a text."""
        return {word: i for i, word in enumerate(self.vocab) if i > EOS_ID}

    @functools.cached_property
    def edge_logp(self) -> np.ndarray:
        """[edges + 1, Z] nats; the last row, -inf, stands for "no such edge"."""
        with np.errstate(divide="ignore"):
            logp = np.log(self.edge_prob)
        return np.concatenate([logp, np.full((1, self.latents), -np.inf)])

    @functools.cached_property
    def _edge_of(self) -> np.ndarray:
        """[states, V + 1] edge of a state and a word, `edges` if there is none; last column: UNKNOWN."""
        table = np.full((self.states, len(self.vocab) + 1), len(self.edge_word), np.int32)
        source = np.repeat(np.arange(self.states), np.diff(self.edge_start))
        table[source, self.edge_word] = np.arange(len(self.edge_word))
        return table

    @functools.cached_property
    def _target_of(self) -> np.ndarray:
        """[edges + 1] target state; after a missing edge the end, from which no word leads on."""
        return np.append(self.edge_target, 0)

    # -- reading texts ---------------------------------------------------------------------------------------

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Word ids [n, T], UNKNOWN past the end and for words not in the vocabulary, and lengths [n]."""
        get = self.ids.get
        rows = [[get(word, UNKNOWN) for word in text.split()] for text in texts]
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        words = np.full((len(rows), int(lengths.max(initial=0))), UNKNOWN, np.int64)
        words[np.arange(words.shape[1]) < lengths[:, None]] = [i for row in rows for i in row]
        return words, lengths

    def path(self, words: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Edges [n, T] taken by the words (`edges` once there is none), and the state [n] reached."""
        state = np.full(len(words), self.start)
        edges = np.full(words.shape, len(self.edge_word), np.int64)
        for t in range(words.shape[1]):
            on = t < lengths
            edges[:, t] = np.where(on, self._edge_of[state, words[:, t]], len(self.edge_word))
            state = np.where(on, self._target_of[edges[:, t]], state)
        return edges, state

    def path_logp(self, edges: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """log p(words | z), float64 [n, Z] nats, the end of the text left open."""
        total = np.zeros((len(edges), self.latents))
        for t in range(edges.shape[1]):
            on = np.flatnonzero(t < lengths)
            total[on] += self.edge_logp[edges[on, t]]
        return total

    def end_logp(self, state: np.ndarray) -> np.ndarray:
        """log p(the text ends here | state, z), float64 [n, Z] nats."""
        return self.edge_logp[self._edge_of[state, EOS_ID]]

    # -- writing texts ---------------------------------------------------------------------------------------

    def walk(self, state: np.ndarray, z: np.ndarray, uniforms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Follows random edges to the end, by inversion of one uniform number per step.

        Args:
          state: [n] where each text stands. z: [n] its latents. uniforms: [n, T] in [0, 1).

        Returns:
          Word ids [n, T], 0 from the end on (the `<eos>` is not written), and the number of words [n].
        """
        keys, row_start = self._inversion
        degree = np.diff(self.edge_start)
        words = np.zeros(uniforms.shape, np.int64)
        lengths = np.zeros(len(state), np.int64)
        alive = np.arange(len(state))
        for t in range(uniforms.shape[1]):
            row = state * self.latents + z
            # The sum may round up to row + 1, which belongs to the next row.
            query = np.minimum(row + uniforms[alive, t], np.nextafter(row + 1.0, 0))
            found = np.searchsorted(keys, query, side="right")
            edge = self.edge_start[state] + found - (row_start[state] + z * degree[state])
            state = self.edge_target[edge]
            on = state != 0
            alive, state, z = alive[on], state[on], z[on]
            words[alive, t] = self.edge_word[edge[on]]
            lengths[alive] += 1
            if not len(alive):
                break
        return words, lengths

    @functools.cached_property
    def _inversion(self) -> tuple[np.ndarray, np.ndarray]:
        """All cumulative distributions in one increasing array, that of (s, z) shifted by row = s * Z + z."""
        keys, row_start, position = [], np.zeros(self.states, np.int64), 0
        for s in range(self.states):
            prob = self.edge_prob[self.edge_start[s] : self.edge_start[s + 1]].T
            row_start[s] = position
            position += prob.size
            if not prob.size:
                continue
            cumulative = np.cumsum(prob, axis=1)
            # Exactly 1 from the last possible edge on: rounding must not lead onto an impossible one.
            last = prob.shape[1] - 1 - np.argmax(prob[:, ::-1] > 0, axis=1)
            cumulative[np.arange(prob.shape[1]) >= last[:, None]] = 1.0
            keys.append((np.minimum(cumulative, 1.0) + (s * self.latents + np.arange(len(prob)))[:, None]).ravel())
        return np.concatenate(keys), row_start

    # -- dynamic programmes ----------------------------------------------------------------------------------

    def expected(self, cost: np.ndarray) -> np.ndarray:
        """E[sum of cost over the edges of a text | z], float64 [Z], for `cost` [edges, Z]."""
        value = np.zeros((self.states, self.latents))
        for s in range(1, self.states):
            e = slice(self.edge_start[s], self.edge_start[s + 1])
            value[s] = np.sum(self.edge_prob[e] * (cost[e] + value[self.edge_target[e]]), axis=0)
        return value[self.start]

    def entropy(self) -> np.ndarray:
        """H(X | z), float64 [Z] nats: exact, since a text is a path and a path a text."""
        logp = self.edge_logp[:-1]
        return self.expected(np.where(self.edge_prob > 0, -np.where(np.isfinite(logp), logp, 0), 0))

    def length(self) -> np.ndarray:
        """E[words + 1 | z], float64 [Z]: the final `<eos>` counts as a token."""
        return self.expected(np.ones_like(self.edge_prob))

    def visits(self) -> np.ndarray:
        """P(a text takes the edge | z), float64 [edges, Z]; the `<eos>` edges sum to one."""
        reach = np.zeros((self.states, self.latents))
        reach[self.start] = 1
        visits = np.zeros_like(self.edge_prob)
        for s in range(self.start, 0, -1):
            e = slice(self.edge_start[s], self.edge_start[s + 1])
            visits[e] = reach[s] * self.edge_prob[e]
            np.add.at(reach, self.edge_target[e], visits[e])
        return visits

    @functools.cached_property
    def max_words(self) -> int:
        """Words of the longest path."""
        longest = np.zeros(self.states, np.int64)
        for s in range(1, self.states):
            longest[s] = 1 + longest[self.edge_target[self.edge_start[s] : self.edge_start[s + 1]]].max()
        return int(longest[self.start]) - 1

    @functools.cached_property
    def paths(self) -> int:
        """Number of different texts."""
        count = [1] + [0] * (self.states - 1)
        for s in range(1, self.states):
            count[s] = sum(count[t] for t in self.edge_target[self.edge_start[s] : self.edge_start[s + 1]])
        return count[self.start]

    def enumerate(self, limit: int) -> list[str]:
        """Every text. Raises UserError if there are more than `limit`."""
        if self.paths > limit:
            raise UserError(
                f"This universe has {self.paths:.3g} texts, more than limit={limit}.\n"
                'Enumerate Universe(topics=1, size="small"), or raise the limit.'
            )
        tails: list[list[tuple[str, ...]]] = [[()]]
        for s in range(1, self.states):
            here = []
            for e in range(self.edge_start[s], self.edge_start[s + 1]):
                head = () if self.edge_word[e] == EOS_ID else (self.vocab[self.edge_word[e]],)
                here += [head + tail for tail in tails[self.edge_target[e]]]
            tails.append(here)
        return [" ".join(words) for words in tails[self.start]]
