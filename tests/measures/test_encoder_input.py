"""Is a classifier that cannot work named for what it is, and one that can computed as it is defined? Without torch."""

import json
import math

import classifiers
import numpy as np
import pytest
import tiny

from elastic_jax.errors import UserError
from elastic_jax.measures.scorers import Scorer, further
from elastic_jax.measures.scorers.encoder import RobertaScorer
from elastic_jax.models.roberta import RobertaConfig

TEXTS = ["a fine film", "", "thin", "the plot is thin, the acting wooden; I left long before the end of it."]
ERF = np.vectorize(math.erf)


def by_hand(config, tensors, ids):
    """The logits of one text in float64, by the definition of the model."""
    d, n = config["hidden_size"], config["num_attention_heads"]

    def linear(x, name):
        return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]

    def norm(x, name):
        y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return y * tensors[f"{name}.LayerNorm.weight"] + tensors[f"{name}.LayerNorm.bias"]

    table = {
        name: tensors[f"roberta.embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type")
    }
    x = table["word"][ids] + table["position"][2 : 2 + len(ids)] + table["token_type"][0]
    x = norm(x, "roberta.embeddings")
    for i in range(config["num_hidden_layers"]):
        of = f"roberta.encoder.layer.{i}"
        q, k, v = (
            linear(x, f"{of}.attention.self.{name}").reshape(len(ids), n, d // n).swapaxes(0, 1)
            for name in ("query", "key", "value")
        )
        scores = np.exp(q @ k.swapaxes(1, 2) / np.sqrt(d // n))
        mixed = (scores / scores.sum(-1, keepdims=True) @ v).swapaxes(0, 1).reshape(len(ids), d)
        x = norm(x + linear(mixed, f"{of}.attention.output.dense"), f"{of}.attention.output")
        inner = linear(x, f"{of}.intermediate.dense")
        inner = inner * (1 + ERF(inner / np.sqrt(2))) / 2
        x = norm(x + linear(inner, f"{of}.output.dense"), f"{of}.output")
    return linear(np.tanh(linear(x[0], "classifier.dense")), "classifier.out_proj")


def test_logits_are_those_of_the_definition_on_every_mesh(tmp_path, cpu_devices):
    config, tensors = classifiers.plain_roberta(tmp_path / "plain")
    [one] = further.open_all([f"roberta:{tmp_path / 'plain'}"], tiny.mesh(), batch_size=4)
    scorer = one.scorer
    assert isinstance(scorer, RobertaScorer) and isinstance(scorer, Scorer) and one.measure == "score_roberta"
    want = [by_hand(config, tensors, ids) for ids in scorer.tokens(TEXTS)]
    np.testing.assert_allclose(scorer.logits(TEXTS), want, atol=1e-5)
    sharded = RobertaScorer(classifiers.source(tmp_path / "plain"), tiny.mesh(2, 2, 2), batch_size=2)
    np.testing.assert_allclose(sharded.logits(TEXTS), want, atol=1e-5)
    probability = scorer.score([""] * len(TEXTS), TEXTS)
    np.testing.assert_allclose(probability, [1 / (1 + np.exp(no - yes)) for no, yes in want], atol=1e-5)
    assert max(map(len, scorer.tokens(TEXTS))) == 32  # positions end there


def test_the_digest_is_of_content_and_settings(tmp_path):
    for name in ("one", "copy"):
        classifiers.plain_roberta(tmp_path / name)
    classifiers.plain_roberta(tmp_path / "labels", id2label={"0": "POSITIVE", "1": "NEGATIVE"})
    specs = ["roberta:one", "roberta:copy", "roberta:labels", "roberta:one,label=negative", "roberta:one,text=answer"]
    specs = [spec.replace(":", f":{tmp_path}/") + f",name=n{i}" for i, spec in enumerate(specs)]
    made = further.open_all([*specs, f"roberta:{tmp_path}/one,length=8,batch=2"], tiny.mesh(), batch_size=4)
    digests = [one.scorer.digest for one in made]
    [again] = further.open_all(specs[:1], tiny.mesh(), batch_size=4)
    assert again.scorer is made[0].scorer  # its weights are on the devices once
    assert digests[0] == digests[1] and len(set(digests[1:])) == len(digests) - 1


@pytest.mark.parametrize(
    ("change", "option", "message"),
    [
        (dict(), ",label=positiv", "label=positiv: the classifier has no such label. Closest: NEGATIVE, POSITIVE"),
        (dict(id2label={"0": "a", "1": "b"}), "", "which label? The classifier has a, b"),
        (dict(architectures=["LlamaForCausalLM"]), "", "a causal language model (LlamaForCausalLM)"),
        (dict(architectures=["LlamaForScore"]), "", "Write cost:"),
        (
            dict(architectures=["BertForSequenceClassification"]),
            "",
            "is BertForSequenceClassification; expected Roberta",
        ),
        (
            dict(without=["classifier.out_proj.weight"]),
            "",
            "no classification head: classifier.out_proj.weight is missing",
        ),
        (
            dict(without=["roberta.encoder.layer.1.output.dense.bias"]),
            "",
            "1 tensors are missing: roberta.encoder.layer.1",
        ),
        (dict(intermediate_size=25), "", "intermediate.dense.weight has shape [24, 16], expected [25, 16]"),
        (dict(hidden_act="relu6"), "", "hidden_act='relu6'; supported: gelu"),
        (dict(position_embedding_type="relative_key"), "", "supported: absolute"),
        (dict(num_attention_heads=3), "", "hidden_size=16 with 3 heads"),
        (dict(), ",length=33", "length=33: the model has positions for 32 tokens"),
        (dict(), ",revision=main", "is a local folder, which has no revisions"),
    ],
)
def test_what_cannot_work(tmp_path, change, option, message):
    classifiers.plain_roberta(tmp_path / "it", **change)
    with pytest.raises(UserError) as error:
        further.open_all([f"roberta:{tmp_path / 'it'}{option}"], tiny.mesh(), batch_size=4)
    assert str(error.value).startswith("measures.scorers='roberta:") and message in str(error.value), error.value


def test_files_that_are_not_there_or_damaged(tmp_path):
    def refused(message):
        with pytest.raises(UserError) as error:
            further.open_all([f"roberta:{folder}"], tiny.mesh(), batch_size=4)
        assert str(error.value).startswith("measures.scorers='roberta:") and message in str(error.value), error.value

    folder = tmp_path / "it"
    refused("no folder")
    classifiers.plain_roberta(folder)
    (folder / "merges.txt").unlink()
    refused("no tokenizer. Expected tokenizer.json")
    (folder / "tokenizer.json").write_text("{}")
    refused("its tokenizer cannot be read")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-10])
    refused("is cut short")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused("only pickle files")
    (folder / "config.json").unlink()
    refused("no config.json")


def test_a_tokenizer_of_another_model(tmp_path):
    config, _ = classifiers.plain_roberta(tmp_path / "it")
    small = json.dumps(config | dict(vocab_size=100))
    with pytest.raises(UserError, match="not hold the model of its config.json"):
        (tmp_path / "it" / "config.json").write_text(small)
        RobertaScorer(classifiers.source(tmp_path / "it"), tiny.mesh())


def test_without_a_network(monkeypatch):
    hub = pytest.importorskip("huggingface_hub")

    def offline(*args, **kwargs):
        raise hub.errors.LocalEntryNotFoundError("offline")

    monkeypatch.setattr(hub, "snapshot_download", offline)
    with pytest.raises(UserError, match=r"^measures\.scorers='roberta:some/model'.*cannot be reached.*give its folder"):
        further.open_all(["roberta:some/model"], tiny.mesh(), batch_size=4)


def test_labels_without_names_are_numbered():
    base = dict(architectures=["XLMRobertaForSequenceClassification"], vocab_size=9, num_hidden_layers=1, hidden_size=4)
    base |= dict(num_attention_heads=2, intermediate_size=4)
    assert RobertaConfig.from_hf(base | dict(num_labels=3)).labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    with pytest.raises(UserError, match="KeyError 'vocab_size'"):
        RobertaConfig.from_hf({k: v for k, v in base.items() if k != "vocab_size"})
