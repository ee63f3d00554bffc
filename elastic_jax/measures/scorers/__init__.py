"""Who judges what a model writes?

The data brings a scorer of its own: the exact posterior of the embedded universe, or a classifier fitted on its rows.
`measures.scorers` adds others; docs/scorers.md describes them.
"""

from elastic_jax.measures.scorers.base import Scorer, accuracy
from elastic_jax.measures.scorers.classifier import ClassifierScorer
from elastic_jax.measures.scorers.posterior import PosteriorScorer

__all__ = ["ClassifierScorer", "PosteriorScorer", "Scorer", "accuracy"]
