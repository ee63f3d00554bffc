"""Is it the mean of -log p over the answer's tokens, given the prompt?"""

import classifiers
import jax
import numpy as np
import pytest
import tiny

from elastic_jax.data.tokenizers import WordTokenizer, train_bpe
from elastic_jax.errors import UserError
from elastic_jax.measures.scorers import Scorer
from elastic_jax.measures.scorers.perplexity import BasePerplexity, PerplexityScorer, answer_rows

WORDS = WordTokenizer([f"w{i}" for i in range(tiny.VOCAB - 2)])
PROMPTS = ["w1 w2", "w3", "", "w4 w5 w6", "w1"]
ANSWERS = [" w7", " w8 w9 w10", "w2 w3", "", " " + " ".join(f"w{i}" for i in range(20))]


def bound(mesh, size=4):
    model = tiny.decoder()
    params = jax.device_put(tiny.random_params(model), model.shardings(mesh))
    return model, params, BasePerplexity().of(model, params, WORDS, mesh, size)


def test_under_the_base_it_is_the_mean_over_the_answer():
    model, params, scorer = bound(tiny.mesh())
    got = scorer.score(PROMPTS, ANSWERS)
    assert isinstance(scorer, Scorer) and scorer.unit == "nats/token"
    for value, prompt, answer in zip(got, PROMPTS, ANSWERS, strict=True):
        ids = [WORDS.bos_id, *WORDS.encode([prompt + answer])[0]][: tiny.LENGTH]
        first = 1 + len(WORDS.encode([prompt])[0])
        if first >= len(ids):
            assert np.isnan(value)  # an answer without tokens
            continue
        log_p = jax.nn.log_softmax(tiny.forward(model, params, np.array([ids], np.int32))[0])
        want = -np.mean([log_p[i - 1, ids[i]] for i in range(first, len(ids))])
        assert value == pytest.approx(want, rel=1e-5)


def test_every_mesh_and_batch_says_the_same(cpu_devices):
    want = bound(tiny.mesh())[2].score(PROMPTS, ANSWERS)
    np.testing.assert_allclose(bound(tiny.mesh(2, 2, 2), size=2)[2].score(PROMPTS, ANSWERS), want, rtol=1e-5)
    assert bound(tiny.mesh())[2].score([], []).shape == (0,)


def test_a_token_across_the_border_is_the_answers():
    tokenizer = train_bpe(["wonderful wonderful day"] * 9, 280)
    whole = tokenizer.encode(["wonderful day"])[0]
    [row], [start] = answer_rows(tokenizer, ["wonder"], ["ful day"], 64)
    assert row == [tokenizer.bos_id, *whole]
    assert tokenizer.encode(["wonder"])[0][: start - 1] == whole[: start - 1]
    assert len(whole) > start - 1 and tokenizer.decode([whole[: start - 1]])[0] in "wonder"
    assert answer_rows(tokenizer, ["wonder"], ["ful day"], 2)[0] == [row[:2]]


@pytest.mark.parity
def test_under_a_published_model_it_is_what_transformers_says(tmp_path, cpu_devices):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from elastic_jax.hf.source import open_source

    folder = tmp_path / "llama"
    model, tokenizer = classifiers.llama(folder, causal=True)
    prompts = ["the plot", "a fine ", "", "x"]
    answers = [" is thin", "film, and long " * 3, "a film", ""]
    scorer = PerplexityScorer(open_source(folder), tiny.mesh(2, 2, 2), length=64)
    got = scorer.score(prompts, answers)
    for value, prompt, answer in zip(got, prompts, answers, strict=True):
        head, whole = (tokenizer(text).input_ids for text in (prompt, prompt + answer))
        first = next((i for i, (a, b) in enumerate(zip(head, whole, strict=False)) if a != b), len(head))
        if first == len(whole):
            assert np.isnan(value)
            continue
        with torch.no_grad():
            log_p = model(torch.tensor([whole])).logits[0].log_softmax(-1)
        want = -np.mean([float(log_p[i - 1, whole[i]]) for i in range(first, len(whole))])
        assert value == pytest.approx(want, abs=1e-4)
    half = PerplexityScorer(open_source(folder), tiny.mesh(), length=64, dtype="bfloat16")
    assert half.digest != scorer.digest and half.score(prompts, answers)[0] == pytest.approx(got[0], abs=0.3)


@pytest.mark.parity
def test_a_classifier_writes_nothing(tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from elastic_jax.measures.scorers import further

    classifiers.llama(tmp_path / "guard")
    with pytest.raises(UserError, match=r"^measures\.scorers='perplexity:.*not a language model"):
        further.open_all([f"perplexity:{tmp_path / 'guard'}"], tiny.mesh(), batch_size=4)
