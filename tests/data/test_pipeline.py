import itertools

import numpy as np
import pytest

from elastic_jax.data import examples, pipeline, prepared
from elastic_jax.data.tokenizers import WordTokenizer
from elastic_jax.errors import UserError

WORDS = WordTokenizer([f"w{i}" for i in range(200)])
ROWS = 50


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    rows = [dict(id=str(i), prompt="", answer=f"w{i} w{2 * i}") for i in range(ROWS)]
    tokens = examples.tokenize(rows, WORDS, seq_len=8)
    return prepared.prepare(tmp_path_factory.mktemp("d"), "x", "k" * 12, lambda: tokens, tokenizer_digest="")


def first(data, steps, **settings):
    return list(itertools.islice(pipeline.batches(data, **settings), steps))


def assert_same(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name])


def test_every_epoch_is_a_new_permutation(data):
    order = np.concatenate([batch["row"] for batch in first(data, 30, batch_size=5, seed=0)]).reshape(3, ROWS)
    assert (np.sort(order, axis=1) == np.arange(ROWS)).all()
    assert len({tuple(epoch) for epoch in order}) == 3
    assert tuple(order[0]) != tuple(range(ROWS))


def test_seeds_give_different_orders_in_all_epochs(data):
    orders = [
        tuple(row)
        for seed in range(4)
        for row in np.concatenate([b["row"] for b in first(data, 20, batch_size=5, seed=seed)]).reshape(2, ROWS)
    ]
    assert len(set(orders)) == 8


def test_rows_are_those_of_the_data_set(data):
    whole = data.arrays()
    for batch in first(data, 12, batch_size=8, seed=3):
        assert batch["row"].dtype == np.int64
        for name in ("tokens", "mask"):
            np.testing.assert_array_equal(batch[name], whole[name][batch["row"]])
            assert batch[name].dtype == whole[name].dtype


def test_batches_run_across_the_end_of_an_epoch(data):
    order = np.concatenate([batch["row"] for batch in first(data, 25, batch_size=8, seed=1)])
    assert (np.sort(order.reshape(4, ROWS), axis=1) == np.arange(ROWS)).all()


@pytest.mark.parametrize("process_count", [2, 4, 8])
def test_order_does_not_depend_on_the_number_of_processes(data, process_count):
    alone = first(data, 15, batch_size=8, seed=2)
    parts = [
        first(data, 15, batch_size=8, seed=2, process_index=p, process_count=process_count)
        for p in range(process_count)
    ]
    joined = [{name: np.concatenate([part[step][name] for part in parts]) for name in alone[0]} for step in range(15)]
    assert_same(joined, alone)


def test_resume_from_every_step_is_the_uninterrupted_stream(data):
    whole = first(data, 20, batch_size=8, seed=4)
    for start in range(15):
        assert_same(first(data, 20 - start, batch_size=8, seed=4, start=start), whole[start:])


def test_far_start_is_as_quick_as_none(data):
    far = next(pipeline.batches(data, batch_size=8, seed=4, start=10**9))
    assert_same([far], [pipeline.batch_at(data, 10**9, batch_size=8, seed=4)])


def test_random_access_equals_iteration(data):
    whole = first(data, 10, batch_size=6, seed=5, process_index=1, process_count=3)
    for step, batch in enumerate(whole):
        assert_same([pipeline.batch_at(data, step, batch_size=6, seed=5, process_index=1, process_count=3)], [batch])


def test_threads_change_nothing(data):
    assert_same(first(data, 12, batch_size=8, seed=6, threads=False), first(data, 12, batch_size=8, seed=6))


def test_disk_and_memory_give_the_same(data, monkeypatch):
    memory = first(data, 12, batch_size=8, seed=7)
    monkeypatch.setattr(prepared, "IN_MEMORY_BYTES", 0)
    assert_same(first(prepared.open_prepared(data.folder), 12, batch_size=8, seed=7), memory)


def test_order_of_examples_does_not_depend_on_the_batch_size(data):
    small = np.concatenate([b["row"] for b in first(data, 20, batch_size=2, seed=8)])
    large = np.concatenate([b["row"] for b in first(data, 4, batch_size=10, seed=8)])
    np.testing.assert_array_equal(small, large)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(batch_size=6, process_count=4), "batch_size=6 does not divide over 4 processes"),
        (dict(batch_size=0), "batch_size=0"),
        (dict(batch_size=4, process_index=2, process_count=2), "process_index=2"),
        (dict(batch_size=4, start=-1), "start=-1"),
        (dict(batch_size=4, seed=-1), "seed=-1"),
    ],
)
def test_impossible_settings(data, settings, message):
    with pytest.raises(UserError, match=message):
        pipeline.batches(data, **(dict(seed=0) | settings))


@pytest.mark.parametrize("process_count", [1, 2, 4])
def test_what_comes_after_the_last_example_is_padding(data, process_count):
    whole = first(data, 4, batch_size=8, seed=5)
    parts = [
        first(data, 4, batch_size=8, seed=5, examples=19, process_index=p, process_count=process_count)
        for p in range(process_count)
    ]
    for step, before in enumerate(whole):
        found = {name: np.concatenate([part[step][name] for part in parts]) for name in parts[0][0]}
        real = np.arange(8 * step, 8 * step + 8) < 19
        np.testing.assert_array_equal(found.pop("real"), real)
        np.testing.assert_array_equal(found.pop("mask"), before["mask"] * real[:, None])
        assert_same([found], [{name: rows for name, rows in before.items() if name != "mask"}])
    later = first(data, 2, batch_size=8, seed=5, examples=19, start=2)
    assert later[0]["real"].sum() == 3 and later[1]["real"].sum() == 0


def test_padding_examples_are_not_packed(data):
    with pytest.raises(UserError, match="examples=5 with rows=4"):
        pipeline.batches(data, batch_size=8, seed=0, rows=4, examples=5)
