"""Is an adapted model the one whose weights are W + (alpha / rank) A B, and is that all that is trained?"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from elastic_jax.errors import UserError
from elastic_jax.models import adapted, flops
from elastic_jax.models.adapted import Adapted
from elastic_jax.models.adapter import row_keys
from elastic_jax.models.lora import TARGETS, LoraConfig, lora_config

KEY = jax.random.key(7)


def made(family="llama", lora=None, seed=0, **fields):
    """A model, its adapters with a B that is not zero, and the parameters that they adapt."""
    model = tiny.decoder(family, **fields)
    what = Adapted(model.config, lora or LoraConfig(3, alpha=2.0))
    rng = np.random.default_rng(seed + 50)
    adapters = jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape).astype(leaf.dtype) * np.float32(0.3), what.shapes
    )
    return model, what, tiny.random_params(model, seed), adapters


@pytest.mark.parametrize(("family", "layout"), [*((name, "unroll") for name in tiny.FAMILIES), ("gemma", "scan")])
def test_adapted_logits_are_those_of_the_merged_weights(family, layout):
    model, what, params, adapters = made(family, layout=layout)
    tokens = tiny.tokens(3)
    found = tiny.forward(model, what.joined(params, adapters), tokens)
    merged = tiny.forward(model, what.merge(params, adapters), tokens)
    plain = tiny.forward(model, params, tokens)
    np.testing.assert_allclose(found, merged, rtol=2e-5, atol=2e-5)
    assert np.abs(merged - plain).max() > 0.1


def test_merged_weights_are_the_sum_by_hand():
    _, what, params, adapters = made(lora=LoraConfig(3, alpha=2.0, targets=("out", "up")))
    merged = what.merge(params, adapters)
    for layer in ("0", "1"):
        weights, pairs = params["layers"][layer], adapters["layers"][layer]
        for name, contracted in (("out", 3), ("up", 1)):
            module, _ = TARGETS[name]
            a, b, before = pairs[name]["a"], pairs[name]["b"], weights[module][name]
            inner = math.prod(before.shape[:contracted])
            wanted = before.reshape(inner, -1) + 2.0 / 3 * a.reshape(inner, 3) @ b.reshape(3, -1)
            found = merged["layers"][layer][module][name]
            np.testing.assert_allclose(found, wanted.reshape(before.shape), rtol=1e-5, atol=1e-6)
        assert merged["layers"][layer]["attention"]["qkv"] is weights["attention"]["qkv"]  # no adapter, no copy
    assert merged["embedding"] is params["embedding"]


@pytest.mark.parametrize("layout", ["unroll", "scan"])
def test_fresh_adapters_leave_every_bit_of_the_model(layout):
    model = tiny.decoder("gemma", layout=layout, dtype="bfloat16", param_dtype="bfloat16")
    what, params = Adapted(model.config, LoraConfig(4)), tiny.random_params(model)
    # The sign of a zero is lost in a sum with another.
    params["layers"] = jax.tree.map(lambda leaf: np.where(leaf < 0.2, leaf * 0, leaf), params["layers"])
    assert any(np.signbit(leaf[leaf == 0]).any() for leaf in jax.tree.leaves(params["layers"]))
    adapters = what.init(KEY, tiny.mesh())
    for path, leaf in jax.tree_util.tree_leaves_with_path(adapters):
        assert leaf.dtype == jnp.float32 and bool(jnp.any(leaf)) == (path[-1].key == "a")
    merged = jax.jit(what.merge)(params, adapters)
    for found, wanted in zip(jax.tree.leaves(merged), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(np.asarray(found).view(np.uint16), np.asarray(wanted).view(np.uint16))
    tokens = tiny.tokens(2)
    np.testing.assert_array_equal(
        tiny.forward(model, what.joined(params, adapters), tokens), tiny.forward(model, params, tokens)
    )


@pytest.mark.parametrize("family", ["qwen", "neox"])
def test_gradients_are_those_of_the_merged_weights_by_the_chain_rule(family):
    model, what, params, adapters = made(family)
    batch = tiny.text_batch(4)
    rows = batch["tokens"][:, :-1], batch["tokens"][:, 1:], batch["mask"].astype(np.float32)
    policy = adapted.policy(what, params)
    gradient = jax.jit(jax.grad(lambda pairs: policy.nll_sum(pairs, *rows)))(adapters)
    of_weights = jax.jit(jax.grad(lambda p: model.nll_sum(p, *rows)))(what.merge(params, adapters))
    for layer in ("0", "1"):
        for name, (module, contracted) in TARGETS.items():
            g = np.asarray(of_weights["layers"][layer][module][name])
            g = g.reshape(math.prod(g.shape[:contracted]), -1)
            a, b = (np.asarray(adapters["layers"][layer][name][k]) for k in "ab")
            found = gradient["layers"][layer][name]
            scale = what.lora.scale
            np.testing.assert_allclose(
                found["a"].reshape(-1, 3), scale * g @ b.reshape(3, -1).T, rtol=1e-4, atol=1e-4, err_msg=name
            )
            np.testing.assert_allclose(
                found["b"].reshape(3, -1), scale * a.reshape(-1, 3).T @ g, rtol=1e-4, atol=1e-4, err_msg=name
            )


def test_adapters_are_the_same_on_every_mesh_in_both_layouts_and_whatever_else_is_adapted(cpu_devices):
    lora = LoraConfig(2)
    one = Adapted(tiny.decoder().config, lora).init(KEY, tiny.mesh())
    spread = Adapted(tiny.decoder().config, lora).init(KEY, tiny.mesh(2, 2, 2))
    tiny.assert_trees_close(spread, one, rtol=1e-6)
    scanned = Adapted(tiny.decoder(layout="scan").config, lora).init(KEY, tiny.mesh())
    for i in (0, 1):
        tiny.assert_trees_close(jax.tree.map(lambda x, i=i: x[i], scanned["layers"]), one["layers"][str(i)], rtol=1e-6)
    fewer = Adapted(tiny.decoder().config, LoraConfig(2, targets=("down",))).init(KEY, tiny.mesh())
    tiny.assert_trees_equal(fewer["layers"]["1"]["down"], one["layers"]["1"]["down"])
    assert not np.array_equal(one["layers"]["0"]["qkv"]["a"], one["layers"]["1"]["qkv"]["a"])


def test_an_adapter_lies_where_its_weight_does(cpu_devices):
    model, mesh = tiny.decoder(), tiny.mesh(1, 2, 2)
    places, of_weights = Adapted(model.config, LoraConfig(2)).shardings(mesh), model.shardings(mesh)
    for name, (module, count) in TARGETS.items():
        spec = of_weights["layers"]["0"][module][name].spec
        pair = places["layers"]["0"][name]
        assert tuple(pair["a"].spec) == (*spec[:count], None) and tuple(pair["b"].spec) == (None, *spec[count:])


def test_dropout_drops_its_share_for_every_row_by_itself():
    what = Adapted(tiny.decoder().config, LoraConfig(2, dropout=0.25))
    batch = adapted.with_row_keys(what, {"tokens": np.zeros((64, 3))}, KEY)
    params = what.joined({"layers": {"0": {}, "1": {}}}, jax.tree.map(jnp.ones_like, what.init(KEY, tiny.mesh())), batch[adapted.KEYS])  # fmt: skip
    keys = row_keys(params, 64)
    layers = [params["layers"][name]["adapters"] for name in ("0", "1")]
    seen = {}
    for number, adapters in enumerate(layers):
        for name in ("qkv", "down"):
            pair = dataclasses.replace(adapters[name], keys_b=keys)
            inner = pair.a.shape[0]
            dropped = np.asarray(pair._dropped(jnp.ones((64 * 12, inner)), keys)).reshape(64, 12, inner)
            assert set(np.unique(dropped)) == {0.0, np.float32(1 / 0.75)}
            assert np.mean(dropped == 0) == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / dropped.size))
            seen[number, name] = dropped[:, :, :16]
    assert len({values.tobytes() for values in seen.values()}) == 4  # every weight of every layer by itself
    rows = seen[0, "qkv"]
    assert len({row.tobytes() for row in rows}) == 64
    # Half the batch by itself: its rows keep their numbers. Two answers for every row have keys of their own.
    half = {**params, "row_keys": batch[adapted.KEYS][32:]}
    np.testing.assert_array_equal(jax.random.key_data(row_keys(half, 32)), jax.random.key_data(keys)[32:])
    both = np.asarray(jax.random.key_data(row_keys(half, 64)))
    assert len(np.unique(both, axis=0)) == 64
    with pytest.raises(ValueError, match="33 rows"):
        row_keys(half, 33)


def test_without_dropout_rows_bring_no_keys():
    batch = {"tokens": np.zeros((4, 3))}
    assert adapted.with_row_keys(Adapted(tiny.decoder().config, LoraConfig(2)), batch, KEY) is batch
    assert adapted.with_row_keys(tiny.decoder(), batch, KEY) is batch


def test_frozen_parameters_are_the_arrays_given_where_no_cast_is_needed():
    model = tiny.decoder()
    params = jax.device_put(tiny.random_params(model), model.shardings(tiny.mesh()))
    same = adapted.frozen_for(model, params)
    assert all(a is b for a, b in zip(jax.tree.leaves(same), jax.tree.leaves(params), strict=True))
    short = adapted.frozen_for(tiny.decoder(dtype="bfloat16"), params)
    assert short["layers"]["0"]["mlp"]["up"].dtype == jnp.bfloat16
    assert short["embedding"] is params["embedding"]
    abstract = adapted.abstract_frozen(Adapted(tiny.decoder(dtype="bfloat16").config, LoraConfig(1)), tiny.mesh())
    shown = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)  # noqa: E731
    assert shown(abstract) == shown(short)


def test_flops_leave_out_the_gradients_of_frozen_weights():
    what = Adapted(tiny.decoder().config, LoraConfig(2))
    c, length = what.config, 12
    full = flops.training_flops(c, length)
    weights = 2 * flops.matmul_params(c)  # of one product of three for every weight
    assert what.training_flops(length) == pytest.approx(full - weights + 6 * what.size)
    assert what.size == sum(leaf.size for leaf in jax.tree.leaves(what.shapes))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (dict(rank=-1), "lora.rank=-1: expected a whole number"),
        (dict(rank=2.5), "lora.rank=2.5"),
        (dict(rank=True), "lora.rank=True"),
        (dict(rank=2, alpha=0.0), "lora.alpha=0.0: expected a positive number"),
        (dict(rank=2, alpha=float("inf")), "lora.alpha=inf"),
        (dict(rank=2, dropout=1.0), "lora.dropout=1.0: expected 0 <= dropout < 1"),
        (dict(rank=2, dropout=-0.1), "lora.dropout=-0.1"),
        (dict(rank=2, targets=("qvk",)), "lora.targets: 'qvk' is not a weight that can be adapted. Closest: qkv"),
        (dict(rank=2, targets=()), "nothing would be trained"),
        (dict(rank=2, targets=("up", "up")), "each may be named once"),
        (dict(rank=2, ranks=3), "lora.ranks: no such field. Closest: rank"),
        (dict(alpha=8.0), "lora.alpha=8.0 has no effect with lora.rank=0"),
        (dict(targets=("qkv",)), r"lora.targets=\('qkv',\) has no effect"),
    ],
)
def test_sections_that_cannot_work(section, message):
    with pytest.raises(UserError, match=message):
        lora_config(section)


def test_rank_zero_is_no_adapter_and_a_rank_is_at_most_that_of_its_weight():
    assert lora_config({}) is None and lora_config(dict(rank=0, alpha=16.0)) is None
    assert lora_config(dict(rank=2, targets=["up", "qkv"])).identity == dict(
        rank=2, alpha=16.0, dropout=0.0, targets=["qkv", "up"]
    )
    config = tiny.decoder().config  # width 16
    assert Adapted(config, LoraConfig(16)).size > 0
    with pytest.raises(
        UserError, match="lora.rank=17: the weight 'qkv' of this model is a matrix of 16 x 64.*at most 16"
    ):
        Adapted(config, LoraConfig(17))
