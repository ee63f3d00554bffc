"""Are two points measured alike exactly when their protocols say so?"""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny

from elastic_jax.data.build import StudyData
from elastic_jax.data.tokenizers import WordTokenizer
from elastic_jax.measures.protocol import Protocol

WORDS = WordTokenizer([f"w{i}" for i in range(tiny.VOCAB - 2)])
SETTINGS = dict(
    samples=6,
    sample_tokens=0,
    temperature=1.0,
    top_k=0,
    top_p=1.0,
    stop=(),
    keep=2,
    batch_size=4,
    per_octave=2,
    kl_eps=1e-3,
)


class Length:
    """Scores a text by its length."""

    unit, low, high = "probability", 0.0, 1.0

    def __init__(self, name="length", digest="length-1"):
        self.name, self.digest = name, digest

    def score(self, prompts, answers):
        return np.array([len(answer.split()) / tiny.LENGTH for answer in answers])


def heldout(seed, rows=5):
    return SimpleNamespace(digest=f"rows-{seed}", arrays=lambda: tiny.text_batch(rows, seed=seed))


def study_data(**fields):
    data = dict(
        tokenizer=WORDS,
        train={},
        heldout={"pretrain": heldout(0), "align": heldout(1)},
        log_prob={"align": np.linspace(-40, -10, 5)},
        prompts=np.concatenate([np.ones((4, 1), np.int32), tiny.tokens(4, 2)], axis=1),
        scorer=Length(),
        facts=[],
        digest="",
    )
    return StudyData(**{**data, **fields})


def protocol(data=None, **settings):
    return Protocol(tiny.decoder(), data or study_data(), tiny.mesh(), {**SETTINGS, **settings})


@pytest.fixture(scope="module")
def rows():
    model = tiny.decoder()
    return protocol().measure(tiny.random_params(model, 0), tiny.random_params(model, 1), seed=3)


def test_all_measures_of_a_checkpoint(rows):
    likelihoods = {"bits_per_token", "bits_per_byte", "normalised_compression", "kl_base_model", "kl_model_base"}
    expected = {(name, split) for name in likelihoods for split in ("pretrain", "align")}
    expected |= {("kl_data_model", "align"), ("score", "samples"), ("sample", "samples")}
    assert {(row["measure"], row["split"]) for row in rows} == expected
    assert all(np.isfinite(row["value"]) for row in rows)
    by = {(row["measure"], row["split"]): row for row in rows}
    assert by["score", "samples"]["n"] == 6 and by["bits_per_token", "align"]["n"] == 5
    value = {key: row["value"] for key, row in by.items()}
    bits, tokens = value["bits_per_token", "align"], heldout(1).arrays()["mask"].sum()
    assert value["normalised_compression", "align"] == pytest.approx(bits - np.log2(tiny.VOCAB))
    excess = bits * np.log(2) + np.linspace(-40, -10, 5).sum() / tokens
    assert value["kl_data_model", "align"] == pytest.approx(excess)


def test_a_measure_repeats_to_the_digit(rows):
    model = tiny.decoder()
    params = tiny.random_params(model, 0), tiny.random_params(model, 1)
    assert repr(protocol().measure(*params, seed=3)) == repr(rows)
    other = protocol().measure(*params, seed=4)
    for one, another in zip(rows[-2:], other[-2:], strict=True):
        assert one["measure"] == "sample" and one["text"] != another["text"]
    assert repr(other[:11]) == repr(rows[:11])  # no randomness in the likelihoods


def test_every_mesh_measures_the_same(cpu_devices, rows):
    model, mesh = tiny.decoder(), tiny.mesh(2, 2, 2)
    params = [jax.device_put(tiny.random_params(model, seed), model.shardings(mesh)) for seed in (0, 1)]
    got = Protocol(model, study_data(), mesh, SETTINGS).measure(*params, seed=3)
    for one, other in zip(rows, got, strict=True):
        assert one["text"] == other["text"] and one["measure"] == other["measure"]
        np.testing.assert_allclose(
            [other["value"], other["stderr"]], [one["value"], one["stderr"]], rtol=1e-4, atol=1e-6
        )


def test_prompts_repeat_when_more_samples_are_asked_for(rows):
    kept = protocol(keep=6).measure(*[tiny.random_params(tiny.decoder())] * 2, seed=3)[-6:]
    asked = [row["text"].split(" ⟶ ")[0] for row in kept]
    prompts = WORDS.decode(study_data().prompts.tolist())
    assert asked == [*prompts, *prompts[:2]]


@pytest.mark.parametrize(("asked", "got"), [(0, 10), (4, 4), (99, 10)])
def test_a_text_ends_where_the_model_does(asked, got):
    assert protocol(sample_tokens=asked).sample_tokens == got


@pytest.mark.parametrize(
    "change",
    [
        dict(temperature=0.5),
        dict(top_p=0.9),
        dict(top_k=5),
        dict(stop=("w3",)),
        dict(samples=7),
        dict(sample_tokens=3),
        dict(heldout={"pretrain": heldout(0), "align": heldout(2)}),
        dict(heldout={"pretrain": heldout(0)}),
        dict(prompts=study_data().prompts[:3]),
        dict(scorer=Length(name="another")),
        dict(scorer=Length(digest="length-2")),  # of the same kind, fitted on other rows
        dict(tokenizer=WordTokenizer([f"v{i}" for i in range(tiny.VOCAB - 2)])),
    ],
    ids=lambda change: "-".join(change),
)
def test_another_protocol_has_another_digest(change):
    fields = {field.name for field in dataclasses.fields(StudyData)}
    data = study_data(**{k: v for k, v in change.items() if k in fields})
    settings = {k: v for k, v in change.items() if k not in fields}
    assert protocol(data, **settings).digest != protocol().digest


@pytest.mark.parametrize("change", [dict(batch_size=64), dict(per_octave=1), dict(kl_eps=0.5)])
def test_when_and_how_fast_is_no_part_of_it(change):
    assert protocol(**change).digest == protocol().digest


def test_the_digest_is_the_same_in_the_next_process():
    assert protocol().digest == protocol(study_data()).digest and len(protocol().digest) == 16
