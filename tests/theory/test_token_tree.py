"""Is the token tree that of its definition, whatever the data, the depth and the cut?"""

import numpy as np
import pytest
from corpora import ALPHABET, counted, cuts, depths, many, pieces, responses
from hypothesis import given
from hypothesis import strategies as st

from elastic_jax.errors import UserError
from elastic_jax.theory import Corpus, grow


def corpus(texts):
    return Corpus.from_sequences(texts, ALPHABET)


def named(tree):
    """Path -> counts of all data sets."""
    paths = ["".join(tree.path(leaf)) + "." * bool(tree.ended[leaf]) for leaf in range(tree.leaves)]
    assert len(set(paths)) == len(paths)
    return dict(zip(paths, map(tuple, tree.counts.T.tolist()), strict=True))


@many
@given(responses, depths, cuts)
def test_leaves_are_the_pieces_of_the_responses(texts, depth, cut):
    tree = grow(corpus(texts), depth, cut)
    assert named(tree) == {path: (count,) for path, count in counted(texts, depth, cut).items()}
    assert tree.sizes.tolist() == [len(pieces(texts, depth, cut))]
    np.testing.assert_array_equal(tree.spans, [len(path) for path in named(tree)])
    order = [tuple(-1 if symbol == "." else ALPHABET.index(symbol) for symbol in path) for path in named(tree)]
    assert order == sorted(order)


@many
@given(responses, depths, cuts)
def test_children_and_eos_add_up_to_their_parent(texts, depth, cut):
    tree = grow(corpus(texts), depth, cut)
    layers = [tree.layer(number) for number in range(depth + 1)]
    assert layers[0].weights.tolist() == [[tree.sizes[0]]]
    for parent, child in zip(layers, layers[1:], strict=False):
        below = np.zeros_like(parent.weights)
        np.add.at(below, (slice(None), child.parents), child.weights)
        np.testing.assert_array_equal(below + parent.ends, parent.weights)
    # The last layer is what was truncated.
    assert layers[-1].weights.sum() == tree.counts[:, ~tree.ended].sum() and not layers[-1].ends.any()
    for layer in layers[:-1]:
        beginnings = [p for p in pieces(texts, depth, cut) if len(p.rstrip(".")) >= layer.depth]
        assert layer.weights.sum() == len(beginnings)
        assert layer.weights.shape[1] == len({p[: layer.depth] for p in beginnings})
        assert layer.ends.sum() == sum(len(p) == layer.depth + 1 and p.endswith(".") for p in beginnings)


@many
@given(responses, depths, depths, st.sampled_from(["documents", "windows"]))
def test_a_pruned_tree_is_one_grown_to_that_depth(texts, one, other, cut):
    deep, shallow = max(one, other), min(one, other)
    pruned, grown = grow(corpus(texts), deep, cut).prune(shallow), grow(corpus(texts), shallow, cut)
    for name in ("spans", "ended", "shared", "counts", "depth"):
        np.testing.assert_array_equal(getattr(pruned, name), getattr(grown, name))
    assert named(pruned) == named(grown)


@many
@given(st.lists(responses, min_size=2, max_size=3), depths, cuts)
def test_several_data_sets_keep_their_own_counts(sets, depth, cut):
    tree = grow([corpus(texts) for texts in sets], depth, cut)
    each = [counted(texts, depth, cut) for texts in sets]
    paths = set().union(*each)
    assert named(tree) == {path: tuple(counts[path] for counts in each) for path in paths}


@many
@given(responses, depths, cuts, st.sampled_from([1, 7]))
def test_a_stream_is_its_documents(texts, depth, cut, eos):
    texts = [text for text in texts if text] or ["a"]
    numbers = [[10 + ALPHABET.index(c) for c in text] for text in texts]
    # Rows of a study: <eos> first, padding after the last; the stream may also end without <eos>.
    stream = [token for row in numbers for token in (eos, *row, eos, 0, 0)]
    tree = grow(Corpus.from_stream(stream, eos=eos, drop=(0,)), depth, cut)
    wanted = grow(corpus(texts), depth, cut)
    np.testing.assert_array_equal(tree.counts, wanted.counts)
    np.testing.assert_array_equal(tree.shared, wanted.shared)
    open_ended = Corpus.from_stream(stream[:-3], eos=eos, drop=(0,))
    np.testing.assert_array_equal(grow(open_ended, depth, cut).counts, wanted.counts)


def test_wide_alphabets_and_many_groups_sort_the_same():
    """Where group, symbol and place do not fit into 63 bits together, an argsort does the same work."""
    rng = np.random.default_rng(0)
    few = np.minimum(rng.zipf(1.5, 4000), 50)
    wide = (few * 40_000_000).astype(np.int64)
    trees = [grow(Corpus.from_stream(stream, eos=eos), 6, "windows") for stream, eos in ((few, 3), (wide, 120_000_000))]
    np.testing.assert_array_equal(trees[0].counts, trees[1].counts)
    np.testing.assert_array_equal(trees[0].shared, trees[1].shared)


def test_empty_responses_are_leaves_of_the_root_where_they_mean_something():
    tree = grow(Corpus.from_stream([1, 5, 1, 1], eos=1, keep_empty=True), 2)
    assert [(tree.path(leaf), int(tree.counts[0, leaf])) for leaf in range(tree.leaves)] == [((), 2), ((5,), 1)]
    assert len(Corpus.from_stream([1, 5, 1, 1], eos=1)) == 1


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Corpus.from_stream([]), "no response in the stream"),
        (lambda: Corpus.from_stream([1, 1], eos=1), "no response in the stream"),
        (lambda: Corpus.from_stream([0.5]), "expected integers, given float64"),
        (lambda: Corpus.from_stream([3, -1]), "numbers from -1 to 3"),
        (lambda: Corpus.from_stream([3, 9], alphabet=9), "expected 0 to 8"),
        (lambda: Corpus.from_sequences([]), "no response"),
        (lambda: Corpus.from_sequences(["ax"], "abc"), "'x' is not in the alphabet of 3 tokens"),
        (lambda: Corpus.from_sequences([[4]], 4), "4 is not in the alphabet"),
        (lambda: Corpus.from_sequences(["a"], "aa"), "each is named once"),
        (lambda: grow(corpus(["a"]), 0), "depth=0"),
        (lambda: grow(corpus(["a"]), 2, "rows"), "cut='rows'"),
        (lambda: grow([], 2), "at least one data set"),
        (lambda: grow([corpus(["a"]), Corpus.from_sequences(["a"], "ab")], 2), "different alphabets"),
        (lambda: grow(corpus(["a"]), 2).layer(3), "layers 0 to 2"),
        (lambda: grow(corpus(["a"]), 2).prune(3), "pruned at 1 to 2"),
        (lambda: grow(corpus(["abc"]), 2, "blocks").prune(1), "grow a tree for each depth"),
    ],
)
def test_what_makes_no_tree_is_said(make, message):
    with pytest.raises(UserError, match=message):
        make()
