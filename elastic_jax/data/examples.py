"""How do documents become rows of one length?"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from elastic_jax.data import packing
from elastic_jax.data.chat import ChatTemplate
from elastic_jax.data.documents import Documents, encode_documents
from elastic_jax.data.templates import PLAIN, Template
from elastic_jax.data.tokenizers import Tokenizer
from elastic_jax.errors import UserError

Kind = Literal["text", "pair"]
Pack = Literal["none", "concat", "best_fit"]
COUNTS = (
    "rows",
    "tokens",
    "loss_tokens",
    "truncated_rows",
    "truncated_tokens",
    "dropped_rows",
    "dropped_tokens",
)
_ROWS_AT_ONCE = 4096  # indices of tokens are many times as large as the tokens


@dataclasses.dataclass(frozen=True)
class TokenRows:
    """Token rows of one data set, T = `seq_len` = length of the model's input.

    Attributes:
      kind: "text" or "pair".
      seq_len: T.
      arrays: kind "text": `tokens` [n, T+1] int32 and `mask` [n, T] uint8, where `mask[:, t]` says whether
        the loss counts the target `tokens[:, t+1]`. Kind "pair": the same two for `chosen_` and `rejected_`.
        Pack "best_fit": also `segments` and `positions` [n, T] int32, see `elastic_jax.data.packing.fill`.
      ids: pack "none": the id of every row. Otherwise the ids of the documents, in their order.
      counts: how many `rows`, `tokens`, `loss_tokens`, `truncated_rows`, `truncated_tokens`, `dropped_rows`
        and `dropped_tokens`. Every token of the input, what begins and ends the texts included, is counted
        in exactly one of `tokens`, `truncated_tokens` and `dropped_tokens`. Pack "best_fit": also how many
        `documents` are in the rows, and how many of them are `split_documents`.
      joined: whether what ends a document also begins the next one, as the `<eos>` of our own tokenizers does.
    """

    kind: Kind
    seq_len: int
    arrays: dict[str, np.ndarray]
    ids: tuple[str, ...]
    counts: dict[str, int]
    joined: bool = True


def tokenize(
    rows: Sequence[Mapping[str, Any]],
    tokenizer: Tokenizer,
    *,
    seq_len: int,
    template: Template | ChatTemplate = PLAIN,
    kind: Kind = "text",
    pack: Pack = "none",
    name: str = "data",
) -> TokenRows:
    """Token rows of `rows`: `<bos> prompt answer <eos> <pad>...`, or as a chat template arranges them.

    Pack "none" gives a token row per row: what is longer than T+1 tokens is cut, and a row whose prompt
    leaves no place for an answer, or whose answer is empty, is dropped. Pack "concat" joins all documents,
    one token between them where `<bos>` is `<eos>`, and cuts the stream into rows that overlap by one token, so
    that every token but the very first is a target exactly once; only the tokens of the last, incomplete row are
    dropped. Pack "best_fit" puts whole documents into rows, which do not see each other there; a document longer
    than a row is split into pieces, of which each begins with a `<bos>` of its own, and every token is the target
    of exactly one piece. A document without text is dropped.

    Args:
      rows: `{"id", "prompt", "answer"}`, for kind "pair" `{"id", "prompt", "chosen", "rejected"}`.
      tokenizer: see `elastic_jax.data.tokenizers`.
      seq_len: T, at least 2.
      template: how prompt and answer are joined.
      kind: "text" or "pair".
      pack: "none", "concat" or "best_fit" (the last two for kind "text" only).
      name: what an error calls these rows.

    Raises:
      UserError: nothing is left.
    """
    if seq_len < 2:
        raise UserError(f"data.seq_len={seq_len} is too short: a row needs 2 tokens or more. Raise it.")
    if kind == "pair":
        if pack != "none":
            raise UserError(
                f"{name}: pairs cannot be packed, since both answers of a pair are rows of one batch. Use pack='none' for "
                "kind 'pair'."
            )
        tokens = _pairs(rows, tokenizer, template, seq_len)
    else:
        make = dict(none=_one_each, concat=_concat, best_fit=_best_fit)[pack]
        documents = encode_documents(rows, "answer", tokenizer, template)
        tokens = make([str(row["id"]) for row in rows], documents, tokenizer, seq_len)
    if not tokens.counts["rows"]:
        raise UserError(_nothing_left(name, len(rows), tokens.counts, seq_len, pack))
    return tokens


def _nothing_left(name: str, rows: int, counts: Mapping[str, int], seq_len: int, pack: str) -> str:
    if pack == "concat":
        return (
            f"{name}: {rows} documents with {counts['dropped_tokens']} tokens do not fill one row of "
            f"data.seq_len={seq_len}. Give more rows, or lower data.seq_len."
        )
    if pack == "best_fit":
        return f"{name}: none of {rows} documents is left, since all are empty. Give rows with text."
    return (
        f"{name}: none of {rows} rows is left. {counts['dropped_rows']} were dropped because their "
        "prompt fills "
        f"data.seq_len={seq_len} tokens, or their answer is empty. Raise data.seq_len or shorten the prompts."
    )


def _sides(documents: Documents, tokenizer: Tokenizer, seq_len: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens [n, T+1], mask [n, T] and whether an answer is left [n]."""
    count, width = len(documents.lengths), seq_len + 1
    tokens = np.full((count, width), tokenizer.pad_id, np.int32)
    mask = np.zeros((count, seq_len), np.uint8)
    columns, begins = np.arange(width), documents.begins
    for begin in range(0, count, _ROWS_AT_ONCE):
        part = slice(begin, begin + _ROWS_AT_ONCE)
        kept = np.minimum(documents.lengths[part], width)[:, None]
        filled = columns[None, :] < kept
        places = begins[part][:, None] + columns[None, :]
        tokens[part][filled] = documents.tokens[places[filled]]
        targets = filled[:, 1:]
        mask[part][targets] = documents.counted[places[:, 1:][targets]]
    return tokens, mask, (documents.firsts <= seq_len) & documents.answered


def _counts(masks: Sequence[np.ndarray], sides: Sequence[Documents], usable: np.ndarray, width: int) -> dict[str, int]:
    lengths = np.stack([side.lengths for side in sides])  # [sides, n]
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


def _chosen(ids: Sequence[str], usable: np.ndarray) -> tuple[str, ...]:
    return tuple(name for name, keep in zip(ids, usable, strict=True) if keep)


def _one_each(ids: list[str], documents: Documents, tokenizer: Tokenizer, seq_len: int) -> TokenRows:
    tokens, mask, usable = _sides(documents, tokenizer, seq_len)
    counts = _counts([mask], [documents], usable, seq_len + 1)
    if not usable.all():
        tokens, mask = tokens[usable], mask[usable]
    return TokenRows("text", seq_len, dict(tokens=tokens, mask=mask), _chosen(ids, usable), counts, documents.joined)


def _pairs(
    rows: Sequence[Mapping[str, Any]], tokenizer: Tokenizer, template: Template | ChatTemplate, seq_len: int
) -> TokenRows:
    documents = {side: encode_documents(rows, side, tokenizer, template) for side in ("chosen", "rejected")}
    sides = {side: _sides(those, tokenizer, seq_len) for side, those in documents.items()}
    usable = sides["chosen"][2] & sides["rejected"][2]  # a pair with one side is no pair
    arrays = {}
    for side, (tokens, mask, _) in sides.items():
        arrays[f"{side}_tokens"], arrays[f"{side}_mask"] = tokens[usable], mask[usable]
    return TokenRows(
        "pair",
        seq_len,
        arrays,
        _chosen([str(row["id"]) for row in rows], usable),
        _counts([side[1] for side in sides.values()], list(documents.values()), usable, seq_len + 1),
    )


def _concat(ids: list[str], documents: Documents, tokenizer: Tokenizer, seq_len: int) -> TokenRows:
    del tokenizer
    joined = np.ones(len(documents.tokens), bool)
    if documents.joined:
        joined[documents.begins[1:]] = False  # the <eos> before a document is the one that ends the document before it
    stream, counted = documents.tokens[joined], documents.counted[joined][1:]
    rows = (len(stream) - 1) // seq_len
    used = rows * seq_len
    tokens = np.empty((rows, seq_len + 1), np.int32)
    tokens[:, :-1] = stream[:used].reshape(rows, seq_len)
    tokens[:, -1] = stream[seq_len : used + 1 : seq_len]
    mask = counted[:used].reshape(rows, seq_len)
    kept = used + 1 if rows else 0
    counts = dict.fromkeys(COUNTS, 0) | dict(
        rows=rows, tokens=kept, loss_tokens=int(mask.sum(dtype=np.int64)), dropped_tokens=len(stream) - kept
    )
    return TokenRows("text", seq_len, dict(tokens=tokens, mask=mask), tuple(ids), counts)


def _best_fit(ids: list[str], documents: Documents, tokenizer: Tokenizer, seq_len: int) -> TokenRows:
    usable = documents.answered
    lengths = documents.lengths[usable]
    kept = slice(None) if usable.all() else np.repeat(usable, documents.lengths)
    tokens, counted, sizes = _split(
        documents.tokens[kept], documents.counted[kept], lengths - 1, seq_len, documents.lead
    )
    if not documents.joined:
        tokens, counted, sizes = _apart(tokens, counted, sizes, seq_len, tokenizer.pad_id)
    begins = np.cumsum(sizes + 1) - (sizes + 1)
    rows = packing.best_fit(sizes, seq_len)
    count = int(rows.max()) + 1 if len(rows) else 0
    arrays = packing.fill(
        tokens, begins, counted, begins + 1, sizes, rows, count=count, seq_len=seq_len, pad_id=tokenizer.pad_id
    )
    counts = dict.fromkeys(COUNTS, 0) | dict(
        rows=count,
        tokens=int(lengths.sum()),
        loss_tokens=int(arrays["mask"].sum(dtype=np.int64)),
        dropped_rows=int((~usable).sum()),
        dropped_tokens=int(documents.lengths[~usable].sum()),
        documents=len(lengths),
        split_documents=int((lengths - 1 > seq_len).sum()),
    )
    return TokenRows("text", seq_len, arrays, _chosen(ids, usable), counts, documents.joined)


def _split(
    tokens: np.ndarray, counted: np.ndarray, sizes: np.ndarray, seq_len: int, lead: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Documents cut into pieces of at most T inputs: their tokens and counted targets one after the other, and their sizes.

    The first piece of a long document ends with target number T. Each of the others begins with `lead`, which is one token or none,
    and the last target of the piece before it, which is not counted again, and so has T-1 or T targets of its own.
    """
    own = seq_len - len(lead)
    more = -(-np.maximum(sizes - seq_len, 0) // own)  # pieces after the first
    if not more.any():
        return tokens, counted, sizes
    document = np.repeat(np.arange(len(sizes)), more)
    number = np.arange(len(document)) - np.repeat(np.cumsum(more) - more, more)  # of the cut in its document
    begins = np.cumsum(sizes + 1) - (sizes + 1)
    last = begins[document] + seq_len + number * own  # of the piece before the cut
    repeated = np.stack([*(np.full(len(last), token) for token in lead), tokens[last]], axis=1).ravel()
    places = np.repeat(last + 1, len(lead) + 1)
    left = sizes[document] - seq_len - number * own
    first_piece = np.cumsum(more + 1) - (more + 1)
    pieces = np.empty(len(sizes) + len(document), np.int64)
    pieces[first_piece] = np.minimum(sizes, seq_len)
    pieces[first_piece[document] + 1 + number] = np.minimum(left, own) + len(lead)
    return np.insert(tokens, places, repeated), np.insert(counted, places, 0), pieces


def _apart(
    tokens: np.ndarray, counted: np.ndarray, sizes: np.ndarray, seq_len: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pieces whose last token is an input too, since the next document does not begin with it; one that fills a row ends there."""
    short = sizes < seq_len
    ends = np.cumsum(sizes + 1)[short]
    return np.insert(tokens, ends, pad_id), np.insert(counted, ends, 0), sizes + short
