"""Is an update the same however the batch is cut and the arrays are spread, and is a broken one undone?

The optimiser of most tests has eps = 1e-3. With the usual 1e-8 Adam turns a gradient of zero and its rounding error into a
whole step of either sign, and no two orders of summation would ever agree.
"""

import dataclasses
import functools

import hlo
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from elastic_jax import objectives
from elastic_jax.models.transformer import unstack
from elastic_jax.parallel.mesh import batch_sharding, put_local
from elastic_jax.train import optim
from elastic_jax.train import state as state_lib
from elastic_jax.train.step import _accumulated, make_train_step

KEY = jax.random.key(3)
SMOOTH = optim.OptimConfig(lr=0.01, eps=1e-3, weight_decay=0.1)
# Three updates of 0.01 on weights near 0.3: what differs between two orders of summation is 1e-3 of one update at most.
SAME = dict(rtol=0, atol=1e-5)


def placed(model, tx, mesh, params=None):
    params = jax.device_put(tiny.random_params(model) if params is None else params, model.shardings(mesh))
    places = state_lib.shardings(model, tx, mesh)
    return jax.jit(lambda params: state_lib.create(params, tx), out_shardings=places)(params)


def trained(model, mesh, *, updates=3, rows=16, accumulate=1, reduce="step", tx=None, objective=None, params=None):
    tx = optim.make(SMOOTH, 10) if tx is None else tx
    step = make_train_step(model, objective or objectives.sft(), tx, mesh, accumulate, reduce)
    state, losses = placed(model, tx, mesh, params), []
    for number in range(updates):
        state, metrics = step(state, put_local(tiny.text_batch(rows, seed=number), mesh), KEY)
        assert bool(metrics["finite"])
        losses.append(float(metrics["loss"]))
    return jax.device_get(state), np.array(losses)


@pytest.fixture(scope="module")
def alone():
    """Three updates on one device."""
    return trained(tiny.decoder(), tiny.mesh())


@pytest.mark.parametrize(
    "axes",
    [
        (8, 1, 1),
        (1, 8, 1),
        (2, 2, 2),
        (1, 1, 2),
        *(pytest.param(axes, marks=pytest.mark.slow) for axes in [(1, 4, 2), (2, 1, 1)]),  # each axis has its own above
    ],
)
def test_every_mesh_trains_the_same_model(cpu_devices, alone, axes):
    state, losses = trained(tiny.decoder(), tiny.mesh(*axes))
    np.testing.assert_allclose(losses, alone[1], rtol=1e-5)
    tiny.assert_trees_close(state.params, alone[0].params, **SAME)
    pairs = zip(jax.tree.leaves(state.params), jax.tree.leaves(tiny.random_params(tiny.decoder())), strict=True)
    assert min(np.abs(new - old).max() for new, old in pairs) > 0.01


@pytest.mark.parametrize("axes", [(1, 1, 1), (2, 2, 2)])
def test_a_scanned_model_trains_the_same(cpu_devices, alone, axes):
    state, losses = trained(tiny.decoder(layout="scan", remat="full"), tiny.mesh(*axes))
    np.testing.assert_allclose(losses, alone[1], rtol=1e-5)
    tiny.assert_trees_close(unstack(state.params, 2), alone[0].params, **SAME)


@pytest.mark.parametrize(
    ("axes", "accumulate", "reduce"),
    [
        ((1, 1, 1), 2, "step"),
        ((1, 1, 1), 16, "micro"),
        ((4, 1, 2), 4, "step"),
        ((2, 4, 1), 2, "step"),
        ((2, 2, 2), 2, "micro"),
    ],
)
def test_a_batch_in_parts_is_the_whole_batch(cpu_devices, alone, axes, accumulate, reduce):
    # The parts have unevenly many targets: a mean of their means would be another loss.
    mask = tiny.text_batch(16)["mask"]
    parts = [mask[i::accumulate].sum() for i in range(accumulate)]
    assert len(set(parts)) > 1
    state, losses = trained(tiny.decoder(loss_chunk=5), tiny.mesh(*axes), accumulate=accumulate, reduce=reduce)
    np.testing.assert_allclose(losses, alone[1], rtol=1e-5)
    tiny.assert_trees_close(state.params, alone[0].params, **SAME)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_one_step_of_sgd_is_the_gradient_of_the_mean_loss(accumulate):
    model, batch = tiny.decoder("qwen"), tiny.text_batch(4)
    params, tx = tiny.random_params(model), optax.sgd(1.0)
    sft = objectives.sft()

    def mean(params):
        total, weight, _ = sft.loss(model, params, batch, KEY)
        return total / weight

    loss, gradient = jax.jit(jax.value_and_grad(mean))(params)
    step = make_train_step(model, sft, tx, tiny.mesh(), accumulate)
    state, metrics = step(placed(model, tx, tiny.mesh()), put_local(batch, tiny.mesh()), KEY)
    tiny.assert_trees_close(state.params, jax.tree.map(lambda p, g: p - g, params, gradient), rtol=1e-5, atol=1e-6)
    assert float(metrics["loss"]) == pytest.approx(float(loss), rel=1e-6)
    assert float(metrics["grad_norm"]) == pytest.approx(float(optax.tree.norm(gradient)), rel=1e-5)
    assert int(metrics["tokens"]) == batch["mask"].sum()
    assert int(state.updates) == 1


def test_metrics_of_an_objective_are_means_over_the_whole_batch():
    model, dpo = tiny.decoder(), objectives.dpo(beta=0.5)
    params, tx = tiny.random_params(model), optax.sgd(0.0)
    batch = {
        f"{side}_{k}": v for i, side in enumerate(("chosen", "rejected")) for k, v in tiny.text_batch(8, i).items()
    }
    batch |= dict(ref_chosen=np.full(8, -30, np.float32), ref_rejected=np.linspace(-60, 0, 8, dtype=np.float32))
    seen = []
    for accumulate in (1, 4):
        step = make_train_step(model, dpo, tx, tiny.mesh(), accumulate)
        state, metrics = step(placed(model, tx, tiny.mesh(), params), put_local(batch, tiny.mesh()), KEY)
        seen.append(jax.device_get(metrics))
    assert 0 < seen[0]["accuracy"] < 1 and seen[0]["accuracy"] * 8 == round(float(seen[0]["accuracy"] * 8))
    assert seen[0]["tokens"] == batch["chosen_mask"].sum() + batch["rejected_mask"].sum()
    for name in seen[0]:
        assert seen[1][name] == pytest.approx(seen[0][name], rel=1e-4), name


def test_every_update_and_every_part_has_its_own_key():
    drawn = []

    def loss(policy, params, batch, key):
        number = jax.random.randint(key, (), 0, 2**20)
        jax.debug.callback(lambda n: drawn.append(int(n)), number)
        return jnp.sum(params["embedding"]) * 0.0, jnp.float32(1), {}

    noise = dataclasses.replace(objectives.sft(), loss=loss)
    for _ in range(2):
        trained(tiny.decoder(), tiny.mesh(), updates=2, accumulate=2, rows=2, objective=noise)
        jax.effects_barrier()
    assert drawn[:4] == drawn[4:] and len(set(drawn[:4])) == 4


@pytest.mark.parametrize("reduce", ["step", pytest.param("micro", marks=pytest.mark.slow)])
def test_how_often_devices_exchange_gradients(cpu_devices, reduce):
    model, mesh, tx = tiny.decoder(layout="scan", loss_chunk=8), tiny.mesh(2, 4), optim.make(SMOOTH, 10)
    place = batch_sharding(mesh)
    batch = {k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=place) for k, v in tiny.text_batch(16).items()}
    step = make_train_step(model, objectives.sft(), tx, mesh, 2, reduce)
    found = hlo.collectives(step.compile(state_lib.abstract(model, tx, mesh), batch, KEY).as_text())
    smallest = min(leaf.size for leaf in jax.tree.leaves(model.shapes))
    gradients = [c for c in found if c.kind in ("all-reduce", "reduce-scatter") and max(c.sizes) >= smallest]
    if reduce == "step":
        assert sum(sum(c.sizes) for c in gradients) == pytest.approx(model.size, abs=smallest)  # every one, once
        assert not any(c.looped for c in found)  # and the parameters are gathered before the loop
    else:
        assert all(c.looped for c in gradients) and sum(sum(c.sizes) for c in gradients) < model.size


def test_gradients_of_parts_are_added_up_in_float32():
    model = tiny.decoder(dtype="bfloat16", param_dtype="bfloat16", layout="scan")
    params, batch = tiny.random_params(model), tiny.text_batch(16)
    gradient = lambda parts: jax.jit(_accumulated(model, objectives.sft(), 1, parts, "step"))  # noqa: E731
    one, total = gradient(1), None
    for number in range(16):
        _, part = one(params, jax.tree.map(lambda x: x[number : number + 1], batch), KEY)  # noqa: B023
        part = jax.tree.map(np.float64, part)
        total = part if total is None else jax.tree.map(np.add, total, part)
    _, together = gradient(16)(params, batch, KEY)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(together)} == {"float32"}
    for path, leaf in jax.tree_util.tree_leaves_with_path(together):
        wanted = functools.reduce(lambda node, key: node[key.key], path, total)
        # Sums of 16 numbers of bfloat16 in float32; in bfloat16 they would be off by a percent.
        np.testing.assert_allclose(leaf, wanted, rtol=0, atol=1e-3 * np.abs(wanted).max())


def test_casting_once_changes_no_number():
    model, batch = tiny.decoder("gemma", dtype="bfloat16"), tiny.text_batch(2)
    params = tiny.random_params(model)
    loss = jax.jit(lambda params: objectives.sft().loss(model, params, batch, KEY)[0])
    cast = model.compute_params(params)
    assert float(loss(cast)) == float(loss(params))
    kept = {path[-1].key for path, leaf in jax.tree_util.tree_leaves_with_path(cast) if leaf.dtype == jnp.float32}
    assert kept == {"embedding", "scale"}


def poisoned(model, token):
    """Every row with `token` in its input has no finite loss, and no other row notices."""
    params = tiny.random_params(model)
    params["embedding"][token] = np.nan
    return params


@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_update_that_is_not_finite_is_undone(cpu_devices, accumulate):
    model, mesh, tx = tiny.decoder(), tiny.mesh(2, 2, 2), optim.make(SMOOTH, 10)
    step = make_train_step(model, objectives.sft(), tx, mesh, accumulate)
    token, healthy = 1, tiny.text_batch(16)  # texts have no token below 2
    sick = jax.tree.map(np.copy, healthy)
    sick["tokens"][5, 0] = token
    state, metrics = step(placed(model, tx, mesh, poisoned(model, token)), put_local(healthy, mesh), KEY)
    assert bool(metrics["finite"])
    before = jax.device_get(state)
    state, metrics = step(state, put_local(sick, mesh), KEY)
    assert not bool(metrics["finite"]) and np.isnan(metrics["loss"])
    tiny.assert_trees_equal(jax.device_get((state.params, state.opt_state)), (before.params, before.opt_state))
    assert int(state.updates) == 2
    state, metrics = step(state, put_local(healthy, mesh), KEY)
    assert bool(metrics["finite"])
    assert not np.array_equal(state.params["head"], before.params["head"])


def test_a_finite_loss_with_an_infinite_gradient_is_undone_too():
    def loss(policy, params, batch, key):
        return jnp.sqrt(jnp.sum(jnp.abs(params["embedding"] * 0.0))), jnp.float32(1), {}

    model, tx = tiny.decoder(), optim.make(SMOOTH, 10)
    step = make_train_step(model, dataclasses.replace(objectives.sft(), loss=loss), tx, tiny.mesh())
    state, metrics = step(placed(model, tx, tiny.mesh()), put_local(tiny.text_batch(2), tiny.mesh()), KEY)
    assert np.isfinite(metrics["loss"]) and not bool(metrics["finite"])
    tiny.assert_trees_equal(jax.device_get(state.params), tiny.random_params(model))


def test_a_batch_without_targets_moves_nothing_but_the_decay():
    model, batch = tiny.decoder(), tiny.text_batch(4)
    batch["mask"][:] = 0
    tx = optim.make(dataclasses.replace(SMOOTH, weight_decay=0.0), 10)
    step = make_train_step(model, objectives.sft(), tx, tiny.mesh())
    state, metrics = step(placed(model, tx, tiny.mesh()), put_local(batch, tiny.mesh()), KEY)
    assert float(metrics["loss"]) == 0 and bool(metrics["finite"]) and int(metrics["tokens"]) == 0
    tiny.assert_trees_equal(jax.device_get(state.params), tiny.random_params(model))


def test_the_state_is_donated():
    model, tx = tiny.decoder(), optim.make(SMOOTH, 10)
    step = make_train_step(model, objectives.sft(), tx, tiny.mesh())
    state = placed(model, tx, tiny.mesh())
    step(state, put_local(tiny.text_batch(2), tiny.mesh()), KEY)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


def test_the_step_compiles_for_shapes_alone(cpu_devices):
    model, mesh, tx = tiny.decoder(), tiny.mesh(2, 2, 2), optim.make(SMOOTH, 10)
    step = make_train_step(model, objectives.sft(), tx, mesh)
    place = batch_sharding(mesh)
    batch = {k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=place) for k, v in tiny.text_batch(16).items()}
    compiled = step.compile(state_lib.abstract(model, tx, mesh), batch, KEY)
    assert compiled.memory_analysis().argument_size_in_bytes > 0


def test_float32_training_reaches_a_text_it_sees_often():
    model, tx = tiny.decoder(), optim.make(optim.OptimConfig(lr=0.01), 60)
    step = make_train_step(model, objectives.sft(), tx, tiny.mesh())
    state, batch, losses = placed(model, tx, tiny.mesh()), put_local(tiny.text_batch(4), tiny.mesh()), []
    for _ in range(60):
        state, metrics = step(state, batch, KEY)
        losses.append(float(metrics["loss"]))
    assert losses[0] > 2 and losses[-1] < 0.1
