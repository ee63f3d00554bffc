"""Which implementation of attention computes this call? One that can do all of it and has proved it, or none.

Nothing that is asked is ever dropped: a backend that was named and cannot is an error, and "auto" goes on to the next one,
with a warning, down to the reference, which can do everything everywhere.
"""

import functools
import logging

import jax

from elastic_jax.errors import UserError, closest
from elastic_jax.models.attention import cudnn, reference, splash
from elastic_jax.models.attention.backend import Backend, Request
from elastic_jax.models.attention.selftest import failure
from elastic_jax.models.attention.view import View
from elastic_jax.parallel.device import Device, current_device

BACKENDS: dict[str, Backend] = {b.name: b for b in (splash.BACKEND, cudnn.BACKEND, reference.BACKEND)}

_log = logging.getLogger(__name__)


def attend(
    q_btkgh: jax.Array,
    k_bskh: jax.Array,
    v_bskh: jax.Array,
    view: View,
    *,
    window: int = 0,
    softcap: float = 0.0,
    scale: float = 0.0,
    backend: str = "auto",
) -> jax.Array:
    """Softmax attention of queries [b, t, k, g, h] on keys and values [b, s, k, h]: [b, t, k, g, h].

    The backend is chosen while the call is traced, for the device of the mesh in use. Caches are read by `attend_cache`.

    Args:
      window: keys further back than this are not looked at; 0 for all. It may differ from layer to layer.
      scale: scores are multiplied by it; 0 for h ** -0.5.
      backend: "auto" or one of `BACKENDS`.

    Raises:
      UserError: the backend was named and cannot do what is asked, or failed its self-test on this device.
      ValueError: a view of a cache.
    """
    if view.start is not None:
        raise ValueError("The view is that of a cache, which attend_cache reads.")
    if window >= q_btkgh.shape[1]:
        window = 0  # it reaches over the whole row: the programs of rows without a window are simpler
    request = Request(
        dtype=str(q_btkgh.dtype),
        head_dim=q_btkgh.shape[-1],
        group=q_btkgh.shape[3],
        segments=view.segments_bt is not None,
        window=window,
        softcap=softcap,
        scale=scale,
    )
    name = choose(backend, request, current_device())
    return BACKENDS[name].attend(q_btkgh, k_bskh, v_bskh, view, window=window, softcap=softcap, scale=scale)


def choose(name: str, request: Request, device: Device) -> str:
    """The backend that will compute `request` on `device`.

    Where this process has no such device (a program compiled ahead of time for a topology) there is nothing to test on: the
    declarations decide alone, and the log says so.

    Raises:
      UserError: as `attend`.
    """
    if name != "auto":
        return _named(name, request, device)
    for backend in BACKENDS.values():
        if backend.platforms and device.platform not in backend.platforms:
            continue
        refused = backend.refusal(request, device)
        why = refused[0] if refused else _untrusted(backend, request, device)
        if not why:
            _announce(backend, request, device)
            return backend.name
        _warn(f"Attention is not computed by {backend.name} on {device.kind}: {why}.")
    raise AssertionError("the reference refuses nothing")


def check_name(name: str) -> None:
    """Raises UserError when there is no such backend."""
    if name != "auto" and name not in BACKENDS:
        raise UserError(f"model.attention={name!r}: no such backend. {closest(name, ['auto', *BACKENDS])}")


def _named(name: str, request: Request, device: Device) -> str:
    check_name(name)
    backend = BACKENDS[name]
    refused = backend.refusal(request, device)
    if refused:
        reason, cure = refused
        able = [b.name for b in BACKENDS.values() if b.refusal(request, device) is None]
        raise UserError(
            f"model.attention='{name}': {reason}. "
            f"Use {cure + ', or ' if cure else ''}model.attention={' or '.join(map(repr, ['auto', *able]))}."
        )
    why = _untrusted(backend, request, device)
    if why:
        raise UserError(f"model.attention='{name}': {why} ({device.kind}). Use model.attention='auto' or 'reference'.")
    _announce(backend, request, device)
    return name


def _untrusted(backend: Backend, request: Request, device: Device) -> str:
    if backend.name == "reference" or not device.here:
        return ""
    found = failure(backend, request, device)
    return f"it failed its self-test: {found}" if found else ""


# Once for each line, however many layers and programs ask.
@functools.cache
def _warn(line: str) -> None:
    _log.warning(line)


@functools.cache
def _announce(backend: Backend, request: Request, device: Device) -> None:
    asked = [request.dtype, f"head_dim {request.head_dim}"]
    asked += ["packed rows"] if request.segments else []
    asked += [f"window {request.window}"] if request.window else []
    asked += [f"soft-cap {request.softcap}"] if request.softcap else []
    asked += [f"scale {request.scale:g}"] if request.scale else []
    proof = "the reference itself" if backend.name == "reference" else "passed its self-test"
    if not device.here:
        proof = "not tested: this machine has no such device"
    _log.info("Attention: %s on %s for %s (%s).", backend.name, device.kind, ", ".join(asked), proof)
