"""Does every backend give what the reference gives, packed as unpacked, and touch nothing that it may not see?"""

import dataclasses
import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import PartitionSpec

from elastic_jax.models.attention import View, cudnn, reference, selftest, splash
from elastic_jax.models.attention.backend import Backend, Request
from elastic_jax.parallel.mesh import make_mesh

B, T, K, G, H = 2, 200, 2, 2, 8
ENDS = (60, 61, 170)  # documents of 60, 1 and 109 tokens, then padding; splash pads to 256 behind that
BACKENDS = {"reference": reference.attend, "splash": functools.partial(splash.attend, interpret=True)}


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def qkv(rows=B, length=T, kv_heads=K):
    shapes = (rows, length, kv_heads, G, H), (rows, length, kv_heads, H), (rows, length, kv_heads, H)
    return [draw(*shape, seed=seed) for seed, shape in enumerate(shapes)]


def segments(ends=ENDS, length=T):
    row = np.zeros(length, np.int32)
    for number, (start, end) in enumerate(zip((0, *ends), ends, strict=False), 1):
        row[start:end] = number
    return row


@functools.partial(jax.jit, static_argnames=("attend", "window", "softcap", "scale"))
def output_and_gradients(attend, q, k, v, weight, segments_bt=None, *, window=0, softcap=0.0, scale=0.0):
    def total(q, k, v):
        out = attend(q, k, v, View(segments_bt), window=window, softcap=softcap, scale=scale)
        return jnp.sum(out * weight), out

    grads, out = jax.grad(total, argnums=(0, 1, 2), has_aux=True)(q, k, v)
    return out, *grads


@pytest.mark.parametrize(
    "options", [{}, dict(window=50, softcap=2.0, scale=0.9)], ids=["plain", "window-softcap-scale"]
)
@pytest.mark.parametrize("name", BACKENDS)
def test_packed_is_unpacked_forward_and_backward(name, options):
    q, k, v = qkv(1)
    weight = draw(1, T, K, G, H, seed=9)
    packed = output_and_gradients(BACKENDS[name], q, k, v, weight, segments()[None], **options)
    starts = (0, *ENDS)
    alone = [np.zeros((len(starts), *x.shape[1:]), np.float32) for x in (q, k, v, weight)]
    for row, (start, end) in enumerate(zip(starts, (*ENDS, T), strict=True)):
        for rows, x in zip(alone, (q, k, v, weight), strict=True):
            rows[row, : end - start] = x[0, start:end]
    unpacked = output_and_gradients(BACKENDS[name], *alone, **options)
    truth = output_and_gradients(reference.attend, *alone, **options)
    for got, expected, true in zip(packed, unpacked, truth, strict=True):
        assert np.isfinite(got).all()  # the last document is padding: T - 170 tokens of segment 0
        for row, (start, end) in enumerate(zip(starts, (*ENDS, T), strict=True)):
            np.testing.assert_allclose(got[0, start:end], expected[row, : end - start], rtol=1e-5, atol=3e-6)
            np.testing.assert_allclose(got[0, start:end], true[row, : end - start], rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("name", BACKENDS)
def test_gradients_through_what_is_masked_are_exactly_zero(name):
    q, k, v = (1e2 * x for x in qkv(1))
    for number in (0, 3):  # padding looks at padding only, and nothing looks at it
        chosen = segments() == number
        weight = draw(1, T, K, G, H, seed=9) * chosen[None, :, None, None, None]
        _, dq, dk, dv = output_and_gradients(BACKENDS[name], q, k, v, weight, segments()[None])
        for gradient in (dq, dk, dv):
            assert np.all(np.asarray(gradient)[0, ~chosen] == 0)
            assert np.any(np.asarray(gradient)[0, chosen] != 0)


@pytest.mark.parametrize("manual", [(), ("data",), ("run",)])
def test_splash_runs_on_each_device_s_own_rows_and_heads(manual, cpu_devices):
    """The kernel sees local rows and heads; axes that somebody has taken in hand (a step that reduces by itself, a population
    whose lanes lie over `run`) it leaves alone."""
    mesh = make_mesh(data=2, tensor=2, run=2, devices=cpu_devices)
    q, k, v = (np.stack([x, 2 * x]) for x in qkv(2, 128))  # two lanes
    rows = np.tile(np.stack([segments((50, 90), 128), segments((128,), 128)]), (2, 1, 1))

    def lane(backend, q, k, v, rows):
        return backend(q, k, v, View(rows))

    through = jax.vmap(functools.partial(lane, BACKENDS["splash"]))
    if manual:
        spec = PartitionSpec("run") if "run" in manual else PartitionSpec(None, "data")
        through = jax.shard_map(
            through, mesh=mesh, in_specs=spec, out_specs=spec, axis_names=set(manual), check_vma=False
        )
    with jax.set_mesh(mesh):
        got = jax.jit(through)(q, k, v, rows)
    expected = jax.vmap(functools.partial(lane, reference.attend))(q, k, v, rows)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=3e-6)
    local = (2 - ("run" in manual), 1, 128, 1, G, H)
    assert got.sharding.shard_shape(got.shape) == local


def without(**ignored):
    """An attention that takes what it is told and does not do it."""

    def attend(q, k, v, view, *, window=0, softcap=0.0, scale=0.0):
        options = {**dict(view=view, window=window, softcap=softcap, scale=scale), **ignored}
        return reference.attend(q, k, v, options.pop("view"), **options)

    return attend


def leaky(q, k, v, view, **options):
    """Right to the last digit but for a gradient that reaches every value."""
    return reference.attend(q, k, v, view, **options) + 1e-9 * jnp.sum(v)


def nan_in_padding(q, k, v, view, **options):
    out = reference.attend(q, k, v, view, **options)
    return jnp.where((view.segments_bt == 0)[:, :, None, None, None], jnp.nan, out)


def narrow(q, k, v, view, *, window, **options):
    return reference.attend(q, k, v, view, window=window - 1, **options)


ASKED = Request("float32", H, group=2, segments=True, window=40, softcap=2.0, scale=0.6)


@pytest.mark.parametrize(
    ("attend", "message"),
    [
        (without(view=View()), "the output is off by"),
        (without(window=0), "the output is off by"),
        (without(softcap=0.0), "the output is off by"),
        (without(scale=0.0), "the output is off by"),
        (narrow, "the output is off by"),
        (nan_in_padding, "not finite"),
        (leaky, "dv reaches"),
    ],
    ids=["segments", "window", "softcap", "scale", "window-one-less", "nan", "leak"],
)
def test_the_self_test_finds_what_a_backend_leaves_out(attend, message):
    assert message in selftest.compare(Backend("bad", attend), ASKED)
    assert selftest.compare(Backend("good", without()), ASKED) == ""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_splash_passes_the_self_test_in_the_interpreter(dtype):
    backend = dataclasses.replace(splash.BACKEND, attend=BACKENDS["splash"])
    assert selftest.compare(backend, dataclasses.replace(ASKED, dtype=dtype)) == ""


def test_rows_of_the_length_that_devices_are_tested_with():
    """A backend that cuts rows into blocks of 512 and forgets the block before is found, which at 256 tokens it is not."""

    def forgetful(q, k, v, view, **options):
        halves = [
            reference.attend(
                *(x[:, at : at + 512] for x in (q, k, v)), View(view.segments_bt[:, at : at + 512]), **options
            )
            for at in range(0, q.shape[1], 512)
        ]
        return jnp.concatenate(halves, axis=1)

    broken = dataclasses.replace(reference.BACKEND, attend=forgetful)
    assert selftest.compare(broken, ASKED) == ""
    assert "off by" in selftest.compare(broken, ASKED, selftest.LENGTH)


GPU = any(device.platform == "gpu" for device in jax.devices())


@pytest.mark.skipif(not GPU, reason="no GPU")
@pytest.mark.parametrize(
    "request_", [Request("bfloat16", 64, 2, segments=s, window=w) for s in (0, 1) for w in (0, 50)]
)
def test_cudnn_passes_the_self_test(request_):
    assert selftest.compare(cudnn.BACKEND, request_) == ""


@pytest.mark.parametrize("packed", [False, True])
def test_cudnn_lowers_for_cuda_with_every_feature_in_the_call(packed, monkeypatch):
    """No GPU is needed to see what the fused call is given."""
    internals = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(internals, "check_cudnn_version", lambda: 91200)
    q, k, v = (jax.ShapeDtypeStruct(x.shape, jnp.bfloat16) for x in qkv(B, 127))
    rows = jax.ShapeDtypeStruct((B, 127), jnp.int32) if packed else None

    def total(q, k, v, rows):
        return jnp.sum(cudnn.attend(q, k, v, View(rows), window=30).astype(jnp.float32))

    lowered = jax.jit(jax.grad(total, argnums=(0, 1, 2))).trace(q, k, v, rows).lower(lowering_platforms=("cuda",))
    calls = [line for line in lowered.as_text().replace("\\22", '"').splitlines() if "@__cudnn$fmha" in line]
    names = "fmhaScaleBiasSoftmax" if packed else "fmhaSoftmax"
    assert [name in line for line, name in zip(calls, (f"{names}(", f"{names}Backward("), strict=True)] == [True, True]
    for line in calls:
        assert '"mask_type": "CAUSAL"' in line
        # Packed: one mask for all heads, of an even length, with the window in it.
        assert ("tensor<2x1x128x128xbf16>" in line) == packed
        assert ('"sliding_window_length": 30' in line) != packed


AHEAD = """
import jax, jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec
import tiny
from elastic_jax.parallel.mesh import make_mesh

mesh = make_mesh(1, 2, 2, devices=topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices)
model = tiny.decoder("gemma", head_dim=128, seq_len=256, dtype="bfloat16", layout="scan", remat="full", attention="auto")
place = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
params = jax.tree.map(place, model.shapes, model.shardings(mesh))
rows = jax.ShapeDtypeStruct((4, 200), jnp.int32, sharding=NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))
loss = lambda params, tokens, segments: jnp.mean(model(params, tokens, segments_bt=segments) ** 2)
with jax.set_mesh(mesh):
    lowered = jax.jit(jax.grad(loss)).lower(params, rows, rows)
    print(lowered.as_text().count("tpu_custom_call"), lowered.compile().memory_analysis().temp_size_in_bytes)
"""


@pytest.mark.slow
def test_a_gradient_through_splash_compiles_ahead_of_time_for_a_tpu():
    pytest.importorskip("libtpu")
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "PYTHONPATH": os.path.dirname(tiny.__file__),
    }
    done = subprocess.run([sys.executable, "-c", AHEAD], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    calls, memory = map(int, done.stdout.split())
    assert calls >= 3 and memory > 0  # forward, forward again under remat, dq, dkv
