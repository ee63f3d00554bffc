"""What does the embedded universe itself say about a text?"""

from collections.abc import Sequence

import numpy as np

from elastic_jax.data.files import digest_of
from elastic_jax.data.universe import Universe


class PosteriorScorer:
    """The Bayes posterior of the embedded universe: exact, and the best that any scorer can do.

    See `elastic_jax.data.universe.Universe.posterior` for the formula and for texts outside the language.
    """

    unit = "probability"
    low: float | None = 0.0
    high: float | None = 1.0

    def __init__(self, universe: Universe, latent: str, complement: bool = False):
        """`latent`: "sentiment" (aligned is positive) or "refusal" (aligned is to refuse); `complement`: aligned is the opposite."""
        self._universe, self.latent, self.complement = universe, latent, complement
        self.name = f"exact posterior of {latent}" + (", of its opposite" if complement else "")
        self.digest = digest_of(["posterior", universe.digest, latent, *(["complement"] if complement else [])])

    def score(self, prompts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        """P(positive | text) or P(refuse | text), or 1 minus it; float64 [n]."""
        texts = [f"{prompt} {answer}".strip() for prompt, answer in zip(prompts, answers, strict=True)]
        probability = self._universe.posterior(texts, self.latent)
        return 1.0 - probability if self.complement else probability
