"""What is a data set to the token tree: responses over some alphabet, one after the other?"""

import dataclasses
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from elastic_jax.errors import UserError

EOS = 0  # the symbol that ends a response; token number t is the symbol t + 1


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """Responses as one stream of symbols. Make one with `from_stream` or `from_sequences`.

    Attributes:
      symbols: int32; every response is followed by `EOS`, its tokens are numbered from 1.
      alphabet: how many different tokens there may be, `EOS` not counted.
      names: what the tokens are, where they are no numbers; else ().
    """

    symbols: Int[np.ndarray, " n"]
    alphabet: int
    names: tuple[Hashable, ...] = ()

    def __len__(self) -> int:
        """Number of responses."""
        return int(np.count_nonzero(self.symbols == EOS))

    @classmethod
    def from_stream(
        cls,
        tokens: Any,
        *,
        eos: int | None = None,
        drop: Iterable[int] = (),
        alphabet: int | None = None,
        keep_empty: bool = False,
    ) -> "Corpus":
        """Responses from a flat stream of token numbers, or from rows of them.

        Args:
          tokens: integers from 0; an array of several dims is read row by row. The end of the stream ends a response.
          eos: the number that ends a response, and may begin one; None: the whole stream is one response.
          drop: numbers that stand for nothing, such as padding.
          alphabet: number of tokens, if more than occur.
          keep_empty: whether two `eos` in a row enclose a response without tokens. Rows that begin with `eos` do not mean one.

        Raises:
          UserError: no token, a number below 0 or not below `alphabet`, or not integers.
        """
        stream = np.asarray(tokens).reshape(-1)
        if stream.size and stream.dtype.kind not in "iu":
            raise UserError(f"tokens: expected integers, given {stream.dtype}. Text goes to Corpus.from_sequences.")
        for number in drop:
            stream = stream[stream != number]
        if not stream.size or (eos is not None and not keep_empty and (stream == eos).all()):
            raise UserError("tokens: there is no response in the stream.")
        lowest, highest = int(stream.min()), int(stream.max())
        size = highest + 1 if alphabet is None else alphabet
        if lowest < 0 or highest >= size or size >= np.iinfo(np.int32).max:
            raise UserError(f"tokens: numbers from {lowest} to {highest}; expected 0 to {size - 1}.")
        symbols = stream.astype(np.int32) + np.int32(1)
        if eos is not None:
            symbols[stream == eos] = EOS
        if symbols[-1] != EOS:
            symbols = np.append(symbols, np.int32(EOS))
        if eos is not None and not keep_empty:
            ends = symbols == EOS
            symbols = symbols[~(ends & np.append(True, ends[:-1]))]
        return cls(symbols, size)

    @classmethod
    def from_sequences(
        cls, sequences: Iterable[Sequence[Hashable]], alphabet: Iterable[Hashable] | int | None = None
    ) -> "Corpus":
        """Responses from sequences over any alphabet: strings of bits, tuples of words, lists of numbers.

        Args:
          alphabet: all tokens in their order, or how many numbers there are. By default those that occur, in the order of their
            first occurrence; data sets that are compressed together need the same one.

        Raises:
          UserError: no sequence, a token that is not in the alphabet, or one that is named twice.
        """
        rows = [tuple(sequence) for sequence in sequences]
        if not rows:
            raise UserError("sequences: there is no response.")
        if isinstance(alphabet, int):
            names, count = (), alphabet
            numbers: dict[Hashable, int] = {number: number for number in range(alphabet)}
        else:
            names = (
                tuple(dict.fromkeys(token for row in rows for token in row)) if alphabet is None else tuple(alphabet)
            )
            count = len(names)
            numbers = {name: number for number, name in enumerate(names)}
            if len(numbers) != count:
                raise UserError(f"alphabet: {count} names for {len(numbers)} different tokens; each is named once.")
        try:
            stream = [symbol for row in rows for symbol in (*(numbers[token] + 1 for token in row), EOS)]
        except KeyError as error:
            raise UserError(f"sequences: {error.args[0]!r} is not in the alphabet of {count} tokens.") from None
        return cls(np.array(stream, np.int32), count, names)
