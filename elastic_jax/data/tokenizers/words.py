"""A tokenizer of our own for a language with a closed vocabulary."""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import tokenizers as hf

from elastic_jax.data.files import write_text
from elastic_jax.data.tokenizers.bpe import own_config
from elastic_jax.data.tokenizers.protocol import CONFIG_FILE, EOS, SPECIALS, TOKENIZER_FILE, WORD_FILE
from elastic_jax.errors import UserError, closest


class WordTokenizer:
    """A closed vocabulary of words between single spaces, as the embedded universe has it.

    `token_bytes` counts a word and the space before it.
    """

    pad_id = 0
    eos_id = 1
    bos_id: int | None = eos_id
    eos_ids: tuple[int, ...] = (eos_id,)
    never: tuple[int, ...] = (pad_id,)

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
        self._known = {word: index for word, index in self._ids.items() if word not in SPECIALS}
        self.vocab_size = len(tokens)
        self.token_bytes = np.array([0, 0] + [len(word.encode()) + 1 for word in self.words], np.int32)
        self.digest = hashlib.sha256("\n".join(tokens).encode()).hexdigest()

    def encode(self, texts: Sequence[str], *, continued: bool = False) -> list[list[int]]:
        """Token numbers of every text, without special tokens; `continued` makes no difference.

        Raises:
          UserError: a word is not in the vocabulary.
        """
        del continued
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
        tokens, first = self._tokens, len(SPECIALS)
        return [" ".join([tokens[i] for i in row if i >= first]) for row in ids]

    def save(self, folder: str | os.PathLike) -> None:
        """Writes `words.json`, which `load` reads, and the same as `tokenizer.json` and `tokenizer_config.json`."""
        folder = Path(folder)
        # Last, because it is what says that the folder holds a word tokenizer.
        write_text(folder / TOKENIZER_FILE, self._hugging_face())
        write_text(folder / CONFIG_FILE, own_config(self.digest))
        write_text(folder / WORD_FILE, json.dumps({"words": self.words}))

    def _hugging_face(self) -> str:
        # "<unk>" is no token: a word that is not in the vocabulary stays an error.
        tokenizer = hf.Tokenizer(hf.models.WordLevel(self._ids, unk_token="<unk>"))
        tokenizer.pre_tokenizer = hf.pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
        tokenizer.add_special_tokens(list(SPECIALS))
        tokenizer.post_processor = hf.processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
            single=f"{EOS} $A", pair=f"{EOS} $A $B:1", special_tokens=[(EOS, self.eos_id)]
        )
        return tokenizer.to_str(pretty=True)
