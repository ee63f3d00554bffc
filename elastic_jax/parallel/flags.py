"""Which flags should XLA and libtpu have here?

One table, by platform, generation and number of devices. What the user's environment sets stays, flag by flag. A flag that the
installed compiler does not know aborts the process, and names change between versions: so those of the table are tried once in
a process of their own, and what came out is kept for these versions.

In a notebook, before anything of jax is used: `from elastic_jax.parallel import flags; flags.apply()`.
"""

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path

from elastic_jax.data.files import digest_of, write_text
from elastic_jax.errors import UserError
from elastic_jax.parallel import compile_cache, platforms
from elastic_jax.parallel.platforms import Machine

_log = logging.getLogger(__name__)

OFF = "ELASTIC_XLA_FLAGS"  # =off leaves everything to the user's environment
XLA, LIBTPU = "XLA_FLAGS", "LIBTPU_INIT_ARGS"
RECORDED = (XLA, LIBTPU, "XLA_PYTHON_CLIENT_MEM_FRACTION", "CUDA_DEVICE_MAX_CONNECTIONS", "JAX_PLATFORMS")
_PROBE_SECONDS = 180.0


@dataclass(frozen=True)
class Rule:
    """Flags of one kind of machine.

    Attributes:
      variable: that carries them; where it is neither XLA's nor libtpu's, `flags` is its value.
      generations: that they are for; all of the platform if empty.
      several: only with more than one device, counted over all hosts.
      why: reason and source.
    """

    platform: str
    variable: str
    flags: tuple[str, ...]
    why: str
    generations: tuple[str, ...] = ()
    several: bool = False


# The CPU has none: none of a dozen helped.
TABLE = (
    Rule(
        "gpu",
        XLA,
        ("--xla_gpu_enable_latency_hiding_scheduler=true",),
        "collectives and copies run beside kernels; the one flag that NVIDIA's JAX-Toolbox images set",
    ),
    Rule(
        "gpu",
        XLA,
        (
            "--xla_gpu_all_gather_combine_threshold_bytes=2147483648",
            "--xla_gpu_all_reduce_combine_threshold_bytes=2147483648",
            "--xla_gpu_reduce_scatter_combine_threshold_bytes=16777216",
            "--xla_gpu_enable_all_gather_combine_by_dim=false",
            "--xla_gpu_enable_reduce_scatter_combine_by_dim=false",
            "--xla_gpu_enable_pipelined_all_gather=true",
            "--xla_gpu_enable_pipelined_reduce_scatter=true",
            "--xla_gpu_enable_pipelined_all_reduce=true",
            "--xla_gpu_enable_while_loop_double_buffering=true",
        ),
        "fewer and larger collectives, under the computation of the layer before: MaxText's recipes for H100 and H200",
        generations=("hopper", "ampere"),
        several=True,
    ),
    Rule(
        "gpu",
        "CUDA_DEVICE_MAX_CONNECTIONS",
        ("1",),
        "kernels start in the order in which XLA launches them; JAX-Toolbox advises it up to Hopper and against it from Blackwell",
        generations=("hopper", "ampere"),
        several=True,
    ),
    Rule(
        "gpu",
        "XLA_PYTHON_CLIENT_MEM_FRACTION",
        ("0.92",),
        "jax takes 0.75 of the memory by itself; the rest is for cuDNN, NCCL and the driver",
    ),
    Rule(
        "tpu",
        LIBTPU,
        (
            "--xla_tpu_enable_async_collective_fusion=true",
            "--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true",
            "--xla_tpu_enable_async_collective_fusion_multiple_steps=true",
            "--xla_tpu_overlap_compute_collective_tc=true",
            "--xla_enable_async_all_gather=true",
            "--xla_tpu_enable_data_parallel_all_reduce_opt=true",
            "--xla_tpu_data_parallel_opt_different_sized_ops=true",
        ),
        "gathers of parameters and sums of gradients run beside the computation: MaxText's flags for dense models",
        several=True,
    ),
    Rule(
        "tpu",
        LIBTPU,
        ("--xla_tpu_scoped_vmem_limit_kib=98304",),
        "larger fusions; tpu-recipes for Trillium and MaxText for v5p",
        generations=("v5p", "v6e"),
    ),
)


@dataclass(frozen=True)
class Applied:
    """What `apply` did: variables as they are now, flags of the table that the user had set, and those not known here."""

    environment: dict[str, str] = field(default_factory=dict)
    of_user: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


def apply(
    platform: str = "",
    *,
    several: bool = False,
    machine: Machine | None = None,
    environ: MutableMapping[str, str] = os.environ,
    known: Callable[[str, Iterable[str]], set[str]] | None = None,
) -> Applied:
    """Sets the flags of the table for this machine; to be called before jax sees its devices.

    Args:
      platform: that the run uses, if not the best of the machine.
      several: whether other hosts take part.
      known: (variable, flags) -> those that the installed compiler knows; by default `probe`.

    Raises:
      UserError: jax has begun already, so that they would be ignored.
    """
    here = machine or platforms.machine()
    if environ.get(OFF, "").lower() == "off" or (platform or here.platform) != here.platform:
        return Applied()
    wanted = [rule for rule in TABLE if _fits(rule, here, several)]
    if not wanted:
        return Applied()
    if _jax_has_begun():
        raise UserError("flags.apply() comes too late: jax has read its flags. Call it before anything that uses jax.")
    mine, left, unknown = {}, [], []
    for variable in dict.fromkeys(rule.variable for rule in wanted):
        flags = [flag for rule in wanted if rule.variable == variable for flag in rule.flags]
        before = environ.get(variable, "")
        if variable not in (XLA, LIBTPU):
            if before:
                left.append(variable)
            else:
                environ[variable] = flags[0]
        elif before and not before.lstrip().startswith("-"):  # the name of a file with flags, which XLA reads itself
            left += [_name(flag) for flag in flags]
        else:
            theirs = {_name(word) for word in before.split()}
            left += [_name(flag) for flag in flags if _name(flag) in theirs]
            ours = [flag for flag in flags if _name(flag) not in theirs]
            there = (known or probe)(variable, ours)
            unknown += [flag for flag in ours if flag not in there]
            merged = " ".join([before, *(flag for flag in ours if flag in there)]).strip()
            if merged:
                environ[variable] = merged
        if variable in environ:
            mine[variable] = environ[variable]
            _log.debug("%s=%s", variable, environ[variable])
    if unknown:
        _log.debug("unknown to the installed compiler and left out: %s", " ".join(unknown))
    return Applied(mine, tuple(left), tuple(unknown))


def describe(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """For `environment.json`: what the compiler was told."""
    return {name: environ[name] for name in RECORDED if environ.get(name)}


def probe(variable: str, flags: Iterable[str]) -> set[str]:
    """Those of `flags` that the installed jaxlib (or libtpu) knows; tried once for its version."""
    flags = list(flags)
    if not flags:
        return set()
    folder = compile_cache.user_folder()
    path = None
    if folder is not None:
        versions = [platforms.package_version(name) for name in ("jaxlib", "libtpu")]
        path = folder / "flags" / f"{digest_of([variable, flags, versions])[:16]}.json"
        try:
            return set(json.loads(path.read_text()))
        except (OSError, ValueError):
            pass
    known = _try(variable, flags)
    if path is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(Path(path), json.dumps(sorted(known)))
        except OSError as error:
            _log.debug("%s: cannot be written (%s)", path, error)
    return known


def _try(variable: str, flags: list[str]) -> set[str]:
    """Start the compiler without the devices until it complains no more. One that complains of something else gets no flags."""
    left = list(flags)
    # XLA reads its flags with any backend. libtpu reads them when it is loaded, and describes a topology without any chip.
    script = "import jax; jax.devices()"
    if variable == LIBTPU:
        script = (
            "from jax.experimental import topologies; "
            "topologies.get_topology_desc(platform='tpu', topology_name='v5e:2x2')"
        )
    alone = dict(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
    clean = {name: value for name, value in os.environ.items() if name not in (XLA, LIBTPU)}
    while left:
        environment = {**clean, **alone, variable: " ".join(left)}
        try:
            done = subprocess.run(
                [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=_PROBE_SECONDS
            )
        except (OSError, subprocess.SubprocessError) as error:
            _log.debug("flags could not be tried: %s", error)
            return set()
        if done.returncode == 0:
            break
        refused = {flag for flag in left if re.search(rf"unknown.*\b{_name(flag)}\b", done.stderr, re.IGNORECASE)}
        if not refused:
            _log.debug("flags could not be tried: %s", done.stderr[-500:])
            return set()
        left = [flag for flag in left if flag not in refused]
    return set(left)


def _fits(rule: Rule, here: Machine, several: bool) -> bool:
    return (
        rule.platform == here.platform
        and (not rule.generations or here.generation in rule.generations)
        and (not rule.several or several or here.devices > 1)
    )


def _name(flag: str) -> str:
    """`xla_gpu_x` of --xla_gpu_x=true, --xla_gpu_x and --noxla_gpu_x."""
    return flag.lstrip("-").split("=")[0].removeprefix("no")


def _jax_has_begun() -> bool:
    if "jax" not in sys.modules:
        return False
    from jax._src import xla_bridge  # there is no public way to ask without beginning

    return xla_bridge.backends_are_initialized()
