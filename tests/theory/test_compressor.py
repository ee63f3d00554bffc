"""Do any bytes come back exactly, at the size that the model's probabilities promise, or else not at all?"""

import dataclasses
import functools
import math
import sys

import jax
import numpy as np
import pytest
import tiny
from corpora import many, some
from hypothesis import given
from hypothesis import strategies as st

from elastic_jax.analysis import compressors
from elastic_jax.compressor import Codec, archive, codec, frequencies, pieces, rans
from elastic_jax.data.tokenizers import WordTokenizer, train_bpe
from elastic_jax.errors import UserError

PROSE = (
    "The whale is a fish, said the mate; the sea is wide and the ship small.\nNothing was seen — ähnlich «là» 日本.\n\n"
)
WORDS = WordTokenizer(["the", "sea", "is", "wide", "and", "ship", "small", "whale"])
words = st.lists(st.sampled_from([*WORDS.words, "fish", "", "\n", "\t"]), max_size=20).map(" ".join)
anything = st.one_of(st.binary(max_size=60), words.map(str.encode), st.text(max_size=40).map(str.encode))


@functools.cache
def bpe():
    return train_bpe([PROSE * 4], 300)


class Normalising:
    """A tokenizer that loses capitals and writes a blank before everything, as some pretrained ones nearly do."""

    vocab_size, bos_id, eos_id, eos_ids, pad_id, never = 300, None, 1, (1,), 0, ()
    digest = "normalising"

    def encode(self, texts, *, continued=False):
        return [[2 + byte for byte in f" {text.lower()}".encode()] for text in texts]

    def decode(self, ids):
        return [bytes(i - 2 for i in row if i > 1).decode(errors="replace").removeprefix(" ") for row in ids]


def made(tokenizer, family="llama", seed=0, **fields):
    model = tiny.decoder(family, **{"vocab_size": tokenizer.vocab_size, "seq_len": 12, **fields})
    return Codec(model, tiny.random_params(model, seed), tokenizer, tiny.mesh(), "align-s0-abc", 7)


# -- coder -----------------------------------------------------------------------------------------------------------


@many
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.sampled_from([8, 16, 24, 26]), st.integers(0, 40))
def test_the_coder_gives_back_what_it_took_at_the_price_of_its_information(seed, states, precision, length):
    rng = np.random.default_rng(seed)
    whole, rounds, bits = 1 << precision, [], 0.0
    for _ in range(length):
        k = int(rng.integers(1, states + 1))
        # From one slot to nearly all of them.
        sizes = np.minimum(np.exp2(rng.uniform(0, precision, k)).astype(np.int64), whole)
        starts = np.array([rng.integers(0, whole - size + 1) for size in sizes])
        rounds.append(rans.Round(starts, sizes))
        bits += float(np.sum(precision - np.log2(sizes)))
    stream = rans.encode(rounds, states, precision)
    # The states that are left, 32 bits more than they need, and whole words.
    assert 8 * len(stream) <= bits * 1.001 + 64 * states + length * 0.02
    decoder = rans.Decoder(stream, states, precision)
    for turn in rounds:
        slots = decoder.slots(len(turn.sizes))
        assert ((turn.starts <= slots) & (slots < turn.starts + turn.sizes)).all()
        decoder.advance(turn)
    assert decoder.is_spent
    if length:
        with pytest.raises(rans.Exhausted):
            cut = rans.Decoder(stream[:-4], states, precision)
            for turn in rounds:
                cut.advance(turn)
                assert not cut.is_spent


@pytest.mark.parametrize("count, states", [(0, 3), (1, 3), (7, 3), (64, 16)])
def test_turns_share_all_symbols_out(count, states):
    turns = rans.turns(count, states)
    assert [i for turn in turns for i in range(count)[turn]] == list(range(count))
    assert all(len(range(count)[turn]) <= states for turn in turns)


@some
@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 57, 400]), st.sampled_from([0.1, 3.0, 40.0, 1e4]))
def test_frequencies_are_the_probabilities_in_whole_numbers(seed, vocab, scale):
    logits = (scale * np.random.default_rng(seed).standard_normal((3, vocab))).astype(np.float32)
    logits[1, 1:] = -np.inf  # certain
    logits[2, :] = 0.0
    table = np.asarray(frequencies.cumulated(logits, 24))
    sizes = np.diff(table, axis=1)
    assert (
        table.dtype == np.int32 and (table[:, 0] == 0).all() and (table[:, -1] == 1 << 24).all() and (sizes >= 1).all()
    )
    p = np.exp(np.float64(logits) - np.max(logits, axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    # What the least slots take, and float32.
    np.testing.assert_allclose(sizes / (1 << 24), p, atol=(vocab + 64) / (1 << 24))


# -- bytes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer", [bpe(), WORDS, Normalising()], ids=["bpe", "words", "normalising"])
@many
@given(data=anything)
def test_any_bytes_are_tokens_and_escapes(tokenizer, data):
    split = pieces.split(data, tokenizer)
    assert pieces.join(split, tokenizer) == data
    assert pieces.unpack_escapes(pieces.pack_escapes(split.escaped)) == split.escaped
    assert all(0 <= place <= len(split.tokens) for place, _ in split.escaped)
    assert all(a < b for (a, _), (b, _) in zip(split.escaped, split.escaped[1:], strict=False))


def test_only_what_no_token_can_say_is_escaped():
    text = PROSE.encode()
    assert pieces.split(text, bpe()).escaped == []
    assert pieces.split(b"\xff" + text + b"\xfe", bpe()).escaped == [
        (0, b"\xff"),
        (len(bpe().encode([PROSE])[0]), b"\xfe"),
    ]
    split = pieces.split(b"the sea is wide\nthe old  ship\n", WORDS)
    assert split.lines and split.escaped == [(6, b" old  ")]
    assert split.tokens == [
        *WORDS.encode(["the sea is wide"])[0],
        1,
        *WORDS.encode(["the"])[0],
        *WORDS.encode(["ship"])[0],
        1,
    ]
    lower = pieces.split(b"all\nof it\nsmall Not all\nseen\n", Normalising())
    # Texts that were encoded apart are decoded apart: this tokenizer begins every one of them with a blank.
    assert lower.escaped == [(11, b""), (17, b" Not "), (21, b"\n")]


def test_damaged_escapes_are_said():
    packed = pieces.pack_escapes([(3, b"abc")])
    with pytest.raises(UserError, match="the escaped bytes are damaged"):
        pieces.unpack_escapes(packed[:-3])


# -- the whole -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", list(tiny.FAMILIES))
def test_every_family_of_models_gives_text_back(family):
    data = PROSE.encode() * 2
    subject = made(bpe(), family)
    assert subject.decompress(subject.compress(data, lanes=4).data) == data


@some
@given(data=st.one_of(anything, st.just(b""), st.just(b"\n")))
def test_any_bytes_come_back(data):
    for subject in (made(bpe(), seq_len=4), made(WORDS, seq_len=4)):
        found = subject.compress(data, lanes=2)
        assert subject.decompress(found.data) == data
        assert found.size == len(data) and found.words + found.escapes < len(found.data)


def information(subject, data):
    """-log2 p of the tokens of a text, in bytes, by the model's ordinary pass over whole segments."""
    split = pieces.split(data, subject.tokenizer)
    segments = codec._segments(split.tokens, subject.model.config.seq_len, 1 if split.lines else None)
    width = max(map(len, segments))
    rows = np.array([[1, *segment, *[0] * (width - len(segment))] for segment in segments], np.int32)
    mask = np.array([[1.0] * len(segment) + [0.0] * (width - len(segment)) for segment in segments], np.float32)
    log_p = subject.model.log_probs(subject.params, rows[:, :-1], rows[:, 1:], mask)
    return -float(np.sum(np.asarray(log_p, np.float64))) / math.log(2) / 8


@pytest.mark.parametrize(
    "tokenizer, text", [(bpe(), PROSE * 60), (WORDS, "the sea is wide and the ship is small\n" * 500)]
)
@pytest.mark.parametrize("lanes", [8, 64])
def test_the_size_is_the_information_within_one_percent(tokenizer, text, lanes):
    subject = made(tokenizer)
    found = subject.compress(text.encode(), lanes)
    exact = information(subject, text.encode())
    assert found.escaped == 0
    assert exact * 0.999 < found.bits / 8 < exact * 1.002  # whole numbers for probabilities
    assert found.words < exact * 1.005 + 16  # and the coder
    assert len(found.data) < exact * 1.01 + 320  # and the header, which is as long for a gigabyte


def test_states_of_the_coder_grow_with_the_text():
    assert codec._states(100.0, 64) == 1 and codec._states(8e6, 64) == 64 and codec._states(8e6, 3) == 3
    subject = made(bpe())
    data = PROSE.encode() * 300
    found = subject.compress(data)
    assert 1 < archive.unpack(found.data)[0].states == int(found.bits / 64_000)
    assert subject.decompress(found.data) == data


@pytest.mark.parametrize("mesh", [(8, 1, 1), (2, 2, 2)])
def test_a_sharded_model_compresses_too(mesh):
    model = tiny.decoder(vocab_size=bpe().vocab_size, seq_len=12)
    placed = jax.device_put(tiny.random_params(model), model.shardings(tiny.mesh(*mesh)))
    subject = Codec(model, placed, bpe(), tiny.mesh(*mesh))
    data = PROSE.encode() * 3
    found = subject.compress(data, lanes=3)
    assert archive.unpack(found.data)[0].lanes == mesh[0] * mesh[1]
    assert subject.decompress(found.data) == data
    if mesh[0] == 8:
        with pytest.raises(UserError, match="lanes, which do not divide|are not those that the file was written with"):
            one = made(bpe())
            assert one.decompress(one.compress(data, 3).data) == data
            subject.decompress(one.compress(data, 3).data)


# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written():
    return made(bpe()).compress(PROSE.encode() * 3, lanes=4).data


def test_another_checkpoint_or_tokenizer_is_refused(written):
    other = made(bpe(), seed=1)
    with pytest.raises(UserError, match="written with align-s0-abc, update 7 .*Give the checkpoint"):
        other.decompress(written)
    retrained = train_bpe([PROSE * 4], 290)
    with pytest.raises(UserError, match=f"tokenizer {bpe().digest[:16]} of align-s0-abc.*{retrained.digest[:16]}"):
        made(retrained).decompress(written)
    scaled = made(bpe())
    scaled.params["final_norm"]["scale"] = np.nextafter(scaled.params["final_norm"]["scale"], np.float32(9))
    assert scaled.weights != made(bpe()).weights  # one bit of one layer


@pytest.mark.parametrize("place", [0, 6, 20, -1, -40])
def test_a_damaged_file_is_refused(written, place):
    data = bytearray(written)
    data[place] ^= 0x10
    with pytest.raises(UserError, match="damaged|no file that"):
        made(bpe()).decompress(bytes(data))


@pytest.mark.parametrize("size", [0, 3, 9, 200, -4])
def test_a_file_that_is_cut_off_is_refused(written, size):
    with pytest.raises(UserError, match="damaged|no file that"):
        made(bpe()).decompress(written[:size])


def test_another_version_is_refused(written, monkeypatch):
    monkeypatch.setattr(archive, "FORMAT", 2)
    with pytest.raises(UserError, match="another version; this one reads format 2"):
        archive.unpack(written)


@pytest.mark.parametrize("subject", [made(bpe()), made(WORDS, vocab_size=24)], ids=["bpe", "words"])
@pytest.mark.parametrize("step", [0, 2, 9, 10, 11, 12])
def test_other_probabilities_never_give_other_bytes(subject, monkeypatch, step):
    """As on another machine: one frequency differs by one slot, from one step on. Early or late, it is noticed."""
    written = subject.compress(PROSE.encode() * 3 + b"the sea is wide\nand the ship small\n" * 20, lanes=4).data
    real = frequencies.Tables.next
    calls = []

    def off_by_one(self, tokens):
        table = real(self, tokens)
        calls.append(1)
        if len(calls) <= step:
            return table
        wide = np.argmax(np.diff(np.asarray(table), axis=1), axis=1)
        moved = np.array(table)
        moved[np.arange(len(moved)), np.minimum(wide + 1, table.shape[1] - 2)] -= 1
        return moved

    monkeypatch.setattr(frequencies.Tables, "next", off_by_one)
    with pytest.raises(
        UserError, match="probabilities that are computed here are not those(.*\n)*What differs is not recorded"
    ):
        subject.decompress(written)


# -- beside others ---------------------------------------------------------------------------------------------------


def test_others_are_measured_by_what_they_give_back():
    import bz2
    import gzip
    import lzma

    if sys.version_info >= (3, 14):
        from compression.zstd import decompress as zstd
    else:
        from zstandard import decompress as zstd
    text = PROSE.encode() * 20
    back = {"gzip -9": gzip.decompress, "bzip2 -9": bz2.decompress, "xz -9e": lzma.decompress, "zstd -22": zstd}
    for name, compress in compressors.general().items():
        assert back[name](compress(text)) == text
    found = compressors.side_by_side(text, {"model": (100, 5000)}).set_index("compressor")
    assert set(found.index) == {*back, "model"} and found.bytes.is_monotonic_increasing
    assert found.loc["model", "with_model_bytes"] == 5100 and found.loc["gzip -9", "model_bytes"] == 0
    assert found.loc["model", "bits_per_byte"] == pytest.approx(800 / len(text))
    with pytest.raises(UserError, match="no text"):
        compressors.side_by_side(b"", {})


def test_fields_of_the_header_come_back():
    header = archive.Header("r", 1, "w", "t", "x", 5, True, 8, 12, 3, 2, 1, 24, 0, archive.crc(b"ab"), (1, 2), "here")
    assert archive.unpack(archive.pack(header, b"", b"ab")) == (header, b"", b"ab")
    assert dataclasses.asdict(header).keys() == {field.name for field in dataclasses.fields(header)}


def test_a_gpu_is_told_to_take_the_same_kernels_again(monkeypatch):
    from elastic_jax import compress
    from elastic_jax.parallel import flags, platforms

    monkeypatch.setenv(flags.XLA, "--xla_mine=1")
    monkeypatch.setattr(platforms, "choose", lambda flag: flag)
    monkeypatch.setattr(platforms, "machine", lambda: platforms.Machine("gpu", "hopper", 1))
    monkeypatch.setattr(flags, "probe", lambda variable, wanted: set(wanted) - {"--xla_gpu_deterministic_ops=true"})
    compress._reproducible("cpu")
    assert flags.os.environ[flags.XLA] == "--xla_mine=1"
    compress._reproducible("")
    assert flags.os.environ[flags.XLA] == "--xla_mine=1 --xla_gpu_autotune_level=0"


def test_the_digest_of_weights_is_the_same_in_both_layouts():
    unrolled, scanned = made(bpe()), made(bpe(), layout="scan")
    assert unrolled.weights == scanned.weights
    data = PROSE.encode()
    assert scanned.decompress(scanned.compress(data).data) == data
