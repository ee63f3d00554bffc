"""Are the numbers those of the files, and does every kind of damage say what it is?"""

import json
import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from elastic_jax.errors import UserError
from elastic_jax.hf.tensors import INDEX, SINGLE, Tensors

RNG = np.random.default_rng(0)
FIRST = {"a": RNG.standard_normal((3, 5)).astype(np.float32), "scalar": np.asarray(7, np.int64)}
SECOND = {
    "b": RNG.standard_normal((4, 2)).astype(ml_dtypes.bfloat16),
    "c": RNG.standard_normal(6).astype(np.float16),
    "empty": np.zeros((0, 3), np.float32),
}


def sharded(folder: Path) -> Path:
    """Two files and an index."""
    weight_map = {}
    for number, tensors in enumerate((FIRST, SECOND), 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file(tensors, folder / file)
        weight_map |= dict.fromkeys(tensors, file)
    (folder / INDEX).write_text(json.dumps(dict(metadata={}, weight_map=weight_map)))
    return folder


def refused(folder: Path, *words: str) -> str:
    with pytest.raises(UserError) as raised:
        Tensors(folder)
    for word in words:
        assert re.search(word, str(raised.value)), raised.value
    return str(raised.value)


def test_reads_every_number_of_several_files(tmp_path):
    tensors = Tensors(sharded(tmp_path))
    assert set(tensors.names) == {*FIRST, *SECOND}
    for name, value in {**FIRST, **SECOND}.items():
        found = tensors.read(name)
        assert found.dtype == value.dtype == tensors.dtype(name) and found.shape == value.shape == tensors.shape(name)
        assert found.tobytes() == value.tobytes()
        assert not found.flags.writeable
    assert tensors.file("b").name == "model-00002-of-00002.safetensors"
    assert tensors.nbytes == sum(value.nbytes for value in (*FIRST.values(), *SECOND.values()))


def test_released_pages_are_read_again(tmp_path):
    tensors = Tensors(sharded(tmp_path))
    before = tensors.read("a")
    assert before[0, 0] == FIRST["a"][0, 0]
    tensors.release("a")
    np.testing.assert_array_equal(before, FIRST["a"])


@pytest.mark.parametrize("name", [SINGLE, "other.safetensors"])
def test_one_file_needs_no_index(tmp_path, name):
    save_file(FIRST, tmp_path / name)
    for where in (tmp_path, tmp_path / name):
        np.testing.assert_array_equal(Tensors(where).read("a"), FIRST["a"])


def test_the_standard_name_wins_over_a_variant(tmp_path):
    save_file(FIRST, tmp_path / SINGLE)
    save_file(SECOND, tmp_path / "model.fp16.safetensors")
    assert set(Tensors(tmp_path).names) == set(FIRST)


def test_files_that_the_index_leaves_out_are_not_read(tmp_path):
    save_file(FIRST, sharded(tmp_path) / "consolidated.safetensors")
    assert len(Tensors(tmp_path).files) == 2


def test_the_index_says_which_of_two_tensors_of_a_name_is_meant(tmp_path):
    sharded(tmp_path)
    save_file({**SECOND, "a": np.zeros(2, np.float32)}, tmp_path / "model-00002-of-00002.safetensors")
    np.testing.assert_array_equal(Tensors(tmp_path).read("a"), FIRST["a"])


@pytest.mark.parametrize("kept", [0, 5, 20, 150, -1])
def test_truncated(tmp_path, kept):
    path = sharded(tmp_path) / "model-00001-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    refused(tmp_path, re.escape(str(path)), "cut short", "Get it again")


def test_not_safetensors(tmp_path):
    (tmp_path / SINGLE).write_bytes(b"PK\3\4 whatever else" * 10)
    refused(tmp_path, "is no safetensors file")


def test_damaged_header(tmp_path):
    save_file(FIRST, tmp_path / SINGLE)
    content = (tmp_path / SINGLE).read_bytes()
    (tmp_path / SINGLE).write_bytes(content.replace(b'"F32"', b'"F64"'))
    refused(tmp_path, "header is damaged", "60 bytes for a tensor")
    (tmp_path / SINGLE).write_bytes(content.replace(b'{"', b'["', 1))
    refused(tmp_path, "header is damaged")


def test_unknown_dtype_is_named_when_it_is_asked_for(tmp_path):
    save_file(FIRST, tmp_path / SINGLE)
    path = tmp_path / SINGLE
    path.write_bytes(path.read_bytes().replace(b'"F32"', b'"F4X"'))
    tensors = Tensors(tmp_path)
    assert tensors.read("scalar") == 7
    with pytest.raises(UserError, match="tensor a has the dtype F4X; known: F64"):
        tensors.read("a")


def test_git_lfs_pointer(tmp_path):
    (tmp_path / SINGLE).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n")
    refused(tmp_path, "pointer of Git LFS", "git lfs pull")


def test_absent_files_are_listed(tmp_path):
    (sharded(tmp_path) / "model-00002-of-00002.safetensors").unlink()
    refused(tmp_path, "names 1 files that are not there: model-00002-of-00002.safetensors")


def test_absent_tensors_are_listed_with_their_file(tmp_path):
    path = sharded(tmp_path) / INDEX
    index = json.loads(path.read_text())
    index["weight_map"]["d"] = "model-00001-of-00002.safetensors"
    path.write_text(json.dumps(index))
    refused(tmp_path, r"names 1 tensors .* d \(model-00001-of-00002.safetensors\)")


@pytest.mark.parametrize(
    "content, words",
    [
        ("{", "cannot be read"),
        ("[]", "no weight_map"),
        ("{}", "no weight_map"),
        ('{"weight_map": []}', r"weight_map is \[\]"),
        ('{"weight_map": {"a": 3}}', "a lies in 3"),
        ('{"weight_map": {"a": "../model.safetensors"}}', "beside it was expected"),
        ('{"weight_map": {"a": "pytorch_model.bin"}}', "Pickle files are not read"),
    ],
)
def test_damaged_index(tmp_path, content, words):
    (sharded(tmp_path) / INDEX).write_text(content)
    refused(tmp_path, INDEX, words)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt"])
def test_pickles_are_refused_with_the_reason_and_the_cure(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04.")
    refused(tmp_path, "only pickle files", name, "runs whatever program", "safe_serialization=True")
    refused(tmp_path / name, "only pickle files")


def test_nothing_to_read(tmp_path):
    refused(tmp_path, "no \\*.safetensors file. It holds: nothing")
    (tmp_path / "config.json").write_text("{}")
    refused(tmp_path, "It holds: config.json")
    (tmp_path / "model.gguf").write_text("")
    refused(tmp_path, "model.gguf is of a format that is not read")
    refused(tmp_path / "absent", "no such folder")


def test_two_candidates(tmp_path):
    save_file(FIRST, tmp_path / "one.safetensors")
    save_file(FIRST, tmp_path / "two.safetensors")
    refused(tmp_path, "holds 2 safetensors files and no", "one.safetensors, two.safetensors")
    save_file(FIRST, sharded(tmp_path) / SINGLE)
    refused(tmp_path, "holds two checkpoints")


def test_an_adapter_is_not_a_model(tmp_path):
    save_file(FIRST, tmp_path / "adapter_model.safetensors")
    refused(tmp_path, "an adapter", "merge_and_unload")
