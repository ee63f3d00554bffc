"""Which data sets and distributions do the tests of the theory run over? All small ones, and awkward ones among them."""

from collections import Counter

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

# The same examples in every run.
many = settings(max_examples=120, derandomize=True, deadline=None, database=None)
some = settings(max_examples=30, derandomize=True, deadline=None, database=None)

ALPHABET = "abc"
responses = st.lists(st.text(ALPHABET, max_size=7), min_size=1, max_size=25)
depths = st.integers(1, 9)
cuts = st.sampled_from(["documents", "blocks", "windows"])
seeds = st.integers(0, 2**32 - 1)


def pieces(texts, depth, cut):
    """What a tree is made of, by its definition: strings that end with "." where the response does, `depth` symbols at most."""
    ended = [text + "." for text in texts]
    if cut == "documents":
        return [text[:depth] for text in ended]
    step = depth if cut == "blocks" else 1
    return [text[i : i + depth] for text in ended for i in range(0, len(text), step)]


def counted(texts, depth, cut):
    return Counter(pieces(texts, depth, cut))


def distributions(seed, count, leaves=24):
    """Random leaf masses of very different kinds: nearly uniform, one dominant leaf, Pareto, uniform noise, with holes."""
    rng = np.random.default_rng(seed)
    rows = []
    for kind in rng.integers(0, 4, count):
        masses = [
            lambda: rng.random(leaves),
            lambda: rng.dirichlet(np.full(leaves, 0.2)) + 1e-6,
            lambda: rng.permutation((1 - rng.random(leaves)) ** (-1 / 1.2)),
            lambda: rng.random(leaves) * (rng.random(leaves) < 0.5) + 1e-9 * np.eye(leaves)[rng.integers(leaves)],
        ][kind]()
        rows.append(masses / masses.sum())
    return np.array(rows)
