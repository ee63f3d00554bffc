"""How is a text written as the choices that a model did not expect, and read back with the same model?

The tokens are cut into segments of at most the model's length, each of which begins as documents do and knows nothing of the others;
`lanes` of them are coded side by side. Both directions walk through the same (batch of segments, step, lane) and ask the same program
for the same tables; only the coder's stack is filled from the end.
"""

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from functools import cached_property

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from elastic_jax.compressor import archive, pieces, rans
from elastic_jax.compressor.archive import Header
from elastic_jax.compressor.frequencies import Tables, precision
from elastic_jax.compressor.pieces import Pieces
from elastic_jax.data.tokenizers import Tokenizer
from elastic_jax.errors import UserError
from elastic_jax.models.transformer import Decoder, Params, unstack
from elastic_jax.parallel import hardware
from elastic_jax.parallel.mesh import batch_shards
from elastic_jax.parallel.platforms import package_version

LANES = 64
# States of the coder may cost this share of the words.
_STATES_SHARE = 1e-3


@dataclasses.dataclass(frozen=True)
class Compressed:
    """A compressed text and what it consists of.

    Attributes:
      data: the file.
      size: bytes of the original.
      tokens: that it has.
      bits: - log2 of their probabilities, as the frequencies have them.
      words: bytes of the coder.
      escaped: original bytes that no token could say.
      escapes: bytes that these take in the file.
    """

    data: bytes
    size: int
    tokens: int
    bits: float
    words: int
    escaped: int
    escapes: int

    @property
    def bits_per_byte(self) -> float:
        """Of the whole file, header included; NaN for an empty original."""
        return 8 * len(self.data) / self.size if self.size else math.nan

    def __str__(self) -> str:
        text = f"{self.size:,} bytes -> {len(self.data):,}" + (
            f" ({self.bits_per_byte:.3f} bits/byte)" if self.size else ""
        )
        rest = len(self.data) - self.words - self.escapes
        parts = [f"{self.words:,} for {self.tokens:,} tokens of {self.bits / 8:,.0f} bytes of information"]
        if self.escaped:
            parts.append(f"{self.escapes:,} for {self.escaped:,} bytes that are no tokens")
        return f"{text}: {'; '.join(parts)}; {rest:,} for the header"


@dataclasses.dataclass(frozen=True, eq=False)
class Codec:
    """A model as a compressor of bytes.

    Attributes:
      params: of `model`, on `mesh`.
      run, updates: where they come from; written into every file for people.
    """

    model: Decoder
    params: Params
    tokenizer: Tokenizer
    mesh: Mesh
    run: str = ""
    updates: int = 0

    @cached_property
    def weights(self) -> str:
        """Digest of names, shapes and numbers of all parameters."""
        digest = hashlib.sha256()
        layers = self.model.config.layers
        named = (
            self.params if "0" in self.params["layers"] else unstack(self.params, layers)
        )  # the same in both layouts
        for path, leaf in sorted(jax.tree_util.tree_leaves_with_path(named), key=lambda item: str(item[0])):
            array = np.asarray(leaf)
            digest.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}".encode())
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        return digest.hexdigest()[:16]

    @property
    def weights_bytes(self) -> int:
        """What both sides need besides the file: the parameters, in bytes."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self.params))

    def compress(self, data: bytes, lanes: int = LANES) -> Compressed:
        """Any bytes as a file that `decompress` gives them back from.

        Args:
          lanes: texts that are coded side by side; fewer where there are fewer segments.
        """
        split = pieces.split(data, self.tokenizer)
        segments = _segments(split.tokens, self.model.config.seq_len, self.tokenizer.eos_id if split.lines else None)
        # Powers of two, so that files of many sizes share a few programs.
        length = min(_power(max(map(len, segments), default=0)), self.model.config.seq_len)
        shards = batch_shards(self.mesh)
        lanes = -(-min(_power(len(segments)), lanes) // shards) * shards
        steps, probabilities = self._slots(segments, lanes, length)
        bits_of_sum = precision(self.model.config.vocab_size)
        bits = float(sum(np.sum(bits_of_sum - np.log2(step.sizes)) for step in steps))
        states = _states(bits, lanes)
        rounds = [
            rans.Round(step.starts[turn], step.sizes[turn])
            for step in steps
            for turn in rans.turns(len(step.sizes), states)
        ]
        words = rans.encode(rounds, states, bits_of_sum)
        escapes = pieces.pack_escapes(split.escaped)
        header = Header(
            run=self.run,
            updates=self.updates,
            weights=self.weights,
            tokenizer=self.tokenizer.digest[:16],
            text=_digest(data),
            size=len(data),
            lines=split.lines,
            lanes=lanes,
            length=length,
            segments=len(segments),
            last=len(segments[-1]) if segments else 0,
            states=states,
            precision=bits_of_sum,
            escaped=len(escapes),
            coded=archive.crc(escapes + words),
            probabilities=probabilities,
            made_with=self._made_with,
        )
        escaped = sum(len(raw) for _, raw in split.escaped)
        whole = archive.pack(header, escapes, words)
        return Compressed(whole, len(data), len(split.tokens), bits, len(words), escaped, len(escapes))

    def decompress(self, data: bytes) -> bytes:
        """The bytes that `compress` was given.

        Raises:
          UserError: the file is damaged or no such file, belongs to another checkpoint or tokenizer, or the probabilities that are
            computed here are not those that it was written with. Nothing else than the original is ever returned.
        """
        header, escapes, words = archive.unpack(data)
        self._check(header)
        decoder = rans.Decoder(words, header.states, header.precision)
        tokens: list[int] = []
        tables = Tables(self.model, self.params, self.mesh, header.lanes, header.length)
        for begin in range(0, header.segments, header.lanes):
            tables.restart()
            try:
                rows = self._read(header, decoder, tables, begin, min(header.lanes, header.segments - begin))
            except rans.Exhausted:  # the words are all there, as their checksum says: other symbols were read from them
                raise self._differ(header) from None
            for row in rows:
                tokens += row
        if not decoder.is_spent or max(tokens, default=0) >= self.tokenizer.vocab_size:
            raise self._differ(header)
        found = pieces.join(Pieces(tokens, pieces.unpack_escapes(escapes), header.lines), self.tokenizer)
        if _digest(found) != header.text:
            raise self._differ(header)
        return found

    def _slots(
        self, segments: Sequence[Sequence[int]], lanes: int, length: int
    ) -> tuple[list[rans.Round], tuple[int, ...]]:
        """For every step of every batch the slots of its tokens, and the checksums of the first tables."""
        steps: list[rans.Round] = []
        probabilities: list[int] = []
        tables = Tables(self.model, self.params, self.mesh, lanes, length)
        for begin in range(0, len(segments), lanes):
            batch = segments[begin : begin + lanes]
            tables.restart()
            found, active = [], []
            for t in range(max(map(len, batch))):
                alive = [t < len(segment) for segment in batch]
                last = [segment[t - 1] if t and on else None for segment, on in zip(batch, alive, strict=True)]
                table = tables.next(self._inputs(last, lanes))
                if begin == 0 and _checked(t):
                    probabilities.append(_crc(table))
                targets = np.array([segment[t] if on else 0 for segment, on in zip(batch, alive, strict=True)])
                found.append(tables.slots(table, np.pad(targets, (0, lanes - len(batch)))))
                active.append(np.flatnonzero(alive))
            for (starts, sizes), alive in zip(jax.device_get(found), active, strict=True):
                steps.append(rans.Round(starts[alive], sizes[alive]))
        return steps, tuple(probabilities)

    def _read(self, header: Header, decoder: rans.Decoder, tables: Tables, begin: int, count: int) -> list[list[int]]:
        """The segments from `begin` on, as the batch that was coded together."""
        rows: list[list[int]] = [[] for _ in range(count)]
        limits = [header.last if begin + i == header.segments - 1 else header.length for i in range(count)]
        alive = np.array([limit > 0 for limit in limits])
        t = 0
        while alive.any():
            last = [row[-1] if row and on else None for row, on in zip(rows, alive, strict=True)]
            table = tables.next(self._inputs(last, header.lanes))
            # The slice is empty where the text that is read has become longer than the one that was written.
            if begin == 0 and _checked(t) and header.probabilities[t.bit_length() :][:1] != (_crc(table),):
                raise self._differ(header)
            host = np.asarray(table)
            lanes = np.flatnonzero(alive)
            for turn in rans.turns(len(lanes), header.states):
                here = lanes[turn]
                slots = decoder.slots(len(here))
                pairs = zip(here, slots, strict=True)
                found = np.array([np.searchsorted(host[lane], slot, side="right") - 1 for lane, slot in pairs])
                starts = host[here, found].astype(np.int64)
                decoder.advance(rans.Round(starts, host[here, found + 1] - starts))
                for lane, token in zip(here.tolist(), found.tolist(), strict=True):
                    rows[lane].append(token)
                    alive[lane] = len(rows[lane]) < limits[lane] and not (
                        header.lines and token == self.tokenizer.eos_id
                    )
            t += 1
        return rows

    def _inputs(self, last: Sequence[int | None], lanes: int) -> Int[np.ndarray, " lanes"]:
        """The token before the one that is coded: what begins a document at the first step, and in lanes that have ended, whose
        inputs have to be the same in both directions as well."""
        begin = self.tokenizer.eos_id if self.tokenizer.bos_id is None else self.tokenizer.bos_id
        return np.array([*(begin if token is None else token for token in last), *[begin] * (lanes - len(last))])

    def _check(self, header: Header) -> None:
        here = f"{self.run or 'this checkpoint'}, update {self.updates}"
        if header.tokenizer != self.tokenizer.digest[:16]:
            raise UserError(
                f"the file was written with the tokenizer {header.tokenizer} of {header.run}, and {here} has "
                f"{self.tokenizer.digest[:16]}. Give the checkpoint that the file was written with."
            )
        if header.weights != self.weights:
            raise UserError(
                f"the file was written with {header.run or 'a checkpoint'}, update {header.updates} (weights {header.weights}); "
                f"{here}, has the weights {self.weights}. Give the checkpoint that the file was written with."
            )
        if header.precision != precision(self.model.config.vocab_size) or header.length > self.model.config.seq_len:
            raise UserError(f"the file was written for another shape of the model than that of {here}.")
        if header.lanes % batch_shards(self.mesh):
            raise UserError(
                f"the file has {header.lanes} lanes, which do not divide over the {batch_shards(self.mesh)} parts of a batch here. "
                f"It was written on {header.made_with}; use as many devices."
            )

    def _differ(self, header: Header) -> UserError:
        cure = "Decompress it with the devices and versions that it was written with."
        if header.made_with == self._made_with:
            cure = "What differs is not recorded: the processor, or XLA_FLAGS. Decompress it where it was written."
        return UserError(
            "the probabilities that are computed here are not those that the file was written with, so that it cannot be read here.\n"
            f"Written with: {header.made_with}\nHere:         {self._made_with}\n{cure}"
        )

    @cached_property
    def _made_with(self) -> str:
        devices = list(self.mesh.devices.flat)
        versions = ", ".join(f"{name} {package_version(name)}" for name in ("jax", "jaxlib"))
        cores = f", {hardware.host_cores()} cores" if devices[0].platform == "cpu" else ""  # XLA cuts its sums by them
        return f"{len(devices)} of {jax.device_count()} x {devices[0].device_kind}{cores}, {versions}"


def _segments(tokens: list[int], length: int, ends: int | None) -> list[list[int]]:
    """Cut after every token `ends`, and after `length` tokens."""
    segments: list[list[int]] = []
    begin = 0
    for end, token in enumerate(tokens, start=1):
        if token == ends or end - begin == length or end == len(tokens):
            segments.append(tokens[begin:end])
            begin = end
    return segments


def _states(bits: float, lanes: int) -> int:
    """As many as cost no more than the share that is theirs, and no more than there are lanes."""
    return max(1, min(int(bits / 8 * _STATES_SHARE / rans.STATE_BYTES), lanes))


def _power(number: int) -> int:
    """The least power of two that is not below it."""
    return 1 << max(number - 1, 0).bit_length()


def _checked(t: int) -> bool:
    """Whether the table of this step of the first batch is in the header: 0, 1, 2, 4, 8, ..."""
    return t & (t - 1) == 0


def _crc(table: jax.Array) -> int:
    return archive.crc(np.ascontiguousarray(np.asarray(table)).data)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]
