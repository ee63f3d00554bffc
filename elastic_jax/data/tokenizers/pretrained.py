"""How does somebody else's tokenizer turn texts and conversations into numbers, and back?"""

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers as hf

from elastic_jax.data.chat import ChatTemplate, Rendered
from elastic_jax.data.files import digest_of, write_bytes
from elastic_jax.data.tokenizers import meaning
from elastic_jax.data.tokenizers import spec as specs
from elastic_jax.data.tokenizers.protocol import CONFIG_FILE, TOKENIZER_FILE, portions
from elastic_jax.data.tokenizers.spec import Spec
from elastic_jax.data.tokenizers.special import GENERATION_FILE, JINJA_FILE, Special
from elastic_jax.errors import UserError, first_line

_log = logging.getLogger(__name__)


class PretrainedTokenizer:
    """A tokenizer read from files, see `load_pretrained`; its attributes are those of `Tokenizer`.

    Rows of a text encode to the numbers that the family's own library gives, and decode to the text without any clean-up of
    blanks. Where the tokenizer puts a blank before a text (Llama 2), `token_bytes` counts that blank.
    """

    never: tuple[int, ...] = ()  # padding is a token of the model's own, or none at all

    def __init__(
        self, spec: Spec, special: Special, files: Mapping[str, bytes] | None = None, where: str = "tokenizer"
    ):
        """`spec`: the content of a `tokenizer.json`; `files`: what `save` writes as it is, by name.

        Raises:
          UserError: the library refuses the spec, no token is known to end a text, or a special token is not in the vocabulary.
        """
        self._where, self._special, self._files = where, special, dict(files or {})
        lead = specs.leading_specials(spec["post_processor"])
        self._spec = meaning.with_special(spec | dict(post_processor=None, truncation=None, padding=None), special)
        self._text = self._backend(self._spec, typed=True)
        tokens: dict[str, int] = self._text.get_vocab(with_added_tokens=True)
        self.vocab_size = max(tokens.values(), default=-1) + 1
        self._tokens = tokens
        for token in self._spec["added_tokens"]:
            if tokens[token["content"]] != token["id"]:
                raise UserError(
                    f"{where}: the added token {token['content']!r} has number {token['id']}, but the vocabulary ends before "
                    f"{tokens[token['content']]}. Copy the files again: those of the vocabulary and of added tokens belong together."
                )
        self.bos_id = meaning.bos_id(special, lead, tokens, where)
        self.eos_id = meaning.eos_id(special, self._spec, tokens, where)
        self.eos_ids = tuple(dict.fromkeys((self.eos_id, *special.eos_ids)))
        pad = special.tokens.get("pad_token")
        if pad is not None and pad not in tokens:
            _log.warning("%s: pad_token=%r is not in the vocabulary; rows are padded with <eos>.", special.where, pad)
        self.pad_id = tokens.get(pad, self.eos_id) if pad is not None else self.eos_id
        self._specials = {token["content"]: token["id"] for token in self._spec["added_tokens"] if token["special"]}
        self.token_bytes = self._token_bytes()
        self.digest = digest_of([self._spec, self.bos_id, self.eos_ids, self.pad_id])

    def encode(self, texts: Sequence[str], *, continued: bool = False) -> list[list[int]]:
        """Token numbers of every text, without special tokens: what looks like one is text that somebody typed.

        Args:
          continued: the texts go on where others ended, so no blank is put before them.
        """
        backend = self._continued if continued else self._text
        ids: list[list[int]] = []
        for part in portions(texts):
            encodings = backend.encode_batch_fast(list(texts[part]), add_special_tokens=False)
            ids.extend(encoding.ids for encoding in encodings)
        return self._without_typed(texts, ids, backend) if self._is_lattice else ids

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Text of every row of token numbers; special tokens, and numbers beyond the vocabulary, are left out.

        Bytes that do not complete a character become U+FFFD.
        """
        return self._text.decode_batch([[int(i) for i in row] for row in ids], skip_special_tokens=True)

    def special_tokens_in(self, text: str) -> list[str]:
        """What in a text looks like special tokens."""
        return self._special_pattern.findall(text)

    @property
    def templates(self) -> Mapping[str, str]:
        """The sources of the chat templates by their names; a single one is "default"."""
        return self._special.templates

    def chat(self, name: str = "") -> ChatTemplate:
        """The chat template of the tokenizer; `name` where it has several.

        Raises:
          UserError: there is none, or it is no valid template.
        """
        variables: dict[str, Any] = dict(self._special.tokens)
        if self._special.additional:
            variables["additional_special_tokens"] = list(self._special.additional)
        return ChatTemplate(
            self._special.template(name), variables, specials=tuple(self._specials), where=self._special.where
        )

    def encode_rendered(self, texts: Sequence[Rendered]) -> list[list[int]]:
        """Token numbers of texts that a chat template wrote: its special tokens are such, those that somebody typed are text."""
        ids: list[list[int]] = []
        for part in portions([rendered.text for rendered in texts]):
            plain = [rendered.text for rendered in texts[part]]
            ids.extend(e.ids for e in self._parsing.encode_batch_fast(plain, add_special_tokens=False))
        for number, rendered in enumerate(texts):
            if rendered.typed:
                ids[number] = self._in_segments(rendered)[0]
        return ids

    def encode_chats(self, chats: Sequence[Rendered]) -> list[tuple[list[int], list[int]]]:
        """Of every whole conversation the token numbers, and for each of them whether the loss counts it (0 or 1).

        The numbers begin with those of the prompt, as `encode_rendered` gives them. A token counts when one of its characters lies
        in a span of the conversation. Where a merge would cross the border between prompt and answer, the answer is encoded apart.
        """
        made = []
        heads = self.encode_rendered([_head(chat) for chat in chats])
        for chat, head, whole in zip(chats, heads, self._wholes(chats), strict=True):
            ids, places = whole
            if ids[: len(head)] != head:
                ids, places = self._apart(chat)
            made.append((ids, _counted(places, chat, len(head))))
        return made

    def save(self, folder: str | os.PathLike) -> None:
        """Writes the files it was read from, and what transformers' `AutoTokenizer` needs besides."""
        folder = Path(folder)
        files = dict(self._files)
        if TOKENIZER_FILE not in files:
            files[TOKENIZER_FILE] = json.dumps(self._exported(), ensure_ascii=False).encode()
            files[CONFIG_FILE] = json.dumps(self._config(), indent=1, ensure_ascii=False).encode()
        elif CONFIG_FILE not in files:
            files[CONFIG_FILE] = json.dumps(self._config(), indent=1, ensure_ascii=False).encode()
        if GENERATION_FILE not in files and len(self.eos_ids) > 1:
            files[GENERATION_FILE] = json.dumps(dict(eos_token_id=list(self.eos_ids)), indent=1).encode()
        for name, content in files.items():
            write_bytes(folder / name, content)
        if JINJA_FILE not in files:  # of an earlier tokenizer, it would count more than the config
            (folder / JINJA_FILE).unlink(missing_ok=True)

    # -- how it is made ------------------------------------------------------------------------------------------

    def _backend(self, spec: Spec, typed: bool) -> hf.Tokenizer:
        try:
            backend = hf.Tokenizer.from_str(json.dumps(spec, ensure_ascii=False))
        except Exception as error:  # the Rust parser raises plain Exception
            raise UserError(
                f"{self._where}: the tokenizers library cannot read this tokenizer ({first_line(error)}). "
                "Copy the file again, or update the library: pip install -U tokenizers."
            ) from None
        backend.encode_special_tokens = typed
        return backend

    @cached_property
    def _continued(self) -> hf.Tokenizer:
        spec = specs.continuing(self._spec)
        return self._text if spec is self._spec else self._backend(spec, typed=True)

    @cached_property
    def _parsing(self) -> hf.Tokenizer:
        return self._backend(self._spec, typed=False)

    def _token_bytes(self) -> np.ndarray:
        counts = np.zeros(self.vocab_size, np.int32)
        added = {token["id"]: token for token in self._spec["added_tokens"]}
        kinds = frozenset(part["type"] for part in specs.parts(self._spec["decoder"]))
        for token, number in self._tokens.items():
            counts[number] = specs.bytes_of(token, kinds)
        for number, token in added.items():
            counts[number] = 0 if token["special"] else specs.bytes_of_text(token["content"], kinds)
        unknown = self._spec["model"].get("unk_token")
        if isinstance(unknown, str) and unknown in self._tokens:
            counts[self._tokens[unknown]] = 0
        return counts

    # -- chats ---------------------------------------------------------------------------------------------------

    def _wholes(self, chats: Sequence[Rendered]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """Numbers and the places of their characters."""
        made: list[tuple[list[int], list[tuple[int, int]]]] = []
        for part in portions([chat.text for chat in chats]):
            encodings = self._parsing.encode_batch([chat.text for chat in chats[part]], add_special_tokens=False)
            made.extend((encoding.ids, encoding.offsets) for encoding in encodings)
        for number, chat in enumerate(chats):
            if chat.typed:
                made[number] = self._in_segments(chat)
        return made

    @cached_property
    def _special_pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, sorted(self._specials, key=len, reverse=True))) or r"(?!)")

    def _in_segments(self, chat: Rendered) -> tuple[list[int], list[tuple[int, int]]]:
        """As the library does, cut at special tokens, but not at those that somebody typed."""
        text, begin = chat.text, 0
        ids: list[int] = []
        places: list[tuple[int, int]] = []

        def plain(end: int) -> None:
            if begin < end:
                # The library puts no blank before what follows a special token when it puts one before the first text alone.
                first = begin == 0 or not self._blank_is_first
                backend = self._text if first else self._continued
                encoding = backend.encode(text[begin:end], add_special_tokens=False)
                ids.extend(encoding.ids)
                places.extend((begin + a, begin + b) for a, b in encoding.offsets)

        for found in self._special_pattern.finditer(text):
            if any(a < found.end() and found.start() < b for a, b in chat.typed):
                continue
            plain(found.start())
            ids.append(self._specials[found[0]])
            places.append(found.span())
            begin = found.end()
        plain(len(text))
        return ids, places

    @cached_property
    def _blank_is_first(self) -> bool:
        return any(part.get("prepend_scheme") == "first" for part in specs.parts(self._spec["pre_tokenizer"]))

    def _apart(self, chat: Rendered) -> tuple[list[int], list[tuple[int, int]]]:
        """The answer after the numbers of its prompt: what goes on up to the first special token, and then as ever."""
        ((ids, places),) = self._wholes([_head(chat)])
        begins, text, typed = chat.begins, chat.text, [place for place in chat.typed if place[1] > chat.begins]
        specials = (found.span() for found in self._special_pattern.finditer(text, begins))
        real = (begin for begin, end in specials if not any(a < end and begin < b for a, b in typed))
        first = next(real, len(text))
        goes_on = self._continued.encode(text[begins:first], add_special_tokens=False)
        rest = Rendered(text[first:], 0, typed=tuple((a - first, b - first) for a, b in typed if a >= first))
        ((rest_ids, rest_places),) = self._wholes([rest])
        places = [*places, *((begins + a, begins + b) for a, b in goes_on.offsets)]
        return [*ids, *goes_on.ids, *rest_ids], [*places, *((first + a, first + b) for a, b in rest_places)]

    # -- vocabularies that are searched as a lattice -------------------------------------------------------------

    @property
    def _is_lattice(self) -> bool:
        return self._spec["model"].get("type") == "Unigram"

    def _without_typed(self, texts: Sequence[str], ids: list[list[int]], backend: hf.Tokenizer) -> list[list[int]]:
        """A unigram vocabulary finds the pieces of its special tokens in a text like any other: cut the text inside them."""
        for number, text in enumerate(texts):
            if self._special_pattern.search(text) and not set(self._specials.values()).isdisjoint(ids[number]):
                row: list[int] = []
                begin, encoder = 0, backend
                for found in self._special_pattern.finditer(text):
                    cut = found.start() + 1
                    row += encoder.encode(text[begin:cut], add_special_tokens=False).ids
                    begin, encoder = cut, self._continued
                ids[number] = row + encoder.encode(text[begin:], add_special_tokens=False).ids
        return ids

    # -- saving --------------------------------------------------------------------------------------------------

    def _exported(self) -> Spec:
        if self.bos_id is None:
            return self._spec
        token = next(text for text, number in self._tokens.items() if number == self.bos_id)
        return specs.beginning_with(self._spec, token, self.bos_id)

    def _config(self) -> dict[str, Any]:
        names = {number: text for text, number in self._tokens.items()}
        config: dict[str, Any] = dict(
            tokenizer_class="PreTrainedTokenizerFast", clean_up_tokenization_spaces=False, **self._special.tokens
        )
        config["eos_token"] = names[self.eos_id]
        if self.bos_id is not None:
            config["bos_token"] = names[self.bos_id]
        config["add_bos_token"] = self.bos_id is not None
        if self._special.additional:
            config["additional_special_tokens"] = list(self._special.additional)
        templates = self._special.templates
        if set(templates) == {"default"}:
            config["chat_template"] = templates["default"]
        elif templates:
            config["chat_template"] = [dict(name=name, template=text) for name, text in templates.items()]
        return config


def _head(chat: Rendered) -> Rendered:
    typed = tuple(place for place in chat.typed if place[1] <= chat.begins)
    return Rendered(chat.text[: chat.begins], chat.begins, typed=typed)


def _counted(places: Sequence[tuple[int, int]], chat: Rendered, head: int) -> list[int]:
    if chat.spans == ((chat.begins, len(chat.text)),):
        return [0] * head + [1] * (len(places) - head)
    counted = np.zeros(len(places), np.uint8)
    begins, ends = np.array(places, np.int64).reshape(-1, 2).T
    for begin, end in chat.spans:
        counted |= ((begins < end) & (ends > begin)).astype(np.uint8)
    return counted.tolist()
