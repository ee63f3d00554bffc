"""Are the right tokens left to draw from?"""

import jax
import numpy as np
import pytest

from elastic_jax.models.filters import Choice, nucleus


@pytest.mark.parametrize(
    ("p", "top_p", "kept"),
    [
        ([0.5, 0.3, 0.2], 0.4, [0]),
        ([0.2, 0.5, 0.3], 0.6, [1, 2]),
        ([0.2, 0.5, 0.3], 0.9, [0, 1, 2]),
        ([0.6, 0.4, 0.0], 0.999, [0, 1]),
        ([0.7, 0.15, 0.15], 0.8, [0, 1, 2]),  # equally likely tokens stay or go together
    ],
)
def test_nucleus_keeps_the_smallest_set(p, top_p, kept):
    with np.errstate(divide="ignore"):
        logits = np.log(np.array([p], np.float32))
    got = nucleus(logits, top_p)[0]
    np.testing.assert_array_equal(np.flatnonzero(np.isfinite(got)), kept)
    np.testing.assert_array_equal(got[np.array(kept)], logits[0][kept])


@pytest.mark.parametrize(("top_k", "kept"), [(1, [2]), (2, [0, 2, 3]), (3, [0, 2, 3]), (4, [0, 1, 2, 3])])
def test_top_k_keeps_ties_with_the_last(top_k, kept):
    got = Choice(top_k=top_k).filtered(np.array([[1.0, 0.0, 2.0, 1.0]], np.float32))[0]
    np.testing.assert_array_equal(np.flatnonzero(np.isfinite(got)), kept)


def test_never_comes_before_everything_else():
    logits = np.array([[3.0, 2.0, 1.0, 0.0]], np.float32)
    np.testing.assert_array_equal(Choice(top_k=2, never=(0,)).filtered(logits)[0], [-np.inf, 2, 1, -np.inf])
    assert Choice(temperature=0, never=(0, 1)).draw(logits, jax.random.split(jax.random.key(0), 1)).tolist() == [2]


def test_the_order_is_temperature_top_k_top_p():
    p = np.array([[0.4, 0.3, 0.2, 0.1]])
    # Of the two likeliest the first alone has 4/7, and 2/3 after sharpening: enough for 0.6 only there.
    got = Choice(temperature=0.5, top_k=2, top_p=0.6).filtered(np.log(p, dtype=np.float32))[0]
    np.testing.assert_array_equal(np.isfinite(got), [True, False, False, False])
    got = Choice(temperature=1.0, top_k=2, top_p=0.6).filtered(np.log(p, dtype=np.float32))[0]
    np.testing.assert_array_equal(np.isfinite(got), [True, True, False, False])
    # Without top_k the first two have 0.7.
    got = Choice(temperature=1.0, top_p=0.75).filtered(np.log(p, dtype=np.float32))[0]
    np.testing.assert_array_equal(np.isfinite(got), [True, True, True, False])


@pytest.mark.parity
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.9])
@pytest.mark.parametrize(
    ("top_k", "top_p"), [(0, 0.3), (0, 0.95), (5, 1.0), (50, 0.8), (3, 0.5), (97, 0.999), (1, 0.1)]
)
def test_the_distribution_is_that_of_transformers(temperature, top_k, top_p):
    torch = pytest.importorskip("torch")
    processors = pytest.importorskip("transformers.generation.logits_process")
    logits = 3 * np.random.default_rng(top_k).standard_normal((16, 97)).astype(np.float32)
    logits[:, 3] = logits[:, 8]  # a tie, which top_k treats as one
    expected = processors.TemperatureLogitsWarper(temperature)(None, torch.tensor(logits))
    if top_k:
        expected = processors.TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = processors.TopPLogitsWarper(top_p)(None, expected)
    got = np.array(Choice(temperature, top_k, top_p).filtered(logits))
    expected = expected.numpy()
    # A tie that top_p cuts through: ours stay together, and of theirs the sort chooses one.
    tied = (got == got[:, 3:4]) & (np.isfinite(got) != np.isfinite(expected))
    assert tied.sum() <= 3 and not tied[:, [i for i in range(97) if i not in (3, 8)]].any()
    np.testing.assert_allclose(np.where(tied, 0, got), np.where(tied, 0, expected), rtol=1e-6)
