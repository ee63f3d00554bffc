"""Does the user's environment win, flag by flag, and does the compiler never see a flag that it does not know?"""

import pytest

from elastic_jax.errors import UserError
from elastic_jax.parallel import compile_cache, flags
from elastic_jax.parallel.platforms import Machine

HOPPER = Machine("gpu", "hopper", 8)


@pytest.fixture(autouse=True)
def before_jax(monkeypatch):
    monkeypatch.setattr(flags, "_jax_has_begun", lambda: False)


def apply(environ, machine=HOPPER, known=lambda variable, flags: set(flags), **options):
    return flags.apply(machine=machine, environ=environ, known=known, **options)


def test_a_cpu_has_no_flags():
    environ = {}
    assert apply(environ, Machine("cpu")) == flags.Applied() and environ == {}


def test_what_the_user_set_stays_whatever_its_form():
    environ = {
        "XLA_FLAGS": "--xla_dump_to=/x --xla_gpu_enable_pipelined_all_gather=false --noxla_gpu_enable_pipelined_all_reduce"
    }
    before, applied = environ["XLA_FLAGS"], apply(environ)
    words = environ["XLA_FLAGS"].split()
    assert environ["XLA_FLAGS"].startswith(before + " ")
    assert "--xla_gpu_enable_pipelined_reduce_scatter=true" in words
    for name in ("xla_gpu_enable_pipelined_all_gather", "xla_gpu_enable_pipelined_all_reduce"):
        assert sum(flags._name(word) == name for word in words) == 1 and name in applied.of_user
    assert environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.92"
    environ = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5", "XLA_FLAGS": "/home/me/flags.txt"}
    apply(environ)
    assert environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.5" and environ["XLA_FLAGS"] == "/home/me/flags.txt"


def test_flags_between_devices_are_for_several_of_them():
    one, two = {}, {}
    apply(one, Machine("gpu", "hopper", 1))
    apply(two, Machine("gpu", "hopper", 1), several=True)
    assert one["XLA_FLAGS"] == "--xla_gpu_enable_latency_hiding_scheduler=true"
    assert len(two["XLA_FLAGS"].split()) > 5 and "CUDA_DEVICE_MAX_CONNECTIONS" not in one
    blackwell = {}
    apply(blackwell, Machine("gpu", "blackwell", 8))
    assert "CUDA_DEVICE_MAX_CONNECTIONS" not in blackwell


def test_the_table_can_be_switched_off_and_is_for_the_platform_in_use():
    environ = {"ELASTIC_XLA_FLAGS": "off"}
    assert apply(environ) == flags.Applied() and "XLA_FLAGS" not in environ
    assert apply(other := {}, platform="cpu") == flags.Applied() and other == {}


def test_too_late_is_an_error(monkeypatch):
    monkeypatch.setattr(flags, "_jax_has_begun", lambda: True)
    with pytest.raises(UserError, match="comes too late"):
        apply({})


def test_an_unknown_flag_is_found_by_trying_once(monkeypatch, tmp_path):
    monkeypatch.setenv(compile_cache.VARIABLE, str(tmp_path))
    asked = ["--xla_gpu_enable_latency_hiding_scheduler=true", "--xla_no_such_flag=1"]
    environ = {}
    assert flags.probe("XLA_FLAGS", asked) == {asked[0]}
    monkeypatch.setattr(flags, "_try", None)  # it is not tried again
    assert flags.probe("XLA_FLAGS", asked) == {asked[0]}
    applied = apply(environ, known=lambda variable, wanted: set(wanted) - {flags.TABLE[1].flags[0]})
    assert applied.unknown == flags.TABLE[1].flags[:1] and flags.TABLE[1].flags[0] not in environ["XLA_FLAGS"]


def test_the_installed_compiler_knows_the_table_of_gpus(monkeypatch, tmp_path):
    """XLA has one set of flags for all platforms, so this needs no GPU."""
    monkeypatch.setenv(compile_cache.VARIABLE, str(tmp_path))
    wanted = {flag for rule in flags.TABLE if rule.variable == "XLA_FLAGS" for flag in rule.flags}
    assert flags.probe("XLA_FLAGS", sorted(wanted)) == wanted


def test_the_installed_libtpu_knows_the_table_of_tpus(monkeypatch, tmp_path):
    pytest.importorskip("libtpu", reason="needs the extra tpu")
    monkeypatch.setenv(compile_cache.VARIABLE, str(tmp_path))
    wanted = {flag for rule in flags.TABLE if rule.variable == "LIBTPU_INIT_ARGS" for flag in rule.flags}
    assert flags.probe("LIBTPU_INIT_ARGS", [*sorted(wanted), "--xla_tpu_no_such_flag=1"]) == wanted
