"""Which devices does a name such as `v5e:16x16` or `h100:8` stand for, and what can they do?

Nothing here needs the devices: a plan is made for hardware that one does not own. Memory is what a program can use, rates are the
makers' peaks; the source stands beside each.
"""

import dataclasses
import math
import re

from elastic_jax.errors import UserError, closest
from elastic_jax.parallel import hardware

MiB, GiB = 2**20, 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of device.

    Attributes:
      memory: bytes per device.
      reserved: bytes of it that driver and runtime keep for themselves.
      flops: peak dense bfloat16 FLOP/s; None for a CPU, where no peak is worth the name.
      hbm: bytes/s of its memory.
      links: bytes/s that a device sends and at the same time receives, over all of its links to devices of the same slice or
        machine.
      axes: dimensions of the torus that TPUs form; 0 for devices behind a switch.
      local: devices of one machine, beyond which `network` counts.
      network: bytes/s between machines, per device, each way.
      source: of these numbers.
    """

    name: str
    platform: str
    kind: str
    memory: int
    reserved: int
    hbm: float
    links: float
    axes: int
    local: int
    network: float
    source: str

    @property
    def flops(self) -> float | None:
        return hardware.peak_flops(self.kind)


def _tpu(
    name: str, kind: str, memory_gib: float, reserved_mib: int, hbm: float, bidirectional: float, axes: int, source: str
) -> Chip:
    # A slice is one torus however many machines it spans, so there is no slower network inside it.
    per_way = bidirectional / 2
    memory, reserved = int(memory_gib * GiB), reserved_mib * MiB
    return Chip(name, "tpu", kind, memory, reserved, hbm, per_way, axes, 2**31, per_way, source)


def _gpu(name: str, kind: str, memory_mib: int, hbm: float, bidirectional: float, network: float, source: str) -> Chip:
    # 1 GiB is left to the context of the driver, cuBLAS and NCCL.
    return Chip(name, "gpu", kind, memory_mib * MiB, GiB, hbm, bidirectional / 2, 0, 8, network, source)


# TPU: what is reserved is the memory less what libtpu 0.0.42.1 names as available when a program does not fit (15.75, 95.74 and
# 31.25 GiB on v5e, v5p and v6e; v4 as v5e). GPU: memory as the driver shows it; between machines one 400 Gb/s (H100 and later),
# 200 Gb/s (A100) or 100 Gb/s adapter each.
CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        _tpu(
            "v4", "TPU v4", 32, 256, 1200e9, 600e9, 3, "Google Cloud, TPU v4; links: six of 50 GB/s, arXiv 2304.01433"
        ),
        _tpu("v5e", "TPU v5 lite", 16, 256, 819e9, 400e9, 2, "Google Cloud, TPU v5e"),
        _tpu("v5p", "TPU v5", 96, 267, 2765e9, 1200e9, 3, "Google Cloud, TPU v5p"),
        _tpu("v6e", "TPU v6 lite", 32, 768, 1638e9, 800e9, 2, "Google Cloud, TPU v6e"),
        _gpu("a100-40gb", "NVIDIA A100-SXM4-40GB", 40_960, 1555e9, 600e9, 25e9, "NVIDIA A100 data sheet, SXM"),
        _gpu("a100-80gb", "NVIDIA A100-SXM4-80GB", 81_920, 2039e9, 600e9, 25e9, "NVIDIA A100 data sheet, SXM"),
        _gpu("h100", "NVIDIA H100 80GB HBM3", 81_559, 3350e9, 900e9, 50e9, "NVIDIA H100 data sheet, SXM"),
        _gpu("h200", "NVIDIA H200", 143_771, 4800e9, 900e9, 50e9, "NVIDIA H200 data sheet, SXM"),
        _gpu("b200", "NVIDIA B200", 183_359, 8000e9, 1800e9, 50e9, "NVIDIA HGX B200 data sheet"),
        _gpu("l4", "NVIDIA L4", 23_034, 300e9, 64e9, 12.5e9, "NVIDIA L4 data sheet; PCIe 4 x16, no NVLink"),
        _gpu("t4", "Tesla T4", 15_360, 320e9, 32e9, 12.5e9, "NVIDIA T4 data sheet; PCIe 3 x16, no NVLink"),
    )
}

# The slices that can be ordered (Google Cloud, pages of each version); libtpu compiles for no other.
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SMALL_CUBES = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))
_LARGEST = {"v4": 4096, "v5p": 6144}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice, or a number of devices: `shape` is the torus of a TPU slice, () otherwise."""

    name: str
    chip: Chip
    devices: int
    shape: tuple[int, ...] = ()

    @property
    def memory(self) -> int:
        """Bytes per device that a program can use."""
        return self.chip.memory - self.chip.reserved

    @property
    def bandwidth(self) -> float:
        """Bytes/s that every device sends and receives when all take part in one collective: that of the slowest stretch."""
        if self.chip.axes:
            # A ring that is no ring (a dimension of one chip) has no links, and a line of two shares one pair.
            used = sum(min(size - 1, 2) for size in self.shape)
            return self.chip.links * min(1.0, used / (2 * self.chip.axes))
        return self.chip.links if self.devices <= self.chip.local else self.chip.network


def known() -> str:
    """The names, for messages and help."""
    gpus = ", ".join(f"{name}:8" for name, chip in CHIPS.items() if chip.platform == "gpu")
    return f"cpu:8, {gpus} (any count), v5e:16x16 and v6e:16x16 (AxB), v4:4x4x4 and v5p:4x4x4 (AxBxC)"


def parse(name: str) -> Topology:
    """The topology of `chip:count` or `chip:AxB[xC]`.

    Raises:
      UserError: an unknown chip, or a slice that does not exist; with the known ones, or the nearest.
    """
    chip_name, _, extent = name.strip().lower().partition(":")
    if chip_name == "cpu":
        count = _count(name, extent)
        return Topology(f"cpu:{count}", _host_cpu(count), count)
    chip = CHIPS.get(chip_name)
    if of_platform := [kind for kind, one in CHIPS.items() if one.platform == chip_name]:
        raise UserError(
            f"--topology={name}: {chip_name} is a platform, not a device. Use one of {', '.join(of_platform)}.\n"
            f"Known topologies: {known()}."
        )
    if chip is None:
        raise UserError(
            f"--topology={name}: no such device. {closest(chip_name, [*CHIPS, 'cpu'])}\nKnown topologies: {known()}."
        )
    if chip.platform == "gpu":
        count = _count(name, extent)
        return Topology(f"{chip_name}:{count}", chip, count)
    if not re.fullmatch(r"\d+(x\d+)+", extent):
        example = "16x16" if chip.axes == 2 else "4x4x4"
        raise UserError(
            f"--topology={name}: expected the shape of a slice, {'AxB' if chip.axes == 2 else 'AxBxC'}, for example "
            f"{chip_name}:{example}."
        )
    shape = tuple(map(int, extent.split("x")))
    allowed = slices(chip_name)
    if shape not in allowed:
        size = math.prod(shape)
        near = sorted(allowed, key=lambda s: (abs(math.log(math.prod(s) / max(size, 1))), s))[:3]
        listed = ", ".join(f"{chip_name}:{'x'.join(map(str, s))}" for s in sorted(near, key=math.prod))
        raise UserError(f"--topology={name}: there is no such slice. Nearest: {listed}.")
    return Topology(f"{chip_name}:{extent}", chip, math.prod(shape), shape)


def slices(chip: str) -> list[tuple[int, ...]]:
    """The shapes that a TPU of this kind comes in, smallest first."""
    if CHIPS[chip].axes == 2:
        return [tuple(map(int, text.split("x"))) for text in _FLAT]
    cubes = [
        (a, b, c)
        for a in range(4, 17, 4)
        for b in range(a, 17, 4)
        for c in range(b, 25, 4)
        if a * b * c <= _LARGEST[chip]
    ]
    return sorted([*_SMALL_CUBES, *cubes], key=lambda s: (math.prod(s), s))


def larger(topology: Topology, factor: float) -> Topology | None:
    """The smallest topology of the same chip with at least `factor` times as many devices; None if there is none."""
    wanted = math.ceil(topology.devices * factor)
    if topology.chip.axes:
        fits = [s for s in slices(topology.chip.name) if math.prod(s) >= wanted]
        return parse(f"{topology.chip.name}:{'x'.join(map(str, fits[0]))}") if fits else None
    count = 1 << (wanted - 1).bit_length()
    return dataclasses.replace(topology, name=f"{topology.chip.name}:{count}", devices=count)


def _count(name: str, extent: str) -> int:
    if not extent.isdigit() or int(extent) < 1:
        kind = name.partition(":")[0]
        raise UserError(f"--topology={name}: expected a number of devices, for example {kind}:8.")
    return int(extent)


def _host_cpu(count: int) -> Chip:
    """Simulated devices of this machine: they share its memory, and are as fast as they are."""
    memory = hardware.host_memory() or 8 * GiB
    source = "this machine" if hardware.host_memory() else "8 GiB assumed: this machine does not say"
    return Chip("cpu", "cpu", "cpu", memory // count, 0, math.inf, math.inf, 0, count, math.inf, source)
