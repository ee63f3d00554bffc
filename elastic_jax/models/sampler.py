"""What does the model write?

`sample` takes any number of prompts of any lengths. It sorts them by length, cuts them into batches, and rounds lengths and batches up
to the sizes of `bucket`, so that a hundred different lengths are served by a handful of compiled programs: one that reads prompts
for each (batch, prompt length), one that writes tokens for each (batch, room of the cache). The cache begins as large as the prompt
needs and grows by the same sizes, since a token costs reading all of it.

What is written does not depend on how it was batched, nor on the mesh, but for the rounding of floats: row i draws its t-th token with
`fold_in(fold_in(key, i), t)`, i being its place in `prompts`.
"""

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Literal

import jax
import numpy as np
from jax.sharding import Mesh

from elastic_jax.data.tokenizers import Tokenizer
from elastic_jax.errors import UserError
from elastic_jax.models import decoding
from elastic_jax.models.config import ModelConfig
from elastic_jax.models.decoding import Rows
from elastic_jax.models.filters import Choice
from elastic_jax.models.stops import Stops
from elastic_jax.models.transformer import Decoder, Params
from elastic_jax.parallel.mesh import batch_sharding, batch_shards, put_global, shard

# Tokens that a row writes before the host looks at them: for stop strings, progress and the room of the cache.
CHUNK = 32
SHORTEST = 4  # of the prompt lengths that programs are made for
SMALLEST_ROOM = 16  # of a cache, likewise
CACHE_BYTES = 2 * 2**30  # of the caches of a batch, on each device: a model that fits leaves so much
MOST_ROWS = 256  # of a batch, for each shard of it: more make no better use of a matrix unit

Ended = Literal["eos", "stop", "length"]

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far `sample` is.

    Attributes:
      done, rows: rows that have ended, and all of them.
      tokens: written so far.
      seconds: since the beginning, compilation included.
    """

    done: int
    rows: int
    tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


@dataclasses.dataclass(frozen=True)
class Samples:
    """What was written after each prompt.

    Attributes:
      tokens: [n, length] int32, pad after the end. A row that ended with an eos keeps it; of a stop string no token remains.
      lengths: [n] int32, tokens of each row, the eos counted.
      ended: why each row did: "eos", "stop" (a stop string), or "length" (as many tokens as were asked for).
      texts: the text of each row without its eos, cut before its stop string to the character; None without a tokenizer.
      seconds: that it took, compilation included.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    ended: tuple[Ended, ...]
    texts: list[str] | None
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        return int(self.lengths.sum()) / self.seconds


def bucket(size: int, least: int = 1) -> int:
    """The smallest of 1, 2, 3, 4, 6, 8, 12, 16, 24, ... that is below neither `size` nor `least`.

    >>> [bucket(n) for n in (1, 5, 9, 13, 100)], bucket(5, least=16)
    ([1, 6, 12, 16, 128], 16)
    """
    power = 1 << (max(size, least) - 1).bit_length()
    smaller = power * 3 // 4
    return smaller if smaller >= max(size, least) and power > 2 else power


def sample(
    model: Decoder,
    params: Params,
    prompts: Sequence[Sequence[int]] | np.ndarray,
    key: jax.Array,
    mesh: Mesh,
    *,
    length: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    eos: Sequence[int] = (1,),
    never: Sequence[int] = (),
    pad: int = 0,
    stop: Sequence[str] = (),
    tokenizer: Tokenizer | None = None,
    mask: np.ndarray | None = None,
    context: int = 0,
    batch_size: int = 0,
    progress: Callable[[Progress], None] | None = None,
) -> Samples:
    """Continues every prompt by up to `length` tokens. All processes get all of them.

    Args:
      prompts: rows of token numbers, of any lengths; or an array [n, p], with `mask` where rows have padding.
      key: see the module; equal prompts in different places draw different tokens.
      temperature, top_k, top_p, never: `filters.Choice`.
      eos: each of these tokens ends a row.
      pad: what fills a row after its end; it may be a token that is also written, such as the eos.
      stop: texts that end a row wherever they appear in its text, even across tokens; they need the `tokenizer`.
      tokenizer: also gives the texts of the rows.
      mask: [n, p], 1 where `prompts` has a token and 0 where it has padding, on the left or on the right.
      context: tokens of a prompt and its continuation together, at most; 0 for the model's `seq_len`. More than it was trained on may
        be asked of a rotary model, whose positions have no end; learned positions end with their table.
      batch_size: rows written at a time; 0 for as many as keep the caches of a device within CACHE_BYTES.
      progress: called after every CHUNK tokens of a batch, such as `LogProgress()`.

    Raises:
      UserError: a prompt that is empty, does not fit or holds numbers that are no tokens; a setting out of range or without effect.
    """
    began = time.perf_counter()
    c = model.config
    choice = Choice(temperature, top_k, top_p, tuple(map(int, never)))
    choice.check(c.used_vocab or c.vocab_size)
    ends = _Ends(tuple(map(int, eos)), int(pad), _stops(stop, tokenizer))
    if any(not 0 <= token < c.vocab_size for token in (*ends.eos, ends.pad)):
        raise UserError(f"eos={list(ends.eos)}, pad={pad}: the vocabulary has {c.vocab_size} tokens, numbered from 0.")
    both = set(ends.eos) & set(choice.never)
    if both:
        raise UserError(f"eos={list(ends.eos)} and never={list(choice.never)} share {sorted(both)}: give each once.")
    rows = _rows(prompts, mask, c)
    _check_lengths(rows, length, context, c)
    longest = max(map(len, rows))
    size = batch_size or _batch_size(c, mesh, bucket(longest + length, SMALLEST_ROOM))
    if size < 1:
        raise UserError(f"batch_size={batch_size}: expected a positive number of rows, or 0 to have it chosen.")

    tokens = np.full((len(rows), length), ends.pad, np.int32)
    written: dict[int, _Written] = {}
    with jax.set_mesh(mesh):
        # Once for all tokens, unless it would only copy them.
        params = params if c.layout == "unroll" and c.dtype == c.param_dtype else _for_decoding(model, params)
        order = sorted(range(len(rows)), key=lambda i: (-len(rows[i]), i))  # if memory fails, it fails at once
        for first in range(0, len(rows), size):
            batch = _Batch(order[first : first + size], [rows[i] for i in order[first : first + size]], length, mesh)
            for _ in batch.write(model, params, key, choice, ends):
                if progress is not None:
                    done, count = written.values(), batch.written
                    progress(
                        Progress(
                            done=len(done) + sum(row.ended is not None for row in count),
                            rows=len(rows),
                            tokens=sum(len(row.tokens) for row in (*done, *count)),
                            seconds=time.perf_counter() - began,
                        )
                    )
            written |= zip(batch.indices, batch.written, strict=True)
    for i, row in written.items():
        tokens[i, : len(row.tokens)] = row.tokens
    in_order = [written[i] for i in range(len(rows))]
    return Samples(
        tokens=tokens,
        lengths=np.array([len(row.tokens) for row in in_order], np.int32),
        ended=tuple(row.ended or "length" for row in in_order),
        texts=None if tokenizer is None else _texts(in_order, tokenizer),
        seconds=time.perf_counter() - began,
    )


class LogProgress:
    """A line in the log every `interval` seconds, and none for what takes less."""

    def __init__(self, interval: float = 10.0, clock: Callable[[], float] = time.monotonic):
        self._interval, self._clock = interval, clock
        self._shown = clock()

    def __call__(self, now: Progress) -> None:
        if self._clock() - self._shown >= self._interval:
            self._shown = self._clock()
            _log.info(
                "sampling: %d of %d rows done, %d tokens, %.0f tokens/s",
                now.done,
                now.rows,
                now.tokens,
                now.tokens_per_second,
            )


@dataclasses.dataclass
class _Written:
    """A row in the making; `text` is set where a stop string cut it."""

    tokens: list[int] = dataclasses.field(default_factory=list)
    ended: Ended | None = None
    text: str | None = None


@dataclasses.dataclass(frozen=True)
class _Ends:
    """What ends a row, and what stands after its end."""

    eos: tuple[int, ...]
    pad: int
    stops: Stops | None


class _Batch:
    """Prompts that are continued together; `indices` are their places among all of them."""

    def __init__(self, indices: Sequence[int], prompts: Sequence[np.ndarray], length: int, mesh: Mesh):
        self.indices, self.length, self._mesh = indices, length, mesh
        self.written = [_Written() for _ in prompts]
        shards = batch_shards(mesh)
        self._size = shards * bucket(-(-len(prompts) // shards))
        self._columns = bucket(max(map(len, prompts)) - 1, SHORTEST)
        # Rows that only fill the batch are empty, and done before they begin.
        self._tokens_bp = np.zeros((self._size, self._columns), np.int32)
        self._first_b = np.full(self._size, self._columns, np.int32)
        self._last_b, self._index_b = np.zeros((2, self._size), np.int32)
        for row, (index, prompt) in enumerate(zip(indices, prompts, strict=True)):
            self._first_b[row] = self._columns - len(prompt) + 1
            self._tokens_bp[row, self._first_b[row] :] = prompt[:-1]
            self._last_b[row], self._index_b[row] = prompt[-1], index

    def write(self, model: Decoder, params: Params, key: jax.Array, choice: Choice, ends: _Ends) -> Iterator[None]:
        """Continues the rows, and yields whenever there are new tokens in `written`."""
        # Of one shape for all that models usually have, so that the program is the same for all.
        eos_e = np.full(bucket(len(ends.eos), 4), -1, np.int32)
        eos_e[: len(ends.eos)] = ends.eos
        length, filled, count = self.length, self._columns, 0  # columns of the cache that hold a token; tokens written
        room = bucket(filled + min(CHUNK, length), SMALLEST_ROOM)
        arrays = self._tokens_bp, self._first_b, self._last_b, self._index_b
        rows = _start(model, params, *map(self._put, arrays), key, room)
        while count < length and any(row.ended is None for row in self.written):
            if filled == room:
                room = bucket(filled + min(CHUNK, length - count), SMALLEST_ROOM)
                rows = _grow(rows, room)
            steps = min(CHUNK, length - count, room - filled)
            done_b = np.ones(self._size, bool)
            done_b[: len(self.written)] = [row.ended is not None for row in self.written]
            new_bt, rows = _extend(
                model, params, rows, self._put(done_b), np.int32(steps), choice, eos_e, np.int32(ends.pad)
            )
            count, filled = count + steps, filled + steps
            self._take(np.asarray(new_bt)[:, :steps], ends)
            yield

    def _put(self, array: np.ndarray) -> jax.Array:
        return put_global(array, batch_sharding(self._mesh))

    def _take(self, new_bt: np.ndarray, ends: _Ends) -> None:
        """Adds new tokens to the rows that have not ended, and ends those that an eos or a stop string ends."""
        ends_bt = np.isin(new_bt, ends.eos)
        going = []
        for row, new_t, ends_t in zip(self.written, new_bt, ends_bt, strict=False):
            if row.ended is None:
                going.append((row, len(row.tokens)))
                count = int(ends_t.argmax()) + 1 if ends_t.any() else len(new_t)
                row.tokens += new_t[:count].tolist()
                row.ended = "eos" if ends_t.any() else "length" if len(row.tokens) == self.length else None
        if ends.stops is None:
            return
        # A stop string before the eos ended the row earlier.
        plain = [row.tokens[:-1] if row.ended == "eos" else row.tokens for row, _ in going]
        for (row, _), cut in zip(going, ends.stops.find(plain, [known for _, known in going]), strict=True):
            if cut is not None:
                row.tokens, row.ended, row.text = row.tokens[: cut.tokens], "stop", cut.text


@partial(jax.jit, static_argnames=("model", "columns"))
def _start(model, params, tokens_bp, first_b, last_b, index_b, key, columns) -> Rows:
    keys_b = decoding.row_keys(key, index_b)
    return decoding.start(model, params, tokens_bp, first_b, last_b, keys_b, columns)


@partial(jax.jit, static_argnames=("model", "choice"), donate_argnames=("rows",))
def _extend(model, params, rows, done_b, steps, choice, eos_e, pad) -> tuple[jax.Array, Rows]:
    out_bt, rows = decoding.extend(model, params, rows, done_b, steps, CHUNK, choice, eos_e, pad)
    return shard(out_bt, None, None), rows


@partial(jax.jit, static_argnames="columns")
def _grow(rows: Rows, columns: int) -> Rows:
    return dataclasses.replace(rows, caches=rows.caches.grown(columns))


@partial(jax.jit, static_argnames="model")
def _for_decoding(model: Decoder, params: Params) -> Params:
    return model.for_decoding(params)


def _batch_size(c: ModelConfig, mesh: Mesh, columns: int) -> int:
    """The most rows, of the sizes that batches are rounded to, whose caches fit CACHE_BYTES of each device."""
    heads = -(-c.kv_heads // mesh.shape["tensor"])
    of_row = 2 * c.layers * heads * c.head_dim * columns * np.dtype(c.dtype).itemsize
    most = max(min(CACHE_BYTES // max(of_row, 1), MOST_ROWS), 1)
    return batch_shards(mesh) * next(size for size in range(most, 0, -1) if bucket(size) == size)


def _rows(prompts: Sequence[Sequence[int]] | np.ndarray, mask: np.ndarray | None, c: ModelConfig) -> list[np.ndarray]:
    """The tokens of each prompt without padding."""
    if mask is not None:
        tokens, real = np.asarray(prompts), np.asarray(mask) != 0
        if tokens.ndim != 2 or tokens.shape != real.shape:
            raise UserError(f"mask has shape {real.shape}, the prompts {tokens.shape}: expected [n, p] of both.")
        for i, row in enumerate(real):
            (places,) = np.nonzero(row)
            if len(places) and places[-1] - places[0] + 1 != len(places):
                raise UserError(f"mask of prompt {i}: padding between tokens. Pad on the left or on the right.")
        prompts = [row[real_t] for row, real_t in zip(tokens, real, strict=True)]
    rows = [np.asarray(prompt) for prompt in prompts]
    if not rows:
        raise UserError("There are no prompts to continue.")
    for i, row in enumerate(rows):
        if row.ndim != 1 or not row.size:
            raise UserError(
                f"Prompt {i} is {'empty' if not row.size else f'of shape {row.shape}'}: expected at least one token, such as "
                "the one that begins a document."
            )
        if row.dtype.kind not in "iu" or row.min() < 0 or row.max() >= c.vocab_size:
            raise UserError(
                f"Prompt {i} holds {row.tolist()[:8]}...: expected numbers of tokens, 0 to {c.vocab_size - 1}."
            )
    return rows


def _check_lengths(rows: Sequence[np.ndarray], length: int, context: int, c: ModelConfig) -> None:
    if length < 1:
        raise UserError(f"measures.sample: length={length}: expected at least one token.")
    most = context or c.seq_len
    if c.positions == "learned" and most > c.table_positions:
        raise UserError(
            f"context={most}: the model has {c.table_positions} learned positions and none beyond. Use "
            f"context={c.table_positions} or less."
        )
    longest = max(range(len(rows)), key=lambda i: len(rows[i]))
    if len(rows[longest]) + length > most + 1:  # the last token is written and never read
        raise UserError(
            f"measures.sample: the {len(rows[longest])} tokens of prompt {longest} and {length} new ones exceed "
            + (f"context={context}." if context else f"data.seq_len={c.seq_len}.")
        )


def _stops(stop: Sequence[str], tokenizer: Tokenizer | None) -> Stops | None:
    if isinstance(stop, str):
        raise UserError(f"stop={stop!r}: expected a sequence of texts, such as ({stop!r},).")
    if not stop:
        return None
    if tokenizer is None:
        raise UserError(f"stop={list(stop)} needs the tokenizer, which knows the text of tokens. Pass tokenizer=...")
    return Stops(tuple(stop), tokenizer)


def _texts(rows: Sequence[_Written], tokenizer: Tokenizer) -> list[str]:
    plain = tokenizer.decode([row.tokens[:-1] if row.ended == "eos" else row.tokens for row in rows])
    return [text if row.text is None else row.text for row, text in zip(rows, plain, strict=True)]
