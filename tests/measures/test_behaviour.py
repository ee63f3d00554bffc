"""Is the behaviour of a model the mean score of what it wrote?"""

import numpy as np
import pytest

from elastic_jax.data.tokenizers import WordTokenizer
from elastic_jax.measures import behaviour

TOKENIZER = WordTokenizer(["good", "bad", "film", "the"])


class Share:
    """Scores a text by the share of good words in its answer, and takes note of what it was asked."""

    name, digest = "share of good", ""

    def __init__(self):
        self.asked = []

    def score(self, prompts, answers):
        self.asked += zip(prompts, answers, strict=True)
        return np.array([answer.split().count("good") / 4 for answer in answers])


def rows(answers, keep=2):
    scorer = Share()
    prompts = np.array([[TOKENIZER.eos_id, *TOKENIZER.encode(["the film"])[0]]] * len(answers), np.int32)
    continuations = np.full((len(answers), 5), TOKENIZER.pad_id, np.int32)
    for row, answer in zip(continuations, answers, strict=True):
        ids = [*TOKENIZER.encode([answer])[0], TOKENIZER.eos_id]
        row[: len(ids)] = ids
    return behaviour.rows_of(prompts, continuations, TOKENIZER, scorer, keep), scorer


def test_the_score_is_a_mean_with_its_error():
    answers = ["good good good", "bad", "good", "good good bad good"]
    got, scorer = rows(answers)
    scores = np.array([3, 0, 1, 3]) / 4
    score = got[0]
    assert (score["measure"], score["split"], score["unit"], score["text"]) == ("score", "samples", "probability", "")
    assert score["value"] == pytest.approx(scores.mean()) and score["n"] == 4
    assert score["stderr"] == pytest.approx(scores.std(ddof=1) / 2)
    assert scorer.asked == [("the film", answer) for answer in answers]  # without eos and padding


@pytest.mark.parametrize("keep", [0, 1, 2, 9])
def test_the_first_samples_are_kept_word_for_word(keep):
    got, _ = rows(["good bad", "bad", "good"], keep)
    kept = got[1:]
    assert [row["text"] for row in kept] == ["the film ⟶ good bad", "the film ⟶ bad", "the film ⟶ good"][:keep]
    assert [row["value"] for row in kept] == [0.25, 0.0, 0.25][:keep]
    assert all(row["measure"] == "sample" and row["n"] == 1 and np.isnan(row["stderr"]) for row in kept)


def test_one_sample_has_no_error():
    got, _ = rows(["good"])
    assert got[0]["value"] == 0.25 and np.isnan(got[0]["stderr"])
