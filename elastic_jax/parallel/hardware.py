"""What could this machine do at best?

Peak arithmetic of accelerators, for model FLOP utilisation (MFU), and the cores and memory of the host, for
plans.
"""

import contextlib
import os
import re
from pathlib import Path

# `jax.Device.device_kind` -> peak dense bf16 FLOP/s of that jax device. The first match wins. NVIDIA prints
# tensor-core peaks with 2:4 sparsity; dense is half of that.
_PEAKS: tuple[tuple[str, float], ...] = (
    (r"\bB200\b", 2250e12),  # NVIDIA HGX B200 data sheet: 4.5 PFLOP/s sparse per GPU
    (r"\bH200 NVL\b|\bH100 NVL\b", 835e12),  # NVIDIA H200, H100 NVL data sheets: 1,671 TFLOP/s sparse
    (r"\bH100 PCIe\b", 756e12),  # NVIDIA H100 data sheet, PCIe column: 1,513 TFLOP/s sparse
    (r"\bH200\b|\bH100\b", 989e12),  # NVIDIA H100, H200 data sheets, SXM column: 1,979 TFLOP/s sparse
    (r"\bA100\b", 312e12),  # NVIDIA A100 data sheet: 312 TFLOP/s dense, SXM and PCIe
    (r"\bL4\b", 121e12),  # NVIDIA L4 data sheet: 242 TFLOP/s sparse
    (r"\bT4\b", 65e12),  # NVIDIA T4 data sheet: 65 TFLOP/s in fp16; the chip has no bf16
    # Google Cloud, "TPU7x (Ironwood)": 2,307 TFLOP/s per chip. jax shows each of its two TensorCores as a
    # device.
    (r"^TPU ?7x$", 2307e12 / 2),
    (r"^TPU v6(e| lite)$", 918e12),  # Google Cloud, "TPU v6e"
    (r"^TPU v5(e| lite)$", 197e12),  # Google Cloud, "TPU v5e"
    (r"^TPU v5p?$", 459e12),  # Google Cloud, "TPU v5p"; jax says "TPU v5"
    (r"^TPU v4$", 275e12),  # Google Cloud, "TPU v4"; both cores of a chip are one jax device
)


def peak_flops(device_kind: str) -> float | None:
    """Peak dense bf16 FLOP/s of one jax device, or None for a CPU or a device that is not in the table.

    None means that no MFU is shown: a guessed peak would make the number worthless.

    >>> peak_flops("NVIDIA H100 80GB HBM3") / 1e12
    989.0
    >>> peak_flops("cpu") is None
    True
    """
    for pattern, peak in _PEAKS:
        if re.search(pattern, device_kind, re.IGNORECASE):
            return peak
    return None


def host_cores() -> int:
    """Cores that this process may use: its affinity mask, further limited by a container's CPU quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # cgroup v2: "<quota> <period>" in microseconds, or "max <period>".
    quota, _, period = _read("/sys/fs/cgroup/cpu.max").partition(" ")
    if quota.isdigit() and period.isdigit():
        cores = min(cores, max(1, round(int(quota) / int(period))))
    return cores


def host_memory() -> int | None:
    """Bytes of memory that this process may use: the machine's, or a container's limit; None if unknown."""
    limits = [int(text) for text in (_read("/sys/fs/cgroup/memory.max"),) if text.isdigit()]  # or "max"
    # Windows has no sysconf, and not every system knows both names.
    with contextlib.suppress(AttributeError, ValueError, OSError):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(limits, default=None)


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
