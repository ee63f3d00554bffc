"""What does each engine call the machines of a topology?

`elastic_jax.parallel.topology` knows which topologies there are; here are their names on Google Kubernetes Engine, on TPU VMs, in
xpk and in SkyPilot, and how many machines they take.
"""

import dataclasses
from typing import Literal

from elastic_jax.errors import UserError
from elastic_jax.parallel import topology

GPUS_PER_HOST = 8
# TPU machines of more than one host have four chips (Google Cloud, "Plan TPUs in GKE": ct5lp-hightpu-4t and alike).
CHIPS_PER_HOST = 4
# The largest slice that is one TPU VM (Google Cloud, "TPU versions").
_ONE_VM = {"v5e": 8, "v6e": 8}

_GKE = {
    "v4": "tpu-v4-podslice",
    "v5e": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
    "a100-40gb": "nvidia-tesla-a100",
    "a100-80gb": "nvidia-a100-80gb",
    "h100": "nvidia-h100-80gb",
    "h200": "nvidia-h200-141gb",
    "b200": "nvidia-b200",
    "l4": "nvidia-l4",
    "t4": "nvidia-tesla-t4",
}
_TPU_NAMES = {"v4": "v4", "v5e": "v5litepod", "v5p": "v5p", "v6e": "v6e"}
_CORES = {"v4": 2, "v5p": 2}  # these count TensorCores in their names, two to a chip
_RUNTIMES = {
    "v4": "tpu-ubuntu2204-base",
    "v5e": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}
_XPK_GPUS = {
    "a100-40gb": "a100-40gb", "h100": "h100-80gb", "h200": "h200-141gb", "b200": "b200", "l4": "l4",
}  # fmt: skip
_SKY_GPUS = {
    "a100-40gb": "A100", "a100-80gb": "A100-80GB", "h100": "H100", "h200": "H200", "b200": "B200", "l4": "L4", "t4": "T4",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Machine:
    """What one job runs on.

    Attributes:
      chip: as in `topology.CHIPS`; "cpu" for machines without accelerators.
      devices: chips or GPUs of one job; 0 for a CPU.
      hosts: machines of one job, on Kubernetes and Slurm.
      shape: "4x4" for a TPU slice, "" otherwise.
    """

    chip: str
    platform: Literal["cpu", "gpu", "tpu"]
    devices: int
    hosts: int
    shape: str = ""

    @property
    def per_host(self) -> int:
        return self.devices // self.hosts

    @property
    def gke_accelerator(self) -> str:
        return _GKE[self.chip]

    @property
    def tpu_type(self) -> str:
        """As Google Cloud counts: chips for v5e and v6e, cores for v4 and v5p."""
        return f"{_TPU_NAMES[self.chip]}-{self.devices * _CORES.get(self.chip, 1)}"

    @property
    def tpu_vms(self) -> int:
        """Machines of the slice as TPU VMs."""
        return 1 if self.devices <= _ONE_VM.get(self.chip, CHIPS_PER_HOST) else self.devices // CHIPS_PER_HOST

    @property
    def tpu_runtime(self) -> str:
        return _RUNTIMES[self.chip]

    @property
    def xpk_flags(self) -> list[str]:
        """How xpk is asked for it.

        Raises:
          UserError: xpk knows no such machine.
        """
        if self.platform == "tpu":
            if self.chip == "v5e" and self.devices < 2 * CHIPS_PER_HOST:
                raise UserError(
                    f"--topology={self.chip}:{self.shape}: xpk has no slice as small as that. Use --backend=jobset."
                )
            return [f"--tpu-type={_TPU_NAMES[self.chip]}-{self.shape}"]
        if self.chip not in _XPK_GPUS:
            raise UserError(
                f"--topology={self.chip}: xpk knows no such machine, only TPUs and {', '.join(f'{g}:8' for g in _XPK_GPUS)}. "
                "Use --backend=jobset."
            )
        return [f"--device-type={_XPK_GPUS[self.chip]}-{self.per_host}", f"--num-nodes={self.hosts}"]

    @property
    def sky_accelerator(self) -> str:
        """ "tpu-v5litepod-16:1" or "H100:8"; "" for a CPU."""
        if self.platform == "cpu":
            return ""
        return f"tpu-{self.tpu_type}:1" if self.platform == "tpu" else f"{_SKY_GPUS[self.chip]}:{self.per_host}"


def machine(name: str) -> Machine:
    """The machines of a `--topology`; "" is one machine without accelerators.

    Raises:
      UserError: an unknown topology, simulated devices, or GPUs that do not fill their machines.
    """
    if not name:
        return Machine("cpu", "cpu", 0, 1)
    found = topology.parse(name)
    if found.chip.platform == "cpu":
        raise UserError(
            f"--topology={name}: one job takes one machine without accelerators; leave --topology out for that."
        )
    if found.chip.platform == "gpu":
        hosts = -(-found.devices // GPUS_PER_HOST)
        if found.devices % hosts:
            raise UserError(
                f"--topology={name}: {found.devices} GPUs do not fill machines of {GPUS_PER_HOST}. "
                f"Use {found.chip.name}:{hosts * GPUS_PER_HOST}."
            )
        return Machine(found.chip.name, "gpu", found.devices, hosts)
    hosts = max(1, found.devices // CHIPS_PER_HOST)
    return Machine(found.chip.name, "tpu", found.devices, hosts, "x".join(map(str, found.shape)))
