"""Which tokenizer did a study save in this folder?"""

import json
import os
from pathlib import Path

from elastic_jax.data.tokenizers.bpe import BpeTokenizer
from elastic_jax.data.tokenizers.folder import load_pretrained
from elastic_jax.data.tokenizers.pretrained import PretrainedTokenizer
from elastic_jax.data.tokenizers.protocol import CONFIG_FILE, SPECIALS, TOKENIZER_FILE, WORD_FILE
from elastic_jax.data.tokenizers.special import read_json
from elastic_jax.data.tokenizers.words import WordTokenizer
from elastic_jax.errors import UserError


def load(folder: str | os.PathLike) -> BpeTokenizer | WordTokenizer | PretrainedTokenizer:
    """The tokenizer saved in `folder`.

    Raises:
      UserError: there is none, or its file cannot be read.
    """
    folder = Path(folder)
    try:
        tokenizer = _load(folder)
        stated = read_json(folder / CONFIG_FILE).get("elastic_jax_digest", tokenizer.digest)
        if isinstance(tokenizer, BpeTokenizer | WordTokenizer) and stated != tokenizer.digest:
            raise ValueError("it is not the one that was saved")
        return tokenizer
    except UserError:
        raise
    except Exception as error:  # the Rust parser raises plain Exception
        raise UserError(f"{folder}: the tokenizer saved there is damaged ({error}). Delete the folder.") from error


def _load(folder: Path) -> BpeTokenizer | WordTokenizer | PretrainedTokenizer:
    bpe, word = folder / TOKENIZER_FILE, folder / WORD_FILE
    if word.is_file():
        return WordTokenizer(json.loads(word.read_text("utf-8"))["words"])
    if bpe.is_file():
        text = bpe.read_text("utf-8")
        ours = [token["content"] for token in json.loads(text)["added_tokens"]] == list(SPECIALS)
        return BpeTokenizer(text) if ours else load_pretrained(folder)
    raise UserError(f"{folder}: no tokenizer here; {TOKENIZER_FILE} or {WORD_FILE} was expected.")
