"""Is joint compression the compression of the union, and what do the rates count?"""

from fractions import Fraction

import numpy as np
import pytest
from corpora import ALPHABET, cuts, depths, many, responses
from hypothesis import given
from hypothesis import strategies as st

from elastic_jax.errors import UserError
from elastic_jax.theory import Corpus, code_length, compression_rates, grow, joint, normalised_rates


def corpora(sets):
    return [Corpus.from_sequences(texts, ALPHABET) for texts in sets]


several = st.lists(responses, min_size=2, max_size=3)


@many
@given(several, depths, cuts)
def test_the_mixture_formula_is_the_counts_of_the_union(sets, depth, cut):
    tree = grow(corpora(sets), depth, cut)
    union = grow(corpora([[text for texts in sets for text in texts]]), depth, cut)
    # Exactly, in fractions: sum_i p_i |D_i| / sum_i |D_i| against the frequencies of all responses together.
    sizes = [int(size) for size in tree.sizes]
    for leaf in range(tree.leaves):
        mixed = sum(Fraction(int(c[leaf]), n) * n for c, n in zip(tree.counts, sizes, strict=True)) / sum(sizes)
        assert mixed == Fraction(int(union.counts[0, leaf]), int(union.sizes[0]))
    np.testing.assert_array_equal(joint(tree), union.masses())
    np.testing.assert_allclose(joint(tree, tree.sizes), union.masses(), rtol=1e-14)


@many
@given(several, depths, cuts)
def test_the_union_compresses_at_the_weighted_mean_of_the_rates(sets, depth, cut):
    """sum |D_i| gamma_i = |D| H(p^D) / d, and no other model of the leaves does better for any of the data sets by itself."""
    tree = grow(corpora(sets), depth, cut)
    rates = compression_rates(tree)
    whole = code_length(tree).entropy / depth
    assert tree.sizes @ rates / tree.sizes.sum() == pytest.approx(whole, rel=1e-12, abs=1e-12)
    alone = [code_length(tree, data_set=number).entropy / depth for number in range(len(sets))]
    assert (rates >= np.array(alone) - 1e-12).all()
    for number in range(len(sets)):  # a mixture of one data set is that data set
        only = np.eye(len(sets))[number]
        assert compression_rates(tree, only)[number] == pytest.approx(alone[number], rel=1e-12, abs=1e-12)


@many
@given(several, depths, cuts)
def test_the_normalised_rate_is_the_distance_from_uniform(sets, depth, cut):
    tree = grow(corpora(sets), depth, cut)
    leaves = (tree.counts > 0).sum(axis=1)
    for per, tokens in (("depth", depth), ("symbol", tree.counts @ tree.spans / tree.sizes)):
        rates = compression_rates(tree, per=per)
        np.testing.assert_allclose(normalised_rates(tree, per=per), rates - np.log2(leaves) / tokens, atol=1e-12)
        np.testing.assert_allclose(normalised_rates(tree, per=per, printed=True), rates - np.log2(leaves), atol=1e-12)
    assert (compression_rates(tree, per="symbol") >= compression_rates(tree) - 1e-12).all()
    alone = grow(corpora(sets[:1]), depth, cut)
    assert normalised_rates(alone)[0] <= 1e-12


def test_uniform_leaves_have_a_normalised_rate_of_zero_at_every_depth():
    texts = [f"{number:04b}" for number in range(16)]
    for depth in (1, 2, 3, 4):
        tree = grow(Corpus.from_sequences(texts, "01"), depth)
        assert normalised_rates(tree)[0] == pytest.approx(0.0, abs=1e-12)
        assert normalised_rates(tree, printed=True)[0] == pytest.approx(1 - depth, abs=1e-12)


def test_a_data_set_outside_the_mixture_may_not_be_codable():
    tree = grow(corpora([["a"], ["b"]]), 3)
    assert compression_rates(tree, np.array([1.0, 0.0])).tolist() == [0.0, np.inf]


@pytest.mark.parametrize("sizes", [[1.0], [1.0, -1.0], [0.0, 0.0], [np.nan, 1.0]])
def test_sizes_that_mean_nothing_are_refused(sizes):
    with pytest.raises(UserError, match="expected 2 numbers from 0"):
        joint(grow(corpora([["a"], ["b"]]), 3), np.array(sizes))
    with pytest.raises(UserError, match="expected depth or symbol"):
        compression_rates(grow(corpora([["a"]]), 3), per="byte")  # type: ignore
