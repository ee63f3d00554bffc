"""Which tokens may be drawn, and how likely is each?

Shapes: b batch, v vocabulary.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from elastic_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Choice:
    """How a token is chosen from its logits: temperature, then `top_k`, then `top_p`, the order of transformers' `generate`.

    Attributes:
      temperature: logits are divided by it; 0 takes the likeliest token (of several, the one with the lowest number).
      top_k: only tokens at least as likely as the k-th likeliest remain, ties with it among them, as in transformers; 0: all.
      top_p: then the smallest set of the likeliest tokens whose probabilities sum to `top_p` or more. Tokens as likely as the
        last of the set stay with it, since nothing tells them apart; transformers leaves them to its sort.
      never: numbers of tokens that are not written, before anything else.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    never: tuple[int, ...] = ()

    def check(self, vocab: int, where: str = "measures") -> None:
        """Raises UserError for a value out of range for `vocab` tokens, or one that changes nothing; `where` names its section."""
        for name, value, fits, expected in (
            ("temperature", self.temperature, 0 <= self.temperature < float("inf"), "0 (the likeliest token) or more"),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "a probability above 0"),
            (
                "top_k",
                self.top_k,
                0 <= self.top_k <= vocab,
                f"from 1 to the {vocab} tokens of the vocabulary, or 0 for all",
            ),
            ("top_k", self.top_k, isinstance(self.top_k, int), "a whole number"),
        ):
            if not fits:
                raise UserError(f"{where}.{name}={value}: expected {expected}.")
        self.check_effect(where)
        outside = [token for token in self.never if not 0 <= token < vocab]
        if outside:
            raise UserError(f"never={outside}: the vocabulary has {vocab} tokens, numbered from 0.")
        if len(set(self.never)) == vocab:
            raise UserError(f"never: all {vocab} tokens of the vocabulary are excluded, and none is left to write.")

    def check_effect(self, where: str = "measures") -> None:
        """Raises UserError for a value that changes nothing."""
        for name, value, off in (("top_k", self.top_k, 0), ("top_p", self.top_p, 1)):
            if self.temperature == 0 and value != off:
                raise UserError(
                    f"{where}.{name}={value} has no effect with {where}.temperature=0, which takes the likeliest token. "
                    f"Set {where}.{name}={off}, or a temperature above 0."
                )

    def filtered(self, logits_bv: Float[Array, "b v"]) -> Float[Array, "b v"]:
        """The logits that are drawn from; -inf where a token is impossible."""
        if self.never:
            allowed = np.ones(logits_bv.shape[-1], bool)
            allowed[list(self.never)] = False
            logits_bv = jnp.where(jnp.asarray(allowed)[None], logits_bv, -jnp.inf)
        if self.temperature == 0:
            return logits_bv
        logits_bv = logits_bv / self.temperature
        if 0 < self.top_k < logits_bv.shape[-1]:
            floor = jax.lax.top_k(logits_bv, self.top_k)[0][:, -1:]
            logits_bv = jnp.where(logits_bv >= floor, logits_bv, -jnp.inf)
        return nucleus(logits_bv, self.top_p) if self.top_p < 1 else logits_bv

    def draw(self, logits_bv: Float[Array, "b v"], keys_b: jax.Array) -> Int[Array, " b"]:
        """One token per row, each with a key of its own; with temperature 0 the keys are not used."""
        logits_bv = self.filtered(logits_bv)
        if self.temperature == 0:
            return jnp.argmax(logits_bv, axis=-1).astype(jnp.int32)
        return jax.vmap(jax.random.categorical)(keys_b, logits_bv).astype(jnp.int32)


def nucleus(logits_bv: Float[Array, "b v"], top_p: float) -> Float[Array, "b v"]:
    """Keep the smallest set of tokens whose probability reaches `top_p`; the rest become impossible.

    Tokens as likely as the last of the set are kept with it: nothing else tells them apart.
    """
    ordered = jnp.sort(logits_bv, axis=-1, descending=True)
    before = jnp.cumsum(jax.nn.softmax(ordered, axis=-1), axis=-1) - jax.nn.softmax(ordered, axis=-1)
    floor = jnp.min(jnp.where(before < top_p, ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits_bv >= floor, logits_bv, -jnp.inf)
