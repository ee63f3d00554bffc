"""What do `vocab.json` and `merges.txt` say, as a `tokenizer.json`?"""

import dataclasses
import json
from pathlib import Path

from elastic_jax.data.tokenizers import spec as specs
from elastic_jax.data.tokenizers.spec import Spec
from elastic_jax.data.tokenizers.special import Special
from elastic_jax.data.tokenizers.tiktoken_ranks import LAYOUTS
from elastic_jax.errors import UserError, first_line

_END = "<|endoftext|>"
# Class in tokenizer_config.json -> whose way to cut texts. Without a class the files are those of GPT-2.
_CLASSES = {
    "": "gpt2",
    "GPT2": "gpt2",
    "GPTNeoX": "gpt2",
    "Roberta": "gpt2",
    "Bart": "gpt2",
    "CodeGen": "gpt2",
    "Qwen2": "qwen",
}


def read(folder: Path, special: Special) -> tuple[Spec, Special]:
    """The spec, and `special` with what the family adds to it.

    Raises:
      UserError: a file is missing or damaged, or the tokenizer's class is unknown.
    """
    name = str(special.settings.get("tokenizer_class") or "").removesuffix("Fast").removesuffix("Tokenizer")
    if name not in _CLASSES:
        raise UserError(
            f"{special.where}: tokenizer_class={special.settings['tokenizer_class']!r}: vocab.json and merges.txt do not say how this "
            f"class cuts texts; known are {', '.join(f'{known}Tokenizer' for known in _CLASSES if known)}. Give its tokenizer.json."
        )
    vocab_file, merges_file = folder / "vocab.json", folder / "merges.txt"
    try:
        vocabulary = json.loads(vocab_file.read_text("utf-8"))
        lines = merges_file.read_text("utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: vocab.json and merges.txt were expected ({first_line(error)}).") from None
    merges = []
    for number, line in enumerate(lines, 1):
        if line.startswith("#version") or not line.strip():
            continue
        pair = line.rstrip("\r").split(" ")
        if len(pair) != 2 or not {*pair, "".join(pair)} <= vocabulary.keys():
            raise UserError(f"{merges_file}:{number}: {line!r} does not merge two tokens of vocab.json to a third.")
        merges.append(pair)
    layout = LAYOUTS[_CLASSES[name]]
    pre_tokenizer, decoder = specs.byte_level("" if layout is LAYOUTS["gpt2"] else layout.pattern)
    spec = specs.make_spec(
        specs.bpe(vocabulary, merges),
        normalizer=dict(type="NFC") if layout.nfc else None,
        pre_tokenizer=pre_tokenizer,
        decoder=decoder,
    )
    if "eos_token" not in special.tokens and _END in vocabulary:
        special = dataclasses.replace(special, tokens={**special.tokens, "eos_token": _END})
    return spec, special
