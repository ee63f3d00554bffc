"""Is the optimiser the published AdamW, on the schedule that the config names?"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from elastic_jax.errors import UserError
from elastic_jax.train import optim
from elastic_jax.train.optim import OptimConfig, optim_config


def rates(config, updates, count=None):
    rate = jax.jit(jax.vmap(lambda n: jnp.asarray(optim.schedule(config, updates)(n))))
    return np.asarray(rate(jnp.arange(updates if count is None else count)))


def test_a_constant_rate_is_constant_and_needs_no_horizon():
    config = OptimConfig(lr=0.5)
    np.testing.assert_array_equal(rates(config, 7), np.float32(0.5))
    np.testing.assert_array_equal(rates(config, 7), rates(config, 1000, 7))
    assert config.horizon_free


@pytest.mark.parametrize("warmup", [1, 2, 5])
@pytest.mark.parametrize("name", ["constant", "cosine", "linear"])
def test_warm_up_rises_evenly_from_one_step_and_is_never_zero(name, warmup):
    got = rates(OptimConfig(lr=0.4, schedule=name, warmup=warmup), 20)
    np.testing.assert_allclose(got[:warmup], 0.4 * np.arange(1, warmup + 1) / warmup, rtol=1e-6)
    assert got[warmup] == pytest.approx(0.4) and (got > 0).all()


@pytest.mark.parametrize("final", [0.0, 0.1])
@pytest.mark.parametrize("warmup", [0, 4])
def test_decay_ends_where_it_should(final, warmup):
    updates, lr = 24, 0.3
    done = np.clip((np.arange(30) - warmup) / (updates - warmup), 0, 1)
    shapes = dict(linear=1 - (1 - final) * done, cosine=final + (1 - final) * (1 + np.cos(np.pi * done)) / 2)
    for name, shape in shapes.items():
        config = OptimConfig(lr=lr, schedule=name, warmup=warmup, final=final)
        assert not config.horizon_free
        got = rates(config, updates, 30)
        np.testing.assert_allclose(got[warmup:], (lr * shape)[warmup:], rtol=1e-5, atol=1e-8)
        assert (got[:updates] > 0).all()  # an update at rate zero would count as volume and do nothing


def test_a_warm_up_longer_than_the_run_is_still_a_schedule():
    got = rates(OptimConfig(lr=1.0, schedule="cosine", warmup=10), 4)
    np.testing.assert_allclose(got, [0.1, 0.2, 0.3, 0.4], rtol=1e-6)


def test_updates_are_those_of_adamw_by_hand():
    config = OptimConfig(lr=0.1, warmup=2, b1=0.8, b2=0.9, eps=1e-6, weight_decay=0.05, clip=1.0)
    rng = np.random.default_rng(0)
    block = {"mlp": {"up": (3, 4)}, "mlp_norm": {"scale": (3,)}}
    shapes = {"embedding": (5, 3), "layers": {"0": block}, "head": (3, 5)}

    def is_tuple(node):
        return isinstance(node, tuple)

    def draw(scale):
        return jax.tree.map(lambda shape: scale * rng.standard_normal(shape), shapes, is_leaf=is_tuple)

    params = draw(1.0)
    moments = jax.tree.map(lambda p: (np.zeros_like(p), np.zeros_like(p)), params)
    clipped = []
    with jax.enable_x64(True):
        tx = optim.make(config, 10)
        got = jax.tree.map(jnp.asarray, params)
        state = tx.init(got)
        for number, size in enumerate((3.0, 0.02, 1.0), start=1):
            grads = draw(size)
            updates, state = jax.jit(tx.update)(jax.tree.map(jnp.asarray, grads), state, got)
            got = optax.apply_updates(got, updates)

            norm = np.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(grads)))
            clipped.append(norm > 1)
            grads = jax.tree.map(lambda g: g / max(1.0, norm), grads)  # noqa: B023
            moments = jax.tree.map(
                lambda m, g: (0.8 * m[0] + 0.2 * g, 0.9 * m[1] + 0.1 * g**2), moments, grads, is_leaf=is_tuple
            )
            lr = 0.1 * min(number / 2, 1)

            def updated(path, p, m):
                decay = 0.05 * p if path[-1].key in ("up", "head") else 0.0
                first, second = m[0] / (1 - 0.8**number), m[1] / (1 - 0.9**number)  # noqa: B023
                return p - lr * (first / (np.sqrt(second) + 1e-6) + decay)  # noqa: B023

            params = jax.tree_util.tree_map_with_path(updated, params, moments)
            tiny.assert_trees_close(got, params, rtol=1e-6, atol=1e-9)
    assert clipped == [True, False, True]


@pytest.mark.parametrize("b1", [0.0, 0.9])
def test_sgd_without_clip(b1):
    tx = optim.make(OptimConfig(name="sgd", lr=0.5, b1=b1, clip=0.0), 10)
    params = {"up": jnp.array([1.0, -2.0])}
    state, velocity, expected = tx.init(params), 0.0, np.array([1.0, -2.0])
    for grad in (np.array([100.0, 3.0]), np.array([-1.0, 0.5])):
        updates, state = tx.update({"up": jnp.asarray(grad, jnp.float32)}, state, params)
        params = optax.apply_updates(params, updates)
        velocity = b1 * velocity + grad
        expected = expected - 0.5 * velocity
        np.testing.assert_allclose(params["up"], expected, rtol=1e-6)


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("layout", ["unroll", "scan"])
def test_only_weights_of_products_decay(family, layout):
    shapes = tiny.decoder(family, layout=layout).shapes
    decayed = {path[-1].key for path, flag in jax.tree_util.tree_leaves_with_path(optim.decayed(shapes)) if flag}
    names = {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(shapes)}
    assert decayed == names & {"qkv", "out", "up", "down", "head"}
    assert names - decayed <= {"embedding", "scale", "bias", "qkv_bias", "out_bias", "up_bias", "down_bias"}


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (dict(learning_rate=1.0), r"optim\.learning_rate: no such field\. Closest: "),
        (dict(warm_up=1), r"Closest: warmup"),
        (dict(name="lion"), r"optim\.name='lion'.*adamw, sgd"),
        (dict(schedule="cos"), r"optim\.schedule='cos'.*constant, cosine, linear"),
        (dict(lr=0.0), r"optim\.lr=0"),
        (dict(lr=-1.0), r"optim\.lr=-1"),
        (dict(lr=float("nan")), r"optim\.lr=nan"),
        (dict(b1=1.0), r"optim\.b1=1"),
        (dict(b2=1.0), r"optim\.b2=1"),
        (dict(clip=-1.0), r"optim\.clip=-1"),
        (dict(warmup=-1), r"optim\.warmup=-1"),
        (dict(weight_decay=-0.1), r"optim\.weight_decay=-0\.1"),
        (dict(final=1.5), r"optim\.final=1\.5"),
    ],
)
def test_a_wrong_section_names_its_field(section, message):
    with pytest.raises(UserError, match=message):
        optim_config(section)
