import json
import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from elastic_jax.data.universe import Mixture, Universe
from elastic_jax.errors import UserError
from elastic_jax.measures.scorers import ClassifierScorer, PosteriorScorer, Scorer, accuracy

RNG = np.random.default_rng(0)
GOOD, BAD, OTHER = (
    ["lovely", "superb", "warm", "moving"],
    ["dull", "awful", "cold", "waste"],
    ["film", "plot", "actor", "scene"],
)


def reviews(n):
    labels = np.arange(n) % 2 == 0
    return [" ".join(RNG.choice(OTHER + (GOOD if good else BAD), 12)) for good in labels], labels


TEXTS, LABELS = reviews(200)
FITTED = ClassifierScorer.fit(TEXTS, LABELS, use_prompt=True)


def test_classifier_separates_what_can_be_separated():
    texts, labels = reviews(300)
    right, error, area = accuracy(FITTED.score([""] * 300, texts), labels)
    assert right > 0.97 and area > 0.99 and error < 0.01
    assert isinstance(FITTED, Scorer)


def test_scores_are_probabilities_and_texts_without_words_have_one():
    scores = FITTED.score(["", "", ""], ["lovely superb", "dull awful", ""])
    assert scores.dtype == np.float64 and ((scores >= 0) & (scores <= 1)).all()
    assert scores[0] > scores[2] > scores[1]
    assert FITTED.score([], []).shape == (0,)


def test_prompt_counts_only_when_asked():
    alone = ClassifierScorer.fit(TEXTS, LABELS, use_prompt=False)
    assert alone.score(["dull "], ["lovely"])[0] == alone.score([""], ["lovely"])[0]
    assert FITTED.score(["dull "], ["lovely"])[0] < FITTED.score([""], ["lovely"])[0]
    assert FITTED.score(["love"], ["ly"])[0] == FITTED.score([""], ["lovely"])[0]  # a word cut by the prompt


def test_fitting_twice_gives_the_same_scorer():
    again = ClassifierScorer.fit(TEXTS, LABELS, use_prompt=True)
    np.testing.assert_array_equal(again.score([""] * 200, TEXTS), FITTED.score([""] * 200, TEXTS))
    assert again.digest == FITTED.digest == ClassifierScorer.digest_for(TEXTS, LABELS, use_prompt=True)
    assert ClassifierScorer.digest_for(TEXTS, ~LABELS, use_prompt=True) != FITTED.digest


def test_saved_is_loaded_exactly(tmp_path):
    FITTED.save(tmp_path / "s")
    again = ClassifierScorer.load(tmp_path / "s")
    assert again is not None and (again.digest, again.use_prompt) == (FITTED.digest, True)
    np.testing.assert_array_equal(again.score([""] * 200, TEXTS), FITTED.score([""] * 200, TEXTS))


@pytest.mark.parametrize("name", ["weights.npz", "scorer.json"])
def test_damaged_scorer_is_not_used(tmp_path, caplog, name):
    assert ClassifierScorer.load(tmp_path) is None and not caplog.text
    FITTED.save(tmp_path)
    if name == "scorer.json":
        path = tmp_path / name
        path.write_text(json.dumps(json.loads(path.read_text()) | dict(use_prompt=False)))
    else:
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-9])
    with caplog.at_level(logging.WARNING):
        assert ClassifierScorer.load(tmp_path) is None
    assert "damaged" in caplog.text


def test_rows_that_cannot_be_learned_from():
    with pytest.raises(UserError, match=r"data\.rows\.scorer.*both classes"):
        ClassifierScorer.fit(["a b", "c d"], [True, True], use_prompt=True)
    with pytest.raises(UserError, match="no word occurs in two"):
        ClassifierScorer.fit(["aa", "bb", "cc", "dd"], [True, False, True, False], use_prompt=True)


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=40))
def test_area_is_the_usual_one(rows):
    scores, labels = np.array([s / 6 for s, _ in rows]), np.array([label for _, label in rows])
    right, error, area = accuracy(scores, labels)
    assert right == np.mean((scores > 0.5) == labels)
    assert error == pytest.approx(np.sqrt(right * (1 - right) / len(rows)))
    if labels.all() or not labels.any():
        assert np.isnan(area)
    else:
        assert area == pytest.approx(roc_auc_score(labels, scores))


@pytest.mark.parametrize(
    ("latent", "aligned", "opposite"),
    [
        ("sentiment", Mixture.reviews(1.0), Mixture.reviews(0.0)),
        ("refusal", Mixture.dialogues(1.0, 1.0), Mixture.dialogues(1.0, 0.0)),
    ],
)
def test_posterior_scorer_is_the_posterior_of_the_whole_text(latent, aligned, opposite):
    universe = Universe(topics=2)
    scorer = PosteriorScorer(universe, latent)
    for mixture, good in ((aligned, True), (opposite, False)):
        texts = universe.sample(mixture, 200, seed=1)
        scores = scorer.score([t.prompt for t in texts], [t.answer for t in texts])
        np.testing.assert_array_equal(scores, universe.posterior(texts, latent))
        assert np.mean((scores > 0.5) == good) > 0.85
    assert scorer.score([""], [""])[0] == pytest.approx(0.5)
    assert isinstance(scorer, Scorer)
