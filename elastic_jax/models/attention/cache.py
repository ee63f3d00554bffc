"""What does a decoder remember between the tokens that it writes?"""

import dataclasses

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values of the tokens so far: [b, s, k, h], the first `length` of them filled."""

    keys: jax.Array
    values: jax.Array
    length: jax.Array

    def append(self, keys: jax.Array, values: jax.Array) -> "Cache":
        start = (0, self.length, 0, 0)
        return Cache(
            jax.lax.dynamic_update_slice(self.keys, keys.astype(self.keys.dtype), start),
            jax.lax.dynamic_update_slice(self.values, values.astype(self.values.dtype), start),
            self.length + keys.shape[1],
        )
