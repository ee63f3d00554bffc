"""Is the behaviour of a model the mean score of what it wrote?"""

import numpy as np
import pytest

from elastic_jax.data.tokenizers import WordTokenizer, train_bpe
from elastic_jax.errors import UserError
from elastic_jax.measures import behaviour
from elastic_jax.measures.behaviour import Judge
from elastic_jax.measures.questions import NO_FRAME, Frame

TOKENIZER = WordTokenizer(["good", "bad", "film", "the"])


class Share:
    """Scores a text by the share of good words in its answer, and takes note of what it was asked."""

    name, digest, unit, low, high = "share of good", "", "probability", 0.0, 1.0

    def __init__(self):
        self.asked = []

    def score(self, prompts, answers):
        self.asked += zip(prompts, answers, strict=True)
        return np.array([answer.split().count("good") / 4 for answer in answers])


def rows(answers, keep=2, further=(), frame=NO_FRAME):
    scorer = Share()
    prompts = [[TOKENIZER.eos_id, *TOKENIZER.encode(["the film"])[0]]] * len(answers)
    continuations = [[*ids, TOKENIZER.eos_id] for ids in TOKENIZER.encode(answers)]
    return behaviour.rows_of(prompts, continuations, TOKENIZER, scorer, keep, further, frame), scorer


def test_the_score_is_a_mean_with_its_error():
    answers = ["good good good", "bad", "good", "good good bad good"]
    got, scorer = rows(answers)
    scores = np.array([3, 0, 1, 3]) / 4
    score = got[0]
    assert (score["measure"], score["split"], score["unit"], score["text"]) == ("score", "samples", "probability", "")
    assert score["value"] == pytest.approx(scores.mean()) and score["n"] == 4
    assert score["stderr"] == pytest.approx(scores.std(ddof=1) / 2)
    # Without eos, and with the blank that stands between them in the whole text.
    assert scorer.asked == [("the film", " " + answer) for answer in answers]


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


class Unbounded:
    """Scores by length, and has nothing to say of empty answers."""

    name, digest, unit, low, high = "length", "length-1", "words", 0.0, None

    def score(self, prompts, answers):
        return np.array([len(answer.split()) or np.nan for answer in answers])


def test_further_scorers_have_measures_of_their_own():
    got, _ = rows(["good film good", "bad", "", "film"], keep=1, further=[Judge("score_length", Unbounded())])
    assert [row["measure"] for row in got] == ["score", "score_length", "sample"]
    length = got[1]
    assert (length["unit"], length["split"], length["n"]) == ("words", "samples", 3)  # of those that have a score
    assert length["value"] == pytest.approx(5 / 3)
    assert length["stderr"] == pytest.approx(np.std([3, 1, 1], ddof=1) / np.sqrt(3))
    nothing, _ = rows(["", ""], further=[Judge("score_length", Unbounded())])
    assert nothing[1]["n"] == 0 and np.isnan(nothing[1]["value"]) and np.isnan(nothing[1]["stderr"])


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (lambda n: np.zeros(n + 1), r"length gave scores of shape \(3,\) for 2 texts"),
        (lambda n: np.full(n, -1.0), "length gave -1, beyond its bounds 0.0 and None"),
        (lambda n: 1 / 0, "length failed: ZeroDivisionError"),
    ],
)
def test_what_is_no_score_is_not_recorded(said, message):
    judge = Unbounded()
    judge.score = lambda prompts, answers: said(len(answers))
    with pytest.raises(UserError, match=message):
        rows(["good", "bad"], further=[Judge("score_length", judge)])


def test_a_judge_with_a_template_of_its_own_is_given_the_question():
    got, scorer = rows(
        ["good", "bad"], further=[Judge("score_other", other := Share(), question=True)], frame=Frame("the")
    )
    assert scorer.asked == [("the film", " good"), ("the film", " bad")]
    assert other.asked == [("film", " good"), ("film", " bad")] and got[1]["measure"] == "score_other"


def test_answers_follow_their_prompts_as_they_stand_in_the_text():
    """A character cut in two by the border belongs to nobody, and the answer is what it is alone."""
    tokenizer = train_bpe(["the film is good"] * 4, 300)
    ids = tokenizer.encode(["the é film"])[0]
    cut = next(i for i in range(len(ids)) if tokenizer.decode([ids[:i]])[0].endswith("\ufffd"))
    scorer = Share()
    behaviour.rows_of([ids[:cut], ids[:1]], [ids[cut:], ids[1:]], tokenizer, scorer, 0)
    assert scorer.asked[0][1] == tokenizer.decode([ids[cut:]])[0] and "".join(scorer.asked[1]) == "the é film"
