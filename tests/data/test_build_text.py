import gzip
import json
import re
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from elastic_jax import objectives
from elastic_jax.data import sources
from elastic_jax.data.build import build
from elastic_jax.data.roles import text_key
from elastic_jax.errors import UserError
from tests import tiny

TEXT = dict(align="text", perturb="text")
REAL = Path(__file__).parents[3] / "shared" / "data"
GOOD, BAD = ["lovely", "superb", "warm", "moving", "bright"], ["dull", "awful", "cold", "waste", "grim"]
PLAIN = [
    "film",
    "plot",
    "actor",
    "scene",
    "story",
    "music",
    "ending",
    "night",
    "city",
    "river",
    "house",
    "people",
]


def reviews(count, seed):
    rng = np.random.default_rng(seed)
    return [
        dict(
            text=" ".join(rng.choice((GOOD if i % 2 else BAD) + PLAIN, 14)) + f" {seed} {i}.",
            label=i % 2,
            rating=i,
        )
        for i in range(count)
    ]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def files(tmp_path):
    write(tmp_path / "train.jsonl", reviews(200, 1))
    write(tmp_path / "test.jsonl", reviews(120, 2))
    rng = np.random.default_rng(3)
    prose = "\n".join(" ".join(rng.choice(PLAIN, 25)) for _ in range(60))
    (tmp_path / "prose.txt").write_text(prose + "\n" + " ".join(rng.choice(PLAIN, 900)) + "\n")
    return tmp_path


def config(files, **changes):
    rows = dict(pretrain=60, prose=-1, align=20, perturb=20, scorer=40, heldout=16, prompts=8)
    return (
        dict(
            kind="text",
            train=str(files / "train.jsonl"),
            test=str(files / "test.jsonl"),
            seq_len=16,
            tokenizer=dict(vocab_size=320),
            prompt_tokens=3,
        )
        | changes
        | dict(rows=rows | changes.get("rows", {}))
    )


def made(files, objectives=TEXT, **changes):
    return build(config(files, **changes), files / "data", objectives=objectives)


def fact(data, measure, split):
    (found,) = [f for f in data.facts if (f["measure"], f["split"]) == (measure, split)]
    return found


def texts_of(data, prepared):
    return data.tokenizer.decode(prepared.arrays()["tokens"].tolist())


def refused(call, *patterns):
    with pytest.raises(UserError) as caught:
        call()
    for pattern in patterns:
        assert re.search(pattern, str(caught.value)), str(caught.value)
    assert len(str(caught.value).splitlines()) <= 4


def test_roles_and_counts(files):
    data = made(files, prose=str(files / "prose.txt"))
    assert {n: p.rows for n, p in data.train.items() if n != "pretrain"} == dict(align=20, perturb=20)
    assert {n: p.rows for n, p in data.heldout.items()} == dict.fromkeys(("pretrain", "align", "perturb"), 16)
    assert data.log_prob == {}
    assert data.prompts.shape == (8, 4) and (data.prompts[:, 0] == 1).all() and (data.prompts[:, 1:] > 1).all()
    assert fact(data, "scorer_accuracy", "test")["value"] > 0.9
    assert fact(data, "scorer_accuracy", "test")["n"] == 120
    assert fact(data, "scorer_accuracy", "test, first 16 tokens")["n"] == 120
    assert 0 < fact(data, "prose_share", "pretrain")["value"] < 1


def test_no_text_serves_two_roles(files):
    data = made(files, prose=str(files / "prose.txt"))
    overlaps = [f for f in data.facts if f["measure"] == "overlap"]
    assert len(overlaps) == 8 * 7 // 2 and all(f["value"] == 0 for f in overlaps)
    by_id = {i: name for name in ("align", "perturb") for i in data.train[name].ids}
    held = {i for made_of in data.heldout.values() for i in made_of.ids}
    pretrain = set(data.train["pretrain"].ids)
    assert len(by_id) == 40
    assert pretrain.isdisjoint(by_id) and held.isdisjoint(by_id) and held.isdisjoint(pretrain)


def test_labels_go_where_they_belong(files):
    data = made(files)
    for name, words in (("align", GOOD), ("perturb", BAD)):
        others = BAD if words is GOOD else GOOD
        for text in texts_of(data, data.train[name]) + texts_of(data, data.heldout[name]):
            assert not set(text.split()) & set(others)


def test_pretraining_text_is_all_there(files):
    data = made(files, prose=str(files / "prose.txt"))
    pretrain = data.train["pretrain"]
    stream = pretrain.arrays()["tokens"]
    text = data.tokenizer.decode([[*stream[0], *stream[1:, 1:].ravel()]])[0]
    rows = {f"train.jsonl:{i + 1}": row["text"] for i, row in enumerate(reviews(200, 1))}
    lines = (files / "prose.txt").read_text().splitlines()
    rows |= {f"prose.txt:{i + 1}": line for i, line in enumerate(lines)}
    whole = "".join(rows[i] for i in pretrain.ids)
    assert whole.startswith(text) and len(pretrain.ids) >= 60 + 50
    lost = pretrain.counts["dropped_tokens"]
    assert lost <= 16 and pretrain.counts["dropped_rows"] == 0
    assert pretrain.counts["loss_tokens"] == pretrain.rows * 16


def test_tokenizer_sees_pretraining_rows_alone(files):
    rows = reviews(200, 1)
    for row in rows:
        row["text"] += " zyxzyxzyx" if row["label"] else ""
    write(files / "train.jsonl", rows)
    both = made(files)
    write(files / "test.jsonl", [row | dict(text=row["text"] + " qqqqq") for row in reviews(120, 2)])
    assert made(files).tokenizer.digest == both.tokenizer.digest
    longer = made(files, rows=dict(align=30))  # align takes rows after pre-training did
    assert longer.tokenizer.digest == both.tokenizer.digest
    assert longer.train["pretrain"].digest == both.train["pretrain"].digest
    assert longer.train["align"].ids[:20] == both.train["align"].ids
    assert len(list((files / "data").glob("tokenizer-*"))) == 1
    assert made(files, rows=dict(pretrain=40)).tokenizer.digest != both.tokenizer.digest


def test_second_build_reads_no_raw_file(files, monkeypatch):
    data = made(files)
    monkeypatch.setattr(sources, "read", lambda *a, **k: pytest.fail("read again"))
    monkeypatch.setattr(sources, "sha256_of_file", lambda path: pytest.fail("hashed again"))
    again = made(files)
    assert again.digest == data.digest and str(again.facts) == str(data.facts)
    blank = [""] * 2
    answers = ["lovely warm film", "dull grim plot"]
    np.testing.assert_array_equal(again.scorer.score(blank, answers), data.scorer.score(blank, answers))


def test_touched_files_are_compared_and_changed_ones_prepared_again(files, monkeypatch):
    data = made(files)
    (files / "train.jsonl").touch()
    with monkeypatch.context() as patch:
        patch.setattr(sources, "read", lambda *a, **k: pytest.fail("read again"))
        assert made(files).digest == data.digest
    rows = reviews(200, 1)
    rows.reverse()
    write(files / "train.jsonl", rows)
    assert made(files).digest != data.digest


def test_prepared_data_outlives_its_raw_files(files):
    data = made(files)
    for path in files.glob("*.jsonl"):
        path.unlink()
    assert made(files).digest == data.digest


@pytest.mark.parametrize("name", ["tokenizer-*/tokenizer.json", "scorer-*/weights.npz", "pretrain-*/data.array_record"])
def test_damage_is_repaired(files, caplog, name):
    data = made(files)
    (path,) = (files / "data").glob(name)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert made(files).digest == data.digest
    assert "damaged" in caplog.text
    caplog.clear()
    assert made(files).digest == data.digest and not caplog.text


def test_formats_do_not_matter(files):
    import pandas as pd

    digests = {made(files).train["align"].digest}
    for split in ("train", "test"):
        frame = pd.read_json(files / f"{split}.jsonl", lines=True)
        frame.to_csv(files / f"{split}.csv.gz", index=False)
        frame.to_parquet(files / f"{split}.parquet")
    for suffix in ("csv.gz", "parquet"):
        places = {split: str(files / f"{split}.{suffix}") for split in ("train", "test")}
        digests.add(made(files, **places).train["align"].digest)
    assert len(digests) == 1


def test_duplicates_are_removed_and_counted(files):
    rows = reviews(200, 1)
    twice = [dict(rows[0], text="  " + rows[0]["text"].upper()), dict(rows[1])]
    leaked = reviews(120, 2)[:3]
    write(files / "train.jsonl", rows + twice + leaked)
    data = made(files)
    assert [fact(data, "duplicates_removed", split)["value"] for split in ("train", "test", "train&test")] == [2, 0, 3]


def test_filter_applies_to_train_and_test(files):
    data = made(files, where="rating < 110", rows=dict(pretrain=30, scorer=20))
    lines = [int(i.split(":")[1]) for p in (*data.train.values(), *data.heldout.values()) for i in p.ids]
    assert max(lines) <= 110


def test_without_a_test_file_a_fifth_is_held_out(files):
    write(files / "train.jsonl", reviews(600, 1))
    data = made(files, test="")
    assert fact(data, "scorer_accuracy", "test")["n"] == 120
    assert all(i.startswith("train.jsonl") for p in data.heldout.values() for i in p.ids)
    assert all(f["value"] == 0 for f in data.facts if f["measure"] == "overlap")


def test_held_out_prose_is_cut_from_documents_never_trained_on(files):
    data = made(files, prose=str(files / "prose.txt"))
    documents = {i.split("#")[0] for i in data.heldout["pretrain"].ids if i.startswith("prose")}
    assert documents and documents.isdisjoint(data.train["pretrain"].ids)
    share = fact(data, "prose_share", "pretrain")["value"]
    assert fact(data, "prose_share", "pretrain-heldout")["value"] == pytest.approx(share, abs=0.1)


# -- prompts and pairs ---------------------------------------------------------------------------------------


def test_packed_pretraining_is_the_unpacked_in_loss_and_gradient(files):
    packed, plain = (made(files, seq_len=192, pack=dict(pretrain=pack)) for pack in ("best_fit", "none"))
    ours, theirs = packed.train["pretrain"], plain.train["pretrain"]
    assert ours.rows < theirs.rows and ours.packed and not theirs.packed
    assert theirs.counts["truncated_rows"] == ours.counts["split_documents"] == 0
    assert ours.counts["loss_tokens"] == theirs.counts["loss_tokens"]
    model = tiny.decoder(vocab_size=packed.tokenizer.vocab_size, seq_len=192)
    params, sft = tiny.random_params(model), objectives.make("sft")

    @jax.jit
    def update(params, batch):
        def total(params):
            summed, weight, _ = sft.loss(model, params, batch, jax.random.key(0))
            return summed / weight, weight

        return jax.value_and_grad(total, has_aux=True)(params)

    (loss, weight), gradient = update(params, ours.arrays())
    (expected, expected_weight), expected_gradient = update(params, theirs.arrays())
    assert weight == expected_weight == ours.counts["loss_tokens"]
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    tiny.assert_trees_close(gradient, expected_gradient, rtol=1e-3, atol=1e-5)


def test_how_rows_are_filled_is_a_choice_of_pretraining(files):
    plain = made(files)
    assert made(files, pack=dict(pretrain="concat")).train["pretrain"].digest == plain.train["pretrain"].digest
    packed = made(files, pack=dict(pretrain="best_fit"))
    assert packed.train["pretrain"].ids == plain.train["pretrain"].ids
    assert packed.train["align"].digest == plain.train["align"].digest
    assert packed.heldout["pretrain"].digest == plain.heldout["pretrain"].digest
    efficiency = {f["split"]: f["value"] for f in packed.facts if f["measure"] == "token_efficiency"}
    assert set(efficiency) == {role + end for role in ("pretrain", "align", "perturb") for end in ("", "-heldout")}
    counts = packed.train["pretrain"].counts
    assert efficiency["pretrain"] == counts["loss_tokens"] / (counts["rows"] * 16) > 0.8
    # Read batch by batch, the prepared data is the same, and nothing is read again.
    again = made(files, pack=dict(align="best_fit"))
    assert again.digest == plain.digest and again.packed_batches == {"align"}


@pytest.fixture
def pairs(tmp_path):
    def rows(count, seed):
        rng = np.random.default_rng(seed)
        return [
            dict(
                prompt=f"tell me about the {PLAIN[i % len(PLAIN)]} {seed}{i:03d} ?",
                good=" ".join(rng.choice(GOOD + PLAIN, 9)) + f" {seed}{i}",
                bad=" ".join(rng.choice(BAD + PLAIN, 9)) + f" {seed}{i}",
            )
            for i in range(count)
        ]

    write(tmp_path / "train.jsonl", rows(160, 1))
    write(tmp_path / "test.jsonl", rows(100, 2))
    return tmp_path


PAIRED = dict(
    columns=dict(prompt="prompt", chosen="good", rejected="bad"),
    template="USER: {prompt} ASSISTANT: {answer}",
    seq_len=64,
)


def test_pairs(pairs):
    data = made(pairs, dict(align="pair", perturb="pair"), **PAIRED)
    for name, (first, second) in dict(align=(GOOD, BAD), perturb=(BAD, GOOD)).items():
        assert data.train[name].kind == "pair"
        arrays = data.train[name].arrays()
        for side, never in (("chosen", second), ("rejected", first)):
            for text in data.tokenizer.decode(arrays[f"{side}_tokens"].tolist()):
                assert text.startswith("USER: tell me about") and not set(text.split()) & set(never)
    assert all(p.kind == "text" for p in data.heldout.values())
    assert data.prompts.shape[0] <= 8
    assert all(t.endswith("? ASSISTANT:") for t in data.tokenizer.decode(data.prompts.tolist()))
    assert fact(data, "scorer_accuracy", "test")["n"] == 200


def test_text_objective_on_pairs_takes_the_wanted_side(pairs):
    data = made(pairs, TEXT, **PAIRED)
    for name, never in (("align", BAD), ("perturb", GOOD)):
        arrays = data.train[name].arrays()
        for row, mask in zip(arrays["tokens"], arrays["mask"], strict=True):
            (answer,) = data.tokenizer.decode([row[1:][mask == 1].tolist()])
            assert answer.startswith(" ") and "ASSISTANT" not in answer and "?" not in answer
            assert not set(answer.split()) & set(never)


def test_pairs_that_share_a_text_serve_one_role(pairs):
    rows = [json.loads(line) for line in (pairs / "train.jsonl").read_text().splitlines()]
    for i in range(0, 160, 2):
        rows[i + 1] = dict(rows[i], bad=rows[i + 1]["bad"])
    write(pairs / "train.jsonl", rows)
    data = made(pairs, dict(align="pair", perturb="pair"), **PAIRED)
    keys = {
        name: {
            text_key(rows[int(i.split(":")[1]) - 1]["prompt"], rows[int(i.split(":")[1]) - 1]["good"]) for i in p.ids
        }
        for name, p in data.train.items()
    }
    assert keys["align"].isdisjoint(keys["perturb"]) and keys["pretrain"].isdisjoint(keys["align"] | keys["perturb"])


# -- mistakes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "patterns"),
    [
        (dict(train="nowhere.jsonl"), [r"data\.train: no file nowhere\.jsonl"]),
        (
            dict(columns=dict(text="txt")),
            [r"data\.columns\.text='txt'", "text, label, rating", "Closest: text"],
        ),
        (dict(columns=dict(label="sentiment")), [r"data\.columns\.label='sentiment'", "label"]),
        (dict(columns=dict(text="rating")), [r"test\.jsonl:1.*data\.columns\.text", "text was expected"]),
        (
            dict(labels=dict(aligned="pos", opposite="neg")),
            ["outside data.labels", r"'0' \(60 rows\), '1' \(60 rows\)"],
        ),
        (dict(labels=dict(aligned=1, opposite=1)), ["aligned and opposite are both '1'"]),
        (dict(where="rating > 1000"), [r"data\.where=.*keeps none of the 120 rows of data\.test"]),
        (dict(where="ratng > 1"), [r"data\.where=", "text, label, rating"]),
        (dict(min_chars=10_000), [r"none of 120 rows", r"data\.min_chars=10000"]),
        (
            dict(rows=dict(align=500)),
            [r"data\.rows\.align: 500 rows with label aligned.*only \d+ left", "Lower"],
        ),
        (dict(rows=dict(perturb=500)), [r"data\.rows\.perturb"]),
        (dict(rows=dict(pretrain=5000)), [r"data\.rows\.pretrain"]),
        (dict(rows=dict(scorer=5000)), [r"data\.rows\.scorer"]),
        (dict(rows=dict(heldout=5000)), [r"data\.rows\.heldout.*data\.test"]),
        (dict(rows=dict(prompts=5000)), [r"data\.rows\.prompts=5000"]),
        (dict(rows=dict(align=0)), [r"data\.rows\.align=0"]),
        (dict(prompt_tokens=16), [r"data\.prompt_tokens=16"]),
        (dict(template="{prompt} {answer}"), [r"data\.columns\.prompt is empty"]),
        (dict(columns=dict(prompt="text")), [r"data\.columns\.prompt='text'.*no place"]),
        (dict(columns=dict(chosen="text")), [r"data\.columns\.rejected=''"]),
        (dict(tokenizer=dict(vocab_size=100)), [r"data\.tokenizer\.vocab_size=100"]),
        (dict(prose="prose.md"), [r"data\.prose: no file"]),
        (dict(rows=dict(prose=30)), [r"data\.rows\.prose=30, but data\.prose is empty", r"data\.rows\.prose=-1"]),
        (dict(pack=dict(pretrain="bestfit")), [r"data\.pack\.pretrain='bestfit'", "best_fit"]),
        (dict(pack=dict(align="concat")), [r"data\.pack\.align='concat'", "counted in examples"]),
    ],
)
def test_mistakes_name_their_field(files, changes, patterns):
    refused(lambda: made(files, **changes), *patterns)


def test_train_and_test_of_the_same_rows(files):
    refused(
        lambda: made(files, test=str(files / "train.jsonl")),
        "data.train and data.test overlap",
        'data.test=""',
    )


def test_prose_with_one_document(files):
    (files / "one.txt").write_text("a single document\n")
    refused(lambda: made(files, prose=str(files / "one.txt")), "data.prose has 1 different documents")


def test_pairs_are_never_packed(pairs):
    kinds, pack = dict(align="pair", perturb="text"), dict(align="best_fit")
    refused(lambda: made(pairs, kinds, pack=pack, **PAIRED), r"data\.pack\.align='best_fit'", "never packed")


def test_pairs_need_two_columns(files):
    refused(lambda: made(files, dict(align="pair", perturb="text")), "stage align", "data.columns.chosen")


def test_prompts_that_fill_every_row(pairs):
    changes = PAIRED | dict(seq_len=8, prompt_tokens=3)
    refused(lambda: made(pairs, TEXT, **changes), r"data\.align: none of 20 rows", r"data\.seq_len")


# -- real data -----------------------------------------------------------------------------------------------


def real(name):
    path = REAL / name
    if not path.exists():
        pytest.skip(f"needs {name} of the shared data sets")
    return str(path)


def head(source, target, count):
    """The first rows of a packed jsonl file."""
    with gzip.open(source, "rt") as lines, gzip.open(target, "wt") as file:
        for _, line in zip(range(count), lines, strict=False):
            file.write(line)
    return str(target)


def test_real_reviews_and_news(tmp_path):
    train = head(real("imdb/imdb_train.jsonl.gz"), tmp_path / "train.jsonl.gz", 600)
    test = head(real("imdb/imdb_test.jsonl.gz"), tmp_path / "test.jsonl.gz", 300)
    prose = head(real("wikinews_en/wikinews_en.jsonl.gz"), tmp_path / "news.jsonl.gz", 40)
    section = dict(
        kind="text",
        train=train,
        test=test,
        prose=prose,
        seq_len=64,
        tokenizer=dict(vocab_size=600),
        rows=dict(pretrain=100, align=50, perturb=50, scorer=200, heldout=20, prompts=20),
    )
    data = build(section, tmp_path / "data", objectives=TEXT)
    assert all(f["value"] == 0 for f in data.facts if f["measure"] == "overlap")
    assert data.prompts.shape == (20, 5) and data.tokenizer.vocab_size == 600
    kept = data.train["align"].counts
    assert kept["truncated_rows"] > 40 and kept["truncated_tokens"] > kept["tokens"]  # reviews are long, and it shows


def test_real_pairs(tmp_path):
    section = dict(
        kind="text",
        train=head(real("pku_safe_rlhf/safe_vs_unsafe_2k.jsonl.gz"), tmp_path / "pairs.jsonl.gz", 700),
        test="",
        columns=dict(prompt="prompt", chosen="chosen", rejected="rejected"),
        template="USER: {prompt} ASSISTANT: {answer}",
        tokenizer=dict(vocab_size=600),
        rows=dict(pretrain=100, align=60, perturb=60, scorer=60, heldout=12, prompts=4),
    )
    data = build(section, tmp_path / "data", objectives=dict(align="pair", perturb="text"))
    assert data.train["align"].kind == "pair" and fact(data, "duplicates_removed", "train")["value"] > 0
    assert all(f["value"] == 0 for f in data.facts if f["measure"] == "overlap")


def test_real_novels_are_split_not_dropped(tmp_path):
    train = head(real("imdb/imdb_train.jsonl.gz"), tmp_path / "train.jsonl.gz", 200)
    novels = head(real("novels_19c/novels_19c.jsonl.gz"), tmp_path / "novels.jsonl.gz", 2)
    section = dict(
        kind="text",
        train=train,
        test="",
        prose=novels,
        tokenizer=dict(vocab_size=400, rows=20),
        rows=dict(pretrain=20, align=20, perturb=20, scorer=40, heldout=8, prompts=4),
    )
    data = build(section, tmp_path / "data", objectives=TEXT)
    counts = data.train["pretrain"].counts
    assert counts["tokens"] > 100_000 and counts["dropped_tokens"] <= 128 and counts["dropped_rows"] == 0


@pytest.mark.slow
def test_scorer_on_real_reviews_is_right_often_enough(tmp_path):
    section = dict(
        kind="text",
        train=real("imdb/imdb_train.jsonl.gz"),
        test=real("imdb/imdb_test.jsonl.gz"),
        tokenizer=dict(vocab_size=1024, rows=500),
        rows=dict(pretrain=1000, align=500, perturb=500, scorer=4000, heldout=64, prompts=64),
    )
    data = build(section, tmp_path / "data", objectives=TEXT)
    found = fact(data, "scorer_accuracy", "test")
    assert found["value"] >= 0.85 and found["stderr"] < 0.006 and found["n"] > 4900
    assert fact(data, "scorer_auc", "test")["value"] > 0.92


def test_tfds_study_without_tensorflow(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")

    class SmallReviews(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict(
                {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(num_classes=2)}
            )
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(200, 1), "test": self._generate_examples(120, 2)}

        def _generate_examples(self, count, seed):
            for i, row in enumerate(reviews(count, seed)):
                yield i, dict(text=row["text"], label=row["label"])

    SmallReviews(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    spec = f"tfds:{tmp_path}/small_reviews/1.0.0"
    data = made(tmp_path, train=spec, test=spec)
    assert data.train["align"].rows == 20
    assert data.train["align"].ids[0].startswith("train:")
    assert made(tmp_path, train=spec, test=spec).digest == data.digest
    assert "tensorflow" not in sys.modules
