"""How do whole-number frequencies become bits, and bits the symbols again?

rANS (Duda, arXiv 1311.2540): a state x takes a symbol with the share f / 2^precision of all slots to x 2^precision / f, so that it grows
by the symbol's information; what no longer fits goes out in words of 32 bits. It is a stack: encoding runs backwards, decoding
forwards. Several states take turns (Giesen, arXiv 1402.3392) on one stream of words, which makes each turn one operation on arrays and
costs a state of 64 bits each.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, UInt64

_LOW = np.uint64(1 << 31)  # states lie between this and 2^63
_WORD = np.uint64(32)
_MASK = np.uint64(0xFFFFFFFF)
STATE_BYTES = 8


class Exhausted(Exception):
    """More symbols were asked for than the stream holds."""


@dataclasses.dataclass(frozen=True, eq=False)
class Round:
    """Symbols that are coded in one turn, one by each of the first states: their first slots and their numbers of slots."""

    starts: Int[np.ndarray, " k"]
    sizes: Int[np.ndarray, " k"]


def turns(count: int, states: int) -> list[slice]:
    """How `count` symbols that are known together are shared out among `states`."""
    return [slice(begin, min(begin + states, count)) for begin in range(0, count, states)]


def encode(rounds: Sequence[Round], states: int, precision: int) -> bytes:
    """Code symbols in the order of the rounds.

    Args:
      rounds: each of at most `states` symbols; all sizes at least 1.
      precision: all slots are 2^precision, at most 2^31.
    """
    x = np.full(states, _LOW, np.uint64)
    bits = np.uint64(precision)
    words: list[np.ndarray] = []
    for turn in reversed(rounds):
        k = len(turn.sizes)
        now, f = x[:k], turn.sizes.astype(np.uint64)
        full = now >= ((_LOW >> bits) << _WORD) * f
        # Read forwards by the decoder: the last state that gives a word is the first to be written here.
        words.append((now[full] & _MASK).astype("<u4")[::-1])
        now = np.where(full, now >> _WORD, now)
        x[:k] = ((now // f) << bits) + now % f + turn.starts.astype(np.uint64)
    stream = np.concatenate(words)[::-1] if words else np.empty(0, "<u4")
    return x.astype("<u8").tobytes() + stream.astype("<u4").tobytes()


class Decoder:
    """Gives the slots of one round after the other; `advance` has to be told which symbols they were."""

    def __init__(self, stream: bytes, states: int, precision: int):
        """Raises Exhausted for a stream that is shorter than its states or not of whole words."""
        if len(stream) < STATE_BYTES * states or len(stream) % 4:
            raise Exhausted
        self._x: UInt64[np.ndarray, " states"] = np.frombuffer(stream, "<u8", states).astype(np.uint64)
        self._words = np.frombuffer(stream, "<u4", offset=STATE_BYTES * states)
        self._next = 0
        self._bits, self._slots = np.uint64(precision), np.uint64((1 << precision) - 1)

    def slots(self, k: int) -> Int[np.ndarray, " k"]:
        """The slot that each of the first k states points to."""
        return (self._x[:k] & self._slots).astype(np.int64)

    def advance(self, turn: Round) -> None:
        """Take the symbols off the states. Raises Exhausted where the stream ends before its symbols do."""
        k = len(turn.sizes)
        now = self._x[:k]
        now = turn.sizes.astype(np.uint64) * (now >> self._bits) + (now & self._slots) - turn.starts.astype(np.uint64)
        empty = now < _LOW
        needed = int(np.count_nonzero(empty))
        if self._next + needed > len(self._words):
            raise Exhausted
        now[empty] = (now[empty] << _WORD) | self._words[self._next : self._next + needed].astype(np.uint64)
        self._next += needed
        self._x[:k] = now

    @property
    def is_spent(self) -> bool:
        """Whether every word was read and every state is where encoding began, as after the last symbol."""
        return self._next == len(self._words) and bool((self._x == _LOW).all())
