"""Does a state come back to the bit, on other devices, and is a damaged one noticed?"""

import dataclasses
import json
import logging
import os
import subprocess
import sys
import threading
import types
from pathlib import Path

import damage
import jax
import numpy as np
import pytest
import tiny

from elastic_jax import objectives
from elastic_jax.parallel import mesh as mesh_lib
from elastic_jax.parallel.mesh import put_local
from elastic_jax.train import checkpoint, checksum, optim
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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layouts", [("scan", "unroll", "scan", "unroll"), ("unroll", "unroll", "scan", "scan")])
def test_a_state_is_handed_down_from_eight_devices_to_one(tmp_path, cpu_devices, dtype, layouts):
    """8 -> 4 -> 2 -> 1, each saving what it restored: parameters and moments to the bit, and the data position."""
    tx = optim.make(optim.OptimConfig(moments=dtype), 10)
    canonical = tiny.decoder(param_dtype=dtype)
    wanted = jax.device_get(state_lib.create(tiny.random_params(canonical), tx))
    rng = np.random.default_rng(1)
    wanted = jax.tree.map(lambda x: (x + rng.standard_normal(x.shape)).astype(x.dtype) if x.ndim else x, wanted)
    assert {leaf.dtype for leaf in jax.tree.leaves(wanted.params)} == {np.dtype(jax.numpy.dtype(dtype))}
    state = None
    for number, (axes, layout) in enumerate(zip([(2, 2, 2), (1, 2, 2), (1, 2, 1), (1, 1, 1)], layouts, strict=True)):
        model, mesh = tiny.decoder(param_dtype=dtype, layout=layout), tiny.mesh(*axes)
        places = state_lib.shardings(model, tx, mesh)
        checkpoints = Checkpoints(tmp_path / "c", model, mesh)
        if state is None:
            state = jax.device_put(jax.device_get(state_lib.from_disk(wanted, model)), places)
        else:
            state, meta = checkpoints.restore(number, tx)
            assert int(state.updates) == meta["updates"] == number and meta["examples"] == 48
            got = state_lib.to_disk(jax.device_get(state), model)
            tiny.assert_trees_equal((got.params, got.opt_state), (wanted.params, wanted.opt_state))
            for leaf, place in zip(jax.tree.leaves(state.params), jax.tree.leaves(places.params), strict=True):
                assert leaf.sharding.is_equivalent_to(place, leaf.ndim)
        checkpoints.save(state, number + 1, META)
        checkpoints.wait()
        checkpoints.close()


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


def test_a_save_does_not_wait_for_the_disk(tmp_path, monkeypatch):
    """The writing is held up: the call returns, the state may be donated, and what is not complete is not there."""
    model, mesh = tiny.decoder(layers=1), tiny.mesh(1, 2)
    checkpoints, state = Checkpoints(tmp_path / "c", model, mesh), fresh(model, mesh)
    wanted = jax.tree.map(np.copy, jax.device_get(state))
    gate, write = threading.Event(), Checkpoints._write

    def held_up(*args):
        assert gate.wait(60)
        write(*args)

    monkeypatch.setattr(Checkpoints, "_write", held_up)
    checkpoints.save(state, 1, META)
    trained(model, mesh, state, 0, 1)
    assert not (tmp_path / "c" / "1").exists()
    gate.set()
    checkpoints.wait()
    assert checkpoints.updates() == [1]
    tiny.assert_trees_equal(jax.device_get(checkpoints.restore(1, TX)[0]).params, wanted.params)
    checkpoints.close()


def test_without_room_for_a_copy_the_host_has_the_state_when_a_save_returns(tmp_path, monkeypatch):
    model, mesh = tiny.decoder(layers=1), tiny.mesh(1, 2)
    checkpoints, state = Checkpoints(tmp_path / "c", model, mesh), fresh(model, mesh)
    wanted = jax.tree.map(np.copy, jax.device_get(state))
    monkeypatch.setattr(checkpoint, "has_room", lambda tree: False)
    monkeypatch.setattr(checkpoint, "_copied", lambda *_: pytest.fail("there is no room"))
    checkpoints.save(state, 1, META)
    trained(model, mesh, state, 0, 1)
    tiny.assert_trees_equal(jax.device_get(checkpoints.restore(1, TX)[0]).params, wanted.params)
    checkpoints.close()


def test_room_is_counted_for_every_device():
    @dataclasses.dataclass(frozen=True)
    class Device:
        platform: str
        stats: tuple = ()

        def memory_stats(self):
            return dict(self.stats) or None

    def tree(device, size):
        return {"x": types.SimpleNamespace(addressable_shards=[
            types.SimpleNamespace(device=device, data=types.SimpleNamespace(nbytes=size))] * 2)}  # fmt: skip

    gpu = Device("gpu", (("bytes_limit", 100), ("peak_bytes_in_use", 60)))
    assert checkpoint.has_room(tree(gpu, 20)) and not checkpoint.has_room(tree(gpu, 21))
    assert not checkpoint.has_room(tree(Device("tpu"), 1))  # one that does not say
    assert checkpoint.has_room(tree(Device("cpu"), 1)) and not checkpoint.has_room(tree(Device("cpu"), 1 << 50))


def test_what_cannot_be_written_is_said_by_the_next_call(tmp_path, monkeypatch):
    model, mesh = tiny.decoder(layers=1), tiny.mesh()
    checkpoints = Checkpoints(tmp_path / "c", model, mesh)

    def full(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(Checkpoints, "_write", full)
    checkpoints.save(fresh(model, mesh), 1, META)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.wait()
    checkpoints.close()


def test_a_checkpoint_is_replaced_only_by_a_complete_one(tmp_path):
    model, mesh = tiny.decoder(layers=1), tiny.mesh()
    checkpoints, state = Checkpoints(tmp_path / "c", model, mesh), fresh(model, mesh)
    checkpoints.save(state, 1, META)
    checkpoints.save(state, 2, META, instead_of=[1])
    assert 1 in checkpoints.updates()  # 2 is being written
    checkpoints.save(state, 3, META, instead_of=[2])
    assert checkpoints.updates() == [2, 3]
    checkpoints.wait()
    assert checkpoints.updates() == [3]
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


def test_an_earlier_point_is_written_after_a_later_one(tmp_path):
    model, mesh = tiny.decoder(layers=1), tiny.mesh()
    state = fresh(model, mesh)
    for number in (4, 2):  # a study that asks for a smaller volume of a run that is there already
        checkpoints = Checkpoints(tmp_path / "c", model, mesh)
        checkpoints.save(state, number, META)
        checkpoints.wait()
        assert number in checkpoints.updates()
        checkpoints.close()
    _, meta = restored(tmp_path / "c", model, mesh, updates=2)
    assert meta["updates"] == 2


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
