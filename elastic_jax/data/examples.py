"""Which tokens does a row of text become, and which of them does the loss count?"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, Literal

import numpy as np

from elastic_jax.data.templates import PLAIN, Template
from elastic_jax.data.tokenizers import Tokenizer
from elastic_jax.errors import UserError

Kind = Literal["text", "pair"]
Pack = Literal["none", "concat"]
COUNTS = (
    "rows",
    "tokens",
    "loss_tokens",
    "truncated_rows",
    "truncated_tokens",
    "dropped_rows",
    "dropped_tokens",
)


@dataclasses.dataclass(frozen=True)
class TokenRows:
    """Token rows of one data set, T = `seq_len` = length of the model's input.

    Attributes:
      kind: "text" or "pair".
      seq_len: T.
      arrays: kind "text": `tokens` [n, T+1] int32 and `mask` [n, T] uint8, where `mask[:, t]` says whether
        the loss counts the target `tokens[:, t+1]`. Kind "pair": the same two for `chosen_` and `rejected_`.
      ids: pack "none": the id of every row. Pack "concat": the ids of the documents, in their order.
      counts: how many `rows`, `tokens`, `loss_tokens`, `truncated_rows`, `truncated_tokens`, `dropped_rows`
        and `dropped_tokens`. Every token of the input, the `<eos>` around the texts included, is counted
        in exactly one of `tokens`, `truncated_tokens` and `dropped_tokens`.
    """

    kind: Kind
    seq_len: int
    arrays: dict[str, np.ndarray]
    ids: tuple[str, ...]
    counts: dict[str, int]


def tokenize(
    rows: Sequence[Mapping[str, Any]],
    tokenizer: Tokenizer,
    *,
    seq_len: int,
    template: Template = PLAIN,
    kind: Kind = "text",
    pack: Pack = "none",
    name: str = "data",
) -> TokenRows:
    """Token rows of `rows`: `<eos> prompt answer <eos> <pad>...`.

    Pack "none" gives a token row per row: what is longer than T+1 tokens is cut, and a row whose prompt
    leaves no place for an answer, or whose answer is empty, is dropped. Pack "concat" joins all documents,
    an `<eos>` between them, and cuts the stream into rows that overlap by one token, so that every token
    but the very first is a target exactly once; only the tokens of the last, incomplete row are dropped.

    Args:
      rows: `{"id", "prompt", "answer"}`, for kind "pair" `{"id", "prompt", "chosen", "rejected"}`.
      tokenizer: see `elastic_jax.data.tokenizers`.
      seq_len: T, at least 2.
      template: how prompt and answer are joined.
      kind: "text" or "pair".
      pack: "none" or "concat" (kind "text" only).
      name: what an error calls these rows.

    Raises:
      UserError: nothing is left.
    """
    if seq_len < 2:
        raise UserError(f"data.seq_len={seq_len} is too short: a row needs 2 tokens or more. Raise it.")
    if kind == "pair":
        if pack != "none":
            raise UserError("Pairs cannot be packed: use pack='none' for kind 'pair'.")
        tokens = _pairs(rows, tokenizer, template, seq_len)
    else:
        heads, bodies = _encode(rows, "answer", tokenizer, template)
        make = _concat if pack == "concat" else _one_each
        tokens = make([str(row["id"]) for row in rows], heads, bodies, tokenizer, seq_len)
    if not tokens.counts["rows"]:
        raise UserError(_nothing_left(name, len(rows), tokens.counts, seq_len, pack))
    return tokens


def _nothing_left(name: str, rows: int, counts: Mapping[str, int], seq_len: int, pack: str) -> str:
    if pack == "concat":
        return (
            f"{name}: {rows} documents with {counts['dropped_tokens']} tokens do not fill one row of "
            f"data.seq_len={seq_len}. Give more rows, or lower data.seq_len."
        )
    return (
        f"{name}: none of {rows} rows is left. {counts['dropped_rows']} were dropped because their "
        "prompt fills "
        f"data.seq_len={seq_len} tokens, or their answer is empty. Raise data.seq_len or shorten the prompts."
    )


def _encode(
    rows: Sequence[Mapping[str, Any]], answer: str, tokenizer: Tokenizer, template: Template
) -> tuple[list[list[int]], list[list[int]]]:
    """Tokens before the answer and of the answer; encoded apart, so that the border is a token border."""
    parts = [template.split(row.get("prompt", ""), row[answer]) for row in rows]
    heads = [head for head, _ in parts]
    if any(heads):
        # Prompts repeat (openings of the universe, several answers to one question): encode each once.
        distinct = list(dict.fromkeys(heads))
        known = dict(zip(distinct, tokenizer.encode(distinct), strict=True))
        encoded_heads = [known[head] for head in heads]
    else:
        encoded_heads = [[]] * len(rows)
    return encoded_heads, tokenizer.encode([body for _, body in parts])


def _fill(sequences: Sequence[Sequence[int]], width: int, pad: int) -> tuple[np.ndarray, np.ndarray]:
    """Rectangular array [n, width] of the first `width` tokens of every sequence, and the lengths kept."""
    lengths = np.fromiter((len(sequence) for sequence in sequences), np.int64, len(sequences))
    flat = np.fromiter(chain.from_iterable(sequences), np.int32, int(lengths.sum()))
    kept = np.minimum(lengths, width)
    columns = np.arange(width)
    filled = columns[None, :] < kept[:, None]
    tokens = np.full((len(sequences), width), pad, np.int32)
    begins = np.cumsum(lengths) - lengths
    tokens[filled] = flat[(begins[:, None] + columns[None, :])[filled]]
    return tokens, kept


def _sides(
    heads: list[list[int]], bodies: list[list[int]], tokenizer: Tokenizer, seq_len: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Tokens [n, T+1], mask [n, T], whole lengths [n] and whether an answer is left [n]."""
    eos = [tokenizer.eos_id]
    sequences = [eos + head + body + eos for head, body in zip(heads, bodies, strict=True)]
    tokens, kept = _fill(sequences, seq_len + 1, tokenizer.pad_id)
    lengths = np.array([len(sequence) for sequence in sequences], np.int64)
    first = np.array([len(head) + 1 for head in heads], np.int64)  # position of the answer's first token
    positions = np.arange(1, seq_len + 1)[None, :]
    mask = ((positions >= first[:, None]) & (positions < kept[:, None])).astype(np.uint8)
    usable = (first <= seq_len) & np.array([len(body) > 0 for body in bodies], bool)
    return tokens, mask, lengths, usable


def _counts(
    masks: Iterable[np.ndarray], lengths: Iterable[np.ndarray], usable: np.ndarray, width: int
) -> dict[str, int]:
    lengths = np.stack(list(lengths))  # [sides, n]
    excess = np.maximum(lengths - width, 0)[:, usable]
    return dict(
        rows=int(usable.sum()),
        tokens=int(np.minimum(lengths, width)[:, usable].sum()),
        loss_tokens=int(sum(mask[usable].sum(dtype=np.int64) for mask in masks)),
        truncated_rows=int((excess > 0).any(axis=0).sum()),
        truncated_tokens=int(excess.sum()),
        dropped_rows=int((~usable).sum()),
        dropped_tokens=int(lengths[:, ~usable].sum()),
    )


def _one_each(
    ids: list[str], heads: list[list[int]], bodies: list[list[int]], tokenizer: Tokenizer, seq_len: int
) -> TokenRows:
    tokens, mask, lengths, usable = _sides(heads, bodies, tokenizer, seq_len)
    return TokenRows(
        "text",
        seq_len,
        dict(tokens=tokens[usable], mask=mask[usable]),
        tuple(name for name, keep in zip(ids, usable, strict=True) if keep),
        _counts([mask], [lengths], usable, seq_len + 1),
    )


def _pairs(rows: Sequence[Mapping[str, Any]], tokenizer: Tokenizer, template: Template, seq_len: int) -> TokenRows:
    sides = {
        side: _sides(*_encode(rows, side, tokenizer, template), tokenizer, seq_len) for side in ("chosen", "rejected")
    }
    usable = sides["chosen"][3] & sides["rejected"][3]  # a pair with one side is no pair
    arrays = {}
    for side, (tokens, mask, _, _) in sides.items():
        arrays[f"{side}_tokens"], arrays[f"{side}_mask"] = tokens[usable], mask[usable]
    return TokenRows(
        "pair",
        seq_len,
        arrays,
        tuple(str(row["id"]) for row, keep in zip(rows, usable, strict=True) if keep),
        _counts([side[1] for side in sides.values()], [side[2] for side in sides.values()], usable, seq_len + 1),
    )


def _concat(
    ids: list[str], heads: list[list[int]], bodies: list[list[int]], tokenizer: Tokenizer, seq_len: int
) -> TokenRows:
    eos = [tokenizer.eos_id]
    pieces = chain(eos, chain.from_iterable(chain(h, b, eos) for h, b in zip(heads, bodies, strict=True)))
    stream = np.fromiter(pieces, np.int32)
    head_lengths = np.array([len(head) for head in heads], np.int64)
    body_lengths = np.array([len(body) + 1 for body in bodies], np.int64)
    runs = np.stack([head_lengths, body_lengths], axis=1).ravel()
    counted = np.repeat(np.tile(np.array([0, 1], np.uint8), len(ids)), runs)  # of the targets stream[1:]
    rows = (len(stream) - 1) // seq_len
    used = rows * seq_len
    windows = np.arange(rows)[:, None] * seq_len + np.arange(seq_len + 1)[None, :]
    mask = counted[:used].reshape(rows, seq_len)
    kept = used + 1 if rows else 0
    counts = dict.fromkeys(COUNTS, 0) | dict(
        rows=rows, tokens=kept, loss_tokens=int(mask.sum(dtype=np.int64)), dropped_tokens=len(stream) - kept
    )
    return TokenRows("text", seq_len, dict(tokens=stream[windows], mask=mask), tuple(ids), counts)
