"""Which earlier tokens does a token look at, and how strongly?"""

from elastic_jax.models.attention.cache import Cache, Caches, attend_cache
from elastic_jax.models.attention.dispatch import BACKENDS, attend, choose
from elastic_jax.models.attention.rotary import rotary, rotate
from elastic_jax.models.attention.view import View, causal_mask

__all__ = ["BACKENDS", "Cache", "Caches", "View", "attend", "attend_cache", "causal_mask", "choose", "rotary", "rotate"]
