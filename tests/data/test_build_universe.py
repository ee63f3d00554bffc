import subprocess
import sys

import numpy as np
import pytest
from ml_collections import ConfigDict

from elastic_jax.data import build as build_module
from elastic_jax.data import prepared as prepared_module
from elastic_jax.data.build import build, resolve
from elastic_jax.data.universe import Mixture, Universe
from elastic_jax.errors import UserError

TEXT = dict(align="text", perturb="text")


def config(**changes):
    small = dict(
        kind="universe",
        topics=2,
        pretrain=dict(rows=200),
        align=dict(rows=64),
        perturb=dict(rows=32),
        heldout=dict(rows=40),
        prompts=dict(rows=10),
    )
    return ConfigDict(small | changes)


def fact(data, measure, split):
    (found,) = [f for f in data.facts if (f["measure"], f["split"]) == (measure, split)]
    return found


@pytest.fixture(scope="module")
def sentiment(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    return build(config(), root, objectives=TEXT), root


@pytest.fixture(scope="module")
def refusal(tmp_path_factory):
    return build(config(task="refusal"), tmp_path_factory.mktemp("data"), objectives=dict(align="pair", perturb="text"))


def test_sets_have_the_rows_asked_for(sentiment):
    data, _ = sentiment
    assert {name: made.rows for name, made in data.train.items()} == dict(pretrain=200, align=64, perturb=32)
    assert {name: made.rows for name, made in data.heldout.items()} == dict.fromkeys(data.train, 40)
    assert all(made.kind == "text" and made.counts["truncated_rows"] == 0 for made in data.heldout.values())
    assert all(
        made.tokenizer_digest == data.tokenizer.digest for made in (*data.train.values(), *data.heldout.values())
    )


def test_second_build_opens_the_same_and_draws_nothing(sentiment, monkeypatch):
    data, root = sentiment
    monkeypatch.setattr(Universe, "sample", lambda *_: pytest.fail("drawn again"))
    again = build(config(), root, objectives=TEXT)
    assert again.digest == data.digest
    assert {n: p.digest for n, p in again.train.items()} == {n: p.digest for n, p in data.train.items()}
    np.testing.assert_array_equal(again.prompts, data.prompts)
    for name, values in data.log_prob.items():
        np.testing.assert_array_equal(again.log_prob[name], values)
    assert str(again.facts) == str(data.facts)
    np.testing.assert_array_equal(again.scorer.score([""], ["i loved it"]), data.scorer.score([""], ["i loved it"]))


def test_elsewhere_the_same_config_gives_the_same_data(sentiment, tmp_path):
    assert build(config(), tmp_path, objectives=TEXT).digest == sentiment[0].digest
    assert build(config(seed=1), tmp_path, objectives=TEXT).digest != sentiment[0].digest


def test_more_rows_begin_with_the_fewer(sentiment, tmp_path):
    more = build(config(align=dict(rows=100)), tmp_path, objectives=TEXT)
    few = sentiment[0].train["align"].arrays()["tokens"]
    np.testing.assert_array_equal(more.train["align"].arrays(64)["tokens"], few)
    assert more.train["pretrain"].digest == sentiment[0].train["pretrain"].digest


def counted(prepared):
    """Tokens the loss counts, row by row, without the final <eos>."""
    arrays = prepared.arrays()
    return [row[1:][mask == 1][:-1].tolist() for row, mask in zip(arrays["tokens"], arrays["mask"], strict=True)]


def test_log_prob_is_of_what_the_loss_counts(sentiment, refusal):
    universe = Universe(topics=2)
    data = sentiment[0]
    mixtures = dict(pretrain=Mixture(), align=Mixture.reviews(1.0), perturb=Mixture.reviews(0.0))
    for name, mixture in mixtures.items():
        texts = data.tokenizer.decode(counted(data.heldout[name]))
        np.testing.assert_allclose(data.log_prob[name], universe.log_prob(texts, mixture), rtol=1e-12)
    for name, refuse in (("align", 1.0), ("perturb", 0.0)):
        mixture = Mixture.dialogues(1.0, refuse)
        held = refusal.heldout[name].arrays()
        answers = refusal.tokenizer.decode(counted(refusal.heldout[name]))
        wholes = refusal.tokenizer.decode(held["tokens"].tolist())
        prompts = [whole.removesuffix(answer).strip() for whole, answer in zip(wholes, answers, strict=True)]
        assert all(prompt.endswith("assistant :") for prompt in prompts)
        expected = universe.log_prob(wholes, mixture) - universe.log_prob(prompts, mixture, complete=False)
        np.testing.assert_allclose(refusal.log_prob[name], expected, atol=1e-9)


def test_aligned_and_perturbing_answers_score_apart(sentiment, refusal):
    for data in (sentiment[0], refusal):
        means = {}
        for name in ("align", "perturb"):
            wholes = data.tokenizer.decode(data.heldout[name].arrays()["tokens"].tolist())
            means[name] = data.scorer.score([""] * len(wholes), wholes).mean()
        assert means["align"] > 0.8 and means["perturb"] < 0.2
        assert fact(data, "scorer_accuracy", "heldout")["value"] > 0.85


def test_pairs_have_one_prompt_and_an_aligned_choice(refusal):
    assert refusal.train["align"].kind == "pair" and refusal.train["perturb"].kind == "text"
    arrays = refusal.train["align"].arrays()
    chosen, rejected = (refusal.tokenizer.decode(arrays[f"{s}_tokens"].tolist()) for s in ("chosen", "rejected"))
    for one, other in zip(chosen, rejected, strict=True):
        assert one.split("assistant :")[0] == other.split("assistant :")[0]
    blank = [""] * len(chosen)
    assert refusal.scorer.score(blank, chosen).mean() > 0.8
    assert refusal.scorer.score(blank, rejected).mean() < 0.2


def test_perturbation_turns_pairs_round(tmp_path):
    data = build(config(), tmp_path, objectives=dict(align="text", perturb="pair"))
    chosen = data.tokenizer.decode(data.train["perturb"].arrays()["chosen_tokens"].tolist())
    assert data.scorer.score([""] * len(chosen), chosen).mean() < 0.2


@pytest.mark.parametrize("task", ["sentiment", "refusal"])
def test_a_reversed_task_aligns_on_what_the_other_perturbs_with(task, tmp_path):
    plain, turned = (build(config(task=name), tmp_path, objectives=TEXT) for name in (task, f"{task}_reversed"))
    assert turned.scorer.digest != plain.scorer.digest and turned.digest != plain.digest
    text = ["it was a joy"], ["and i loved it"]
    np.testing.assert_array_equal(turned.scorer.score(*text), 1 - plain.scorer.score(*text))
    assert fact(turned, "scorer_accuracy", "heldout")["value"] > 0.85  # near 1 for what is aligned, as ever
    for role, other in (("align", "perturb"), ("perturb", "align")):
        assert fact(turned, "entropy", role)["value"] == pytest.approx(fact(plain, "entropy", other)["value"], rel=0.15)
    again = build(config(task=f"{task}_reversed"), tmp_path, objectives=TEXT)
    np.testing.assert_array_equal(again.scorer.score(*text), turned.scorer.score(*text))


@pytest.mark.parametrize("name", ["sentiment", "refusal"])
def test_prompts_are_a_full_rectangle(name, request):
    data = request.getfixturevalue(name)
    data = data[0] if name == "sentiment" else data
    assert data.prompts.shape[0] == 10 and data.prompts.dtype == np.int32
    assert (data.prompts[:, 0] == data.tokenizer.eos_id).all() and (data.prompts[:, 1:] > 1).all()
    assert fact(data, "prompt_tokens", "prompts")["value"] == data.prompts.shape[1]


def test_entropy_agrees_with_the_held_out_rows(sentiment):
    data = sentiment[0]
    for name, made in data.heldout.items():
        tokens = made.arrays()["mask"].sum(axis=1, dtype=np.int64)
        loss = -data.log_prob[name]
        mean = loss.sum() / tokens.sum()
        error = np.std(loss - mean * tokens) / tokens.mean() / np.sqrt(len(tokens))
        assert abs(fact(data, "entropy", name)["value"] - mean) < 5 * error


def test_overlaps_are_counted_for_every_two_sets(sentiment):
    splits = [f["split"] for f in sentiment[0].facts if f["measure"] == "overlap"]
    assert len(splits) == len(set(splits)) == 15 and "pretrain&heldout-align" in splits


def test_texts_of_the_other_stages_are_mixed_into_pretraining(sentiment, tmp_path):
    alone, _ = sentiment
    data = build(config(joint=dict(align=0.1, perturb=0.05)), tmp_path, objectives=TEXT)
    assert data.train["pretrain"].rows == 200 + 20 + 10
    mixed, own = (set(map(bytes, made.train["pretrain"].arrays()["tokens"])) for made in (data, alone))
    assert own <= mixed  # the rows of pre-training itself stay
    assert data.heldout["pretrain"].digest == alone.heldout["pretrain"].digest
    assert not any(f["measure"] == "best_rate" for f in alone.facts)


def test_the_best_rate_of_a_mixture_lies_between_its_entropy_and_its_own_volume(sentiment, tmp_path):
    data = build(config(joint=dict(align=0.1, perturb=0.05)), tmp_path, objectives=TEXT)
    universe = Universe(topics=2)
    volumes = dict(pretrain=200, align=20, perturb=10)
    mixtures = dict(pretrain=Mixture(), align=Mixture.reviews(1.0), perturb=Mixture.reviews(0.0))
    mixtures["pretrain"] = Mixture(**{k: v for k, v in resolve(config())["pretrain"].items() if k != "rows"})
    for split, volume in volumes.items():
        tokens = data.heldout[split].arrays()["mask"].sum()
        own = -data.log_prob[split].sum() / tokens
        best = fact(data, "best_rate", split)["value"]
        # q >= share of the distribution x its own p, so that the code is at most log(1 / share) longer for each text.
        longest = own + np.log(sum(volumes.values()) / volume) * len(data.log_prob[split]) / tokens
        assert best < longest
        texts = universe.sample(mixtures[split], 2000, seed=3)
        mixed = [np.exp(universe.log_prob(texts, mixtures[name])) * n for name, n in volumes.items()]
        q = np.sum(mixed, axis=0) / sum(volumes.values())
        own_many = universe.log_prob(texts, mixtures[split])
        assert np.mean(own_many - np.log(q)) > 0  # KL(p || q)


@pytest.mark.parametrize(
    "changes,message",
    [
        (dict(joint=dict(align=-1.0)), "data.joint.align=-1.0"),
        (dict(joint=dict(align=0.1), task="refusal"), "data.joint with data.task='refusal'"),
    ],
)
def test_a_joint_mixture_that_has_no_meaning_is_refused(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        build(config(**changes), tmp_path, objectives=TEXT)


@pytest.mark.parametrize("name", ["align/data.array_record", "study.json", "study.npz", "tokenizer/words.json"])
def test_damage_is_repaired(tmp_path, caplog, name):
    data = build(config(), tmp_path, objectives=TEXT)
    folder, _, file = name.partition("/")
    if file:
        (path,) = tmp_path.glob(f"{folder}-*/{file}")
    else:
        stem, suffix = folder.split(".")
        (path,) = tmp_path.glob(f"{stem}-*.{suffix}")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    again = build(config(), tmp_path, objectives=TEXT)
    assert again.digest == data.digest
    assert "damaged and will be rebuilt" in caplog.text
    caplog.clear()
    build(config(), tmp_path, objectives=TEXT)
    assert not caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(task="sentimant"), r"data\.task='sentimant'.*Closest: sentiment"),
        (dict(seq_len=8), r"data\.seq_len=8 cuts texts.*Use data\.seq_len="),
        (dict(topics=99), "topics=99"),
        (dict(kind="universum"), r"data\.kind='universum'.*Closest: universe"),
        (dict(sedd=1), r"data\.sedd: no such field.*seed"),
        (dict(align=dict(row=5)), r"data\.align\.row: no such field.*rows"),
        (dict(align=5), r"data\.align=5: a group"),
        (dict(seed="x"), r"data\.seed='x'.*type int"),
        (dict(align=dict(rows=0)), r"data\.align\.rows=0"),
        (dict(pretrain=dict(rows=9, positive=2.0)), r"data\.pretrain: positive=2\.0"),
    ],
)
def test_mistakes_name_their_field(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        build(config(**changes), tmp_path, objectives=TEXT)


def test_unknown_kind_of_rows(tmp_path):
    with pytest.raises(UserError, match="'pears'"):
        build(config(), tmp_path, objectives=dict(align="pears"))


def test_fields_that_are_absent_have_defaults():
    assert resolve(dict(kind="universe", pretrain=dict(rows=5)))["pretrain"]["refuse_harmful"] == 0.1
    assert resolve(dict(kind="universe", pretrain=dict(review=1)))["pretrain"]["review"] == 1.0
    assert build_module.KINDS.keys() == {"universe", "text"}


def test_nothing_heavy_is_imported(tmp_path):
    program = (
        "import sys; from elastic_jax.data.build import build;"
        f"build(dict(kind='universe', pretrain=dict(rows=9)), {str(tmp_path)!r}, objectives={{}});"
        "print([m for m in ('tensorflow', 'torch', 'sklearn', 'pandas', 'tensorflow_datasets') if m "
        "in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_rows_come_from_disk_too(sentiment, monkeypatch):
    monkeypatch.setattr(prepared_module, "IN_MEMORY_BYTES", 0)
    made = sentiment[0].train["align"]
    opened = prepared_module.open_prepared(made.folder)
    np.testing.assert_array_equal(opened.arrays(9)["tokens"], made.arrays(9)["tokens"])
