"""Is the loss in chunks the plain loss, and are the logits never whole?"""

import functools

import hlo
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from elastic_jax.errors import UserError
from elastic_jax.models import cross_entropy
from elastic_jax.models.cross_entropy import Head


def plain(head, hidden, weight, targets, weights):
    """Every token's log-probability and the gradient of sum(weights * log p), by the formulas, in float64."""
    x, w = np.float64(hidden), np.float64(weight.T if head.tied else weight)
    raw = x @ w
    z = head.softcap * np.tanh(raw / head.softcap) if head.softcap else raw
    exists = np.arange(z.shape[1]) < (head.vocab or z.shape[1])
    e = np.where(exists, np.exp(z - z[:, exists].max(1, keepdims=True)), 0.0)
    p = e / e.sum(1, keepdims=True)
    hit = np.arange(z.shape[1]) == targets[:, None]
    d = (hit - p) * weights[:, None] * (1 - (z / head.softcap) ** 2 if head.softcap else 1.0)
    d_weight = x.T @ d
    return np.log(p[hit]), d @ w.T, d_weight.T if head.tied else d_weight


def case(n, d, v, head, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    hidden, weight = rng.standard_normal((n, d)), rng.standard_normal((v, d) if head.tied else (d, v))
    targets = rng.integers(0, head.vocab or v, n).astype(np.int32)
    weights = (rng.random(n) * (rng.random(n) < 0.7)).astype(np.float32)
    return jnp.asarray(hidden, dtype), jnp.asarray(weight, dtype), targets, weights


@functools.partial(jax.jit, static_argnums=0)
def summed(head, hidden, weight, targets, weights):
    loss = functools.partial(cross_entropy.nll_sum, targets_n=targets, head=head)
    value, grads = jax.value_and_grad(lambda h, w, m: loss(h, w, weights_n=m), (0, 1, 2))(hidden, weight, weights)
    return value, *grads


@functools.partial(jax.jit, static_argnums=0)
def each(head, hidden, weight, targets, weights):
    log_p, pull = jax.vjp(lambda h, w: cross_entropy.log_probs(h, w, targets, head), hidden, weight)
    return log_p, *pull(weights)


def check(head, arrays, **tolerance):
    log_p, d_hidden, d_weight = plain(head, *arrays)
    close = functools.partial(np.testing.assert_allclose, **tolerance)
    value, *grads = summed(head, *arrays)
    close(value, -(log_p * arrays[3]).sum())
    close(grads[0], -d_hidden)
    close(grads[1], -d_weight)
    close(grads[2], -log_p)
    for got, wanted in zip(each(head, *arrays), (log_p, d_hidden, d_weight), strict=True):
        close(got, wanted)
    assert (np.asarray(grads[0])[arrays[3] == 0] == 0).all()


@settings(max_examples=8, derandomize=True, deadline=None, database=None)
@given(
    n=st.integers(1, 40),
    d=st.integers(1, 9),
    v=st.integers(2, 33),
    padding=st.integers(0, 5),
    chunk=st.sampled_from([0, 1, 3, 8, 100]),
    softcap=st.sampled_from([0.0, 2.0]),
    tied=st.booleans(),
)
def test_any_shape_and_chunk_is_the_plain_loss(n, d, v, padding, chunk, softcap, tied):
    head = Head(tied, softcap, v if padding else 0, chunk)
    check(head, case(n, d, v + padding, head), rtol=2e-5, atol=2e-5)


def test_no_token_that_counts_is_no_loss_and_no_gradient():
    for chunk in (0, 4):
        hidden, weight, targets, _ = case(10, 4, 7, Head())
        value, d_hidden, d_weight, _ = summed(Head(chunk=chunk), hidden, weight, targets, np.zeros(10, np.float32))
        assert float(value) == 0.0 and not np.any(d_hidden) and not np.any(d_weight)


def test_logits_of_any_size_give_finite_numbers():
    head = Head(vocab=5, chunk=3)
    hidden, weight, targets, weights = case(7, 4, 8, head)
    value, *grads = summed(head, hidden * 1e4, weight, targets, weights)
    assert all(np.isfinite(x).all() for x in (value, *grads))
    assert not np.any(np.asarray(grads[1])[:, 5:])  # padding learns nothing


def test_bfloat16_is_added_up_in_float32():
    head, many = Head(chunk=16), 4096
    hidden, weight, targets, _ = case(many, 8, 5, head, dtype=jnp.bfloat16)
    weights = np.ones(many, np.float32)
    wide = jax.jit(jax.grad(lambda w: cross_entropy.nll_sum(hidden, w, targets, weights, head)))(
        weight.astype(jnp.float32)
    )
    assert wide.dtype == jnp.float32
    log_p, _, d_weight = plain(head, hidden.astype(jnp.float32), weight.astype(jnp.float32), targets, weights)
    # 256 chunks added up in bfloat16 would be off by a percent and more; what is left is the rounding of one factor.
    np.testing.assert_allclose(wide, -d_weight, atol=2e-3 * np.abs(d_weight).max())
    value, d_hidden, d_weight, _ = summed(head, hidden, weight, targets, weights)
    assert d_hidden.dtype == d_weight.dtype == jnp.bfloat16
    np.testing.assert_allclose(value, -log_p.sum(), rtol=1e-5)


def test_all_tokens_of_a_small_vocabulary_are_one_chunk_without_a_loop():
    arrays = case(64, 4, 32, Head())
    assert "scan" not in str(jax.make_jaxpr(functools.partial(summed, Head()))(*arrays))
    assert "scan" in str(jax.make_jaxpr(functools.partial(summed, Head(chunk=16)))(*arrays))


def test_the_automatic_chunk_is_what_its_rule_says():
    rows, size = cross_entropy.CHUNK_ROWS, cross_entropy.CHUNK_BYTES
    assert Head().chunks(size // (4 * 2048), 2048) == 1
    assert Head().chunks(size // (4 * 2048) + 1, 2048) == 2
    assert Head().chunks(10 * rows, size) == 10  # never fewer rows than CHUNK_ROWS
    assert Head(chunk=100).chunks(1000, size) == 10 and Head(chunk=300).chunks(1000, 8) == 4
    assert Head(chunk=5000).chunks(1000, size) == 1
    rows, size = cross_entropy.CPU_CHUNK_ROWS, cross_entropy.CPU_CHUNK_BYTES
    assert Head().chunks(size // (4 * 2048) + 1, 2048, "cpu") == 2
    assert Head().chunks(10 * rows, size, "cpu") == 10 and Head(chunk=100).chunks(1000, size, "cpu") == 10


@pytest.mark.parametrize("value", [-1, 2.5, True])
def test_a_wrong_chunk_is_refused(value):
    with pytest.raises(UserError, match=r"model\.loss_chunk=.*or 0 to have it chosen"):
        tiny.decoder(loss_chunk=value)


def compiled(chunk, fn, n, d, v, mesh=None):
    head = Head(chunk=chunk)
    place = lambda *spec: None if mesh is None else NamedSharding(mesh, PartitionSpec(*spec))  # noqa: E731
    rows, batch = place(("data", "fsdp")), ("data", "fsdp")
    shapes = (
        jax.ShapeDtypeStruct((n, d), jnp.float32, sharding=place(batch, None)),
        jax.ShapeDtypeStruct((d, v), jnp.float32, sharding=place("fsdp", "tensor")),
        jax.ShapeDtypeStruct((n,), jnp.int32, sharding=rows),
        jax.ShapeDtypeStruct((n,), jnp.float32, sharding=rows),
    )
    return jax.jit(functools.partial(fn, head)).lower(*shapes).compile()


@pytest.mark.parametrize("fn", [summed, each])
@pytest.mark.parametrize("chunk", [0, 16, 64])
def test_a_sharded_vocabulary_is_never_gathered(cpu_devices, fn, chunk):
    n, d, v, mesh = 256, 8, 192, tiny.mesh(2, 2, 2)
    with jax.set_mesh(mesh):
        found = hlo.collectives(compiled(chunk, fn, n, d, v, mesh).as_text())
        arrays = case(n, d, v, Head())
        tiny.assert_trees_close(fn(Head(chunk=chunk), *arrays), fn(Head(), *arrays), rtol=1e-4, atol=1e-4)
    assert found
    # A device has 64 tokens and 96 columns. It sends a few numbers per token, and the gradient of the tokens' hidden states, of
    # which every part of the vocabulary has its share.
    columns, tokens = v // 2, chunk or n // 4
    assert any(c.looped for c in found) == (chunk == 16)
    assert all(max(c.sizes) <= tokens * d for c in found if c.looped), found
    # Beyond that, once: the head, gathered over fsdp, and its gradient. No array has a number for every token and column.
    (_,) = (c for c in found if max(c.sizes) > n // 4 * d and c.kind != "all-gather")
    assert max(max(c.sizes) for c in found) == d * columns < tokens * columns


def test_temporaries_shrink_with_the_chunk():
    n, d, v = 2048, 16, 1024
    logits = 4 * n * v
    for fn in (summed, each):
        whole, eighth, small = (
            compiled(chunk, fn, n, d, v).memory_analysis().temp_size_in_bytes for chunk in (n, n // 8, n // 64)
        )
        rest = 4 * (6 * n * d + 4 * d * v)  # hidden states, head, and their gradients, with what is in flight
        assert whole >= logits
        assert eighth <= 3 * logits / 8 + rest and small <= 3 * logits / 64 + rest
        assert small < eighth < whole


def test_the_decoder_gives_the_loss_of_its_logits():
    model = tiny.decoder("gemma", vocab_size=tiny.VOCAB + 3, used_vocab=tiny.VOCAB, loss_chunk=7)
    params, batch = tiny.random_params(model), tiny.text_batch(3)
    inputs, targets, mask = batch["tokens"][:, :-1], batch["tokens"][:, 1:], batch["mask"]
    segments = np.repeat([[1, 2, 3]], 3, 0).repeat(tiny.LENGTH // 3, 1).astype(np.int32)
    positions = np.tile(np.arange(tiny.LENGTH // 3, dtype=np.int32), (3, 3))

    @jax.jit
    def both(params, segments, positions):
        packed = dict(segments_bt=segments, positions_bt=positions)
        log_p = jax.nn.log_softmax(model(params, inputs, **packed))
        return (
            model.nll_sum(params, inputs, targets, mask, **packed),
            model.log_probs(params, inputs, targets, mask, **packed),
            jnp.take_along_axis(log_p, targets[..., None], -1)[..., 0],
        )

    total, each_bt, wanted_bt = both(params, segments, positions)
    np.testing.assert_allclose(each_bt, np.where(mask, wanted_bt, 0.0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(total, -(wanted_bt * mask).sum(), rtol=1e-5)
    apart, _, _ = both(params, np.ones_like(segments), positions)
    assert abs(float(apart - total)) > 1e-3
