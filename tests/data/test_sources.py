import csv
import gzip
import io
import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from elastic_jax.data import sources
from elastic_jax.errors import UserError

ROWS = [
    dict(text="plain", rating=9, label="1"),
    dict(text='comma, "quote"\nand line', rating=10, label="0"),
    dict(text="ünïcode 👍", rating=2, label="1"),
]


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def table_text(rows, delimiter):
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def parquet(rows):
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


CONTENT = {
    ".jsonl": jsonl(ROWS),
    ".csv": table_text(ROWS, ","),
    ".tsv": table_text(ROWS, "\t"),
    ".parquet": parquet(ROWS),
}


def put(path, content):
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)
    return path


def refused(call, *parts):
    with pytest.raises(UserError) as caught:
        call()
    for part in parts:
        assert part in str(caught.value), str(caught.value)
    assert len(str(caught.value).splitlines()) <= 4


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("suffix", CONTENT)
def test_formats_give_the_same_rows(tmp_path, suffix, packed):
    path = put(tmp_path / f"rows{suffix}{packed}", CONTENT[suffix])
    table = sources.read(str(path), "data.train")
    assert table.texts("text", "f") == [row["text"] for row in ROWS]
    assert [str(value) for value in table.column("label", "f")] == ["1", "0", "1"]
    assert [row["text"] for row in table.where("rating >= 9").rows] == ["plain", ROWS[1]["text"]]
    assert table.columns() == ["text", "rating", "label"]


@pytest.mark.parametrize("packed", ["", ".gz"])
def test_text_has_a_row_a_line(tmp_path, packed):
    path = put(tmp_path / f"a.txt{packed}", "\ufeffone\r\n\n  two é \n".encode())
    table = sources.read(str(path), "data.prose")
    assert table.texts("text", "f") == ["one", "two é"]
    assert table.place(1) == f"{path}:3"
    assert table.row_id(1) == f"a.txt{packed}:3"


def test_several_files_and_patterns_in_order(tmp_path):
    for name in "bac":
        put(tmp_path / f"{name}.jsonl", jsonl([dict(text=name)]))
    put(tmp_path / "z.csv", b"text\nz\n")
    table = sources.read(f"{tmp_path}/z.csv, {tmp_path}/*.jsonl", "data.train")
    assert table.texts("text", "f") == ["z", "a", "b", "c"]
    assert table.place(2) == f"{tmp_path}/b.jsonl:1"


def test_fields_longer_than_the_csv_default(tmp_path):
    put(tmp_path / "a.csv", table_text([dict(text="x" * 300_000)], ","))
    assert len(sources.read(f"{tmp_path}/a.csv", "data.train").rows[0]["text"]) == 300_000


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.jsonl", b"", ["data.train", "is empty"]),
        ("a.csv", b"", ["data.train", "is empty"]),
        ("a.csv", b"text,label\n", ["is empty"]),
        ("a.txt", b"\n \n", ["is empty"]),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', ["a.jsonl:2", "not a JSON object", "Repair"]),
        ("a.jsonl", b'{"text": "a"}\n["a"]\n', ["a.jsonl:2", "one object per line"]),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', ["a.jsonl:2", "UTF-8"]),
        ("a.jsonl", b'{"text": "\\ud83d"}\n', ["a.jsonl:1", "surrogate"]),
        ("a.csv", b"text,label\na,1\nb\n", ["a.csv:3", "1 fields", "2 (text, label)"]),
        ("a.csv", b"text,label\na,1,2\n", ["a.csv:2", "3 fields"]),
        ("a.csv", b"text,text\na,1\n", ["a.csv:1", "'text' occurs twice"]),
        ("a.csv", b'text\n"open\n', ["a.csv:", "Repair"]),
        ("a.csv", b"text\n\xff\n", ["a.csv", "UTF-8"]),
        ("a.parquet", b"PAR1 nothing", ["a.parquet", "no whole parquet file"]),
        ("a.docx", b"x", ["unknown file extension '.docx'", ".jsonl", ".gz"]),
        ("a", b"x", ["unknown file extension '(none)'"]),
        ("a.json", b"[]", ["'.json'", "Closest: .jsonl"]),
    ],
)
@pytest.mark.parametrize("packed", ["", ".gz"])
def test_bad_files(tmp_path, name, content, parts, packed):
    path = put(tmp_path / (name + packed), content)
    parts = [part.replace(name, name + packed) for part in parts]
    refused(lambda: sources.read(str(path), "data.train"), *parts)


@pytest.mark.parametrize(
    "content",
    [b"not gzip", gzip.compress(b'{"text":1}\n' * 5000)[:-12], gzip.compress(b"x" * 99)[:12]],
    ids=["other", "cut", "header"],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".txt", ".parquet"])
def test_bad_gzip(tmp_path, suffix, content):
    path = tmp_path / f"a{suffix}.gz"
    path.write_bytes(content)
    refused(lambda: sources.read(str(path), "data.test"), "data.test", str(path), "get it again")


def test_missing_file_shows_the_nearest(tmp_path):
    put(tmp_path / "reviews.jsonl", jsonl(ROWS))
    refused(lambda: sources.read(f"{tmp_path}/review.jsonl", "data.train"), "data.train", "Closest: reviews.jsonl")
    refused(lambda: sources.read(f"{tmp_path}/no/*.csv", "data.prose"), "data.prose", "There is no folder")
    refused(lambda: sources.read(str(tmp_path), "data.train"), "is a folder", "/*.jsonl")
    refused(lambda: sources.read(" , ", "data.train"), "data.train is empty")


def test_columns_that_are_not_there(tmp_path):
    path = put(tmp_path / "a.jsonl", jsonl([dict(text="a", label=1), dict(text="b"), dict(text=None, label=1)]))
    table = sources.read(str(path), "data.train")
    refused(
        lambda: table.column("txt", "data.columns.text"),
        "data.columns.text='txt'",
        "text, label",
        "Closest: text",
    )
    refused(lambda: table.column("label", "data.columns.label"), "a.jsonl:2", "data.columns.label")
    refused(lambda: table.texts("text", "data.columns.text"), "a.jsonl:3", "None", 'data.where="text.notnull()"')
    assert len(table.where("text.notnull()")) == 2


@pytest.mark.parametrize(
    ("expression", "parts"),
    [
        ("ratin >= 9", ["'ratin'", "text, rating, label"]),
        ("rating >=", ["cannot be evaluated", "rating"]),
        ("rating + 1", ["not true or false"]),
        ("x = 3", ["not true or false"]),
        ("text > 3", ["cannot be evaluated"]),
        ("rating > 99", ["keeps none of the 3 rows", "data.train"]),
    ],
)
def test_bad_filters(tmp_path, expression, parts):
    table = sources.read(str(put(tmp_path / "a.jsonl", jsonl(ROWS))), "data.train")
    refused(lambda: table.where(expression), "data.where=", *parts)


def test_kept_rows_know_where_they_come_from(tmp_path):
    table = sources.read(str(put(tmp_path / "a.jsonl", jsonl(ROWS))), "data.train").where("rating < 5")
    assert table.place(0).endswith("a.jsonl:3")


# -- has a raw file changed? ---------------------------------------------------------------------------------


def test_stamps_follow_content_not_time(tmp_path):
    path = put(tmp_path / "a.jsonl", jsonl(ROWS))
    config = dict(train=f"{tmp_path}/*.jsonl", test="", prose="", tfds_dir="", tasks=dict(names=(), files=()))
    known = sources.stamps(config)
    assert sources.unchanged(known, config) == known
    path.touch()
    touched = sources.unchanged(known, config)
    assert touched is not None and touched != known and touched[0]["sha256"] == known[0]["sha256"]
    put(path, jsonl(ROWS)[::-1])
    assert sources.unchanged(known, config) is None
    put(path, jsonl(ROWS))
    put(tmp_path / "b.jsonl", jsonl(ROWS))
    assert sources.unchanged(known, config) is None
    (tmp_path / "b.jsonl").unlink()
    path.unlink()
    assert sources.unchanged(known, config) == known  # what was prepared still stands


# -- tensorflow-datasets -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    tfds = pytest.importorskip("tensorflow_datasets")

    class TinyReviews(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict(
                {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(names=["neg", "pos"])}
            )
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(20), "test": self._generate_examples(6)}

        def _generate_examples(self, n):
            for i in range(n):
                yield i, {"text": f"row {i} é", "label": i % 2}

    folder = tmp_path_factory.mktemp("tfds")
    TinyReviews(data_dir=str(folder), file_format="array_record").download_and_prepare()
    return folder


@pytest.mark.parametrize("by", ["name", "folder"])
def test_tfds_is_read_without_tensorflow(tfds_dir, by):
    spec, place = ("tfds:tiny_reviews", str(tfds_dir)) if by == "name" else (f"tfds:{tfds_dir}/tiny_reviews/1.0.0", "")
    table = sources.read(spec, "data.train", split="train", split_field="data.train_split", tfds_dir=place)
    assert sorted(table.texts("text", "f")) == sorted(f"row {i} é" for i in range(20))
    assert sorted(table.column("label", "f")) == [0] * 10 + [1] * 10
    assert len(sources.read(spec, "data.train", split="train[:25%]", split_field="s", tfds_dir=place)) == 5
    assert "tensorflow" not in sys.modules
    config = dict(train=spec, test="", prose="", tfds_dir=place, tasks=dict(names=(), files=()))
    known = sources.stamps(config)
    assert len(known) >= 3 and sources.unchanged(known, config) == known


def test_tfds_mistakes(tfds_dir, tmp_path):
    folder = f"tfds:{tfds_dir}/tiny_reviews/1.0.0"
    refused(
        lambda: sources.read(folder, "data.train", split="trian", split_field="data.train_split"),
        "data.train_split='trian'",
        "train, test",
    )
    refused(
        lambda: sources.read(f"tfds:{tmp_path}", "data.train", split="train"),
        "data.train",
        "dataset_info.json",
    )
    refused(
        lambda: sources.read("tfds:imdb_review", "data.test", split="train", tfds_dir=str(tmp_path)),
        "data.test",
        "imdb_reviews",
    )
