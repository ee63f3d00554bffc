"""Which tokens of a vocabulary are special, and which of them begin and end a text?"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from elastic_jax.data.tokenizers import spec as specs
from elastic_jax.data.tokenizers.protocol import CONFIG_FILE
from elastic_jax.data.tokenizers.spec import Spec
from elastic_jax.data.tokenizers.special import Special
from elastic_jax.errors import UserError

# What ends a text where no file says which token does; one of them must be among the special tokens.
_USUAL_ENDS = ("</s>", "<|endoftext|>", "<eos>", "<|end_of_text|>")
# Of these classes transformers begins a text with `bos_token` unless the config says otherwise.
_BEGINS = ("Llama", "CodeLlama", "Gemma", "Cohere")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")  # of an added token
_log = logging.getLogger(__name__)


def bos_id(special: Special, lead: Sequence[str], tokens: Mapping[str, int], where: str) -> int | None:
    """The number of what begins a text; None where nothing does.

    Args:
      lead: the special tokens that the post-processor puts before a text.
      tokens: the vocabulary.
      where: the tokenizer's file.

    Raises:
      UserError: several tokens begin a text, or one that is not in the vocabulary.
    """
    if len(lead) > 1:
        raise UserError(f"{where}: {len(lead)} special tokens begin a text ({', '.join(lead)}); one was expected.")
    if special.add_bos is False:
        return None
    name = str(special.settings.get("tokenizer_class") or "").removesuffix("Fast").removesuffix("Tokenizer")
    if special.add_bos is None and not lead and (name not in _BEGINS or "bos_token" not in special.tokens):
        return None
    token = lead[0] if lead else special.tokens.get("bos_token")
    if token is None or token not in tokens:
        raise UserError(f"{special.where}: bos_token={token!r} begins every text, but is not in the vocabulary.")
    return tokens[token]


def eos_id(special: Special, spec: Spec, tokens: Mapping[str, int], where: str) -> int:
    """The number of what ends a text: as a file says, or else the only special token with a usual name for it.

    Raises:
      UserError: nothing says so, or a token that is not in the vocabulary.
    """
    token = special.tokens.get("eos_token")
    if token is not None:
        if token not in tokens:
            raise UserError(f"{special.where}: eos_token={token!r} is not in the vocabulary.")
        return tokens[token]
    if special.eos_ids:
        return special.eos_ids[0]
    known = {token["content"] for token in spec["added_tokens"] if token["special"]}
    usual = [name for name in _USUAL_ENDS if name in known]
    if len(usual) == 1:
        _log.info("%s: no file says what ends a text; %s does, as its name says.", where, usual[0])
        return tokens[usual[0]]
    raise UserError(
        f'{where}: nothing says which token ends a text. Put {CONFIG_FILE} beside it, with {{"eos_token": "..."}}.'
    )


def with_special(spec: Spec, special: Special) -> Spec:
    """Added tokens as in the spec, and those that the files beside it name."""
    known = {token["content"]: dict(token) for token in spec["added_tokens"]}
    vocabulary = _vocabulary(spec["model"])
    named = {*special.tokens.values(), *special.additional}
    for number, token in sorted(special.added.items()):
        made = known.get(token["content"]) or specs.added_token(number, token["content"], special=False)
        known[token["content"]] = made | {name: bool(token[name]) for name in _FLAGS if name in token}
    for content in named:
        if content in known:
            known[content]["special"] = True
        elif content in vocabulary:
            known[content] = specs.added_token(vocabulary[content], content, special=True)
    spec = spec | dict(added_tokens=sorted(known.values(), key=lambda token: token["id"]))
    pre = spec["pre_tokenizer"]
    if isinstance(pre, Mapping) and pre.get("type") == "ByteLevel":
        # As transformers: the config decides, and says no where it says nothing.
        spec["pre_tokenizer"] = {**pre, "add_prefix_space": special.flag("add_prefix_space", False)}
    return spec


def _vocabulary(model: Mapping[str, Any]) -> dict[str, int]:
    vocabulary = model.get("vocab", {})
    if isinstance(vocabulary, list):  # unigram: pieces with their scores, in the order of their numbers
        return {piece[0]: number for number, piece in enumerate(vocabulary)}
    return vocabulary
