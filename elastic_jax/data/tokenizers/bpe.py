"""A tokenizer of our own, trained on the texts of a study: byte-level byte-pair encoding."""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import tokenizers as hf

from elastic_jax.data.files import write_text
from elastic_jax.data.tokenizers.protocol import CONFIG_FILE, EOS, PAD, SPECIALS, TOKENIZER_FILE, portions
from elastic_jax.errors import UserError

# In the file `<eos>` is put before every text, as transformers has to be told; the tokenizer itself is the text without that.
_PLAIN = '"post_processor":null'
_BEGUN = '"post_processor":' + json.dumps(
    dict(
        type="TemplateProcessing",
        single=[dict(SpecialToken=dict(id=EOS, type_id=0)), dict(Sequence=dict(id="A", type_id=0))],
        pair=[
            dict(SpecialToken=dict(id=EOS, type_id=0)),
            dict(Sequence=dict(id="A", type_id=0)),
            dict(Sequence=dict(id="B", type_id=1)),
        ],
        special_tokens={EOS: dict(id=EOS, ids=[1], tokens=[EOS])},
    ),
    separators=(",", ":"),
)


class BpeTokenizer:
    """Byte-level byte-pair encoding: every string has an encoding, and decoding gives it back exactly."""

    pad_id = 0
    eos_id = 1
    bos_id: int | None = eos_id
    eos_ids: tuple[int, ...] = (eos_id,)
    never: tuple[int, ...] = (pad_id,)

    def __init__(self, serialized: str):
        """`serialized`: the text of a `tokenizer.json` whose tokens 0 and 1 are `<pad>` and `<eos>`."""
        serialized = serialized.replace(_BEGUN, _PLAIN, 1)
        self._hf = hf.Tokenizer.from_str(serialized)
        # "<eos>" inside a text is five characters a person typed, not the end of the document.
        self._hf.encode_special_tokens = True
        self._serialized = serialized
        self.vocab_size = self._hf.get_vocab_size()
        tokens = [self._hf.id_to_token(index) or "" for index in range(self.vocab_size)]
        if tuple(tokens[:2]) != SPECIALS:
            raise UserError(
                f"The tokenizer has {tokens[:2]} as tokens 0 and 1; {list(SPECIALS)} were expected.\n"
                "Train it with elastic_jax.data.tokenizers.train_bpe, or open it with load_pretrained."
            )
        # In the byte-level alphabet one character of a token stands for exactly one byte.
        self.token_bytes = np.array([0, 0] + [len(token) for token in tokens[2:]], np.int32)
        self.digest = hashlib.sha256(serialized.encode()).hexdigest()

    def encode(self, texts: Sequence[str], *, continued: bool = False) -> list[list[int]]:
        """Token numbers of every text, without special tokens; `continued` makes no difference."""
        del continued
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
        """Writes `tokenizer.json` and `tokenizer_config.json`, which `load` and transformers read."""
        write_text(Path(folder) / TOKENIZER_FILE, self._serialized.replace(_PLAIN, _BEGUN, 1))
        write_text(Path(folder) / CONFIG_FILE, own_config(self.digest))


def own_config(digest: str) -> str:
    """The text of `tokenizer_config.json` for a tokenizer of our own, by whose digest `load` knows whether it is whole."""
    config = dict(
        tokenizer_class="PreTrainedTokenizerFast",
        bos_token=EOS,
        eos_token=EOS,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
        elastic_jax_digest=digest,
    )
    return json.dumps(config, indent=1)


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
