import json
import logging
import os
import threading
import time

import numpy as np
import pytest

from elastic_jax.data import examples, prepared
from elastic_jax.data.tokenizers import WordTokenizer
from elastic_jax.errors import UserError

WORDS = WordTokenizer("abcdefgh")


def token_rows(count=300, seq_len=8, seed=0):
    rng = np.random.default_rng(seed)
    rows = [
        dict(id=f"row-{i}", prompt="", answer=" ".join(rng.choice(list("abcdefgh"), rng.integers(1, 12))))
        for i in range(count)
    ]
    return examples.tokenize(rows, WORDS, seq_len=seq_len)


def make(root, rows=None, name="align", key="0123456789abcdef"):
    return prepared.prepare(root, name, key, lambda: rows or token_rows(), tokenizer_digest=WORDS.digest)


def never():
    raise AssertionError("made again")


def test_what_is_written_is_read(tmp_path):
    rows = token_rows()
    made = make(tmp_path, rows)
    assert made.folder.name == "align-0123456789ab"
    assert (made.rows, made.kind, made.seq_len, made.counts) == (300, "text", 8, rows.counts)
    assert made.ids == rows.ids
    assert made.tokenizer_digest == WORDS.digest
    for name, array in made.arrays().items():
        np.testing.assert_array_equal(array, rows.arrays[name])
        assert array.dtype == rows.arrays[name].dtype
    assert made.arrays(5)["tokens"].shape == (5, 9)
    assert made.arrays(10_000)["tokens"].shape == (300, 9)


def test_second_time_nothing_is_made(tmp_path):
    first = make(tmp_path)
    again = prepared.prepare(tmp_path, "align", "0123456789abcdef", never, tokenizer_digest=WORDS.digest)
    assert again.digest == first.digest


def test_digest_is_of_the_content(tmp_path):
    first, second = make(tmp_path / "a"), make(tmp_path / "b", name="other", key="f" * 16)
    assert first.digest == second.digest
    assert make(tmp_path / "c", token_rows(seed=1)).digest != first.digest
    assert make(tmp_path / "d", token_rows(count=299)).digest != first.digest


@pytest.mark.parametrize("limit", [1 << 30, 0], ids=["memory", "disk"])
def test_rows_by_number(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(prepared, "IN_MEMORY_BYTES", limit)
    rows = token_rows()
    source = make(tmp_path, rows).source()
    assert source.in_memory == bool(limit)
    assert len(source) == 300
    np.testing.assert_array_equal(source[7]["tokens"], rows.arrays["tokens"][7])
    np.testing.assert_array_equal(source[-1]["mask"], rows.arrays["mask"][-1])
    index = np.array([299, 0, 7, 7])
    np.testing.assert_array_equal(source.take(index)["tokens"], rows.arrays["tokens"][index])
    np.testing.assert_array_equal(source.take(slice(2, 5))["tokens"], rows.arrays["tokens"][2:5])
    with pytest.raises(IndexError):
        source[300]


def test_pairs_keep_their_fields(tmp_path):
    rows = examples.tokenize([dict(id="p", prompt="a", chosen="b", rejected="c d")], WORDS, seq_len=8, kind="pair")
    made = make(tmp_path, rows)
    assert made.kind == "pair"
    assert sorted(made.arrays()) == ["chosen_mask", "chosen_tokens", "rejected_mask", "rejected_tokens"]


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def lie(path):
    path.write_text(json.dumps(json.loads(path.read_text()) | dict(rows=299)))


def garble(path):
    path.write_text("[]")


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("data.array_record", flip),
        ("data.array_record", cut),
        ("data.array_record", lambda path: path.unlink()),
        ("ids.json", flip),
        ("manifest.json", lie),
        ("manifest.json", garble),
        ("manifest.json", lambda path: path.unlink()),
    ],
)
def test_damage_is_seen_named_and_repaired(tmp_path, caplog, name, damage):
    first = make(tmp_path)
    damage(first.folder / name)
    with pytest.raises(prepared.Damaged, match=first.folder.name):
        prepared.open_prepared(first.folder)
    with caplog.at_level(logging.WARNING):
        again = make(tmp_path)
    assert "damaged and will be rebuilt" in caplog.text and first.folder.name in caplog.text
    assert again.digest == first.digest
    np.testing.assert_array_equal(again.arrays()["tokens"], token_rows().arrays["tokens"])


def test_interrupted_writing_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(prepared, "_sync", lambda folder: never())
    with pytest.raises(AssertionError):
        make(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_processes_that_race_agree(tmp_path):
    rows, results = token_rows(), []
    barrier = threading.Barrier(4)

    def work():
        barrier.wait()
        results.append(prepared.write(tmp_path / "align-x", rows, tokenizer_digest=WORDS.digest))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({made.digest for made in results}) == 1 and len(results) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["align-x"]


def test_bucket_is_refused_with_the_cure():
    with pytest.raises(UserError, match="local or mounted disk"):
        prepared.local_path("gs://bucket/run/data")


def test_what_killed_processes_left_is_swept_when_it_is_old(tmp_path):
    made = make(tmp_path)
    old, young = tmp_path / "align-x.tmp-0123456789ab", tmp_path / "align-y.tmp-0123456789ab"
    inside, foreign = made.folder / "ids.json.tmp-0123456789ab", tmp_path / "notes.tmp-mine"
    growing = tmp_path / "align-z.tmp-0123456789ab"
    for folder in (old, young, growing):
        folder.mkdir()
        (folder / "data.array_record").write_bytes(b"half")
    for file in (inside, foreign):
        file.write_bytes(b"half")
    before = time.time() - 2 * 24 * 3600
    for path in (old / "data.array_record", old, inside, foreign, growing):
        os.utime(path, (before, before))
    prepared.sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [made.folder.name, young.name, growing.name, foreign.name]
    )
    assert not inside.exists()
    assert prepared.open_prepared(made.folder).digest == made.digest
    prepared.sweep(tmp_path / "nowhere")
