"""Which tokens stand for these bytes, and what is left that no token can say?

Every file comes back byte for byte. Text that the tokenizer gives back exactly becomes tokens; the rest (bytes that are no UTF-8, words
that a word tokenizer does not know, a second space that it drops) is *escaped*: kept as bytes beside the tokens, with the place where
it belongs. A tokenizer that cannot write a line break has it as `<eos>`: for such a model a line is a document, as it is in training.
"""

import dataclasses
import itertools
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence

from elastic_jax.data.tokenizers import Tokenizer
from elastic_jax.errors import UserError

_NOT_UTF8 = re.compile("([\udc80-\udcff]+)")
_WORDS = re.compile(r"\S+|\s+")


@dataclasses.dataclass(frozen=True)
class Pieces:
    """Bytes as tokens and escapes.

    Attributes:
      tokens: in their order, `eos_id` for a line break if `lines`.
      escaped: (how many tokens come before, bytes), in their order; no bytes where tokens on either side were encoded apart, and have
        to be decoded so.
      lines: whether a line break is a token of its own, `eos_id`.
    """

    tokens: list[int]
    escaped: list[tuple[int, bytes]]
    lines: bool


def split(data: bytes, tokenizer: Tokenizer) -> Pieces:
    """Tokens and escapes of any bytes; `join` gives them back."""
    # A byte that is not UTF-8 becomes half of a surrogate pair, which no valid text contains.
    text = data.decode("utf-8", errors="surrogateescape")
    lines = _coded(["\n"], tokenizer)[0] is None
    tokens: list[int] = []
    escaped: list[tuple[int, bytes]] = []
    for part in _parts(text, tokenizer, lines):
        if not part:
            continue
        if isinstance(part, list):
            seam = tokens and not (escaped and escaped[-1][0] == len(tokens))
            if seam and not (lines and tokenizer.eos_id in (tokens[-1], part[0])):
                escaped.append((len(tokens), b""))
            tokens += part
        elif escaped and escaped[-1][0] == len(tokens):
            escaped[-1] = (len(tokens), escaped[-1][1] + part)
        else:
            escaped.append((len(tokens), part))
    pieces = Pieces(tokens, escaped, lines)
    # Whatever a tokenizer does at the seams, and if it should write `<eos>` by itself: nothing is lost.
    if join(pieces, tokenizer) != data or (not lines and tokenizer.eos_id in tokens):
        return Pieces([], [(0, data)] if data else [], lines)
    return pieces


def join(pieces: Pieces, tokenizer: Tokenizer) -> bytes:
    """The bytes of `split`."""
    runs: list[list[int]] = []
    order: list[bytes | int] = []  # bytes, or the number of a run

    def text(begin: int, end: int) -> None:
        run: list[int] = []
        for token in [*pieces.tokens[begin:end], None]:
            if token is not None and not (pieces.lines and token == tokenizer.eos_id):
                run.append(token)
                continue
            if run:
                order.append(len(runs))
                runs.append(run)
                run = []
            if token is not None:
                order.append(b"\n")

    done = 0
    for place, raw in pieces.escaped:
        text(done, place)
        order.append(raw)
        done = place
    text(done, len(pieces.tokens))
    texts = [part.encode("utf-8", errors="surrogateescape") for part in tokenizer.decode(runs)] if runs else []
    return b"".join(part if isinstance(part, bytes) else texts[part] for part in order)


def pack_escapes(escaped: Sequence[tuple[int, bytes]]) -> bytes:
    """Places, lengths and bytes, deflated; b"" for none."""
    if not escaped:
        return b""
    numbers, last = [len(escaped)], 0
    for place, raw in escaped:
        numbers += [place - last, len(raw)]
        last = place
    return zlib.compress(b"".join(map(_varint, numbers)) + b"".join(raw for _, raw in escaped), 9)


def unpack_escapes(packed: bytes) -> list[tuple[int, bytes]]:
    """The inverse of `pack_escapes`. Raises UserError for bytes that it did not make."""
    if not packed:
        return []
    try:
        data = zlib.decompress(packed)
        count, at = _read_varint(data, 0)
        heads, place = [], 0
        for _ in range(count):
            step, at = _read_varint(data, at)
            size, at = _read_varint(data, at)
            place += step
            heads.append((place, size))
        escaped = []
        for place, size in heads:
            escaped.append((place, data[at : at + size]))
            at += size
    except (zlib.error, IndexError) as error:
        raise UserError(f"the escaped bytes are damaged ({error}). Get the whole file.") from error
    return escaped


def _parts(text: str, tokenizer: Tokenizer, lines: bool) -> Iterator[list[int] | bytes]:
    for part in _NOT_UTF8.split(text):
        if _NOT_UTF8.match(part):
            yield part.encode("utf-8", errors="surrogateescape")
        elif lines:
            for number, (line, ids) in enumerate(_with_tokens(part.split("\n"), tokenizer)):
                yield [tokenizer.eos_id] if number else []
                yield from _by_word(line, tokenizer) if ids is None else [ids]
        elif part:
            whole = _coded([part], tokenizer)[0]
            if whole is not None:
                yield whole
                continue
            lines_of = _with_tokens(part.splitlines(keepends=True), tokenizer)
            for good, group in itertools.groupby(lines_of, key=lambda item: item[1] is not None):
                together = "".join(line for line, _ in group)
                ids = _coded([together], tokenizer)[0] if good else None
                yield from _by_word(together, tokenizer) if ids is None else [ids]


def _with_tokens(texts: list[str], tokenizer: Tokenizer) -> list[tuple[str, list[int] | None]]:
    return list(zip(texts, _coded(texts, tokenizer), strict=True))


def _by_word(line: str, tokenizer: Tokenizer) -> Iterator[list[int] | bytes]:
    """The longest runs of known words with single spaces between them, and the rest as bytes."""
    atoms = _WORDS.findall(line)
    words = sorted({atom for atom in atoms if not atom.isspace()})
    known = {word for word, ids in zip(words, _coded(words, tokenizer), strict=True) if ids is not None}
    run: list[str] = []
    for atom in [*atoms, ""]:
        if atom in known or (atom == " " and run):
            run.append(atom)
            continue
        space = run.pop() if run and run[-1] == " " else ""
        if run:
            text = "".join(run)
            ids = _coded([text], tokenizer)[0]
            yield text.encode() if ids is None else ids
        yield (space + atom).encode()
        run = []


def _coded(texts: Iterable[str], tokenizer: Tokenizer) -> list[list[int] | None]:
    """Tokens of every text; None for one that they do not give back."""
    texts = list(texts)
    try:
        ids = tokenizer.encode(texts)
    except UserError:  # one of them has a word that is not in the vocabulary
        if len(texts) == 1:
            return [None]
        half = len(texts) // 2
        return _coded(texts[:half], tokenizer) + _coded(texts[half:], tokenizer)
    back = tokenizer.decode(ids) if texts else []
    return [row if text == again else None for text, row, again in zip(texts, ids, back, strict=True)]


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7
