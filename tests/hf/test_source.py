"""Is a checkpoint opened from where it is, does its digest say what it is, and does every wrong place say what to do?"""

import json
import os
import shutil

import hf_checkpoints
import pytest

from elastic_jax.data import files
from elastic_jax.errors import UserError
from elastic_jax.hf import identity
from elastic_jax.hf.source import open_source


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv(files.CACHE_VARIABLE, str(tmp_path / "cache" / "data"))


@pytest.fixture
def folder(tmp_path):
    return hf_checkpoints.write(tmp_path / "model", hf_checkpoints.config("llama"), files=2)


def test_a_local_folder(folder, monkeypatch):
    source = open_source(folder)
    assert source.folder == folder and source.revision == "" and source.family.title == "Llama"
    assert source.hf_config["hidden_size"] == 16
    monkeypatch.chdir(folder.parent)
    assert open_source("model").digest == source.digest
    monkeypatch.setenv("HOME", str(folder.parent))
    assert open_source("~/model").digest == source.digest


def test_the_model_pads_its_tables_inside(folder):
    c = open_source(folder).model_config(30, 12, dtype="bfloat16", layout="scan")
    assert (c.vocab_size, c.used_vocab, c.seq_len, c.dtype, c.layout) == (128, 37, 12, "bfloat16", "scan")
    whole = hf_checkpoints.write(folder.parent / "whole", hf_checkpoints.config("llama", vocab_size=256))
    assert open_source(whole).model_config(256, 12).used_vocab == 0


def test_more_tokens_than_rows(folder):
    with pytest.raises(UserError, match="the tokenizer has 38 tokens and the model 37 rows"):
        open_source(folder).model_config(38, 12)


def test_rows_longer_than_the_table_of_positions(tmp_path):
    folder = hf_checkpoints.write(tmp_path / "model", hf_checkpoints.config("gpt2"))
    with pytest.raises(UserError, match="max_positions=24: rows of data.seq_len=25"):
        open_source(folder).model_config(37, 25)


# --- identity


def test_the_digest_is_of_the_content(folder, tmp_path):
    digest = open_source(folder).digest
    shutil.copytree(folder, tmp_path / "copy")
    assert open_source(tmp_path / "copy").digest == digest
    config = json.loads((folder / "config.json").read_text())
    reordered = dict(reversed(config.items()), transformers_version="4.0", torch_dtype="float32")
    (folder / "config.json").write_text(json.dumps(reordered))
    assert open_source(folder).digest == digest
    (folder / "config.json").write_text(json.dumps(dict(config, rope_theta=5.0)))
    assert open_source(folder).digest != digest


def test_the_digest_sees_every_byte_of_the_weights(folder):
    digest = open_source(folder).digest
    path = sorted(folder.glob("*.safetensors"))[-1]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert open_source(folder).digest != digest


def test_files_are_read_once(folder, monkeypatch):
    read = []
    sha256 = identity.sha256_of_file
    monkeypatch.setattr(identity, "sha256_of_file", lambda path: read.append(path) or sha256(path))
    digest = open_source(folder).digest
    assert len(read) == 2
    assert open_source(folder).digest == digest and len(read) == 2
    path = sorted(folder.glob("*.safetensors"))[0]
    os.utime(path, ns=(1, 1))
    assert open_source(folder).digest == digest and len(read) == 3


@pytest.mark.parametrize("content", ["", "[]", '{"sha256": 3}', '{"path": "x", "sha256": "0"}'])
def test_a_damaged_note_is_no_answer(folder, tmp_path, content):
    digest = open_source(folder).digest
    for note in (tmp_path / "cache" / "digests").iterdir():
        note.write_text(content)
    assert open_source(folder).digest == digest


def test_the_cache_of_the_hub_names_its_blobs(tmp_path, monkeypatch):
    (tmp_path / "blobs").mkdir()
    blob = tmp_path / "blobs" / ("a" * 64)
    blob.write_bytes(b"12")
    (tmp_path / "link").symlink_to(blob)
    monkeypatch.setattr(identity, "sha256_of_file", lambda path: pytest.fail("read"))
    assert identity.sha256(tmp_path / "link") == "a" * 64


def test_a_cache_that_cannot_be_written_is_done_without(folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(files.CACHE_VARIABLE, str(tmp_path / "file" / "data"))
    assert open_source(folder).digest


# --- wrong places


def refused(where, words, revision=""):
    with pytest.raises(UserError, match=words):
        open_source(where, revision)


def test_places_that_are_none(folder, tmp_path):
    refused(tmp_path / "absent", "no folder .*absent .*or an id of the Hugging Face hub such as owner/name")
    refused("gs://bucket/model", "a folder or an id of the hub was expected")
    refused(folder / "config.json", "is a file. Give the folder")
    refused(folder, "base.revision=step3 has no effect", revision="step3")


def test_damaged_configs(folder):
    path = folder / "config.json"
    for content, words in (
        ("{", "config.json cannot be read"),
        ("[]", "holds list, a JSON object was expected"),
        ('{"model_type": "bert", "architectures": ["BertModel"]}', "model_type='bert'.*not supported"),
    ):
        path.write_text(content)
        refused(folder, words)
    path.unlink()
    refused(folder, "no config.json, which says what the model is")


@pytest.mark.parametrize("size", [None, 0, "37", True])
def test_a_vocabulary_that_is_no_number(folder, size):
    (folder / "config.json").write_text(json.dumps(hf_checkpoints.config("llama", vocab_size=size)))
    with pytest.raises(UserError, match="vocab_size=.*: expected the number of rows"):
        open_source(folder).model_config(0, 12)
