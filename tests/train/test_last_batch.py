"""Is an update on fewer examples than a batch has what its name says?"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from test_step import KEY, placed

from elastic_jax import objectives
from elastic_jax.parallel.mesh import put_local
from elastic_jax.train import optim
from elastic_jax.train.last_batch import examples_after, updates_of
from elastic_jax.train.step import make_train_step

ROWS, REST = 8, 3
# The change is lr times the gradient, and nothing else.
PLAIN = optim.OptimConfig(name="sgd", lr=0.1, b1=0.0, b2=0.95, clip=0.0)


def padded(batch):
    real = np.arange(ROWS) < REST
    cut = {
        name: rows * real[:, None].astype(rows.dtype) if name.endswith("mask") else rows for name, rows in batch.items()
    }
    return cut | {"real": real.astype(np.uint8)}


def pairs(seed=0):
    chosen, rejected = tiny.text_batch(ROWS, seed), tiny.text_batch(ROWS, seed + 50)
    rng = np.random.default_rng(seed)
    found = {
        f"{side}_{name}": rows
        for side, one in (("chosen", chosen), ("rejected", rejected))
        for name, rows in one.items()
    }
    return found | {f"ref_{side}": rng.normal(-30, 3, ROWS).astype(np.float32) for side in ("chosen", "rejected")}


def updated(batch, objective="sft", last_batch="whole", mesh=None, accumulate=1):
    model, mesh, tx = tiny.decoder(layers=1), mesh or tiny.mesh(), optim.make(PLAIN, 10)
    step = make_train_step(model, objectives.make(objective), tx, mesh, accumulate, last_batch=last_batch)
    state, metrics = step(placed(model, tx, mesh), put_local(batch, mesh), KEY)
    change = jax.tree.map(lambda new, old: new - old, jax.device_get(state.params), tiny.random_params(model))
    return change, {name: float(value) for name, value in metrics.items()}


@pytest.mark.parametrize(("objective", "axes", "accumulate"), [("sft", (2, 1, 1), 2), ("dpo", (1, 1, 1), 1)])
def test_flush_is_the_update_on_the_rest_alone_and_pad_its_share(cpu_devices, objective, axes, accumulate):
    batch = tiny.text_batch(ROWS) if objective == "sft" else pairs()
    alone, of_rest = updated({name: rows[:REST] for name, rows in batch.items()}, objective)
    whole = dict(objective=objective, mesh=tiny.mesh(*axes), accumulate=accumulate)
    flushed, of_flush = updated(padded(batch), last_batch="flush", **whole)
    tiny.assert_trees_close(flushed, alone, rtol=0, atol=1e-6)
    small, of_pad = updated(padded(batch), last_batch="pad", **whole)
    tiny.assert_trees_close(small, jax.tree.map(lambda x: x * REST / ROWS, alone), rtol=0, atol=1e-6)
    for found in (of_flush, of_pad):
        assert found["loss"] == pytest.approx(of_rest["loss"], rel=1e-5) and found["tokens"] == of_rest["tokens"]
    assert of_flush["grad_norm"] == pytest.approx(of_rest["grad_norm"], rel=1e-4)
    assert of_pad["grad_norm"] == pytest.approx(of_rest["grad_norm"] * REST / ROWS, rel=1e-4)
    assert max(np.abs(x).max() for x in jax.tree.leaves(alone)) > 1e-3


def test_the_update_on_the_rest_is_that_of_a_hand_written_loss():
    model, batch = tiny.decoder(layers=1), tiny.text_batch(ROWS)
    rest = {name: rows[:REST] for name, rows in batch.items()}

    def loss(params):
        logits = model(params, rest["tokens"][:, :-1])
        log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.asarray(rest["tokens"])[:, 1:, None], axis=-1)[
            ..., 0
        ]
        return -jnp.sum(log_p * rest["mask"]) / rest["mask"].sum()

    with jax.set_mesh(tiny.mesh()):
        gradient = jax.jit(jax.grad(loss))(tiny.random_params(model))
    by_hand = jax.tree.map(lambda g: -PLAIN.lr * g, gradient)
    tiny.assert_trees_close(updated(padded(batch), last_batch="flush")[0], by_hand, rtol=0, atol=1e-6)


@pytest.mark.parametrize("how", ["flush", "pad"])
def test_a_whole_batch_is_the_same_in_every_way(how):
    batch = tiny.text_batch(ROWS)
    same, metrics = updated(batch | {"real": np.ones(ROWS, np.uint8)}, last_batch=how)
    plain, before = updated(batch)
    tiny.assert_trees_equal(same, plain)
    assert metrics == before


@pytest.mark.parametrize(
    ("volume", "whole", "rounded_up"), [(25, 0, 1), (64, 1, 1), (100, 1, 2), (128, 2, 2), (200, 3, 4)]
)
def test_updates_of_a_volume(volume, whole, rounded_up):
    assert updates_of(volume, 64, "drop") == whole
    for how in ("flush", "pad"):
        assert updates_of(volume, 64, how) == rounded_up
        assert examples_after(rounded_up, 64, rounded_up, volume % 64) == volume
        assert examples_after(rounded_up - 1, 64, rounded_up, volume % 64) == 64 * (rounded_up - 1)
