"""Where in a row of tokens does a stop string begin?

Strings are looked for in the text of the tokens, on the host, between two calls of the device. A string is spelled by tokens in many
ways, and the text of a token depends on its neighbours (spaces, characters of several bytes), so that the tokenizer's `decode` is
the only thing that knows; the price is that a row may write on to the end of a call, which is then thrown away.
"""

import dataclasses
from collections.abc import Sequence

from elastic_jax.data.tokenizers import Tokenizer
from elastic_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Cut:
    """Where a row ends because of a stop string.

    Attributes:
      tokens: how many of its tokens remain: as many as spell nothing of the string.
      text: everything before the string; longer than the text of `tokens` where the string begins inside of a token.
    """

    tokens: int
    text: str


@dataclasses.dataclass(frozen=True)
class Stops:
    """Strings that end a row. Special tokens have no text: they belong into `eos`."""

    strings: tuple[str, ...]
    tokenizer: Tokenizer

    def __post_init__(self):
        if not all(isinstance(string, str) and string for string in self.strings):
            raise UserError(f"stop={list(self.strings)!r}: expected texts of at least one character.")

    def find(self, rows: Sequence[Sequence[int]], known: Sequence[int]) -> list[Cut | None]:
        """For each row the stop string that its tokens complete first, or None.

        Args:
          known: how many tokens at the beginning of each row hold no stop string.
        """
        texts = self.tokenizer.decode(rows)
        return [
            None if self._first(text) is None else self._cut(row, count)
            for row, text, count in zip(rows, texts, known, strict=True)
        ]

    def _first(self, text: str) -> int | None:
        places = [place for place in map(text.find, self.strings) if place >= 0]
        return min(places, default=None)

    def _cut(self, row: Sequence[int], known: int) -> Cut:
        prefixes = self.tokenizer.decode([row[:end] for end in range(len(row) + 1)])
        # The text of a prefix may end in half a character, which the next token completes: the last resort is the whole row.
        end = next((end for end in range(known, len(row) + 1) if self._first(prefixes[end]) is not None), len(row))
        place = self._first(prefixes[end])
        assert place is not None
        text = prefixes[end][:place]
        kept = max(n for n in range(end + 1) if text.startswith(prefixes[n]))
        return Cut(kept, text)
