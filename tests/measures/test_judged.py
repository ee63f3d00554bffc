"""Is every text judged once, whoever asks and whatever happens to the files?"""

import logging
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from etils import epath

from elastic_jax.measures.scorers import judged
from elastic_jax.measures.scorers.judged import Cached, Judged, key_of


class Counting:
    """Scores a text by its length, and takes note of what it was asked."""

    name, unit, low, high = "length", "characters", 0.0, None

    def __init__(self, digest="length-1-0123456789abcdef"):
        self.digest, self.asked = digest, []

    def score(self, prompts, answers):
        self.asked += zip(prompts, answers, strict=True)
        return np.array([len(p) + len(a) / 1000 for p, a in zip(prompts, answers, strict=True)])


def test_a_text_goes_to_the_judge_once(tmp_path):
    judge = Counting()
    cached = Cached(judge, epath.Path(tmp_path))
    want = [2.003, 2.003, 0.0, 2.001]
    np.testing.assert_array_equal(cached.score(["ab", "ab", "", "xy"], ["cde", "cde", "", "z"]), want)
    assert len(judge.asked) == 3
    np.testing.assert_array_equal(cached.score(["", "xy", "new"], ["", "z", ""]), [0.0, 2.001, 3.0])
    assert judge.asked[3:] == [("new", "")]
    assert (cached.asked, cached.judged) == (7, 4)
    again = Cached(Counting(), epath.Path(tmp_path))  # the next process
    np.testing.assert_array_equal(again.score(["ab", "new"], ["cde", ""]), [2.003, 3.0])
    assert again.judged == 0 and again.score([], []).shape == (0,)


def test_another_judge_and_another_border_are_another_matter(tmp_path):
    first, other = Counting(), Counting("length-2-0123456789abcdef")
    for judge in (first, other):
        Cached(judge, epath.Path(tmp_path)).score(["ab"], ["c"])
    Cached(first, epath.Path(tmp_path)).score(["a"], ["bc"])
    assert first.asked == [("ab", "c"), ("a", "bc")] and other.asked == [("ab", "c")]
    assert key_of("1:", "") != key_of("", "1:") and key_of("\ud800", "") != key_of("", "")


def test_what_has_no_score_is_remembered_too(tmp_path):
    judge = Counting()
    judge.score = lambda prompts, answers: judge.asked.extend(answers) or np.full(len(answers), np.nan)
    for _ in range(2):
        assert np.isnan(Cached(judge, epath.Path(tmp_path)).score(["a"], ["b"])).all()
    assert judge.asked == ["b"]


@pytest.mark.parametrize("damage", [b"", b"not a zip file", None])
def test_a_damaged_segment_is_judged_again(tmp_path, caplog, damage):
    judge = Counting()
    Cached(judge, epath.Path(tmp_path)).score(["a"], ["b"])
    [segment] = tmp_path.glob("*/*.npz")
    content = bytearray(segment.read_bytes())
    if damage is None:  # one wrong bit of a score
        content[content.index(np.float64(1.001).tobytes())] ^= 1
    segment.write_bytes(bytes(content) if damage is None else damage)
    with caplog.at_level(logging.WARNING):
        assert Cached(judge, epath.Path(tmp_path)).score(["a"], ["b"]) == [1.001]
    assert "damaged" in caplog.text and len(judge.asked) == 2
    assert Cached(Counting(), epath.Path(tmp_path)).score(["a"], ["b"]) == [1.001]
    assert len(list(tmp_path.glob("*/*.npz"))) == 1


def test_many_segments_are_joined_while_others_write(tmp_path, monkeypatch):
    monkeypatch.setattr(judged, "_MANY", 4)
    folder = epath.Path(tmp_path / "judge")

    def work(worker):
        own = Judged(folder)  # a process of its own, as far as files go
        for i in range(25):
            key = key_of(f"{worker}", f"{i}")
            assert own.look([key]) == {}
            own.add({key: worker + i / 100})
        return own

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    keys = [key_of(f"{worker}", f"{i}") for worker in range(4) for i in range(25)]
    found = Judged(folder).look(keys)
    assert [found[key] for key in keys] == [worker + i / 100 for worker in range(4) for i in range(25)]
    assert len(list((tmp_path / "judge").iterdir())) < 40


def test_hits_are_logged(tmp_path, caplog):
    cached = Cached(Counting(), epath.Path(tmp_path))
    with caplog.at_level(logging.INFO):
        cached.score(["a", "b", "a"], ["", "", ""])
        cached.score(["a", "c"], ["", ""])
    assert "length: 3 texts, 2 of them new" in caplog.text and "2 texts, 1 of them new (so far 5 and 3)" in caplog.text


@pytest.mark.parametrize("together", [True, False])
def test_of_several_processes_one_looks_and_asks_for_all(tmp_path, monkeypatch, together):
    """Process 1, which is told what process 0 found; a model on the devices of both is asked by both."""
    from elastic_jax.study import agree

    known = {key_of("a", "").hex(): 9.0}
    told = iter([known, [2.5]])
    monkeypatch.setattr(judged.jax, "process_count", lambda: 2)
    monkeypatch.setattr(judged.distributed, "is_main", lambda: False)
    monkeypatch.setattr(agree, "from_main", lambda make, timeout=0: next(told))
    judge = Counting()
    got = Cached(judge, epath.Path(tmp_path), together=together).score(["a", "bb"], ["", ""])
    np.testing.assert_array_equal(got, [9.0, 2.0 if together else 2.5])
    assert judge.asked == ([("bb", "")] if together else []) and not list(tmp_path.iterdir())
