import itertools
import time

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elastic_jax import objectives
from elastic_jax.data import examples, packing, pipeline, prepared
from elastic_jax.data.build import build
from elastic_jax.data.templates import Template
from elastic_jax.data.tokenizers import WordTokenizer, train_bpe
from elastic_jax.errors import UserError
from tests import tiny

WORDS = WordTokenizer("abcdefgh")
PAIRED = Template("{prompt} {answer}")
text = st.lists(st.sampled_from("abcdefgh"), max_size=12).map(" ".join)
rows_of_text = st.lists(st.tuples(text, text), min_size=1, max_size=12)
some_sizes = st.integers(1, 40).flatmap(
    lambda capacity: st.tuples(st.lists(st.integers(1, capacity), min_size=1, max_size=60), st.just(capacity))
)


def as_rows(pairs):
    return [dict(id=f"r{i}", prompt=prompt, answer=answer) for i, (prompt, answer) in enumerate(pairs)]


def one_by_one(sizes, capacity, choose):
    """Loads of rows after every document went to the row that `choose` picks among those with room, or to a new one."""
    loads = []
    for size in sizes:
        fitting = [i for i, load in enumerate(loads) if load + size <= capacity]
        if fitting:
            loads[choose(fitting, loads)] += size
        else:
            loads.append(size)
    return loads


def fullest(fitting, loads):
    return max(fitting, key=lambda i: loads[i])


def first(fitting, loads):
    return fitting[0]


@settings(max_examples=100, deadline=None)
@given(some_sizes)
def test_best_fit_against_the_algorithm_document_by_document(case):
    sizes, capacity = case
    rows = packing.best_fit(np.array(sizes), capacity)
    loads = np.bincount(rows, sizes)
    assert loads.max() <= capacity and loads.min() >= 1  # no row over T, and none without a document
    assert sorted(loads) == sorted(one_by_one(sorted(sizes, reverse=True), capacity, fullest))
    np.testing.assert_array_equal(rows, packing.best_fit(np.array(sizes), capacity))


@settings(max_examples=60, deadline=None)
@given(some_sizes)
def test_best_fit_keeps_its_bound(case):
    sizes, capacity = case
    rows = int(packing.best_fit(np.array(sizes), capacity).max()) + 1
    assert -(-sum(sizes) // capacity) <= rows <= 11 / 9 * len(one_by_one(sizes, capacity, first)) + 4


@pytest.mark.parametrize("capacity", [32, 128, 1024])
def test_best_fit_is_no_worse_than_first_fit_on_random_lengths(capacity):
    rng = np.random.default_rng(capacity)
    for _ in range(5):
        sizes = np.clip(rng.lognormal(np.log(capacity / 4), 0.8, 400).astype(int), 1, capacity)
        rows = int(packing.best_fit(sizes, capacity).max()) + 1
        assert rows <= len(one_by_one(sizes, capacity, first))


def test_a_million_documents_take_seconds():
    sizes = np.clip(np.random.default_rng(0).lognormal(5.5, 1.0, 1_000_000).astype(int), 1, 2048)
    began = time.process_time()
    rows = packing.best_fit(sizes, 2048)
    assert time.process_time() - began < 10
    assert sizes.sum() / 2048 / (rows.max() + 1) > 0.999


def test_sizes_that_no_row_holds_are_refused():
    with pytest.raises(ValueError, match="sizes from 1 to 9 for rows of 8"):
        packing.best_fit(np.array([1, 9]), 8)


def documents(arrays, row):
    """(tokens, mask, positions) of every document of a packed row."""
    segments = arrays["segments"][row]
    for number in range(1, segments.max() + 1):
        (where,) = np.nonzero(segments == number)
        assert (np.diff(where) == 1).all()
        yield (
            arrays["tokens"][row, [*where, where[-1] + 1]].tolist(),
            arrays["mask"][row, where].tolist(),
            arrays["positions"][row, where].tolist(),
        )


@settings(max_examples=60, deadline=None)
@given(rows_of_text, st.integers(2, 30))
def test_every_document_is_there_once_whole_and_in_order(pairs, seq_len):
    rows = as_rows(pairs)
    wholes = {}
    for row in rows:
        head, body = WORDS.encode([row["prompt"], row["answer"]])
        if body:
            wholes[row["id"]] = ([1, *head, *body, 1], [0] * len(head) + [1] * (len(body) + 1))
    if not wholes:
        with pytest.raises(UserError, match="all are empty"):
            examples.tokenize(rows, WORDS, seq_len=seq_len, template=PAIRED, pack="best_fit")
        return
    made = examples.tokenize(rows, WORDS, seq_len=seq_len, template=PAIRED, pack="best_fit")
    arrays = made.arrays
    assert {name: array.dtype.name for name, array in arrays.items()} == dict(
        tokens="int32", mask="uint8", segments="int32", positions="int32"
    )
    assert list(made.ids) == list(wholes)
    found, pieces = [], []
    for row in range(made.counts["rows"]):
        used = arrays["segments"][row] > 0
        assert used[: used.sum()].all() and (arrays["tokens"][row, used.sum() + 1 :] == 0).all()
        for field in ("mask", "positions"):
            assert (arrays[field][row, ~used] == 0).all()
        for tokens, mask, positions in documents(arrays, row):
            assert positions == list(range(len(mask))) and tokens[0] == 1
            whole = len(tokens) <= seq_len and tokens[-1] == 1 and 1 not in tokens[1:-1]
            (found if whole else pieces).append((tokens, mask))
    short = [w for w in wholes.values() if len(w[0]) <= seq_len]
    assert made.counts["documents"] == len(wholes)
    if made.counts["split_documents"] == 0:
        assert sorted(found + pieces) == sorted(wholes.values())
    # Whether whole or in pieces, the targets that count are those of the documents, each once.
    targets = sorted(token for t, m in found + pieces for token, on in zip(t[1:], m, strict=True) if on)
    assert targets == sorted(token for t, m in wholes.values() for token, on in zip(t[1:], m, strict=True) if on)
    assert all(whole in found for whole in short)
    counts = made.counts
    assert counts["loss_tokens"] == len(targets) == arrays["mask"].sum()
    total = sum(len(head) + len(body) + 2 for head, body in (WORDS.encode([p, a]) for p, a in pairs))
    assert counts["tokens"] + counts["truncated_tokens"] + counts["dropped_tokens"] == total


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 9), st.integers(2, 60))
def test_pieces_of_a_long_document_follow_one_another(seq_len, length):
    words = [f"w{i}" for i in range(length)]
    tokenizer = WordTokenizer(words)
    made = examples.tokenize(
        [dict(id="x", prompt="", answer=" ".join(words))], tokenizer, seq_len=seq_len, pack="best_fit"
    )
    pieces = [piece for row in range(made.counts["rows"]) for piece in documents(made.arrays, row)]
    pieces.sort(key=lambda piece: piece[0][1])  # words are numbered in their order
    stream = []
    for number, (tokens, mask, _) in enumerate(pieces):
        assert tokens[0] == 1 and len(mask) <= seq_len
        if number:
            assert tokens[1] == stream[-1] and mask[0] == 0  # begins with the last target of the piece before
        stream += [token for token, on in zip(tokens[1:], mask, strict=True) if on]
    assert stream == [*range(2, length + 2), 1]
    assert made.counts["split_documents"] == (length + 1 > seq_len)
    assert len(pieces) == 1 + -(-max(length + 1 - seq_len, 0) // (seq_len - 1))


def test_packed_rows_decode_to_the_texts():
    texts = [f"The {i}th text, naïve or not, has {'very ' * (i % 5)}few words." for i in range(40)]
    tokenizer = train_bpe(texts, 300)
    rows = [dict(id=str(i), prompt="", answer=text) for i, text in enumerate(texts)]
    arrays = examples.tokenize(rows, tokenizer, seq_len=128, pack="best_fit").arrays
    found = [tokens for row in range(len(arrays["tokens"])) for tokens, _, _ in documents(arrays, row)]
    assert len(arrays["tokens"]) < 40
    assert sorted(tokenizer.decode(found)) == sorted(texts)


def write(folder, tokens):
    return prepared.prepare(folder, "x", "k" * 12, lambda: tokens, tokenizer_digest="")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    rng = np.random.default_rng(0)
    rows = [
        dict(id=str(i), prompt="a b", answer=" ".join(rng.choice(list("abcdefgh"), rng.integers(1, 14))))
        for i in range(90)
    ]
    tokens = examples.tokenize(rows, WORDS, seq_len=12, template=PAIRED)
    assert tokens.counts["truncated_rows"]
    return write(tmp_path_factory.mktemp("d"), tokens)


def stream(data, steps, **settings):
    return list(itertools.islice(pipeline.batches(data, batch_size=16, seed=3, **settings), steps))


def test_a_packed_batch_holds_the_examples_of_the_unpacked_one(data):
    rows = pipeline.rows_needed(data, batch_size=16, seed=3, stop=12)
    assert rows < 16
    fullest_batch = 0
    for packed, plain in zip(stream(data, 12, rows=rows), stream(data, 12), strict=True):
        assert packed["tokens"].shape == (rows, 13) and packed["segments"].shape == (rows, 12)
        np.testing.assert_array_equal(np.sort(packed["row"]), np.sort(plain["row"]))
        found = sorted((t, m) for row in range(rows) for t, m, _ in documents(packed, row))
        expected = []
        for tokens, mask in zip(plain["tokens"].tolist(), plain["mask"].tolist(), strict=True):
            size = max(t for t in range(12) if mask[t]) + 1
            expected.append((tokens[: size + 1], mask[:size]))
        assert found == sorted(expected)
        fullest_batch = max(fullest_batch, int((packed["segments"].max(axis=1) > 0).sum()))
    assert fullest_batch == rows


@pytest.mark.parametrize(("process_count", "multiple"), [(2, 4), (4, 4), (4, 16)])
def test_packed_batches_do_not_depend_on_the_number_of_processes(data, process_count, multiple):
    """With 16 rows the last process has none that holds anything."""
    rows = pipeline.rows_needed(data, batch_size=16, seed=3, stop=8, multiple=multiple)
    assert rows % multiple == 0
    alone = stream(data, 8, rows=rows)
    parts = [stream(data, 8, rows=rows, process_index=p, process_count=process_count) for p in range(process_count)]
    for step, batch in enumerate(alone):
        for name in ("tokens", "mask", "segments", "positions"):
            np.testing.assert_array_equal(np.concatenate([part[step][name] for part in parts]), batch[name])
        assert sorted(np.concatenate([part[step]["row"] for part in parts])) == sorted(batch["row"])


def test_packed_batches_resume_anywhere_from_memory_and_disk(data, monkeypatch):
    rows = pipeline.rows_needed(data, batch_size=16, seed=3, stop=10)
    whole = stream(data, 10, rows=rows)
    again = [stream(data, 1, rows=rows, start=step)[0] for step in range(10)]
    monkeypatch.setattr(prepared, "IN_MEMORY_BYTES", 0)
    disk = stream(prepared.open_prepared(data.folder), 10, rows=rows)
    for batch, *others in zip(whole, again, disk, strict=True):
        for other in others:
            for name in batch:
                np.testing.assert_array_equal(batch[name], other[name])


def test_stored_packed_rows_go_through_the_pipeline(tmp_path):
    rows = as_rows([("", " ".join("abcdefgh"[: 1 + i % 8])) for i in range(50)])
    made = write(tmp_path, examples.tokenize(rows, WORDS, seq_len=12, pack="best_fit"))
    assert made.packed
    batch = next(pipeline.batches(made, batch_size=4, seed=0))
    np.testing.assert_array_equal(batch["segments"], made.arrays()["segments"][batch["row"]])
    assert sorted(batch) == ["mask", "positions", "row", "segments", "tokens"]


def test_what_cannot_be_packed(data, tmp_path):
    with pytest.raises(UserError, match=r"rows=2: a batch of 16 examples needs \d+"):
        next(pipeline.batches(data, batch_size=16, seed=3, rows=2, threads=False))
    with pytest.raises(UserError, match="rows=6 does not divide over 4 processes"):
        pipeline.batches(data, batch_size=16, seed=3, rows=6, process_count=4)
    pair = [dict(id="p", prompt="a", chosen="b", rejected="c d")]
    with pytest.raises(UserError, match="data.align: pairs cannot be packed"):
        examples.tokenize(pair, WORDS, seq_len=8, kind="pair", pack="best_fit", name="data.align")
    pairs = write(tmp_path / "pairs", examples.tokenize(pair, WORDS, seq_len=8, kind="pair"))
    with pytest.raises(UserError, match="pairs cannot be packed"):
        pipeline.batches(pairs, batch_size=1, seed=0, rows=1)
    packed = write(tmp_path / "packed", examples.tokenize(as_rows([("", "a b")]), WORDS, seq_len=8, pack="best_fit"))
    with pytest.raises(UserError, match="several documents already"):
        pipeline.batches(packed, batch_size=1, seed=0, rows=1)


def loss_and_gradient(model, params, batch):
    sft = objectives.make("sft")
    arrays = {name: array for name, array in batch.items() if name != "row"}

    def total(params):
        summed, weight, _ = sft.loss(model, params, arrays, jax.random.key(0))
        return summed, weight

    return jax.jit(jax.value_and_grad(total, has_aux=True))(params)


def assert_same_update(model, packed, plain):
    params = tiny.random_params(model)
    (ours, our_weight), our_gradient = loss_and_gradient(model, params, packed)
    (theirs, their_weight), their_gradient = loss_and_gradient(model, params, plain)
    assert our_weight == their_weight
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    tiny.assert_trees_close(our_gradient, their_gradient, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_packed_is_unpacked_in_loss_and_gradient(data, family):
    """Batches packed as they are read; gemma has a window, which counts positions of the row."""
    model = tiny.decoder(family, vocab_size=WORDS.vocab_size)
    rows = pipeline.rows_needed(data, batch_size=16, seed=3, stop=1)
    assert_same_update(model, stream(data, 1, rows=rows)[0], stream(data, 1)[0])


def universe(tmp_path, pack):
    rows = {name: dict(rows=40) for name in ("pretrain", "align", "perturb")}
    config = dict(
        kind="universe",
        seq_len=80,
        heldout=dict(rows=8),
        prompts=dict(rows=4),
        pack=dict(pretrain=pack, align=pack),
        **rows,
    )
    return build(config, tmp_path, objectives=dict(align="text", perturb="text"))


def test_universe_packed_is_unpacked_in_loss_and_gradient(tmp_path):
    packed, plain = universe(tmp_path, "best_fit"), universe(tmp_path, "none")
    model = tiny.decoder(vocab_size=packed.tokenizer.vocab_size, seq_len=80)
    ours, theirs = packed.train["pretrain"], plain.train["pretrain"]
    assert ours.packed and ours.rows < theirs.rows and ours.digest != theirs.digest
    assert_same_update(model, ours.arrays(), theirs.arrays())
    # What is packed as it is read is prepared as ever: the same runs.
    assert packed.packed_batches == {"align"} and plain.packed_batches == frozenset()
    assert packed.train["align"].digest == plain.train["align"].digest
    found = {(f["measure"], f["split"]): f["value"] for f in packed.facts}
    assert found["documents", "pretrain"] == 40 and found["split_documents", "pretrain"] == 0
    assert found["token_efficiency", "pretrain"] == ours.counts["loss_tokens"] / (ours.rows * 80)
    loss_tokens = packed.train["align"].counts["loss_tokens"]
    assert found["token_efficiency", "align"] == loss_tokens / (40 * 80)
