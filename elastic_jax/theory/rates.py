"""What does each data set cost, when several are compressed with one code?

Joint compression (paper, after Theorem 3.4): one model for D = D_1 u ... u D_N puts on every leaf the mixture of its masses,

    p^D = sum_i p^{D_i} |D_i| / sum_i |D_i|,

and compresses D_i at the cross-entropy of D_i under that mixture. Rates are in bits per token.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float

from elastic_jax.errors import UserError
from elastic_jax.theory.tree import Tree

Per = Literal["depth", "symbol"]
Sizes = Sequence[float] | Float[np.ndarray, " s"]


def joint(tree: Tree, sizes: Sizes | None = None) -> Float[np.ndarray, " m"]:
    """p^D, the mass of every leaf in all data sets together.

    Args:
      sizes: |D_i|; by default how many responses each has, and then p^D are the frequencies in the union.
    """
    if sizes is None:
        return tree.masses()
    volumes = np.asarray(sizes, np.float64)
    if volumes.shape != (len(tree.counts),) or not (volumes >= 0).all() or not volumes.sum() > 0:
        raise UserError(f"sizes={volumes.tolist()}: expected {len(tree.counts)} numbers from 0, not all of them 0.")
    return volumes @ (tree.counts / tree.sizes[:, None]) / volumes.sum()


def compression_rates(tree: Tree, sizes: Sizes | None = None, per: Per = "depth") -> Float[np.ndarray, " s"]:
    """gamma^{D_i}: - sum p^{D_i} log2 p^D over all leaves, divided by the tokens of a path.

    Args:
      sizes: |D_i|, as for `joint`. A data set of size 0 takes no part in the mixture; its rate is infinite where it has leaves of its
        own.
      per: "depth" divides by d, as the paper does; "symbol" by the mean number of symbols of the data set's paths, EOS counted,
        which is smaller where responses end before they are cut.
    """
    return _cross_entropies(tree, joint(tree, sizes)) / _tokens(tree, per)


def normalised_rates(
    tree: Tree, sizes: Sizes | None = None, per: Per = "depth", printed: bool = False
) -> Float[np.ndarray, " s"]:
    """gamma^{D_i/D}, Definition 4.1: the rate less that of a uniform distribution over the M leaves of the data set's own pruned tree.

    Args:
      printed: gamma - log2 M, as reading notes of the definition have it. There gamma is per token and log M per path, so that a
        uniform distribution does not get 0 but for d = 1. By default log M is divided by the same number of tokens as gamma.
    """
    tokens = _tokens(tree, per)
    uniform = np.log2(np.count_nonzero(tree.counts, axis=1))
    return compression_rates(tree, sizes, per) - (uniform if printed else uniform / tokens)


def _cross_entropies(tree: Tree, q: Float[np.ndarray, " m"]) -> Float[np.ndarray, " s"]:
    """Of every data set under the leaf masses q, in bits."""
    with np.errstate(divide="ignore"):
        bits = -np.log2(q)
    return np.array([np.sum(counts[counts > 0] / counts.sum() * bits[counts > 0]) for counts in tree.counts])


def _tokens(tree: Tree, per: Per) -> Float[np.ndarray, " s"]:
    if per not in ("depth", "symbol"):
        raise UserError(f"per={per!r}: expected depth or symbol.")
    if per == "depth":
        return np.full(len(tree.counts), float(tree.depth))
    return tree.counts @ tree.spans.astype(np.float64) / tree.sizes
