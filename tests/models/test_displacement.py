"""Is a random step as long as the trained one, tensor by tensor, and the same on every mesh and in both layouts?"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from elastic_jax.models import displacement
from elastic_jax.models.transformer import unstack
from elastic_jax.parallel.mesh import make_mesh

KEY = jax.random.key(3)


def moved(model, params, seed=9):
    """Parameters after a "training" that moved every tensor by another amount, and left one alone."""
    rng = np.random.default_rng(seed)
    end = jax.tree.map(
        lambda leaf: leaf + (rng.uniform(0.01, 0.2) * rng.standard_normal(leaf.shape)).astype(leaf.dtype), params
    )
    end["final_norm"] = params["final_norm"]
    return end


def mesh_of(count=1, **axes):
    return make_mesh(**(axes or dict(data=count)), devices=jax.devices()[:count])


def unstacked(model, tree):
    return unstack(tree, model.config.layers) if model.config.layout == "scan" else tree


@pytest.mark.parametrize("layout", ["unroll", "scan"])
def test_every_tensor_of_a_layer_is_moved_as_far_as_training_moved_it(layout):
    model, mesh = tiny.decoder("gemma", layout=layout), mesh_of()
    start = tiny.random_params(model)
    end = moved(model, start)
    lengths = displacement.distances(model, start, end, mesh)
    there = displacement.displaced(model, start, lengths, KEY, mesh)
    sizes = []
    for before, trained, noise in zip(
        *(jax.tree.leaves(unstacked(model, t)) for t in (start, end, there)), strict=True
    ):
        wanted = np.linalg.norm((np.asarray(trained, np.float64) - before).ravel())
        found = np.linalg.norm((np.asarray(noise, np.float64) - before).ravel())
        assert found == pytest.approx(wanted, rel=2e-6)
        sizes.append(wanted)
    assert len({round(size, 6) for size in sizes}) > 10  # each has a length of its own
    np.testing.assert_array_equal(there["final_norm"]["scale"], start["final_norm"]["scale"])
    assert displacement.total(lengths) == pytest.approx(np.linalg.norm(sizes), rel=1e-6)
    assert displacement.total(displacement.norms(model, start, mesh)) == pytest.approx(
        np.sqrt(sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in jax.tree.leaves(start))), rel=1e-6
    )


def test_directions_are_those_of_the_key_and_longer_steps_go_the_same_way():
    model, mesh = tiny.decoder("gemma"), mesh_of()
    start = tiny.random_params(model)
    lengths = displacement.distances(model, start, moved(model, start), mesh)
    zero = jax.tree.map(jnp.zeros_like, start)
    near = displacement.displaced(model, zero, lengths, KEY, mesh)
    far = displacement.displaced(model, zero, jax.tree.map(lambda x: 3 * x, lengths), KEY, mesh)
    other = displacement.displaced(model, zero, lengths, jax.random.key(4), mesh)
    flat = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])  # noqa: E731
    np.testing.assert_allclose(flat(far), 3 * flat(near), rtol=1e-5)
    cosine = flat(near) @ flat(other) / np.linalg.norm(flat(near)) / np.linalg.norm(flat(other))
    assert abs(cosine) < 5 / np.sqrt(len(flat(near)))
    first, second = (near["layers"][i]["attention"]["qkv"].ravel() for i in ("0", "1"))
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / np.sqrt(len(first))
    unit = near["embedding"] / np.std(near["embedding"])
    assert abs(np.mean(unit**3)) < 0.5 and abs(np.mean(unit**4) - 3) < 0.8  # Gaussian, not of one sign or size


def test_both_layouts_draw_the_same_numbers():
    found = {}
    for layout in ("unroll", "scan"):
        model = tiny.decoder("gemma", layout=layout)
        start = tiny.random_params(model)
        lengths = displacement.norms(model, start, mesh_of())  # the same in both, unlike a random end
        found[layout] = unstacked(model, displacement.displaced(model, start, lengths, KEY, mesh_of()))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found["unroll"], found["scan"])


def test_sharded_it_is_the_same_step():
    model, found = tiny.decoder("gemma", layout="scan"), []
    host = tiny.random_params(model)
    end = moved(model, host)
    for mesh in (mesh_of(), mesh_of(4, data=1, fsdp=2, tensor=2)):
        places = model.shardings(mesh)
        start = jax.device_put(host, places)
        lengths = displacement.distances(model, start, jax.device_put(end, places), mesh)
        there = displacement.displaced(model, start, lengths, KEY, mesh)
        assert all(jax.tree.leaves(jax.tree.map(lambda x, place: x.sharding == place, there, places)))
        found.append(jax.device_get(there))
    # Sums of squares in another order; the random bits are the same.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), *found)


def test_low_precision_keeps_its_dtype_and_nearly_the_length():
    weight = jnp.asarray(np.random.default_rng(0).standard_normal((40, 16)), jnp.bfloat16)
    there = jax.jit(displacement._step)(weight, jnp.float32(8.0), KEY)
    assert there.dtype == jnp.bfloat16
    assert np.linalg.norm(there.astype(np.float32) - weight.astype(np.float32)) == pytest.approx(8.0, rel=0.01)
