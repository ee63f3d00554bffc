"""What can an implementation of attention do, and what is asked of it?

A backend declares in data what it supports; whatever it does not declare it refuses, with the reason and the cure.
"""

import dataclasses
from typing import Protocol

import jax

from elastic_jax.models.attention.view import View
from elastic_jax.parallel.device import Device


class Attend(Protocol):
    """Softmax attention with scores multiplied by `scale`, 0 standing for h ** -0.5. Shapes: b batch, t query and s key position, k kv_heads,
    g query heads per kv head, h head_dim; the result is [b, t, k, g, h] in the dtype of the queries. What its backward pass
    should find kept goes by the name `remat.CONTEXT`."""

    def __call__(
        self,
        q_btkgh: jax.Array,
        k_bskh: jax.Array,
        v_bskh: jax.Array,
        view: View,
        *,
        window: int = 0,
        softcap: float = 0.0,
        scale: float = 0.0,
    ) -> jax.Array: ...


@dataclasses.dataclass(frozen=True)
class Request:
    """What one call of attention needs.

    Attributes:
      head_dim, group: size of a head, and query heads per key head.
      segments: rows hold several documents.
      window, softcap: 0 for none.
      scale: of the scores; 0 for head_dim ** -0.5. Every backend has to honour it.
    """

    dtype: str
    head_dim: int
    group: int = 1
    segments: bool = False
    window: int = 0
    softcap: float = 0.0
    scale: float = 0.0


@dataclasses.dataclass(frozen=True)
class Backend:
    """An implementation of attention and its limits.

    Attributes:
      platforms: where it runs; empty for everywhere.
      dtypes: of queries, keys and values; empty for all.
      head_dim_step: head_dim has to be a multiple of it.
      head_dim_below: up to this head_dim any multiple of the step will do; above it, multiples of it only. 0 for no such rule.
      head_dim_max: (least compute capability, largest head_dim) from the newest devices to the oldest; empty for no limit.
      capability: least compute capability.
      segments, window, softcap: whether it honours them (see `Request`).
    """

    name: str
    attend: Attend
    platforms: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    head_dim_step: int = 1
    head_dim_below: int = 0
    head_dim_max: tuple[tuple[float, int], ...] = ()
    capability: float = 0.0
    segments: bool = False
    window: bool = False
    softcap: bool = False

    def refusal(self, request: Request, device: Device) -> tuple[str, str] | None:
        """Why it cannot do what is asked, and what to set instead; None if it can."""
        if self.platforms and device.platform not in self.platforms:
            return f"it runs on {' or '.join(self.platforms)}, and this is {device.platform} ({device.kind})", ""
        if self.capability and device.here and device.capability < self.capability:
            return f"it needs compute capability {self.capability}, and {device.kind} has {device.capability}", ""
        if self.dtypes and request.dtype not in self.dtypes:
            return f"it takes {' or '.join(self.dtypes)}, not {request.dtype}", f"model.dtype='{self.dtypes[0]}'"
        limit = next((limit for least, limit in self.head_dim_max if device.capability >= least), None)
        if limit is not None and request.head_dim > limit:
            return f"head_dim is {request.head_dim} and may be {limit} at most", f"model.head_dim={limit} or less"
        if request.head_dim % self.head_dim_step:
            near = -(-request.head_dim // self.head_dim_step) * self.head_dim_step
            return f"head_dim={request.head_dim} is not a multiple of {self.head_dim_step}", f"model.head_dim={near}"
        if self.head_dim_below and request.head_dim > self.head_dim_below and request.head_dim % self.head_dim_below:
            near = -(-request.head_dim // self.head_dim_below) * self.head_dim_below
            return (
                f"head_dim={request.head_dim} is above {self.head_dim_below} and not a multiple of it",
                f"model.head_dim={near}",
            )
        if request.segments and not self.segments:
            return "it cannot keep the documents of a packed row apart", "rows that are not packed"
        if request.window and not self.window:
            return f"it has no window (model.window={request.window})", "model.window=0"
        if request.softcap and not self.softcap:
            return (
                f"it has no soft-cap (model.attention_softcap={request.softcap})",
                "model.attention_softcap=0, if the checkpoint was trained so",
            )
        return None
