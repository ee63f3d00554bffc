"""Is the backend of attention one that can do all that is asked, and is everybody told which it is?"""

import json
import logging
import os
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from elastic_jax.errors import UserError
from elastic_jax.models.attention import BACKENDS, View, attend, choose, dispatch, reference, selftest
from elastic_jax.models.attention.backend import Backend, Request
from elastic_jax.models.config import ModelConfig, model_config
from elastic_jax.parallel.device import Device, current_device

TPU = Device("tpu", "TPU v5 lite", here=False)
H100 = Device("gpu", "NVIDIA H100 80GB HBM3", 9.0, here=False)
A100 = Device("gpu", "NVIDIA A100-SXM4-40GB", 8.0)
V100 = Device("gpu", "Tesla V100-SXM2-16GB", 7.0)
CPU = Device("cpu", "cpu")
PLAIN = Request("bfloat16", 128)
PACKED = Request("bfloat16", 128, group=4, segments=True, window=1024)


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """No verdict and no line of an earlier test."""
    for function in (dispatch._warn, dispatch._announce, selftest.failure):
        function.cache_clear()


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO, logger="elastic_jax")
    return caplog


@pytest.mark.parametrize(
    ("device", "request_", "expected", "warning"),
    [
        (TPU, PLAIN, "splash", ""),
        (TPU, PACKED, "splash", ""),
        (TPU, Request("bfloat16", 192), "reference", "splash on TPU v5 lite: head_dim=192 is above 128"),
        (H100, PLAIN, "cudnn", ""),
        (H100, PACKED, "cudnn", ""),
        (H100, Request("bfloat16", 256), "cudnn", ""),
        (H100, Request("float32", 128), "reference", "cudnn on NVIDIA H100 80GB HBM3: it takes bfloat16, not float32"),
        (
            H100,
            Request("bfloat16", 128, softcap=50.0),
            "reference",
            "it has no soft-cap (model.attention_softcap=50.0)",
        ),
        (H100, Request("bfloat16", 20), "reference", "head_dim=20 is not a multiple of 8"),
        (A100, Request("bfloat16", 256), "reference", "head_dim is 256 and may be 128 at most"),
        (V100, PLAIN, "reference", "it needs compute capability 8.0, and Tesla V100-SXM2-16GB has 7.0"),
        (Device("rocm", "AMD Instinct MI300X"), PLAIN, "reference", ""),
        (CPU, PACKED, "reference", ""),
    ],
)
def test_auto_takes_the_first_that_can_and_names_those_that_cannot(device, request_, expected, warning, log):
    for _ in range(3):  # every layer of every program asks
        assert choose("auto", request_, device) == expected
    warnings = [record.message for record in log.records if record.levelno == logging.WARNING]
    assert len(warnings) == bool(warning) and all(warning in line for line in warnings)
    told = [record.message for record in log.records if record.levelno == logging.INFO]
    assert len(told) == 1 and told[0].startswith(f"Attention: {expected} on {device.kind} for {request_.dtype}")
    assert ("not tested: this machine has no such device" in told[0]) == (not device.here)


@pytest.mark.parametrize(
    ("name", "device", "request_", "words"),
    [
        ("splsh", TPU, PLAIN, ["model.attention='splsh'", "no such backend", "Closest: splash"]),
        ("splash", CPU, PLAIN, ["it runs on tpu, and this is cpu (cpu)", "Use model.attention='auto' or 'reference'."]),
        ("cudnn", TPU, PLAIN, ["it runs on gpu, and this is tpu (TPU v5 lite)", "'auto' or 'splash' or 'reference'."]),
        (
            "cudnn",
            H100,
            Request("float32", 64),
            ["not float32", "Use model.dtype='bfloat16', or model.attention='auto'"],
        ),
        ("cudnn", A100, Request("bfloat16", 192), ["head_dim is 192", "Use model.head_dim=128 or less"]),
        ("cudnn", A100, Request("bfloat16", 20), ["head_dim=20", "Use model.head_dim=24, or"]),
        ("cudnn", H100, Request("bfloat16", 64, softcap=30.0), ["model.attention_softcap=30.0", "or 'reference'."]),
        ("splash", TPU, Request("bfloat16", 160), ["head_dim=160", "Use model.head_dim=256, or"]),
    ],
)
def test_a_named_backend_that_cannot_is_an_error_with_the_cure(name, device, request_, words):
    with pytest.raises(UserError) as caught:
        choose(name, request_, device)
    for word in words:
        assert word in str(caught.value)


def test_whatever_is_not_declared_is_refused():
    bare = Backend("bare", reference.attend)
    for feature in (dict(segments=True), dict(window=8), dict(softcap=1.0)):
        reason, _ = bare.refusal(Request("float32", 8, **feature), CPU)
        assert reason
        declared = Backend("able", reference.attend, **{name: True for name in feature})
        assert declared.refusal(Request("float32", 8, **feature), CPU) is None
    assert bare.refusal(Request("float32", 8), CPU) is None
    everything = Request("float32", 7, group=3, segments=True, window=1, softcap=1.0)
    assert BACKENDS["reference"].refusal(everything, CPU) is None


def forgetful(q, k, v, view, **options):
    """Drops the segments in silence, as MaxText's cuDNN path did."""
    return reference.attend(q, k, v, View(), **options)


def broken(q, k, v, view, **options):
    raise RuntimeError("no engine found\nsecond line")


def install(monkeypatch, name, attend):
    """A backend for the CPU that comes before the reference."""
    calls = []

    def counted(*args, **options):
        calls.append(options)
        return attend(*args, **options)

    backend = Backend(name, counted, platforms=("cpu",), segments=True, window=True, softcap=True)
    monkeypatch.setattr(dispatch, "BACKENDS", {name: backend, "reference": reference.BACKEND})
    return calls


def arrays(length=6):
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, length, 2, *group, 8)).astype(np.float32) for group in ((2,), (), ()))
    return q, k, v, View(jnp.asarray([[1] * 3 + [2] * (length - 3)]))


@pytest.mark.parametrize(
    ("attend_", "why"), [(forgetful, "the output is off by"), (broken, "RuntimeError: no engine found")]
)
def test_a_backend_that_fails_its_self_test_is_not_used(attend_, why, monkeypatch, log):
    install(monkeypatch, "fast", attend_)
    q, k, v, view = arrays()
    got = jax.jit(lambda q: attend(q, k, v, view))(q)
    np.testing.assert_array_equal(got, jax.jit(lambda q: reference.attend(q, k, v, view))(q))
    (warning,) = [record.message for record in log.records if record.levelno == logging.WARNING]
    assert warning.startswith("Attention is not computed by fast on cpu: it failed its self-test") and why in warning
    assert "second line" not in warning
    with pytest.raises(UserError, match="model.attention='fast': it failed its self-test.*Use model.attention='auto'"):
        attend(q, k, v, view, backend="fast")


def test_a_window_as_long_as_the_row_is_none(monkeypatch):
    calls = install(monkeypatch, "fast", reference.attend)
    q, k, v, view = arrays(6)
    for window, expected in ((5, 5), (6, 0), (4096, 0)):
        got = attend(q, k, v, view, window=window, scale=0.3)
        assert (calls[-1]["window"], calls[-1]["scale"]) == (expected, 0.3)
        np.testing.assert_array_equal(got, reference.attend(q, k, v, view, window=window, scale=0.3))


def test_a_backend_that_passes_is_tested_once_while_a_program_is_traced_on_a_mesh(monkeypatch, log):
    calls = install(monkeypatch, "fast", reference.attend)
    q, k, v, view = arrays()

    def layers(q):
        for window in (0, 0, 4, 4):
            q = attend(q, k, v, view, window=window)
        return q

    with jax.set_mesh(tiny.mesh(data=2, fsdp=2, tensor=2)):
        jax.jit(layers).lower(q)
        before = len(calls)
        jax.jit(lambda q: layers(2 * q)).lower(q)
    assert len(calls) - before == 4  # the second program only calls it
    told = [record.message for record in log.records]
    assert len(told) == 2 and all("fast on cpu" in line and "passed its self-test" in line for line in told)


def test_a_cache_is_no_matter_of_a_backend():
    q, k, v, _ = arrays()
    with pytest.raises(ValueError, match="attend_cache"):
        attend(q, k, v, View(start=jnp.asarray(2)))


def test_the_device_is_that_of_the_mesh_in_use(cpu_devices):
    assert current_device() == CPU
    with jax.set_mesh(tiny.mesh(data=2)):
        assert current_device() == CPU
    devices = jax.sharding.AbstractDevice(device_kind="TPU v5 lite", num_cores=1, platform="tpu")
    elsewhere = jax.sharding.AbstractMesh((2,), ("data",), abstract_device=devices)
    with jax.sharding.use_abstract_mesh(elsewhere):
        assert current_device() == TPU


def test_a_decoder_refuses_a_backend_of_another_platform():
    model = tiny.decoder(attention="splash")
    with pytest.raises(UserError, match="model.attention='splash': it runs on tpu"):
        jax.eval_shape(model, model.shapes, jnp.zeros((1, 4), jnp.int32))


def test_the_config_knows_the_backends():
    shape = dict(layers=1, embed=16, heads=2, kv_heads=2, head_dim=8, mlp=32)
    with pytest.raises(UserError, match="model.attention='flash': expected one of auto, reference, cudnn, splash"):
        model_config(dict(shape, attention="flash"), 40, 8)
    assert model_config(shape, 40, 8).attention == "auto"
    choices = ModelConfig.__dataclass_fields__["attention"].type.__args__
    assert set(choices) == {"auto", *BACKENDS}


WORKER = """
import json, sys
import jax
from elastic_jax.models.attention import choose, dispatch, reference
from elastic_jax.models.attention.backend import Backend, Request
from elastic_jax.parallel.device import current_device

process = int(sys.argv[1])
jax.distributed.initialize(sys.argv[2], num_processes=2, process_id=process)

def sound(*args, **options):
    return reference.attend(*args, **options)

def sound_on_one(*args, **options):
    assert process == 0, "a device gone wrong"
    return reference.attend(*args, **options)

backends = [Backend(name, f, platforms=("cpu",)) for name, f in (("sound", sound), ("sound_on_one", sound_on_one))]
names = {}
for backend in backends:
    dispatch.BACKENDS = {backend.name: backend, "reference": reference.BACKEND}
    names[backend.name] = choose("auto", Request("float32", 8), current_device())
print(json.dumps(names), flush=True)
"""


@pytest.mark.slow
@pytest.mark.distributed
def test_all_processes_choose_the_same_where_one_device_fails():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(process), address],
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    try:
        for worker in workers:
            out, errors = worker.communicate(timeout=240)
            assert worker.returncode == 0, errors
            assert json.loads(out.splitlines()[-1]) == {"sound": "sound", "sound_on_one": "reference"}
            assert "it failed its self-test: AssertionError: a device gone wrong (on process 1)" in errors
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
