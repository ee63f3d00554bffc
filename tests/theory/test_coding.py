"""Is the code of the leaves an optimal prefix code, and what does each reading of Theorem 3.4 count?"""

import heapq
import math

import numpy as np
import pytest
from corpora import ALPHABET, cuts, depths, many, responses
from hypothesis import given
from hypothesis import strategies as st

from elastic_jax.errors import UserError
from elastic_jax.theory import Corpus, code_length, entropy, grow, huffman_lengths, ideal_code_length
from elastic_jax.theory.coding import code_words, mean_length

weights = st.lists(st.one_of(st.integers(1, 4), st.integers(1, 10**12)), min_size=1, max_size=60)


def merged_one_by_one(numbers):
    """Total bits of Huffman's algorithm, merge by merge."""
    heap, total = list(numbers), 0
    heapq.heapify(heap)
    while len(heap) > 1:
        both = heapq.heappop(heap) + heapq.heappop(heap)
        total += both
        heapq.heappush(heap, both)
    return total


@many
@given(weights)
def test_pools_of_equal_weights_make_an_optimal_code(numbers):
    lengths = huffman_lengths(numbers)
    assert sum(n * int(length) for n, length in zip(numbers, lengths, strict=True)) == merged_one_by_one(numbers)
    assert mean_length(numbers) == pytest.approx(merged_one_by_one(numbers) / sum(numbers), rel=1e-15)
    # Kraft's sum is exactly 1: no bit string is left over.
    longest = int(lengths.max())
    assert sum(1 << (longest - int(length)) for length in lengths) == 1 << longest


@many
@given(weights)
def test_code_words_are_prefix_free_and_in_order(numbers):
    lengths = huffman_lengths(numbers)
    words = code_words(lengths)
    assert [len(word) for word in words] == lengths.tolist()
    ordered = sorted(words)
    assert not any(b.startswith(a) for a, b in zip(ordered, ordered[1:], strict=False))


@many
@given(responses, depths, cuts)
def test_entropy_and_huffman_are_within_one_bit_over_all_leaves(texts, depth, cut):
    found = code_length(grow(Corpus.from_sequences(texts, ALPHABET), depth, cut))
    assert found.mass == 1
    assert found.entropy - 1e-12 <= found.huffman < found.entropy + 1
    assert found.ideal - 1 <= found.entropy + 1e-9 and found.entropy <= found.ideal + 1e-9
    # So the theorem's whole number is right within one bit.
    assert abs(found.ideal - found.huffman) < 1 + 1e-9


@many
@given(responses, depths)
def test_readings_of_the_theorem_over_eos_leaves(texts, depth):
    tree = grow(Corpus.from_sequences(texts, ALPHABET), depth)
    p = tree.masses()[tree.ended]
    if not len(p):
        for reading in ("eos", "printed"):
            with pytest.raises(UserError, match=f"reading='{reading}': no response ends within depth {depth}"):
                code_length(tree, reading)
        return
    divided, printed = code_length(tree, "eos"), code_length(tree, "printed")
    assert divided.mass == printed.mass == pytest.approx(p.sum(), rel=1e-15)
    assert divided.leaves == printed.leaves == len(p)
    assert divided.entropy - 1e-12 <= divided.huffman < divided.entropy + 1
    assert printed.entropy == pytest.approx(-np.sum(p * np.log2(p)), rel=1e-12, abs=1e-12)
    assert printed.entropy == pytest.approx(p.sum() * (divided.entropy - math.log2(p.sum())), rel=1e-12, abs=1e-12)
    # What the printed sum misses are the terms of the truncated nodes.
    rest = tree.masses()[~tree.ended]
    assert printed.entropy - np.sum(rest * np.log2(rest)) == pytest.approx(code_length(tree).entropy, abs=1e-9)


def test_the_printed_formula_misses_most_of_a_deep_binary_tree():
    """As in paper.md, 1.4: responses that end with probability 1/20 at every node leave two thirds of the mass below depth 8."""
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(["0", "1"], rng.geometric(0.05) - 1)) for _ in range(4000)]
    tree = grow(Corpus.from_sequences(texts, "01"), 8)
    everything, printed = code_length(tree), code_length(tree, "printed")
    assert printed.mass < 0.4 and printed.entropy < 0.5 * everything.entropy


def test_one_code_for_a_union_and_for_its_parts():
    tree = grow([Corpus.from_sequences(texts, "ab") for texts in (["a", "a", "b"], ["b", "b"])], 2)
    assert code_length(tree, data_set=1).huffman == 0.0 and code_length(tree, data_set=1).leaves == 1
    assert code_length(tree, data_set=0).entropy == pytest.approx(entropy(np.array([2 / 3, 1 / 3])))
    assert code_length(tree).entropy == pytest.approx(entropy(np.array([2 / 5, 3 / 5])))


@many
@given(responses, depths)
def test_blocks_are_as_many_as_the_theorem_says(texts, depth):
    """ceil(|x| / d), with EOS one of the symbols of x."""
    tree = grow(Corpus.from_sequences(texts, ALPHABET), depth, "blocks")
    assert int(tree.sizes[0]) == sum(ideal_code_length(len(text) + 1, depth, 1.0) for text in texts)


def test_ideal_lengths():
    assert ideal_code_length(1, 8, 6.47) == 7 and ideal_code_length(9, 8, 6.47) == 14
    assert ideal_code_length(5, 8, 3 + 1e-15) == 3  # rounding is not another bit
    assert entropy(np.full(8, 1 / 8)) == 3.0 and entropy(np.array([1.0, 0.0])) == 0.0


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: huffman_lengths([]), "one positive number for each leaf"),
        (lambda: huffman_lengths([1, 0]), "drop the leaves that never occur"),
        (lambda: code_words([1, 1, 1]), "no prefix code"),
        (lambda: ideal_code_length(0, 1, 1.0), "symbols=0"),
        (lambda: ideal_code_length(1, 1, float("nan")), "entropy=nan"),
        (lambda: code_length(grow(Corpus.from_sequences(["a"]), 2), "some"), "expected one of all, eos, printed"),  # type: ignore
    ],
)
def test_what_has_no_code_is_said(make, message):
    with pytest.raises(UserError, match=message):
        make()
