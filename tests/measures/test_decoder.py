"""Does a decoder with a head judge a text as transformers does?"""

import json

import classifiers
import numpy as np
import pytest
import tiny

from elastic_jax.errors import UserError
from elastic_jax.measures.scorers.decoder import CostScorer

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
TEXTS = [text for text in classifiers.TEXTS if "<" not in text]  # what looks like a special token is text to us


def expected(model, tokenizer, texts):
    """[n, labels] by transformers: one text at a time, so that no padding is in the way."""
    out = []
    with torch.no_grad():
        for text in texts:
            ids = tokenizer(text, truncation=True, max_length=64, return_tensors="pt").input_ids
            out.append(model(input_ids=ids).logits[0].numpy())
    return np.array(out)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama") / "tiny-cost"
    return folder, *classifiers.llama(folder)


@pytest.fixture(scope="module")
def scorer(made):
    return CostScorer(classifiers.source(made[0]), tiny.mesh(), length=64, batch_size=4, template="none")


def test_tokens_and_logits_are_those_of_transformers(made, scorer):
    _, model, tokenizer = made
    assert scorer.tokens(TEXTS) == tokenizer(TEXTS, truncation=True, max_length=64)["input_ids"]
    want = expected(model, tokenizer, TEXTS)
    assert want.std() > 0.3
    np.testing.assert_allclose(scorer.outputs(TEXTS), want, atol=2e-5)
    np.testing.assert_allclose(scorer.score([""] * len(TEXTS), TEXTS), want[:, 0], atol=2e-5)
    assert (scorer.unit, scorer.low, scorer.high) == ("logit", None, None)


def test_other_texts_of_a_batch_and_the_mesh_do_not_matter(cpu_devices, made, scorer):
    together = scorer.outputs(TEXTS)
    for text, outputs in zip(TEXTS, together, strict=True):
        np.testing.assert_allclose(scorer.outputs([text])[0], outputs, atol=2e-5)
    sharded = CostScorer(classifiers.source(made[0]), tiny.mesh(2, 2, 2), length=64, batch_size=4, template="none")
    np.testing.assert_allclose(sharded.outputs(TEXTS), together, atol=2e-5)


def test_a_batch_padded_by_transformers_gives_the_same(made, scorer):
    _, model, tokenizer = made
    batch = tokenizer(TEXTS, padding=True, truncation=True, max_length=64, return_tensors="pt")
    with torch.no_grad():
        want = model(**batch).logits.numpy()
    np.testing.assert_allclose(scorer.outputs(TEXTS), want, atol=2e-5)


def test_several_labels_give_a_probability(tmp_path):
    folder = tmp_path / "guard"
    model, tokenizer = classifiers.llama(folder, ("safe", "unsafe", "unclear"))
    with pytest.raises(UserError, match=r"which label.*safe, unsafe, unclear"):
        CostScorer(classifiers.source(folder), tiny.mesh())
    with pytest.raises(UserError, match=r"no such label. Closest: unsafe"):
        CostScorer(classifiers.source(folder), tiny.mesh(), label="unsaf")
    scorer = CostScorer(classifiers.source(folder), tiny.mesh(), label="Unsafe", length=64, template="none")
    want = torch.softmax(torch.tensor(expected(model, tokenizer, TEXTS)), -1).numpy()[:, 1]
    np.testing.assert_allclose(scorer.score([""] * len(TEXTS), TEXTS), want, atol=2e-5)
    assert (scorer.unit, scorer.low, scorer.high) == ("probability", 0.0, 1.0)


@pytest.mark.parametrize("normalised", [False, True])
def test_a_score_model_of_safe_rlhf(tmp_path, normalised):
    """The same numbers under safe-rlhf's names: the end score, divided by its normaliser's deviation where the config asks for it."""
    folder = tmp_path / "beaver"
    model, tokenizer = classifiers.llama(folder)
    classifiers.as_score_model(folder, normalised)
    scorer = CostScorer(classifiers.source(folder), tiny.mesh(), length=64)
    texts = [f"BEGINNING OF CONVERSATION: USER: a question ASSISTANT:{text.lstrip()}" for text in TEXTS]
    want = expected(model, tokenizer, texts)[:, 0] + classifiers.BIAS
    want = want / (classifiers.VARIANCE**0.5 + 1e-8) if normalised else want
    np.testing.assert_allclose(scorer.score(["a question"] * len(TEXTS), TEXTS), want, atol=2e-5)
    framed = ["BEGINNING OF CONVERSATION: USER: a question ASSISTANT:"] * len(TEXTS)
    np.testing.assert_allclose(scorer.score(framed, [" " + text for text in TEXTS]), want, atol=2e-5)
    assert (scorer.unit, scorer.name) == ("cost", "beaver, cost")


def test_the_end_of_a_document_where_it_is_asked_for(made, scorer):
    _, _, tokenizer = made
    ended = CostScorer(classifiers.source(made[0]), tiny.mesh(), eos="yes", template="none")
    assert ended.tokens(["a film"]) == [[*scorer.tokens(["a film"])[0], tokenizer.eos_token_id]]
    assert ended.digest != scorer.digest


def test_what_is_no_score_model(tmp_path, made):
    folder, *_ = made
    source = classifiers.source(folder)
    source.hf_config["architectures"] = ["LlamaForCausalLM"]
    with pytest.raises(UserError, match=r"causal language model \(LlamaForCausalLM\).*none for scores"):
        CostScorer(source, tiny.mesh())
    source = classifiers.source(folder)
    source.hf_config["architectures"] = ["LlamaForScore"]
    with pytest.raises(UserError, match=r"score_head\.weight is missing"):
        CostScorer(source, tiny.mesh())
    source = classifiers.source(folder)
    source.hf_config["hidden_size"] = 48
    with pytest.raises(UserError, match=r"score\.weight has shape \[1, 32\], expected \[1, 48\]"):
        CostScorer(source, tiny.mesh())
    source = classifiers.source(folder)
    source.hf_config["num_hidden_layers"] = 3
    with pytest.raises(UserError, match=r"(?s)missing: model\.layers\.2\."):
        CostScorer(source, tiny.mesh())
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]


def test_gpt2_has_a_head_too(tmp_path):
    """Other decoders of `models.families`: learned positions, fused projections, and a config with names of its own."""
    import transformers

    folder = tmp_path / "gpt2"
    _, tokenizer = classifiers.llama(folder)
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.3, num_labels=2
    )
    config.pad_token_id = tokenizer.pad_token_id
    torch.manual_seed(1)
    model = transformers.GPT2ForSequenceClassification(config).eval()
    model.save_pretrained(folder)
    scorer = CostScorer(classifiers.source(folder), tiny.mesh(), label="LABEL_1", length=64, template="none")
    np.testing.assert_allclose(scorer.outputs(TEXTS), expected(model, tokenizer, TEXTS), atol=5e-5)
