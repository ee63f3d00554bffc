"""Which devices of a topology can be compiled for, when this machine has none of them?

libtpu describes and compiles for any TPU slice without one: extra `tpu` installs it. For `cpu:N` the devices are this process's
own, simulated ones.
"""

import importlib.metadata
import importlib.util
import os
from typing import Any

import jax

from elastic_jax.errors import UserError, first_line
from elastic_jax.parallel.topology import Topology

INSTALL = "pip install 'elastic_jax[tpu]'"


def available(platform: str) -> bool:
    """Whether programs for this platform can be compiled here."""
    return platform == "cpu" or (platform == "tpu" and importlib.util.find_spec("libtpu") is not None)


def version() -> str:
    """Of libtpu; "" where it is not installed."""
    try:
        return importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        return ""


def devices(topology: Topology) -> list[Any]:
    """Devices that programs can be compiled for; those of a TPU slice can run nothing.

    Raises:
      UserError: libtpu is missing, cannot start, or there are too few devices; with what to do.
    """
    chip = topology.chip
    if chip.platform == "cpu":
        found = jax.devices("cpu")
        if len(found) < topology.devices:
            raise UserError(
                f"--topology={topology.name} --compile: this process has {len(found)} CPU devices. Start it with "
                f"XLA_FLAGS=--xla_force_host_platform_device_count={topology.devices}, or leave out --compile."
            )
        return found[: topology.devices]
    if chip.platform == "gpu":
        raise UserError(
            f"--topology={topology.name} --compile: a program for GPUs can only be compiled where one is. Leave out --compile: "
            "the estimate needs none."
        )
    if not available("tpu"):
        raise UserError(
            f"--topology={topology.name} --compile: libtpu is not installed, which compiles for TPUs without one. Use {INSTALL}, "
            "or leave out --compile."
        )
    from jax.experimental import topologies

    # Without it libtpu asks a metadata server, which exists on Google Cloud alone, and waits for its answer.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    # One process at a time may drive a TPU, but any number may compile.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    # v4 is described as two devices a chip unless it is asked for as one, which is what jax shows on the machine itself.
    options: dict[str, Any] = dict(chip_config_name="megachip") if chip.name == "v4" else {}
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **options).devices
    except (RuntimeError, NotImplementedError, ValueError) as error:
        raise UserError(
            f"--topology={topology.name} --compile: libtpu {version()} does not describe it: {first_line(error)}\n"
            f"Update it ({INSTALL}), or leave out --compile."
        ) from error
    if len(found) != topology.devices:
        raise UserError(
            f"--topology={topology.name} --compile: libtpu {version()} describes {len(found)} devices, expected "
            f"{topology.devices}. Leave out --compile."
        )
    return list(found)
