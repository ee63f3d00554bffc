"""What does the content of a `tokenizer.json` say, and how is it changed?

A *spec* is that content as a dict. Every kind of tokenizer file becomes one, so that one library encodes them all.
"""

import copy
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

import tokenizers as hf

Spec = dict[str, Any]
BLANK = "▁"  # U+2581, which stands for a blank in vocabularies of SentencePiece


def make_spec(model: Spec, *, normalizer: Any = None, pre_tokenizer: Any = None, decoder: Any = None) -> Spec:
    """A spec without added tokens that puts nothing around a text."""
    return dict(
        version="1.0",
        truncation=None,
        padding=None,
        added_tokens=[],
        normalizer=normalizer,
        pre_tokenizer=pre_tokenizer,
        post_processor=None,
        decoder=decoder,
        model=model,
    )


def added_token(number: int, content: str, *, special: bool, normalized: bool = False) -> Spec:
    """The description of a token that is found in a text before all else."""
    return dict(
        id=number,
        content=content,
        single_word=False,
        lstrip=False,
        rstrip=False,
        normalized=normalized,
        special=special,
    )


def bpe(vocab: Mapping[str, int], merges: Sequence[Sequence[str]], **settings: Any) -> Spec:
    """The model of byte-pair encoding, every setting at its default but those given."""
    return (
        dict(
            type="BPE",
            dropout=None,
            unk_token=None,
            continuing_subword_prefix=None,
            end_of_word_suffix=None,
            fuse_unk=False,
            byte_fallback=False,
            ignore_merges=False,
            vocab=vocab,
            merges=merges,
        )
        | settings
    )


def byte_level(pattern: str = "") -> tuple[Spec, Spec]:
    """(pre-tokenizer, decoder) of a byte-level vocabulary; texts are cut by `pattern`, or as GPT-2 does."""
    bytes_ = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=False, use_regex=not pattern)
    decoder = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=False, use_regex=not pattern)
    if not pattern:
        return bytes_, decoder
    split = dict(type="Split", pattern=dict(Regex=pattern), behavior="Isolated", invert=False)
    return dict(type="Sequence", pretokenizers=[split, bytes_]), decoder


def parts(component: Any) -> Iterator[Spec]:
    """A normalizer, pre-tokenizer, post-processor or decoder, or the members of one that is a sequence."""
    if isinstance(component, Mapping):
        if component.get("type") == "Sequence":
            for name in ("normalizers", "pretokenizers", "processors", "decoders"):
                for part in component.get(name, ()):
                    yield from parts(part)
        else:
            yield component  # pyright: ignore[reportReturnType]


def leading_specials(post_processor: Any) -> list[str]:
    """Texts of the special tokens that a post-processor puts before a text."""
    lead: list[str] = []
    for part in parts(post_processor):
        if part["type"] == "TemplateProcessing":
            for piece in part["single"]:
                if "SpecialToken" not in piece:
                    break
                lead.append(piece["SpecialToken"]["id"])
        elif part["type"] in ("RobertaProcessing", "BertProcessing"):
            lead.append(part["cls"][0])
    return lead


def beginning_with(spec: Spec, token: str, number: int) -> Spec:
    """A spec that puts a special token before every text."""
    first = dict(SpecialToken=dict(id=token, type_id=0))
    one, two = dict(Sequence=dict(id="A", type_id=0)), dict(Sequence=dict(id="B", type_id=1))
    processor = dict(
        type="TemplateProcessing",
        single=[first, one],
        pair=[first, one, dict(SpecialToken=dict(id=token, type_id=1)), two],
        special_tokens={token: dict(id=token, ids=[number], tokens=[token])},
    )
    return spec | dict(post_processor=processor)


def continuing(spec: Spec) -> Spec:
    """A spec for texts that go on where others ended: no blank is put before them, and none is taken away.

    The same object when nothing of that happens to a text that begins.
    """
    changed = copy.copy(spec)
    normalizer, pre_tokenizer = copy.deepcopy(spec["normalizer"]), copy.deepcopy(spec["pre_tokenizer"])
    for part in parts(normalizer):
        if part["type"] == "Prepend":
            part.clear()
            part.update(type="Sequence", normalizers=[])
        elif part["type"] == "Strip":
            part["strip_left"] = False
    for part in parts(pre_tokenizer):
        if part["type"] == "Metaspace":
            part["prepend_scheme"] = "never"
            part.pop("add_prefix_space", None)
        elif part["type"] == "ByteLevel":
            part["add_prefix_space"] = False
    if (normalizer, pre_tokenizer) == (spec["normalizer"], spec["pre_tokenizer"]):
        return spec
    changed.update(normalizer=normalizer, pre_tokenizer=pre_tokenizer)
    return changed


_BYTE_ALPHABET = frozenset(hf.pre_tokenizers.ByteLevel.alphabet())


def bytes_of(token: str, kinds: Set[str]) -> int:
    """How many bytes of UTF-8 a token of the vocabulary stands for.

    In a byte-level vocabulary a character is a byte. In one of SentencePiece "▁" is a blank and "<0x0A>" a byte.

    Args:
      kinds: types of the decoder's parts.
    """
    if "ByteLevel" in kinds and _BYTE_ALPHABET.issuperset(token):
        return len(token)
    if "ByteFallback" in kinds and re.fullmatch("<0x[0-9A-F]{2}>", token):
        return 1
    if "WordPiece" in kinds:
        return len(token.removeprefix("##").encode())
    return bytes_of_text(token, kinds)


def bytes_of_text(token: str, kinds: Set[str]) -> int:
    """The same of an added token, which is found in the text itself."""
    if "Metaspace" in kinds or "Replace" in kinds:
        token = token.replace(BLANK, " ")
    return len(token.encode())
