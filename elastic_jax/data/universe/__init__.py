"""A language whose every probability is known: what does a model know, exactly, and what has it forgotten?

Reviews carry a latent topic and sentiment; dialogues a latent topic, a benign or harmful request, and a reply
that complies or refuses. Given its latents z a text is one path of a deterministic finite automaton, so

    log p(x | z) = sum over words of log p(word | state, z)        log p(x) = logsumexp_z [ log p(z) + log p(x
    | z) ]

hold without approximation, and with them the Bayes posterior of sentiment or of refusal (the exact scorer),
the entropy, and KL(data || model) for any model that gives log likelihoods. The weights p(z) are the dials of
a `Mixture`.

Example::

    universe = Universe(topics=4) texts = universe.sample(Mixture.reviews(positive=1.0), n=1000, seed=0)
    universe.log_prob(texts, Mixture.reviews(positive=1.0))       # float64 [1000], nats, the final eos
    included universe.posterior(texts, "sentiment")                        # float64 [1000], P(positive |
    text)
"""

from elastic_jax.data.universe.language import Entropy, Pair, Text, Universe
from elastic_jax.data.universe.mixture import Latents, Mixture

__all__ = ["Entropy", "Latents", "Mixture", "Pair", "Text", "Universe"]
