"""Does everything that training carries lie beside its parameter, and go to disk under one name per layer?"""

import jax
import numpy as np
import pytest
import tiny

from elastic_jax.train import optim
from elastic_jax.train import state as state_lib
from elastic_jax.train.optim import OptimConfig

OPTIMS = {
    "adamw": OptimConfig(weight_decay=0.1, warmup=2),
    "adamw, no clip": OptimConfig(clip=0.0),
    "adamw, short moments": OptimConfig(weight_decay=0.1, moments="bfloat16"),
    "sgd": OptimConfig(name="sgd"),
    "plain sgd": OptimConfig(name="sgd", b1=0.0, clip=0.0),
}


def filled(model, tx):
    """A state in which every number is another one."""
    state = state_lib.create(tiny.random_params(model), tx)
    leaves, tree = jax.tree.flatten(state)
    return jax.tree.unflatten(tree, [np.full(leaf.shape, n, leaf.dtype) for n, leaf in enumerate(leaves)])


@pytest.mark.parametrize("name", OPTIMS)
@pytest.mark.parametrize("layout", ["unroll", "scan"])
def test_moments_lie_where_their_parameters_do(cpu_devices, name, layout):
    model, mesh, tx = tiny.decoder("neox", layout=layout), tiny.mesh(2, 2, 2), optim.make(OPTIMS[name], 10)
    places = state_lib.shardings(model, tx, mesh)
    abstract = state_lib.abstract(model, tx, mesh)
    assert jax.tree.structure(places) == jax.tree.structure(abstract)
    assert places.params == model.shardings(mesh)
    moments = []
    state_lib.map_params(moments.append, places.opt_state)
    assert len(moments) == (2 if "adamw" in name else 1 if name == "sgd" else 0)
    assert all(moment == places.params for moment in moments)
    for leaf in jax.tree.leaves(abstract):
        assert leaf.ndim or leaf.sharding.is_fully_replicated
        leaf.sharding.shard_shape(leaf.shape)  # raises where a dim does not divide


@pytest.mark.parametrize("name", OPTIMS)
def test_both_layouts_are_the_same_on_disk_and_come_back(name):
    unroll, scan = tiny.decoder("qwen"), tiny.decoder("qwen", layout="scan")
    tx = optim.make(OPTIMS[name], 10)
    state = filled(scan, tx)
    disk = state_lib.to_disk(state, scan)
    assert jax.tree.structure(disk) == jax.tree.structure(filled(unroll, tx))
    assert [leaf.shape for leaf in jax.tree.leaves(disk)] == [
        leaf.shape for leaf in jax.tree.leaves(state_lib.abstract(unroll, tx, tiny.mesh()))
    ]
    tiny.assert_trees_equal(state_lib.from_disk(disk, scan), state)
    state = filled(unroll, tx)
    tiny.assert_trees_equal(state_lib.to_disk(state, unroll), state)
    tiny.assert_trees_equal(state_lib.from_disk(state, unroll), state)


def test_a_new_state_has_done_nothing():
    model = tiny.decoder()
    state = state_lib.create(tiny.random_params(model), optim.make(OPTIMS["adamw"], 10))
    assert state.updates.dtype == np.int32 and int(state.updates) == 0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(state.opt_state))
