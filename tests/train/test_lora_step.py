"""Do adapters train as they should: on every mesh, in parts, with the same numbers dropped, and nothing else with them?"""

import dataclasses
import math

import hlo
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from elastic_jax import objectives
from elastic_jax.models import adapted
from elastic_jax.models.adapted import Adapted
from elastic_jax.models.lora import TARGETS, LoraConfig
from elastic_jax.models.transformer import unstack
from elastic_jax.parallel.mesh import put_local
from elastic_jax.train import optim
from elastic_jax.train import state as state_lib
from elastic_jax.train.checkpoint import Checkpoints
from elastic_jax.train.step import make_train_step

KEY = jax.random.key(3)
SMOOTH = optim.OptimConfig(lr=0.01, eps=1e-3, weight_decay=0.1)  # as in test_step
DROPPING = LoraConfig(3, alpha=6.0, dropout=0.3)


def start(what, mesh, tx, seed=5):
    """Adapters of numpy's numbers, B and all, and the frozen parameters, both in their places."""
    rng = np.random.default_rng(seed)
    unrolled = dataclasses.replace(what, config=dataclasses.replace(what.config, layout="unroll"))
    adapters = jax.tree.map(lambda leaf: 0.3 * rng.standard_normal(leaf.shape).astype(np.float32), unrolled.shapes)
    if what.config.layout == "scan":
        layers = adapters["layers"]
        adapters = {"layers": jax.tree.map(lambda *leaves: np.stack(leaves), *(layers[str(i)] for i in range(2)))}
    state = state_lib.creator(what, tx, mesh)(jax.device_put(adapters, what.shardings(mesh)))
    frozen = jax.device_put(tiny.random_params(what.decoder), what.decoder.shardings(mesh))
    return state, adapted.frozen_for(what.decoder, frozen)


def trained(mesh, *, lora=DROPPING, updates=2, accumulate=1, reduce="step", tx=None, batches=None, **fields):
    what, tx = Adapted(tiny.decoder(**fields).config, lora), optim.make(SMOOTH, 10) if tx is None else tx
    state, frozen = start(what, mesh, tx)
    step = make_train_step(what, objectives.sft(), tx, mesh, accumulate, reduce, frozen)
    losses = []
    for number in range(updates):
        batch = tiny.text_batch(16, seed=number) if batches is None else batches[number]
        state, metrics = step(state, put_local(batch, mesh), KEY)
        assert bool(metrics["finite"])
        losses.append(float(metrics["loss"]))
    return jax.device_get(state), np.array(losses)


@pytest.fixture(scope="module")
def alone():
    """Two updates on one device, with dropout."""
    return trained(tiny.mesh())


def test_dropout_is_part_of_training_and_another_update_drops_others(alone):
    without = trained(tiny.mesh(), lora=dataclasses.replace(DROPPING, dropout=0.0))
    assert abs(without[1][0] - alone[1][0]) > 1e-3
    same = [tiny.text_batch(16)] * 2
    still = trained(tiny.mesh(), tx=optax.sgd(0.0), batches=same)[1]
    assert abs(still[0] - still[1]) > 1e-4


@pytest.mark.parametrize(
    ("axes", "accumulate", "reduce", "fields"),
    [
        ((1, 1, 1), 4, "step", {}),
        ((2, 2, 2), 1, "step", {}),
        ((2, 2, 1), 2, "step", {}),
        pytest.param((1, 2, 2), 2, "micro", {}, marks=pytest.mark.slow),
        ((1, 1, 1), 1, "step", dict(layout="scan", remat="full")),
        pytest.param((2, 2, 2), 2, "step", dict(layout="scan", remat="dots"), marks=pytest.mark.slow),
    ],
)
def test_every_mesh_and_every_cut_trains_the_same_adapters(cpu_devices, alone, axes, accumulate, reduce, fields):
    """The loss of the first update would differ by 1e-3 if other numbers were dropped."""
    state, losses = trained(tiny.mesh(*axes), accumulate=accumulate, reduce=reduce, **fields)
    np.testing.assert_allclose(losses, alone[1], rtol=1e-5)
    params = unstack(state.params, 2) if fields else state.params
    tiny.assert_trees_close(params, alone[0].params, rtol=0, atol=1e-5)


def test_the_first_update_is_that_of_a_hand_computation():
    """B = 0: A has no gradient, and B moves by -lr alpha / rank A^T G, with G the gradient of the weight."""
    lora = LoraConfig(2, alpha=3.0)
    model, mesh, tx, batch = tiny.decoder("qwen"), tiny.mesh(), optax.sgd(0.5), tiny.text_batch(4)
    what, params = Adapted(model.config, lora), tiny.random_params(model)
    state = state_lib.creator(what, tx, mesh)(what.init(KEY, mesh))
    before = jax.device_get(state.params)
    step = make_train_step(what, objectives.sft(), tx, mesh, frozen=jax.device_put(params, model.shardings(mesh)))
    after = jax.device_get(step(state, put_local(batch, mesh), KEY)[0].params)

    sft = objectives.sft()
    gradient = jax.jit(jax.grad(lambda p: sft.loss(model, p, batch, KEY)[0] / batch["mask"].sum()))(params)
    for layer in ("0", "1"):
        for name, (module, count) in TARGETS.items():
            pair, moved = before["layers"][layer][name], after["layers"][layer][name]
            g = np.asarray(gradient["layers"][layer][module][name])
            g = g.reshape(math.prod(g.shape[:count]), -1)
            wanted = -0.5 * 3.0 / 2 * pair["a"].reshape(-1, 2).T @ g
            np.testing.assert_array_equal(moved["a"], pair["a"])
            np.testing.assert_allclose(moved["b"].reshape(2, -1), wanted, rtol=1e-4, atol=1e-6, err_msg=name)


def test_with_a_whole_basis_it_is_full_fine_tuning():
    """A held at the identity: gradient descent on B is that on the weight, its step times alpha / rank."""
    lora = LoraConfig(16, alpha=16.0, targets=("qkv", "up"))  # both weights have 16 rows
    model, mesh, batch = tiny.decoder(), tiny.mesh(), put_local(tiny.text_batch(8), tiny.mesh())
    what, params = Adapted(model.config, lora), jax.device_put(tiny.random_params(model), model.shardings(mesh))
    basis = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.eye(16) if path[-1].key == "a" else jnp.zeros(leaf.shape), what.shapes
    )
    tuned = lambda path: str(path[-1].key) in ("qkv", "up", "b")  # noqa: E731
    sgd = optax.multi_transform(
        {True: optax.sgd(0.3), False: optax.set_to_zero()},
        lambda tree: jax.tree_util.tree_map_with_path(lambda path, _: tuned(path), tree),
    )
    adapters = state_lib.create(basis, sgd)
    whole = state_lib.create(jax.tree.map(jnp.copy, params), sgd)
    low = make_train_step(what, objectives.sft(), sgd, mesh, frozen=params)
    full = make_train_step(model, objectives.sft(), sgd, mesh)
    for _ in range(3):
        adapters, a = low(adapters, batch, KEY)
        whole, b = full(whole, batch, KEY)
        assert float(a["loss"]) == pytest.approx(float(b["loss"]), rel=1e-5)
    merged = what.merge(params, adapters.params)
    tiny.assert_trees_close(merged, whole.params, rtol=1e-4, atol=1e-5)
    assert np.abs(merged["layers"]["0"]["mlp"]["up"] - params["layers"]["0"]["mlp"]["up"]).max() > 0.01


def test_weight_decay_pulls_both_factors():
    what = Adapted(tiny.decoder().config, LoraConfig(2))
    assert all(jax.tree.leaves(optim.decayed(what.shapes)))
    tx = optim.make(optim.OptimConfig(lr=0.1, weight_decay=0.5, eps=1e-3), 10)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), what.shapes)
    ones = jax.tree.map(jnp.ones_like, zeros)
    updates, _ = tx.update(zeros, tx.init(ones), ones)
    tiny.assert_trees_close(updates, jax.tree.map(lambda leaf: -0.05 * leaf, ones), rtol=1e-6)


def test_state_gradients_and_checkpoint_hold_adapters_alone(tmp_path):
    what, mesh, tx = Adapted(tiny.decoder(vocab_size=400).config, LoraConfig(1)), tiny.mesh(), optim.make(SMOOTH, 10)
    state, frozen = start(what, mesh, tx)
    numbers = sum(leaf.size for leaf in jax.tree.leaves(what.shapes))
    assert 20 * numbers < what.decoder.size
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) <= 3 * numbers + 4  # with two moments and counters

    # Not one product of the compiled update makes the gradient of a weight: 2 N FLOPs of each token's 6 N are missing.
    batch = put_local(tiny.text_batch(4), mesh)
    adapting = make_train_step(what, objectives.sft(), tx, mesh, frozen=frozen).compile(state, batch, KEY)
    full_state = state_lib.creator(what.decoder, tx, mesh)(frozen)
    full = make_train_step(what.decoder, objectives.sft(), tx, mesh).compile(full_state, batch, KEY)
    counts = [program.cost_analysis()["flops"] for program in (adapting, full)]
    assert counts[0] < 0.8 * counts[1]

    before = jax.device_get(frozen)
    kept = jax.device_get(state)
    checkpoints = Checkpoints(tmp_path / "c", what, mesh)
    checkpoints.save(state, 1, {"tokens": 0})
    checkpoints.wait()
    size = sum(
        path.stat().st_size for path in (tmp_path / "c" / "1").rglob("*") if path.is_file() and "/d/" in str(path)
    )
    assert 3 * 4 * numbers <= size < 3 * 4 * numbers + 20_000 < 4 * what.decoder.size
    restored, _ = checkpoints.restore(1, tx)
    tiny.assert_trees_equal(jax.device_get(restored.params), kept.params)
    tiny.assert_trees_equal(jax.device_get(restored.opt_state), kept.opt_state)
    checkpoints.close()
    # The frozen parameters are not donated: they can be read after an update, and are what they were.
    step = make_train_step(what, objectives.sft(), tx, mesh, frozen=frozen)
    step(state, batch, KEY)
    tiny.assert_trees_equal(jax.device_get(frozen), before)


def test_a_checkpoint_of_one_mesh_and_layout_is_read_on_another(cpu_devices, tmp_path):
    tx = optim.make(SMOOTH, 10)
    one = Adapted(tiny.decoder().config, LoraConfig(2))
    state, _ = start(one, tiny.mesh(), tx)
    wanted = jax.device_get(state)
    checkpoints = Checkpoints(tmp_path / "c", one, tiny.mesh())
    checkpoints.save(state, 3, {"tokens": 0})
    checkpoints.close()
    other = Adapted(tiny.decoder(layout="scan").config, LoraConfig(2))
    checkpoints = Checkpoints(tmp_path / "c", other, tiny.mesh(2, 2, 2))
    restored, _ = checkpoints.restore(3, tx)
    checkpoints.close()
    assert restored.params["layers"]["up"]["a"].sharding == other.shardings(tiny.mesh(2, 2, 2))["layers"]["up"]["a"]
    for i in (0, 1):
        found = jax.tree.map(lambda leaf, i=i: np.asarray(leaf)[i], restored.params["layers"])
        tiny.assert_trees_equal(found, wanted.params["layers"][str(i)])


def test_an_update_exchanges_no_gradient_of_a_frozen_weight(cpu_devices):
    mesh, tx = tiny.mesh(8), optim.make(SMOOTH, 10)
    what = Adapted(tiny.decoder(embed=64, mlp=256, vocab_size=512).config, LoraConfig(2))
    state, frozen = start(what, mesh, tx)
    program = make_train_step(what, objectives.sft(), tx, mesh, frozen=frozen).compile(
        state, put_local(tiny.text_batch(16), mesh), KEY
    )
    weight = min(leaf.size for leaf in jax.tree.leaves(what.decoder.shapes["layers"]["0"]) if leaf.ndim > 1)
    exchanged = [size for found in hlo.collectives(program.as_text()) for size in found.sizes]
    assert exchanged and max(exchanged) < weight
    assert sum(exchanged) < 2 * what.size
