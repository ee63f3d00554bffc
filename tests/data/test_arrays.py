"""Does a file of arrays come back whole, or not at all?"""

import logging

import numpy as np
import pytest
from etils import epath

from elastic_jax.data.arrays import read_arrays, write_arrays

ARRAYS = dict(tokens=np.arange(600, dtype=np.int32).reshape(30, 20), mask=np.ones((30, 19), np.uint8))


@pytest.mark.parametrize("compressed", [False, True])
def test_arrays_come_back_with_their_dtypes(tmp_path, compressed):
    path = epath.Path(tmp_path) / "new" / "it.npz"
    assert read_arrays(path) is None
    write_arrays(path, ARRAYS, compressed=compressed)
    found = read_arrays(path)
    assert found is not None and list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array, strict=True)
    assert list(read_arrays(path, ["mask"]) or {}) == ["mask"]


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("damage", [lambda b: b[:-30], lambda b: b[:200] + bytes(80) + b[280:], lambda b: b""])
def test_what_is_damaged_or_incomplete_is_none(tmp_path, caplog, damage, compressed):
    path = epath.Path(tmp_path) / "it.npz"
    write_arrays(path, ARRAYS, compressed=compressed)
    with caplog.at_level(logging.WARNING):
        assert read_arrays(path, ["tokens", "answers"]) is None
        path.write_bytes(damage(path.read_bytes()))
        assert read_arrays(path) is None
    assert caplog.text.count("cannot be read") == 2
