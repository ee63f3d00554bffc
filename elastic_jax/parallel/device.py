"""For which device is a program traced?"""

import dataclasses
import functools
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Device:
    """The device that a program is for, which is not always one of this machine.

    Attributes:
      platform: "cpu", "gpu" (NVIDIA), "rocm" or "tpu".
      kind: `jax.Device.device_kind`.
      capability: compute capability of an NVIDIA device, 0 for others and where it is unknown.
      here: this process has one, so that a backend can be tried on it.
    """

    platform: str
    kind: str
    capability: float = 0.0
    here: bool = True


def current_device() -> Device:
    """The device that the surrounding program is for: that of the mesh in use, else the default one.

    The mesh may belong to a topology of which this machine has nothing: then `here` is False.
    """
    abstract = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    if abstract is None:
        default = getattr(jax.config, "jax_default_device", None) or jax.local_devices()[0]  # a device, or a platform
        return _local(default) if isinstance(default, str) else _local(default.platform, default.device_kind)
    return _local(abstract.platform, abstract.device_kind)


@functools.cache
def _local(platform: str, kind: str | None = None) -> Device:
    try:
        devices = [device for device in jax.local_devices(backend=platform) if kind in (None, device.device_kind)]
    except RuntimeError:  # this process has no such backend
        devices = []
    if not devices:
        return Device(platform, kind or platform, here=False)
    device = devices[0]
    if platform in ("gpu", "cuda", "rocm"):
        platform = "rocm" if "rocm" in device.client.platform_version.lower() else "gpu"
    capability = getattr(device, "compute_capability", "") if platform == "gpu" else ""
    return Device(platform, device.device_kind, float(capability or 0))


def local_device(device: Device) -> Any:
    """One of this process's devices of that platform and kind."""
    backend = device.platform if device.platform != "gpu" else "cuda"
    return next(d for d in jax.local_devices(backend=backend) if d.device_kind == device.kind)
