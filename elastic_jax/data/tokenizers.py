"""How does text become token numbers, and how many bytes does each number stand for?"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import tokenizers as hf

from elastic_jax.data.files import write_text
from elastic_jax.errors import UserError, closest

PAD, EOS = "<pad>", "<eos>"
SPECIALS = (PAD, EOS)
_BPE_FILE, _WORD_FILE = "tokenizer.json", "words.json"
# Encoding makes objects many times the size of the text, so that many characters are encoded at once.
_CHARACTERS_AT_ONCE = 1 << 20


@runtime_checkable
class Tokenizer(Protocol):
    """What the rest of the package asks of a tokenizer. `<eos>` also begins every document."""

    vocab_size: int
    pad_id: int
    eos_id: int
    token_bytes: np.ndarray
    digest: str

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token numbers of every text, without special tokens."""
        ...

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Text of every row of token numbers; special tokens are left out."""
        ...

    def save(self, folder: str | os.PathLike) -> None:
        """Writes what `load` reads."""
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


class BpeTokenizer:
    """Byte-level byte-pair encoding: every string has an encoding, and decoding gives it back exactly."""

    pad_id = 0
    eos_id = 1

    def __init__(self, serialized: str):
        """`serialized`: the text of a `tokenizer.json` whose tokens 0 and 1 are `<pad>` and `<eos>`."""
        self._hf = hf.Tokenizer.from_str(serialized)
        # "<eos>" inside a text is five characters a person typed, not the end of the document.
        self._hf.encode_special_tokens = True
        self._serialized = serialized
        self.vocab_size = self._hf.get_vocab_size()
        tokens = [self._hf.id_to_token(index) or "" for index in range(self.vocab_size)]
        if tuple(tokens[:2]) != SPECIALS:
            raise UserError(
                f"The tokenizer has {tokens[:2]} as tokens 0 and 1; {list(SPECIALS)} were expected.\n"
                "Train it with elastic_jax.data.tokenizers.train_bpe."
            )
        # In the byte-level alphabet one character of a token stands for exactly one byte.
        self.token_bytes = np.array([0, 0] + [len(token) for token in tokens[2:]], np.int32)
        self.digest = hashlib.sha256(serialized.encode()).hexdigest()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token numbers of every text, without special tokens."""
        ids: list[list[int]] = []
        for part in portions(texts):
            encodings = self._hf.encode_batch_fast(list(texts[part]), add_special_tokens=False)
            ids.extend(encoding.ids for encoding in encodings)
        return ids

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Text of every row of token numbers; special tokens are left out.

        Bytes that do not complete a character become U+FFFD.
        """
        return self._hf.decode_batch([[int(i) for i in row] for row in ids], skip_special_tokens=True)

    def save(self, folder: str | os.PathLike) -> None:
        """Writes `tokenizer.json` in the Hugging Face format."""
        write_text(Path(folder) / _BPE_FILE, self._serialized)


class WordTokenizer:
    """A closed vocabulary of words between single spaces, as the embedded universe has it.

    `token_bytes` counts a word and the space before it.
    """

    pad_id = 0
    eos_id = 1

    def __init__(self, words: Iterable[str]):
        """`words`: the vocabulary without special tokens; the first one gets number 2.

        Raises:
          UserError: a word is empty, holds white space, occurs twice or is a special token.
        """
        self.words = tuple(words)
        tokens = SPECIALS + self.words
        self._ids = {word: index for index, word in enumerate(tokens)}
        wrong = [word for word in self.words if len(word.split()) != 1 or word != word.strip()]
        if wrong or len(self._ids) != len(tokens):
            twice = sorted({word for word in tokens if tokens.count(word) > 1})
            raise UserError(
                "The words of a word tokenizer must be distinct and hold no white space; "
                f"not words: {wrong[:5]}, more than once: {twice[:5]}."
            )
        self._tokens = tokens
        self._known = {word: index for word, index in self._ids.items() if index > 1}
        self.vocab_size = len(tokens)
        self.token_bytes = np.array([0, 0] + [len(word.encode()) + 1 for word in self.words], np.int32)
        self.digest = hashlib.sha256("\n".join(tokens).encode()).hexdigest()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token numbers of every text, without special tokens.

        Raises:
          UserError: a word is not in the vocabulary.
        """
        known = self._known
        try:
            return [[known[word] for word in text.split()] for text in texts]
        except KeyError as error:
            word = error.args[0]
            raise UserError(
                f"The word {word!r} is not among the {len(self.words)} words of this vocabulary. "
                f"{closest(word, self.words)}"
            ) from None

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Words with single spaces between them; special tokens are left out."""
        tokens = self._tokens
        return [" ".join([tokens[i] for i in row if i > 1]) for row in ids]

    def save(self, folder: str | os.PathLike) -> None:
        """Writes `words.json`."""
        write_text(Path(folder) / _WORD_FILE, json.dumps({"words": self.words}))


def train_bpe(texts: Iterable[str], vocab_size: int) -> BpeTokenizer:
    """A byte-level BPE tokenizer of at most `vocab_size` tokens; the same texts give the same tokenizer.

    A corpus too small for so many merges gives a smaller vocabulary: read `vocab_size` of the result.

    Raises:
      UserError: `vocab_size` has no room for 256 bytes and two special tokens, or there is no text.
    """
    smallest = 256 + len(SPECIALS)
    if vocab_size < smallest:
        raise UserError(
            f"data.tokenizer.vocab_size={vocab_size} is too small: 256 bytes and {len(SPECIALS)} "
            "special tokens "
            f"need {smallest}. Use {smallest} or more."
        )
    texts = list(texts)
    if not any(texts):
        raise UserError("There is no text to train a tokenizer on. Give more rows in data.rows.pretrain.")
    tokenizer = hf.Tokenizer(hf.models.BPE())
    tokenizer.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)  # pyright: ignore
    tokenizer.decoder = hf.decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = hf.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(hf.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer, length=len(texts))
    return BpeTokenizer(tokenizer.to_str())


def load(folder: str | os.PathLike) -> BpeTokenizer | WordTokenizer:
    """The tokenizer saved in `folder`.

    Raises:
      UserError: there is none, or its file cannot be read.
    """
    folder = Path(folder)
    bpe, word = folder / _BPE_FILE, folder / _WORD_FILE
    try:
        if bpe.is_file():
            return BpeTokenizer(bpe.read_text("utf-8"))
        if word.is_file():
            return WordTokenizer(json.loads(word.read_text("utf-8"))["words"])
    except UserError:
        raise
    except Exception as error:  # the Rust parser raises plain Exception
        raise UserError(f"{folder}: the tokenizer saved there is damaged ({error}). Delete the folder.") from error
    raise UserError(f"{folder}: no tokenizer here; {_BPE_FILE} or {_WORD_FILE} was expected.")
