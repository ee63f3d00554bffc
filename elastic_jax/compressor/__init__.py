"""How does a language model become a compressor that one can hold?

A model gives every next token a probability p; a coder of entropy spends -log2 p bits on it, and gets the token back where the same
model gives the same probability again. `pieces` turns any bytes into tokens, `frequencies` the model's probabilities into whole
numbers, `rans` those into bits, `archive` is the file, and `codec` puts them together. `python -m elastic_jax.compress` is the command.
"""

from elastic_jax.compressor.codec import Codec, Compressed

__all__ = ["Codec", "Compressed"]
