"""What may a query look at?

Shapes: b batch, t query position, s key position.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class View:
    """What the queries of one pass may look at, described and not drawn: a mask of [b, t, s] is made by the backends that
    cannot do without one.

    Always: nothing ahead. The window is a property of a layer and is given with each call.

    Attributes:
      segments_bt: the document of each token of a packed row, 0 for padding; tokens see their own document, padding sees
        padding. None: every row is one document.
      start: number of keys that a cache held before these queries; None: the keys are those of the queries.
      first_b: the first key of each row in a cache, what lies before it being padding; None: rows begin with the cache.
    """

    segments_bt: Int[Array, "b t"] | None = None
    start: Int[Array, ""] | None = None
    first_b: Int[Array, " b"] | None = None

    def mask(self, queries: int, keys: int, window: int = 0) -> Bool[Array, "#b t s"]:
        """The dense mask: True where a query may look."""
        start = 0 if self.start is None else self.start
        mask = causal_mask(start + jnp.arange(queries), jnp.arange(keys), self.segments_bt, window)
        if self.first_b is not None:
            mask = mask & (jnp.arange(keys)[None, None, :] >= self.first_b[:, None, None])
        return mask


def causal_mask(
    queries: Int[Array, " t"],
    keys: Int[Array, " s"],
    segments_bt: Int[Array, "b t"] | None = None,
    window: int = 0,
) -> Bool[Array, "#b t s"]:
    """True where a query may look: not ahead, not beyond the window, not into another segment. [1 or b, t, s]"""
    ahead = queries[:, None] >= keys[None, :]
    if window:
        ahead &= queries[:, None] - keys[None, :] < window
    mask = ahead[None]
    if segments_bt is not None:
        mask = mask & (segments_bt[:, :, None] == segments_bt[:, None, :])
    return mask
