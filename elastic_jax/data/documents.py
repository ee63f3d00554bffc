"""Which tokens is a document, where does its answer begin, and which of its tokens does the loss count?"""

import dataclasses
from array import array
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from elastic_jax.data.chat import ChatTemplate
from elastic_jax.data.templates import Template
from elastic_jax.data.tokenizers import PretrainedTokenizer, Tokenizer, portions


@dataclasses.dataclass(frozen=True)
class Documents:
    """Documents one after the other.

    Attributes:
      tokens: of all documents, int32.
      counted: of every token whether the loss counts it as a target, uint8.
      lengths: [n] int64.
      firsts: [n] int64, the place of the first counted token in its document.
      answered: [n] bool, whether there is an answer.
      lead: what begins a document, none or one token; so does a later piece of a document that is split.
      joined: whether what ends a document is what begins the next one, so that one token can do both.
    """

    tokens: np.ndarray
    counted: np.ndarray
    lengths: np.ndarray
    firsts: np.ndarray
    answered: np.ndarray
    lead: tuple[int, ...]
    joined: bool

    @property
    def begins(self) -> np.ndarray:
        """Where each document begins in `tokens`, [n] int64."""
        return np.cumsum(self.lengths) - self.lengths


def encode_documents(
    rows: Sequence[Mapping[str, Any]], answer: str, tokenizer: Tokenizer, template: Template | ChatTemplate
) -> Documents:
    """The documents of `rows`, `bos prompt answer eos` each, or as the chat template arranges them.

    A document begins with exactly the tokens that `encode_prompts` gives for its prompt.

    Args:
      rows: with "prompt" and the field that `answer` names; a chat prompt may be a list of messages. A row without a prompt is no
        conversation: it stays the text that it is.
    """
    if isinstance(template, ChatTemplate):
        return _chats(rows, answer, tokenizer, template)
    lead, eos = _lead(tokenizer), (tokenizer.eos_id,)
    # Prompts repeat (openings of the universe, several answers to one question): encode each once.
    known: dict[str, array] = {"": array("i")}
    streams, lengths, firsts = [np.empty(0, np.int32)], [], []
    for portion in portions([row[answer] for row in rows]):
        parts = [template.split(row.get("prompt", ""), row[answer]) for row in rows[portion]]
        new = [head for head in dict.fromkeys(head for head, _ in parts) if head not in known]
        if new:
            known.update(zip(new, (array("i", ids) for ids in tokenizer.encode(new)), strict=True))
        heads = [known[head] for head, _ in parts]
        bodies = _bodies(parts, tokenizer)
        pieces = (chain(lead, head, body, eos) for head, body in zip(heads, bodies, strict=True))
        streams.append(np.fromiter(chain.from_iterable(pieces), np.int32))
        firsts.extend(len(head) + len(lead) for head in heads)
        lengths.extend(len(lead) + len(head) + len(body) + 1 for head, body in zip(heads, bodies, strict=True))
    first, length = np.array(firsts, np.int64), np.array(lengths, np.int64)
    runs = np.stack([first, length - first], axis=1).ravel()
    return Documents(
        tokens=np.concatenate(streams),
        counted=np.repeat(np.tile(np.array([0, 1], np.uint8), len(length)), runs),
        lengths=length,
        firsts=first,
        answered=length - first > 1,  # without an answer there is only the end after the prompt
        lead=lead,
        joined=tokenizer.bos_id == tokenizer.eos_id,
    )


def encode_prompts(prompts: Sequence[Any], tokenizer: Tokenizer, template: Template | ChatTemplate) -> list[list[int]]:
    """The tokens that the model is given to answer each prompt."""
    if isinstance(template, ChatTemplate):
        return _pretrained(tokenizer).encode_rendered([template.begin(prompt) for prompt in prompts])
    lead = _lead(tokenizer)
    return [[*lead, *ids] for ids in tokenizer.encode([template.split(prompt, "")[0] for prompt in prompts])]


def _lead(tokenizer: Tokenizer) -> tuple[int, ...]:
    return () if tokenizer.bos_id is None else (tokenizer.bos_id,)


def _bodies(parts: Sequence[tuple[str, str]], tokenizer: Tokenizer) -> list[list[int]]:
    """Prompt and answer are encoded apart, so that the border between them is a border of tokens.

    What follows a prompt goes on; without one the text begins, which some tokenizers mark with a blank.
    """
    bodies: list[list[int]] = [[]] * len(parts)
    for continued in (False, True):
        numbers = [number for number, (head, _) in enumerate(parts) if bool(head) == continued]
        encoded = tokenizer.encode([parts[number][1] for number in numbers], continued=continued)
        for number, ids in zip(numbers, encoded, strict=True):
            bodies[number] = ids
    return bodies


def _chats(rows: Sequence[Mapping[str, Any]], answer: str, tokenizer: Tokenizer, template: ChatTemplate) -> Documents:
    lead, ends = _lead(tokenizer), frozenset(tokenizer.eos_ids)
    streams, masks, lengths, firsts, answered = [np.empty(0, np.int32)], [np.empty(0, np.uint8)], [], [], []
    for portion in portions([row[answer] for row in rows]):
        chats = [row for row in rows[portion] if row.get("prompt")]
        rendered = [template.whole(row["prompt"], row[answer], str(row.get("id", ""))) for row in chats]
        encoded = iter(_pretrained(tokenizer).encode_chats(rendered))
        texts = iter(tokenizer.encode([row[answer] for row in rows[portion] if not row.get("prompt")]))
        for row in rows[portion]:
            if row.get("prompt"):
                ids, counted = next(encoded)
            else:
                text = next(texts)
                ids, counted = [*lead, *text], [0] * len(lead) + [1] * len(text)
            # Most templates end an answer themselves.
            if not any(token in ends and on for token, on in zip(ids, counted, strict=True)):
                ids, counted = [*ids, tokenizer.eos_id], [*counted, 1]
            streams.append(np.array(ids, np.int32))
            masks.append(np.array(counted, np.uint8))
            lengths.append(len(ids))
            firsts.append(int(np.argmax(masks[-1])))
            answered.append(bool(row[answer].strip()))
    return Documents(
        tokens=np.concatenate(streams),
        counted=np.concatenate(masks),
        lengths=np.array(lengths, np.int64),
        firsts=np.array(firsts, np.int64),
        answered=np.array(answered, bool),
        lead=lead,
        joined=False,
    )


def _pretrained(tokenizer: Tokenizer) -> PretrainedTokenizer:
    if not isinstance(tokenizer, PretrainedTokenizer):
        raise TypeError("a chat template is part of a pretrained tokenizer")
    return tokenizer
