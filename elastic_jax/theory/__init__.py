"""What does the theory of the paper say, exactly, about data whose distribution is known?

"Language Models Resist Alignment: Evidence From Data Compression" (arXiv 2406.06144) explains elasticity by a model of language
models: responses are leaves of a token tree, training is joint compression of the leaves of all data sets. Here is that model as
code. `corpus` and `tree` grow the tree, `coding` compresses it, `rates` compresses several data sets at once, `mass` asks how its
leaves are distributed, and `elasticity` holds the theorem for any distributions. Nothing in it is trained, and nothing needs jax.

    from elastic_jax import theory
    tree = theory.grow([theory.Corpus.from_stream(tokens, eos=1)], depth=16, cut="windows")
    theory.code_length(tree).huffman
    theory.fit_pareto(tree.counts[0])
"""

from elastic_jax.theory.coding import CodeLength, code_length, entropy, huffman_lengths, ideal_code_length
from elastic_jax.theory.corpus import Corpus
from elastic_jax.theory.elasticity import Elasticity, FormA, force_balance, form_a, form_b, rate_derivatives
from elastic_jax.theory.mass import ParetoFit, Vuong, fit_pareto, hill, vuong
from elastic_jax.theory.rates import compression_rates, joint, normalised_rates
from elastic_jax.theory.tree import Layer, Tree, grow

__all__ = [
    "CodeLength",
    "Corpus",
    "Elasticity",
    "FormA",
    "Layer",
    "ParetoFit",
    "Tree",
    "Vuong",
    "code_length",
    "compression_rates",
    "entropy",
    "fit_pareto",
    "force_balance",
    "form_a",
    "form_b",
    "grow",
    "hill",
    "huffman_lengths",
    "ideal_code_length",
    "joint",
    "normalised_rates",
    "rate_derivatives",
    "vuong",
]
