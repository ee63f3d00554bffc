"""Does a backend give, on this very device, what the reference gives?

Kernels break with drivers, library versions and shapes, and the worst of them give numbers (a mask dropped in silence), not
errors. So nothing but the reference is used before it has passed: forward and backward, with the features that are asked.
"""

import functools
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from elastic_jax.models.attention import reference
from elastic_jax.models.attention.backend import Backend, Request
from elastic_jax.models.attention.view import View
from elastic_jax.parallel.device import Device, local_device

ROWS, KV_HEADS = 2, 2
LENGTH = 1024  # on a device: two of the largest blocks that any backend cuts rows into
UNIT = 256  # lengths of a test are multiples of it
# Of the largest value. Both sides round: bfloat16 keeps 8 bits, and float32 matmuls of accelerators may keep as few. A mask
# that is wrong anywhere is off by tenths, and the exact zeros below find the rest.
TOLERANCE = 2e-2


@functools.cache
def failure(backend: Backend, request: Request, device: Device) -> str:
    """What went wrong, or "" if the backend passed. Once per process for each backend, request and kind of device.

    With several processes all of them have to ask, and one failure is everybody's: they must run the same program.

    Raises:
      PeerLost: another process gave no verdict.
    """
    # A thread of its own has neither the trace nor the mesh that the caller is in.
    with ThreadPoolExecutor(1, "attention-self-test") as alone:
        return alone.submit(_run, backend, request, device).result()


def _run(backend: Backend, request: Request, device: Device) -> str:
    try:
        with jax.default_device(local_device(device)):
            message = compare(backend, request, LENGTH)
    except Exception as error:  # whatever a driver, a compiler or a library may raise
        message = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    if jax.process_count() == 1:
        return message
    from elastic_jax.parallel import distributed  # only a job of several processes has to meet

    everyone = enumerate(distributed.gather(message))
    return next((f"{text} (on process {process})" for process, text in everyone if text), "")


def compare(backend: Backend, request: Request, length: int = UNIT) -> str:
    """The first difference from the reference that is more than rounding, or "".

    Two rows; packed ones hold three documents and padding, the second row otherwise than the first.

    Args:
      length: tokens of a row, a multiple of `UNIT`.
    """
    times = length // UNIT
    # A window has to end within the documents of the test, and the division by 3 leaves it odd or even as it comes.
    window = min(request.window, length // 3)
    segments = np.zeros((ROWS, length), np.int32)
    for row, ends in zip(segments, ((100, 141, 230), (37, 165, 249)), strict=True):
        for number, (start, end) in enumerate(zip((0, *ends), ends, strict=False), 1):
            row[start * times : end * times] = number
    view = View(jnp.asarray(segments) if request.segments else None)
    rng = np.random.default_rng(0)
    shapes = [(ROWS, length, KV_HEADS, *([request.group] if i == 0 else []), request.head_dim) for i in range(3)]
    q, k, v = (jnp.asarray(rng.standard_normal(shape), request.dtype) for shape in shapes)
    weight = jnp.asarray(rng.standard_normal(shapes[0]), jnp.float32)

    def outputs(attend, q, k, v, weight):
        def total(q, k, v):
            out = attend(q, k, v, view, window=window, softcap=request.softcap, scale=request.scale)
            return jnp.sum(out.astype(jnp.float32) * weight), out

        grads, out = jax.grad(total, argnums=(0, 1, 2), has_aux=True)(q, k, v)
        return dict(zip(("the output", "dq", "dk", "dv"), (out, *grads), strict=True))

    run = jax.jit(outputs, static_argnums=0)
    got = run(backend.attend, q, k, v, weight)
    with jax.default_matmul_precision("highest"):
        wide = (x.astype(jnp.float32) for x in (q, k, v))
        expected = run(reference.attend, *wide, weight)
    for name in ("the output", "dq", "dk", "dv"):
        actual, value = np.asarray(got[name], np.float32), np.asarray(expected[name])
        if not np.isfinite(actual).all():
            return f"{name} holds {np.sum(~np.isfinite(actual))} values that are not finite"
        error = np.max(np.abs(actual - value)) / np.max(np.abs(value))
        if error > TOLERANCE:
            return f"{name} is off by {error:.1%} of its largest value"

    # Only some queries count: whatever they may not see has a gradient of exactly zero.
    chosen = segments == 2 if request.segments else np.arange(length)[None] == np.full((ROWS, 1), 150 * times)
    mask = np.asarray(view.mask(length, length, window))
    unseen = ~np.any(mask & chosen[:, :, None], axis=1)
    some = run(backend.attend, q, k, v, jnp.where(chosen[:, :, None, None, None], weight, 0))
    for name in ("dk", "dv"):
        leak = np.abs(np.asarray(some[name], np.float32))[unseen]
        if np.any(leak != 0):
            return f"{name} reaches {np.sum(leak.any(-1))} keys that no query may look at"
    return ""
