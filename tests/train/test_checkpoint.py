"""Does a state come back to the bit, on other devices, and is a damaged one noticed?"""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import damage
import jax
import numpy as np
import pytest
import tiny

from elastic_jax import objectives
from elastic_jax.parallel import mesh as mesh_lib
from elastic_jax.parallel.mesh import put_local
from elastic_jax.train import checksum, optim
from elastic_jax.train import state as state_lib
from elastic_jax.train.checkpoint import Checkpoints, Damaged
from elastic_jax.train.step import make_train_step

KEY = jax.random.key(3)
TX = optim.make(optim.OptimConfig(lr=0.01, eps=1e-3, weight_decay=0.1), 10)
META = dict(run="align-s0-1234", examples=48, tokens=1234, temporary=False)


def fresh(model, mesh):
    params = jax.device_put(tiny.random_params(model), model.shardings(mesh))
    places = state_lib.shardings(model, TX, mesh)
    return jax.jit(lambda params: state_lib.create(params, TX), out_shardings=places)(params)


def trained(model, mesh, state, first, last):
    step = make_train_step(model, objectives.sft(), TX, mesh)
    for number in range(first, last):
        state, _ = step(state, put_local(tiny.text_batch(16, seed=number), mesh), KEY)
    return state


@pytest.fixture(scope="module")
def saved(tmp_path_factory, cpu_devices):
    """Two updates on 2 x 2 x 2 devices, saved; and the host copies of that state and of the one two updates later."""
    folder, model, mesh = tmp_path_factory.mktemp("run") / "checkpoints", tiny.decoder(), tiny.mesh(2, 2, 2)
    state = trained(model, mesh, fresh(model, mesh), 0, 2)
    checkpoints = Checkpoints(folder, model, mesh)
    checkpoints.save(state, 2, META)
    checkpoints.close()
    before = jax.device_get(state)
    return folder, before, jax.device_get(trained(model, mesh, state, 2, 4))


def restored(folder, model, mesh, updates=2):
    checkpoints = Checkpoints(folder, model, mesh)
    try:
        return checkpoints.restore(updates, TX)
    finally:
        checkpoints.close()


@pytest.mark.parametrize("axes", [(2, 2, 2), (8, 1, 1), (1, 2, 2), (2, 1, 1), (1, 1, 1)])
def test_a_state_continues_on_other_devices(saved, axes):
    folder, before, after = saved
    model, mesh = tiny.decoder(), tiny.mesh(*axes)
    state, meta = restored(folder, model, mesh)
    assert meta == {**META, "updates": 2}
    tiny.assert_trees_equal(jax.device_get(state), before)
    for leaf, place in zip(jax.tree.leaves(state.params), jax.tree.leaves(model.shardings(mesh)), strict=True):
        assert leaf.sharding == place
    later = jax.device_get(trained(model, mesh, state, 2, 4))
    if axes == (2, 2, 2):
        tiny.assert_trees_equal(later, after)
    else:  # another order of summation
        tiny.assert_trees_close(later.params, after.params, rtol=0, atol=1e-5)


@pytest.mark.parametrize("axes", [(1, 1, 1), (2, 2, 2)])
def test_a_checkpoint_of_one_layout_is_read_by_the_other(saved, tmp_path, axes):
    folder, before, after = saved
    scan, mesh = tiny.decoder(layout="scan"), tiny.mesh(*axes)
    state, _ = restored(folder, scan, mesh)
    tiny.assert_trees_equal(jax.device_get(state_lib.to_disk(state, scan)), before)
    later = trained(scan, mesh, state, 2, 4)
    checkpoints = Checkpoints(tmp_path / "c", scan, mesh)
    checkpoints.save(later, 4, META)
    checkpoints.close()
    later = jax.device_get(state_lib.to_disk(later, scan))
    tiny.assert_trees_close(later.params, after.params, rtol=0, atol=1e-5)
    tiny.assert_trees_equal(jax.device_get(restored(tmp_path / "c", tiny.decoder(), tiny.mesh(2), 4)[0]), later)


@pytest.mark.parametrize("layout", ["unroll", "scan"])
def test_parameters_come_without_the_moments(saved, layout):
    folder, before, _ = saved
    model = tiny.decoder(layout=layout)
    checkpoints = Checkpoints(folder, model, tiny.mesh(2))
    params, meta = checkpoints.restore_params(2)
    checkpoints.close()
    assert meta["tokens"] == 1234
    expected = state_lib.from_disk(before, model).params
    tiny.assert_trees_equal(jax.device_get(params), jax.device_get(expected))


def test_training_goes_on_while_it_is_written(tmp_path):
    model, mesh = tiny.decoder(), tiny.mesh(1, 2)
    state = fresh(model, mesh)
    checkpoints, kept = Checkpoints(tmp_path / "c", model, mesh), {}
    for number in range(3):
        kept[number] = jax.tree.map(np.copy, jax.device_get(state))
        checkpoints.save(state, number, {**META, "tokens": number})
        state = trained(model, mesh, state, number, number + 1)  # donates the state that is being written
    checkpoints.wait()
    assert checkpoints.updates() == [0, 1, 2]
    for number in range(3):
        got, meta = checkpoints.restore(number, TX)
        assert meta["tokens"] == number
        tiny.assert_trees_equal(jax.device_get(got), kept[number])
    checkpoints.close()


def test_every_point_stays_until_it_is_deleted(tmp_path, caplog):
    model, mesh = tiny.decoder(layers=1), tiny.mesh()
    checkpoints, state = Checkpoints(tmp_path / "c", model, mesh), fresh(model, mesh)
    points = [0, 1, 2, 4, 8, 16, 32]
    for number in points:
        checkpoints.save(state, number, META)
    checkpoints.wait()
    assert checkpoints.updates() == points
    checkpoints.delete(4)
    with caplog.at_level(logging.WARNING):
        checkpoints.discard(8, Damaged("Checkpoint 8 is damaged."))
    assert "Checkpoint 8 is damaged." in caplog.text
    checkpoints.close()
    again = Checkpoints(tmp_path / "c", model, mesh)
    assert again.updates() == [0, 1, 2, 16, 32]
    again.close()


def test_the_meta_data_is_plain_json(saved):
    meta = json.loads((saved[0] / "2" / "meta" / "metadata").read_text())
    assert {**META, "updates": 2}.items() <= meta.items()


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What reading each kind of damaged checkpoint says."""
    script, folder = Path(damage.__file__), tmp_path_factory.mktemp("damage")
    paths = os.pathsep.join(map(str, (script.parents[2], script.parents[1])))
    done = subprocess.run(
        [sys.executable, script, folder], env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = map(json.loads, done.stdout.splitlines())
    return folder / "c", {row["what"]: (row["full"], row["params"]) for row in rows}


@pytest.mark.parametrize("kind", damage.DAMAGE)
@pytest.mark.parametrize("item", damage.ITEMS)
def test_a_damaged_checkpoint_is_named(answers, item, kind):
    folder, messages = answers
    full, params = messages[f"{item} {kind}"]
    assert str(folder / "2") in full
    assert bool(params) == (item != "opt_state")  # parameters are read without the moments


def test_what_is_whole_is_read_and_what_does_not_fit_is_not(answers):
    folder, messages = answers
    assert messages["repaired"] == messages["the other"] == ("", "")
    assert all(str(folder / "3") in message for message in messages["not there"])
    assert all(str(folder / "2") in message for message in messages["another model"])


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.uint8, "bfloat16"])
def test_the_checksum_sees_every_bit_and_no_mesh(cpu_devices, dtype):
    values = np.random.default_rng(0).integers(0, 100, (8, 6)).astype(np.dtype(jax.numpy.dtype(dtype)))
    one, eight = tiny.mesh(), tiny.mesh(2, 2, 2)
    alone = checksum.of_arrays({"x": values}, one)
    for dims in (("batch", None), ("embed", "vocab"), ()):
        place = jax.sharding.NamedSharding(eight, mesh_lib.spec(dims))
        assert checksum.of_arrays({"x": jax.device_put(values, place)}, eight) == alone
    others = {alone, checksum.of_arrays({"y": values}, one), checksum.of_arrays({"x": values.T.copy()}, one)}
    raw = values.view(np.uint8)
    for bit in range(0, raw.size * 8, 7):
        raw.flat[bit // 8] ^= 1 << bit % 8
        others.add(checksum.of_arrays({"x": values}, one))
        raw.flat[bit // 8] ^= 1 << bit % 8
    swapped = values.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    others.add(checksum.of_arrays({"x": swapped}, one))
    assert len(others) == 4 + len(range(0, raw.size * 8, 7))
    assert checksum.of_arrays({"x": values}, one) == alone
