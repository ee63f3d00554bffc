"""Does an encoder judge a text as transformers does, whatever else is in its batch and on whatever mesh?"""

import classifiers
import numpy as np
import pytest
import tiny

from elastic_jax.errors import UserError
from elastic_jax.measures.scorers.encoder import RobertaScorer

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
TEXTS = classifiers.TEXTS


def expected(model, tokenizer, texts):
    batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        return model(**batch).logits.numpy()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("roberta") / "tiny-sentiment"
    return folder, *classifiers.roberta(folder)


@pytest.fixture(scope="module")
def scorer(made):
    return RobertaScorer(classifiers.source(made[0]), tiny.mesh(), batch_size=4)


def test_tokens_are_those_of_transformers(made, scorer):
    _, _, tokenizer = made
    assert scorer.tokens(TEXTS) == tokenizer(TEXTS, truncation=True)["input_ids"]
    assert max(map(len, scorer.tokens(TEXTS))) == 64  # one of them is cut


def test_logits_are_those_of_transformers(made, scorer):
    _, model, tokenizer = made
    want = expected(model, tokenizer, TEXTS)
    assert want.std() > 0.3
    np.testing.assert_allclose(scorer.logits(TEXTS), want, atol=1e-5)


def test_score_is_the_softmax_of_the_label(made, scorer):
    _, model, tokenizer = made
    want = torch.softmax(torch.tensor(expected(model, tokenizer, TEXTS)), -1).numpy()
    np.testing.assert_allclose(scorer.score([""] * len(TEXTS), TEXTS), want[:, 1], atol=1e-5)
    other = RobertaScorer(classifiers.source(made[0]), tiny.mesh(), label="negative", text="answer")
    np.testing.assert_allclose(other.score(["any "] * len(TEXTS), TEXTS), want[:, 0], atol=1e-5)
    whole = scorer.score(["a fine "], ["film"])
    np.testing.assert_allclose(whole, want[:1, 1], atol=1e-5)
    assert (scorer.unit, scorer.low, scorer.high) == ("probability", 0.0, 1.0)


def test_other_texts_of_a_batch_do_not_matter(scorer):
    together = scorer.logits(TEXTS)
    for text, logits in zip(TEXTS, together, strict=True):
        np.testing.assert_allclose(scorer.logits([text])[0], logits, atol=1e-5)
    order = np.random.default_rng(0).permutation(len(TEXTS))
    np.testing.assert_allclose(scorer.logits([TEXTS[i] for i in order]), together[order], atol=1e-5)
    assert scorer.logits([]).shape == (0, 2)


def test_every_mesh_judges_alike(cpu_devices, made, scorer):
    sharded = RobertaScorer(classifiers.source(made[0]), tiny.mesh(2, 2, 2), batch_size=4)
    np.testing.assert_allclose(sharded.logits(TEXTS), scorer.logits(TEXTS), atol=1e-5)
    up = sharded._params["layers"]["up"]
    assert up.sharding.shard_shape(up.shape) == (3, 12, 20)  # cut where the mesh divides, 3 heads are not


def test_bfloat16_is_near(made, scorer):
    half = RobertaScorer(classifiers.source(made[0]), tiny.mesh(), dtype="bfloat16")
    np.testing.assert_allclose(half.logits(TEXTS), scorer.logits(TEXTS), atol=0.25)
    assert half.digest != scorer.digest


def test_vocabulary_and_merges_are_a_tokenizer_too(tmp_path, scorer):
    folder = tmp_path / "old"
    model, tokenizer = classifiers.roberta(folder, tokenizer_json=False)
    old = RobertaScorer(classifiers.source(folder), tiny.mesh())
    assert old.tokens(TEXTS) == tokenizer(TEXTS, truncation=True)["input_ids"]
    np.testing.assert_allclose(old.logits(TEXTS), expected(model, tokenizer, TEXTS), atol=1e-5)


def test_xlm_roberta_and_other_labels(tmp_path):
    folder = tmp_path / "xlm"
    model, tokenizer = classifiers.roberta(folder, ("bad", "fair", "good"), "XLMRoberta", hidden_act="gelu_new")
    with pytest.raises(UserError, match=r"which label.*bad, fair, good.*label=NAME"):
        RobertaScorer(classifiers.source(folder), tiny.mesh())
    with pytest.raises(UserError, match=r"label=goood.*no such label.*Closest: good"):
        RobertaScorer(classifiers.source(folder), tiny.mesh(), label="goood")
    scorer = RobertaScorer(classifiers.source(folder), tiny.mesh(), label="Good")
    np.testing.assert_allclose(scorer.logits(TEXTS), expected(model, tokenizer, TEXTS), atol=1e-5)


def test_one_label_gives_its_logit(tmp_path):
    model, tokenizer = classifiers.roberta(tmp_path / "one", ("quality",))
    scorer = RobertaScorer(classifiers.source(tmp_path / "one"), tiny.mesh())
    np.testing.assert_allclose(
        scorer.score([""] * len(TEXTS), TEXTS), expected(model, tokenizer, TEXTS)[:, 0], atol=1e-5
    )
    assert (scorer.unit, scorer.low, scorer.high) == ("logit", None, None)
