"""What does a low-rank update add to a product of the transformer?

The parameters of a layer may hold, under ADAPTERS, an `Adapter` for some of its products: `models.adapted` puts them there and
says what they are trained for. A product without one is computed as it always was.

Shapes: n tokens, r rank, b rows of tokens. A weight [*inner, *out] is contracted with the dims `inner` of its input.
"""

import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from elastic_jax.models.products import linear

# Names in the tree of parameters: of a layer's adapters, and beside "layers" of the keys that the rows of a batch bring.
ADAPTERS, ROW_KEYS = "adapters", "row_keys"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Adapter:
    """x -> scale * (dropped x A) B.

    Attributes:
      a, b: [*inner, r] and [r, *out], cast to the dtype of the input.
      place: a number of its own among all adapters of the model, for its random numbers.
      scale: alpha / r.
      dropout: probability that a number of the input counts as zero; the others are divided by 1 - dropout.
      keys_b: a key for each row of tokens; None: no dropout.
    """

    a: jax.Array
    b: jax.Array
    place: Int[Array, ""]
    scale: float = dataclasses.field(metadata=dict(static=True))
    dropout: float = dataclasses.field(metadata=dict(static=True))
    keys_b: jax.Array | None = None

    def __call__(self, x: jax.Array) -> jax.Array:
        """[n, *inner] -> [n, *out]."""
        inner = math.prod(self.a.shape[:-1])
        x = x.reshape(-1, inner)
        if self.keys_b is not None:
            x = self._dropped(x, self.keys_b)
        low_nr = linear(x, self.a.astype(x.dtype).reshape(inner, -1)) * self.scale
        # Not as a product of two matrices: merging the dims of B would mix parts that lie on different devices.
        return jnp.tensordot(low_nr, self.b.astype(x.dtype), 1)

    def _dropped(self, x: jax.Array, keys_b: jax.Array) -> jax.Array:
        """Every row draws with its own key, so that the numbers do not depend on how a batch is cut into parts."""
        x_btd = x.reshape(len(keys_b), -1, x.shape[-1])

        def row(key: jax.Array, x_td: jax.Array) -> jax.Array:
            kept = jax.random.bernoulli(jax.random.fold_in(key, self.place), 1.0 - self.dropout, x_td.shape)
            return jnp.where(kept, x_td / (1.0 - self.dropout), jnp.zeros((), x_td.dtype))

        return jax.vmap(row)(keys_b, x_btd).reshape(x.shape)


Adapters = Mapping[str, Adapter]  # by the name of the weight: "qkv", "out", "up", "down"
NO_ADAPTERS: Adapters = MappingProxyType({})


def row_keys(params: Mapping[str, Any], rows: int) -> jax.Array | None:
    """The keys of `rows` rows of tokens, or None where the parameters hold none.

    A batch of pairs makes several rows of tokens from each of its own, copy after copy; each copy gets keys of its own.
    """
    if ROW_KEYS not in params:
        return None
    keys_b = jax.random.wrap_key_data(params[ROW_KEYS])
    copies, rest = divmod(rows, len(keys_b))
    if rest:
        raise ValueError(f"{rows} rows of tokens for the keys of {len(keys_b)} rows of a batch")
    fold = jax.vmap(jax.random.fold_in, in_axes=(0, None))
    return jnp.concatenate([fold(keys_b, copy) for copy in range(copies)])


def of_layer(layer_params: Mapping[str, Any], keys_b: jax.Array | None) -> Adapters:
    """The adapters of one layer, with the keys of the rows."""
    found = layer_params.get(ADAPTERS, NO_ADAPTERS)
    if keys_b is None:
        return found
    return {name: dataclasses.replace(adapter, keys_b=keys_b) for name, adapter in found.items()}
