"""What does this run on, and is that what was asked for?

jax falls to the CPU where it finds no accelerator, and says so once, in a line that nobody reads. Here it is an error: a run on
the wrong device is a day lost, or a bill. Hardware is looked for without jax, which has to be told before it looks for itself.
"""

import functools
import glob
import importlib.metadata
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from elastic_jax.errors import UserError, first_line

PLATFORMS = ("cpu", "gpu", "tpu")
# jax's own names for what it is told in JAX_PLATFORMS.
_OF_JAX = {"cpu": "cpu", "cuda": "gpu", "gpu": "gpu", "rocm": "gpu", "tpu": "tpu"}

# The kernel's files for the devices of NVIDIA; the last is Windows' own Linux.
_NVIDIA = ("/dev/nvidia[0-9]*", "/dev/nvidiactl", "/dev/dxg")
_GOOGLE = "0x1ae0"  # PCI vendor
# PCI device ids of TPUs, as in jax/_src/hardware_utils.py.
_TPUS = {
    "0x005e": "v4",
    "0x0062": "v5p",
    "0x0063": "v5e",
    "0x006f": "v6e",
    "0x0076": "tpu7x",
}
_GPUS = (
    (r"\b(B100|B200|B300|GB200|GB300)\b", "blackwell"),
    (r"\b(H100|H200|H800|H20|GH200)\b", "hopper"),
    (r"\b(L4|L40S?)\b|RTX (40|6000 Ada)", "ada"),
    (r"\b(A100|A800|A30|A10G?)\b", "ampere"),
    (r"\bT4\b", "turing"),
    (r"\bV100\b", "volta"),
)


@dataclass(frozen=True)
class Machine:
    """What there is on this host.

    Attributes:
      platform: "gpu", "tpu", or "cpu" where there is nothing else.
      generation: such as "hopper" or "v5e"; "" where it is not known.
      devices: accelerators on this host; 0 on a CPU.
      found: how it was noticed, for messages.
    """

    platform: str
    generation: str = ""
    devices: int = 0
    found: str = ""


@functools.cache
def machine() -> Machine:
    """This host, whatever jax can use of it."""
    if tpus := _tpus():
        return Machine(
            "tpu", tpus[0], len(tpus), f"{len(tpus)} TPU chips ({tpus[0] or 'of a generation unknown here'})"
        )
    if any(glob.glob(pattern) for pattern in _NVIDIA):
        names = _gpus()
        shown = f"{len(names)} x {names[0]}" if names else next(p for p in _NVIDIA if glob.glob(p))
        return Machine("gpu", generation(names[0]) if names else "", len(names), f"NVIDIA GPU ({shown})")
    return Machine("cpu")


def generation(kind: str) -> str:
    """Of a GPU by its name.

    >>> generation("NVIDIA H100 80GB HBM3"), generation("NVIDIA A100-SXM4-40GB"), generation("GeForce 256")
    ('hopper', 'ampere', '')
    """
    return next((name for pattern, name in _GPUS if re.search(pattern, kind)), "")


def asked(flag: str = "", environ: Mapping[str, str] = os.environ) -> str:
    """The platform that `flag` (--platform) or else JAX_PLATFORMS asks for; "" when they leave it to jax.

    Raises:
      UserError: it is none that there is, or the two contradict each other.
    """
    if flag and flag not in PLATFORMS:
        raise UserError(f"--platform={flag}: expected one of {', '.join(PLATFORMS)}.")
    # The first is the one that arrays live on; "cuda,cpu" asks for a GPU.
    first = environ.get("JAX_PLATFORMS", "").split(",")[0].strip().lower()
    wanted = _OF_JAX.get(first, first)
    if flag and wanted and flag != wanted:
        raise UserError(f"--platform={flag}, but JAX_PLATFORMS={environ['JAX_PLATFORMS']}. Unset one of them.")
    return flag or wanted


def choose(flag: str = "", environ: Mapping[str, str] = os.environ) -> str:
    """Tells jax the platform of `flag`; to be called before jax sees its devices. Returns what was asked for, as `asked` does."""
    import jax

    wanted = asked(flag, environ)
    if flag:
        jax.config.update("jax_platforms", {"gpu": "cuda", "tpu": "tpu", "cpu": "cpu"}[flag])
    return wanted


def cpu_alone() -> None:
    """For commands that need no accelerator: whatever JAX_PLATFORMS says, jax takes the CPU. To be called before jax sees its
    devices.

    A login node may have no GPU and JAX_PLATFORMS=cuda all the same, for the jobs that are sent from it. The variable stays as
    it is: those jobs inherit it (sbatch hands over the whole environment).
    """
    import jax

    jax.config.update("jax_platforms", "cpu")


def check(wanted: str, here: Machine | None = None) -> None:
    """Starts jax's devices, and compares them with what was asked for and with what the host has.

    Args:
      wanted: of `choose`; "" takes the best that there is.

    Raises:
      UserError: the devices do not start, or jax fell to the CPU.
    """
    import jax

    here = here or machine()
    try:
        used = jax.default_backend()
    except (RuntimeError, AssertionError) as error:  # the latter, without words, for cuda where jax sees no GPU
        if not wanted or wanted == "cpu":
            raise
        said = first_line(error) if str(error) else "jax finds none"
        raise UserError(_absent(wanted, here, said)) from error
    if wanted and used != wanted:
        raise UserError(_absent(wanted, here, f"jax uses {used}"))
    if not wanted and used == "cpu" and here.platform != "cpu":
        raise UserError(
            f"This machine has {here.found}, but jax would run on the CPU: {_reason(here.platform)}\n"
            "To run on the CPU all the same, say so with --platform=cpu or JAX_PLATFORMS=cpu."
        )


def _absent(wanted: str, here: Machine, said: str) -> str:
    asked_for = (
        f"A {wanted.upper()} was asked for (--platform or JAX_PLATFORMS), but there is none that works: {said[:300]}"
    )
    if here.platform != wanted:
        there = "no accelerator" if here.platform == "cpu" else here.found
        names = {"gpu": "NVIDIA driver's files (/dev/nvidia*)", "tpu": "TPU on the PCI bus"}
        seen = f"This machine has {there}; no {names[wanted]} can be seen." if wanted in names else f"It has {there}."
        # Next to another JAX_PLATFORMS the flag would be refused.
        cure = f"JAX_PLATFORMS={here.platform}" if os.environ.get("JAX_PLATFORMS") else f"--platform={here.platform}"
        return f"{asked_for}\n{seen} Run where there is one, or ask for what there is with {cure}."
    return f"{asked_for}\nThis machine has {here.found}: {_reason(wanted)}"


def _reason(platform: str) -> str:
    """Why jax does not use a device that is there, as far as the installed packages tell."""
    packages = {"gpu": ("jax-cuda13-plugin", "jax-cuda12-plugin"), "tpu": ("libtpu",)}[platform]
    installed = [name for name in packages if package_version(name)]
    extra = {"gpu": "cuda", "tpu": "tpu"}[platform]
    if not installed:
        return f'the jax installed here has no support for it. pip install "elastic_jax[{extra}]".'
    versions = ", ".join(f"{name} {package_version(name)}" for name in (*installed, "jax", "jaxlib"))
    more = "nvidia-smi shows whether the driver works and is new enough" if platform == "gpu" else (
        "another process may hold it (one process per host; see /tmp/libtpu_lockfile)"
    )  # fmt: skip
    return f"{versions} are installed, so look at what jax printed above; {more}."


def package_version(package: str) -> str:
    """ "" where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _gpus() -> list[str]:
    """Names of the GPUs that this process may use; [] where nvidia-smi does not answer."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    names = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return names if visible is None else names[: len([part for part in visible.split(",") if part.strip()])]


def _tpus() -> list[str]:
    """The generation of each chip on the PCI bus."""
    found = []
    for vendor in glob.glob("/sys/bus/pci/devices/*/vendor"):
        try:
            if Path(vendor).read_text().strip() != _GOOGLE:
                continue
            device = Path(vendor).with_name("device").read_text().strip()
        except OSError:
            continue
        if device in _TPUS:
            found.append(_TPUS[device])
    return found
