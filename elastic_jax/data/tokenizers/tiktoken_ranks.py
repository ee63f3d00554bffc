"""What do tiktoken ranks say, as a `tokenizer.json`?

A file of ranks is a list of tokens and nothing else: how a text is cut before tokens are merged, and which special tokens there are,
is published elsewhere. `LAYOUTS` holds that by name. The layout is what `data.tokenizer.layout` says, or the one with exactly this
number of ranks.
"""

import base64
import binascii
import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path

import tokenizers as hf

from elastic_jax.data.tokenizers import spec as specs
from elastic_jax.data.tokenizers.spec import Spec
from elastic_jax.data.tokenizers.special import Special
from elastic_jax.errors import UserError, closest

_log = logging.getLogger(__name__)
_GPT2 = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""


def _pattern(digits: str) -> str:
    """How GPT-4 cuts a text, with so many digits to a piece."""
    return (
        rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


@dataclasses.dataclass(frozen=True)
class Layout:
    """What belongs to ranks.

    Attributes:
      ranks: how many there are.
      pattern: pieces of a text in which tokens are merged.
      specials: special tokens; the first has number `ranks`.
      bos: what begins a text, or "".
      eos: what ends a text.
      ends: what ends an answer besides.
      nfc: whether texts are brought to Unicode normalization form C first.
      source: where this is published.
    """

    ranks: int
    pattern: str
    specials: tuple[str, ...]
    bos: str
    eos: str
    ends: tuple[str, ...]
    nfc: bool
    source: str


def _llama3(names: Mapping[int, str]) -> tuple[str, ...]:
    """256 special tokens, of which those without a name are reserved."""
    reserved = (f"<|reserved_special_token_{number}|>" for number in range(256))
    return tuple(names[number] if number in names else next(reserved) for number in range(256))


_LLAMA3_NAMES = {
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    9: "<|eot_id|>",
}
_LLAMA31_NAMES = _LLAMA3_NAMES | {4: "<|finetune_right_pad_id|>", 8: "<|eom_id|>", 10: "<|python_tag|>"}
LAYOUTS = {
    "gpt2": Layout(
        50_256,
        _GPT2,
        ("<|endoftext|>",),
        "",
        "<|endoftext|>",
        (),
        False,
        "github.com/openai/tiktoken, openai_public.py",
    ),
    "llama3": Layout(
        128_000,
        _pattern(r"\p{N}{1,3}"),
        _llama3(_LLAMA3_NAMES),
        "<|begin_of_text|>",
        "<|end_of_text|>",
        ("<|eot_id|>",),
        False,
        "github.com/meta-llama/llama3, tokenizer.py",
    ),
    "llama3.1": Layout(
        128_000,
        _pattern(r"\p{N}{1,3}"),
        _llama3(_LLAMA31_NAMES),
        "<|begin_of_text|>",
        "<|end_of_text|>",
        ("<|eom_id|>", "<|eot_id|>"),
        False,
        "github.com/meta-llama/llama-models, models/llama3/tokenizer.py",
    ),
    "qwen": Layout(
        151_643,
        _pattern(r"\p{N}"),
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{number}|>" for number in range(205))),
        "",
        "<|endoftext|>",
        ("<|im_end|>",),
        True,
        "huggingface.co/Qwen/Qwen-7B, tokenization_qwen.py",
    ),
}


def is_ranks(file: Path) -> bool:
    """Whether a file holds tiktoken ranks: its first line is a token in base64 and a number."""
    try:
        with open(file, "rb") as lines:
            token, number = lines.readline(1000).split()
            base64.b64decode(token, validate=True)
            return number.isdigit()
    except (OSError, ValueError):
        return False


def read(file: Path, layout: str, special: Special) -> tuple[Spec, Special]:
    """The spec, and `special` with what the layout adds to it.

    Raises:
      UserError: a line is no rank, or no layout is known for the file.
    """
    ranks = _ranks(file)
    name = layout or _layout_of(file, len(ranks))
    if name not in LAYOUTS:
        raise UserError(f"data.tokenizer.layout={name!r} is unknown. {closest(name, LAYOUTS)}")
    chosen = LAYOUTS[name]
    if chosen.ranks != len(ranks):
        raise UserError(
            f"{file}: {len(ranks)} ranks, but data.tokenizer.layout={name!r} has {chosen.ranks}. Copy the file again, or choose "
            "another layout."
        )
    if not layout:
        _log.info(
            "%s: %d ranks are those of %s; special tokens and the cutting of texts follow %s.",
            file,
            len(ranks),
            name,
            chosen.source,
        )
    pre_tokenizer, decoder = specs.byte_level(chosen.pattern)
    spec = specs.make_spec(
        _model(ranks),
        normalizer=dict(type="NFC") if chosen.nfc else None,
        pre_tokenizer=pre_tokenizer,
        decoder=decoder,
    )
    spec["added_tokens"] = [
        specs.added_token(chosen.ranks + number, text, special=True) for number, text in enumerate(chosen.specials)
    ]
    tokens = dict(eos_token=chosen.eos, **(dict(bos_token=chosen.bos) if chosen.bos else {})) | dict(special.tokens)
    numbers = {text: chosen.ranks + number for number, text in enumerate(chosen.specials)}
    return spec, dataclasses.replace(
        special,
        tokens=tokens,
        add_bos=bool(chosen.bos) if special.add_bos is None else special.add_bos,
        eos_ids=special.eos_ids or tuple(numbers[text] for text in chosen.ends),
    )


def _layout_of(file: Path, count: int) -> str:
    found = next((name for name, layout in LAYOUTS.items() if layout.ranks == count), None)
    if found is None:
        known = ", ".join(f"{name} ({layout.ranks})" for name, layout in LAYOUTS.items())
        raise UserError(
            f"{file}: {count} ranks. Ranks do not say how texts are cut and which special tokens there are; that is known for {known}. "
            "Give the model's tokenizer.json instead, or data.tokenizer.layout if the file is one of these."
        )
    return found


def _ranks(file: Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    with open(file, "rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                token, rank = line.split()
                ranks[base64.b64decode(token, validate=True)] = int(rank)
            except (ValueError, binascii.Error):
                raise UserError(
                    f"{file}:{number}: a token in base64 and its rank were expected. Copy the file again."
                ) from None
    if sorted(ranks.values()) != list(range(len(ranks))) or any(bytes([byte]) not in ranks for byte in range(256)):
        raise UserError(
            f"{file}: ranks from 0 without gaps, a single byte each among them, were expected. Copy the file again."
        )
    return ranks


def _model(ranks: Mapping[bytes, int]) -> Spec:
    """Of neighbours the pair is merged whose token has the lowest rank; every way to write a token as two is a merge."""
    letters = _alphabet()
    names = {token: "".join([letters[byte] for byte in token]) for token in ranks}
    merges: list[list[str]] = []
    for token, _ in sorted(ranks.items(), key=lambda item: item[1]):
        known = [
            (ranks[left], ranks[right], left, right)
            for cut in range(1, len(token))
            if (left := token[:cut]) in ranks and (right := token[cut:]) in ranks
        ]
        merges += [[names[left], names[right]] for *_, left, right in sorted(known)]
    return specs.bpe({names[token]: rank for token, rank in ranks.items()}, merges, ignore_merges=True)


def _alphabet() -> list[str]:
    """The character that stands for each byte: itself where it can be seen, otherwise the next free one from 256 on."""
    seen = [byte for byte in range(256) if chr(byte) in hf.pre_tokenizers.ByteLevel.alphabet()]
    others = iter(range(256, 512))
    return [chr(byte) if byte in seen else chr(next(others)) for byte in range(256)]
