"""Is every task a data role of its own, on the universe and on files, without a change to the others?"""

import copy
import json

import numpy as np
import pytest

from elastic_jax.data import study_universe, tasks
from elastic_jax.data.build import build
from elastic_jax.data.roles import text_key
from elastic_jax.errors import UserError
from elastic_jax.measures.scorers import PosteriorScorer

TEXT = dict(align="text", perturb="text")
NAMES = ("refuse", "help", "praise")


def universe(**fields):
    config = copy.deepcopy(study_universe.DEFAULTS) | fields
    for name in ("pretrain", "align", "perturb", "heldout", "prompts"):
        config[name] = dict(config[name], rows=24)
    return config


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    section = dict(names=NAMES, rows=40)
    return root, build(universe(tasks=section), root, objectives=TEXT), build(universe(), root, objectives=TEXT)


def test_every_task_of_the_universe_has_rows_held_out_rows_and_a_judge(built):
    _, data, _ = built
    for name in NAMES:
        role = tasks.role(name)
        assert tasks.task_of(role) == name
        assert data.train[role].rows == 40 and data.heldout[role].rows == 24 and len(data.log_prob[role]) == 24
        probe = data.probes[role]
        assert probe.prompts.shape[0] == 24 and (probe.prompts[:, 0] == data.tokenizer.eos_id).all()
        rows = data.heldout[role].arrays()["tokens"]
        texts = [
            text.replace("<eos>", "").replace("<pad>", "").strip() for text in data.tokenizer.decode(rows.tolist())
        ]
        scores = probe.scorer.score([""] * len(texts), texts)
        assert np.mean(scores) > 0.9  # it is the judge of this task, and not of its opposite
    assert set(data.train) == {"pretrain", "align", "perturb", *map(tasks.role, NAMES)}


def test_tasks_change_no_other_role(built):
    _, data, plain = built
    for sets, others in ((data.train, plain.train), (data.heldout, plain.heldout)):
        assert {name: sets[name].digest for name in others} == {name: kept.digest for name, kept in others.items()}
    assert data.digest != plain.digest and plain.probes == {}
    np.testing.assert_array_equal(data.prompts, plain.prompts)


def test_what_is_prepared_is_opened_again(built):
    root, data, _ = built
    again = build(universe(tasks=dict(names=NAMES, rows=40)), root, objectives=TEXT)
    assert again.digest == data.digest
    for role, probe in data.probes.items():
        np.testing.assert_array_equal(again.probes[role].prompts, probe.prompts)
        assert isinstance(again.probes[role].scorer, PosteriorScorer)
        assert again.probes[role].scorer.digest == probe.scorer.digest


def test_a_task_is_the_same_whatever_stands_beside_it(built, tmp_path):
    _, data, _ = built
    other = build(universe(tasks=dict(names=("pan", "praise"), rows=40), task="refusal"), tmp_path, objectives=TEXT)
    assert other.train["task-praise"].digest == data.train["task-praise"].digest


def test_an_unknown_task_is_named(tmp_path):
    with pytest.raises(UserError, match="data.tasks.names: 'prise' is no task of the universe. Closest: praise"):
        build(universe(tasks=dict(names=("prise",), rows=40)), tmp_path, objectives=TEXT)


WORDS = dict(safe="danger stop never harm", true="fact source proof year", kind="sorry warm friend gentle")


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)

    def write(name, count, words):
        rows = [dict(text=" ".join(rng.choice(words.split(), 6)) + f" {name} {i}", label=i % 2) for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return rows

    write("train", 80, "good bad film plot")
    write("test", 60, "good bad film plot")
    rows = {name: write(name, 40, words) for name, words in WORDS.items()}
    with open(tmp_path / "kind.jsonl", "a") as out:  # one that another task has, and one twice
        out.write(json.dumps(rows["safe"][0]) + "\n" + json.dumps(rows["kind"][0]) + "\n")
    return tmp_path


def text(files, **fields):
    return (
        dict(
            kind="text",
            train=str(files / "train.jsonl"),
            test=str(files / "test.jsonl"),
            seq_len=96,
            prompt_tokens=2,
            rows=dict(pretrain=20, prose=-1, align=10, perturb=10, scorer=20, heldout=8, prompts=8),
            tokenizer=dict(vocab_size=300),
            tasks=dict(names=tuple(WORDS), files=tuple(str(files / f"{name}.jsonl") for name in WORDS), rows=24),
        )
        | fields
    )


def test_every_task_of_files_has_rows_of_its_own(files):
    data = build(text(files), files / "data", objectives=TEXT)
    seen = {}
    for name in WORDS:
        for kind, count in (("", 24), ("heldout-", 8)):
            sets = data.heldout if kind else data.train
            prepared = sets[tasks.role(name)]
            assert prepared.rows == count
            found = data.tokenizer.decode(prepared.arrays()["tokens"].tolist())
            assert all(f" {name} " in line for line in found)
            seen[kind + name] = {text_key("", line.replace("<eos>", "").replace("<pad>", "")) for line in found}
    names = list(seen)
    assert all(seen[a].isdisjoint(seen[b]) for i, a in enumerate(names) for b in names[i + 1 :])
    removed = {f["split"]: f["value"] for f in data.facts if f["measure"] == "duplicates_removed"}
    assert removed["task-kind"] == 2 and removed["task-safe"] == 0
    assert data.probes == {}  # files name no judge
    plain = build(text(files, tasks=dict(names=(), files=(), rows=24)), files / "data", objectives=TEXT)
    assert all(data.train[role].digest == kept.digest for role, kept in plain.train.items())


def test_a_changed_file_of_a_task_is_noticed(files):
    before = build(text(files), files / "data", objectives=TEXT)
    assert build(text(files), files / "data", objectives=TEXT).digest == before.digest
    path = files / "true.jsonl"
    path.write_text(path.read_text().replace("fact", "myth"))
    after = build(text(files), files / "data", objectives=TEXT)
    assert after.train["task-true"].digest != before.train["task-true"].digest
    assert after.train["task-safe"].digest == before.train["task-safe"].digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(files=("a.jsonl",)), r"data.tasks: 3 names and 1 files. On text files every task is a source of its own"),
        (dict(rows=1), "data.tasks.rows=1: 2 rows or more are needed"),
        (
            dict(rows=1000),
            r"data.tasks.rows: 1000 rows are needed for task-safe, but data.tasks.files \(safe\) has only 32 left",
        ),
    ],
)
def test_what_the_files_do_not_allow_is_said(files, change, message):
    config = text(files)
    config["tasks"] |= change
    with pytest.raises(UserError, match=message):
        build(config, files / "data", objectives=TEXT)
