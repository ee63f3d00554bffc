"""Which earlier tokens does a token look at, and how strongly?"""

from elastic_jax.models.attention.cache import Cache
from elastic_jax.models.attention.dispatch import BACKENDS, attend, choose
from elastic_jax.models.attention.rotary import rotate
from elastic_jax.models.attention.view import View, causal_mask

__all__ = ["BACKENDS", "Cache", "View", "attend", "causal_mask", "choose", "rotate"]
