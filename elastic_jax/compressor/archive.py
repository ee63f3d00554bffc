"""What lies in a compressed file, and does it belong to this checkpoint?

Layout: `EJXC`, the length of the header (uint32, little-endian), the header (JSON, deflated), the escaped bytes, the words of the coder.
"""

import dataclasses
import json
import zlib
from typing import Any

from elastic_jax.errors import UserError

MAGIC = b"EJXC"
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Header:
    """What decompression has to know.

    Attributes:
      run, updates: the checkpoint, for people.
      weights: digest of its parameters.
      tokenizer: digest of the tokenizer.
      text: SHA-256 of the original bytes, its first half.
      size: their number.
      lines: see `pieces.Pieces`.
      lanes, length: texts that were coded side by side, and the most tokens of one.
      segments: how many there are.
      last: tokens of the last one, which may end anywhere.
      states: of the coder.
      precision: of the frequencies.
      escaped: bytes that the escapes take.
      coded: CRC-32 of the escapes and the words.
      probabilities: CRC-32 of the first tables of frequencies, at steps 0, 1, 2, 4, 8 and so on.
      made_with: versions and devices, for people.
    """

    run: str
    updates: int
    weights: str
    tokenizer: str
    text: str
    size: int
    lines: bool
    lanes: int
    length: int
    segments: int
    last: int
    states: int
    precision: int
    escaped: int
    coded: int
    probabilities: tuple[int, ...]
    made_with: str


def pack(header: Header, escapes: bytes, words: bytes) -> bytes:
    """The whole file."""
    fields = dict(format=FORMAT, **dataclasses.asdict(header))
    head = zlib.compress(json.dumps(fields, separators=(",", ":")).encode(), 9)
    return b"".join([MAGIC, len(head).to_bytes(4, "little"), head, escapes, words])


def unpack(data: bytes) -> tuple[Header, bytes, bytes]:
    """Header, escapes and words.

    Raises:
      UserError: this is no such file, is one of another version, or was damaged.
    """
    if data[:4] != MAGIC:
        raise UserError("this is no file that python -m elastic_jax.compress wrote.")
    end = 8 + int.from_bytes(data[4:8], "little")
    try:
        fields: dict[str, Any] = json.loads(zlib.decompress(data[8:end]))
        if fields.pop("format") != FORMAT:
            raise UserError(f"this file was written by another version; this one reads format {FORMAT}.")
        header = Header(**{**fields, "probabilities": tuple(fields["probabilities"])})
    except UserError:
        raise
    except (zlib.error, ValueError, KeyError, TypeError) as error:
        raise UserError(f"the header is damaged ({error}). Get the whole file.") from error
    body = data[end:]
    if crc(body) != header.coded:
        raise UserError("the file is damaged: its checksum is not the one in the header. Get the whole file.")
    return header, body[: header.escaped], body[header.escaped :]


def crc(data: bytes | memoryview) -> int:
    return zlib.crc32(data)
