"""What does the rest of the package ask of a tokenizer?"""

import os
from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

PAD, EOS = "<pad>", "<eos>"
SPECIALS = (PAD, EOS)
TOKENIZER_FILE, CONFIG_FILE, WORD_FILE = "tokenizer.json", "tokenizer_config.json", "words.json"
# Encoding makes objects many times the size of the text, so that many characters are encoded at once.
_CHARACTERS_AT_ONCE = 1 << 20


@runtime_checkable
class Tokenizer(Protocol):
    """Text to token numbers and back, and the numbers that mean something else than text.

    Attributes:
      vocab_size: the highest number + 1.
      bos_id: what begins every document; None where nothing does. Of our own tokenizers it is `<eos>`.
      eos_id: what ends every document.
      eos_ids: what ends an answer: `eos_id` and perhaps others, such as the end of a turn.
      pad_id: what fills a row; perhaps a number that means something elsewhere, so padding is told by masks and lengths alone.
      never: numbers that a model must not write.
      token_bytes: [vocab_size] int32, bytes of UTF-8 that each number stands for; 0 for special tokens.
      digest: equal for tokenizers that give equal numbers.
    """

    vocab_size: int
    bos_id: int | None
    eos_id: int
    eos_ids: tuple[int, ...]
    pad_id: int
    never: tuple[int, ...]
    token_bytes: np.ndarray
    digest: str

    def encode(self, texts: Sequence[str], *, continued: bool = False) -> list[list[int]]:
        """Token numbers of every text, without special tokens: what looks like one is text that somebody typed.

        Args:
          continued: the texts go on where others ended, so nothing is put before them where the tokenizer puts a blank before
            what begins.
        """
        ...

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Text of every row of token numbers; special tokens are left out."""
        ...

    def save(self, folder: str | os.PathLike) -> None:
        """Writes what `load` reads, and transformers' `AutoTokenizer`."""
        ...


def portions(texts: Sequence[str]) -> Iterator[slice]:
    """Consecutive texts, as many as are encoded at once."""
    begin = characters = 0
    for number, text in enumerate(texts):
        characters += len(text)
        if characters >= _CHARACTERS_AT_ONCE:
            yield slice(begin, number + 1)
            begin, characters = number + 1, 0
    if begin < len(texts):
        yield slice(begin, len(texts))
