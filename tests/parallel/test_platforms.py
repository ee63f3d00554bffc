"""Is a missing accelerator an error, and never a silent fall to the CPU?"""

import os
import subprocess
import sys

import jax
import pytest

from elastic_jax.errors import UserError
from elastic_jax.parallel import platforms
from elastic_jax.parallel.platforms import Machine

NONE, GPU, TPU = (
    Machine("cpu"),
    Machine("gpu", "hopper", 2, "NVIDIA GPU (2 x NVIDIA H200)"),
    Machine("tpu", "v5e", 4, "4 TPU chips (v5e)"),
)


def test_what_is_asked_for():
    assert platforms.asked("", {}) == ""
    assert platforms.asked("gpu", {}) == platforms.asked("", {"JAX_PLATFORMS": "cuda,cpu"}) == "gpu"
    assert platforms.asked("cpu", {"JAX_PLATFORMS": "cpu"}) == "cpu"
    with pytest.raises(UserError, match="--platform=cuda: expected one of cpu, gpu, tpu"):
        platforms.asked("cuda", {})
    with pytest.raises(UserError, match="--platform=gpu, but JAX_PLATFORMS=cpu"):
        platforms.asked("gpu", {"JAX_PLATFORMS": "cpu"})


def test_a_machine_without_accelerator_runs_on_its_cpu(cpu_devices):
    platforms.check("", NONE)
    platforms.check("cpu", GPU)


@pytest.mark.parametrize(("machine", "extra"), [(GPU, "cuda"), (TPU, "tpu")])
def test_an_accelerator_that_jax_does_not_use_is_an_error(cpu_devices, machine, extra, monkeypatch):
    monkeypatch.setattr(platforms, "package_version", lambda name: "")
    with pytest.raises(
        UserError, match=rf"This machine has {machine.found[:6]}(.|\n)*\[{extra}\](.|\n)*--platform=cpu"
    ):
        platforms.check("", machine)
    monkeypatch.setattr(platforms, "package_version", lambda name: "1.0")
    with pytest.raises(UserError, match="1.0, jax 1.0, jaxlib 1.0 are installed, so look at what jax printed"):
        platforms.check("", machine)


def test_one_that_was_asked_for_and_is_not_there(cpu_devices, monkeypatch):
    with pytest.raises(
        UserError, match="A GPU was asked for .* none that works: jax uses cpu\nThis machine has no accelerator"
    ):
        platforms.check("gpu", NONE)

    def fails():
        raise RuntimeError("Unable to initialize backend 'cuda'")

    monkeypatch.setattr(jax, "default_backend", fails)
    with pytest.raises(UserError, match="Unable to initialize backend 'cuda'\nThis machine has 4 TPU chips"):
        platforms.check("gpu", TPU)
    with pytest.raises(UserError, match=r"This machine has NVIDIA GPU \(2 x NVIDIA H200\): the jax installed here"):
        monkeypatch.setattr(platforms, "package_version", lambda name: "")
        platforms.check("gpu", GPU)
    with pytest.raises(RuntimeError):
        platforms.check("", NONE)


def _own_process(script, **environ):
    """What a process with a jax of its own prints; the tests' has started its devices."""
    inherited = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=inherited | environ, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


_CHECKS = """
from elastic_jax.errors import UserError
from elastic_jax.parallel import platforms
try:
    platforms.check(platforms.choose({flag!r}))
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("flag", "environ", "cure"),
    [
        ("gpu", {}, "--platform=cpu"),
        ("", {"JAX_PLATFORMS": "cuda"}, "JAX_PLATFORMS=cpu"),
        ("", {"JAX_PLATFORMS": "tpu"}, "JAX_PLATFORMS=cpu"),
    ],
)
def test_what_jax_itself_says_where_there_is_none_is_a_message(flag, environ, cure):
    if platforms.machine().platform != "cpu":
        pytest.skip("this machine has an accelerator")
    said = _own_process(_CHECKS.format(flag=flag), **environ)
    wanted = "TPU" if environ.get("JAX_PLATFORMS") == "tpu" else "GPU"
    assert f"A {wanted} was asked for (--platform or JAX_PLATFORMS), but there is none that works: " in said
    assert "This machine has no accelerator; no " in said
    assert said.endswith(f"Run where there is one, or ask for what there is with {cure}.\n")


_ALONE = """
import os
from elastic_jax.export import main
assert main(["--workdir=absent", "--run=x", "--out=absent"]) == 2
import jax
print(jax.devices()[0].platform, os.environ["JAX_PLATFORMS"])
"""


def test_a_command_that_needs_no_accelerator_takes_the_cpu_and_leaves_the_variable_to_its_jobs(tmp_path):
    assert _own_process(_ALONE, JAX_PLATFORMS="cuda") == "cpu cuda\n"


@pytest.mark.parametrize(
    ("kind", "generation"),
    [("NVIDIA H200", "hopper"), ("NVIDIA GH200 480GB", "hopper"), ("NVIDIA B200", "blackwell"), ("NVIDIA GB200", "blackwell"),
     ("NVIDIA A100-SXM4-80GB", "ampere"), ("NVIDIA A10G", "ampere"), ("NVIDIA L4", "ada"), ("Tesla T4", "turing"), ("x", "")],
)  # fmt: skip
def test_generations(kind, generation):
    assert platforms.generation(kind) == generation
