"""Is the optimiser the published AdamW, on the schedule that the config names?"""

import dataclasses

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


def test_a_short_number_is_a_neighbour_and_right_on_average():
    values = jnp.array([1.0, 1.003, -0.7501, 3e-9, 0.0, jnp.inf, -jnp.inf, jnp.nan], jnp.float32)
    drawn = jax.jit(jax.vmap(lambda key: optim.stochastic_bfloat16(values, key)))(
        jax.random.split(jax.random.key(1), 4000)
    )
    assert drawn.dtype == jnp.bfloat16
    drawn, values = np.float64(drawn), np.float64(values)
    np.testing.assert_array_equal(drawn[:, 4:], np.broadcast_to(values[4:], drawn[:, 4:].shape))
    for i in range(4):
        step = 2.0 ** (np.floor(np.log2(abs(values[i]))) - 7)
        assert np.abs(drawn[:, i] - values[i]).max() < step
        # The mean of 4,000 draws from two neighbours is known to step / 2 / sqrt(4000); four of those.
        assert drawn[:, i].mean() == pytest.approx(values[i], abs=4 * step / 2 / 4000**0.5)
    assert (drawn[:, 0] == 1.0).all() and len(np.unique(drawn[:, 1])) == 2


def test_short_moments_take_half_the_memory_and_go_on_falling():
    config = OptimConfig(lr=0.1, b2=0.999, clip=0.0)
    params, updates = {"up": jnp.ones(512)}, 1000
    found = {}
    for moments in ("float32", "bfloat16"):
        tx = optim.make(dataclasses.replace(config, moments=moments), updates)
        state = tx.init(params)
        found[moments] = sum(leaf.nbytes for leaf in jax.tree.leaves(state) if leaf.ndim)
        _, state = tx.update({"up": jnp.ones(512)}, state, params)

        def quiet(_, state, tx=tx):
            return tx.update({"up": jnp.zeros(512)}, state, params)[1]

        (adam,) = (
            part
            for part in jax.jit(lambda s: jax.lax.fori_loop(0, updates, quiet, s))(state)
            if isinstance(part, optax.ScaleByAdamState)
        )
        found["nu", moments] = np.float64(adam.nu["up"]).mean()
    assert found["bfloat16"] * 2 == found["float32"] == 2 * 512 * 4
    # Rounded to the nearest it would still be 0.001: each step of 0.1 percent is below half of the last digit.
    assert found["nu", "float32"] == pytest.approx(0.001 * 0.999**updates, rel=1e-3)
    assert found["nu", "bfloat16"] == pytest.approx(found["nu", "float32"], rel=0.02)


def test_training_with_short_moments_follows_float32():
    """Logistic regression of 64 weights on 256 rows, 300 updates."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((256, 64)).astype(np.float32)
    y = np.sign(x @ rng.standard_normal(64) + rng.standard_normal(256)).astype(np.float32)

    def losses(moments):
        tx = optim.make(OptimConfig(lr=0.02, b2=0.99, moments=moments), 300)

        def one(carry, _):
            params, state = carry
            loss, grads = jax.value_and_grad(lambda p: jnp.mean(jax.nn.softplus(-y * (x @ p["up"]))))(params)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), loss

        params = {"up": jnp.zeros(64)}
        return np.asarray(jax.jit(lambda: jax.lax.scan(one, (params, tx.init(params)), None, 300)[1])())

    exact, rough = losses("float32"), losses("bfloat16")
    assert exact[-1] < 0.5 * exact[0] and not np.array_equal(exact, rough)
    np.testing.assert_allclose(rough, exact, rtol=0.01)


@pytest.mark.parametrize("moments", ["float32", "bfloat16"])
def test_moments_are_what_they_are_called_whatever_the_parameters(moments):
    params = {"up": jnp.ones(8, jnp.bfloat16)}
    for config in (OptimConfig(moments=moments), OptimConfig(name="sgd")):
        tx = optim.make(config, 10)
        state = tx.init(params)
        after = jax.jit(tx.update)({"up": jnp.ones(8, jnp.bfloat16)}, state, params)[1]
        wanted = moments if config.name == "adamw" else "float32"
        for kept in (state, after):
            assert {leaf.dtype.name for leaf in jax.tree.leaves(kept) if leaf.ndim} == {wanted}


def test_a_default_that_came_later_leaves_identities_alone():
    assert "moments" not in OptimConfig().identity
    assert OptimConfig(moments="bfloat16").identity["moments"] == "bfloat16"


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
        (dict(moments="float16"), r"optim\.moments='float16'.*float32, bfloat16"),
        (dict(name="sgd", moments="bfloat16"), r"optim\.moments=bfloat16 has no effect with optim\.name=sgd"),
    ],
)
def test_a_wrong_section_names_its_field(section, message):
    with pytest.raises(UserError, match=message):
        optim_config(section)
