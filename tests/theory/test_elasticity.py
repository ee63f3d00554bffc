"""Do the closed forms of the elasticity theorem hold for any distributions, and where do its signs end?"""

import numpy as np
import pytest
from corpora import ALPHABET, distributions, many, responses, seeds, some
from hypothesis import given
from hypothesis import strategies as st

from elastic_jax.errors import UserError
from elastic_jax.theory import Corpus, compression_rates, force_balance, form_a, form_b, grow, rate_derivatives
from elastic_jax.theory import elasticity as theory

ks = st.sampled_from([0.5, 3.0, 10.0, 1e2, 1e3, 1e4])
ls = st.sampled_from([0.0, 0.01, 0.1, 0.4, 2.0])
DISJOINT = np.eye(3)


def close(measured, wanted, rates, step):
    """A central difference: within 1e-3, or within what rounding the rates leaves of a difference of them."""
    rounding = 8 * np.finfo(float).eps * np.max(np.abs(rates)) / step
    np.testing.assert_allclose(measured, wanted, rtol=1e-3, atol=rounding)


@many
@given(seeds, st.integers(2, 5))
def test_derivatives_of_any_mixture_against_finite_differences(seed, count):
    p = distributions(seed, count)
    sizes = np.random.default_rng(seed).uniform(0.05, 5.0, count)
    derivatives = rate_derivatives(p, sizes)
    np.testing.assert_allclose(derivatives, derivatives.T, rtol=1e-12)
    for number in range(count):
        # A step well below the smallest data set: rates bend on the scale of the sizes.
        measured = theory.finite_differences(p, sizes, number, step=1e-6)
        close(measured, derivatives[:, number], theory.rates(p, sizes), 1e-6 * sizes.sum())


@many
@given(seeds, ks, ls)
def test_the_theorem_against_finite_differences(seed, k, l):  # noqa: E741
    p_1, p_2, p_3 = distributions(seed, 3)
    p, sizes = [(p_1 + p_2 + p_3) / 3, p_2, p_3], [k, 1.0, l]
    found = form_b(p_1, p_2, p_3, k, l)
    measured = theory.finite_differences(p, sizes, 2, step=1e-5)
    wanted = [found.pretrained, found.aligned, found.perturbation]
    close(measured, wanted, theory.rates(p, sizes), 1e-5 * sum(sizes))
    derived = rate_derivatives(p, sizes)[:, 2]
    np.testing.assert_allclose(derived, wanted, rtol=1e-9, atol=1e-15)


@many
@given(seeds, st.integers(1, 5))
def test_forces_balance_at_rounding_level(seed, count):
    p = distributions(seed, count)
    sizes = 10 ** np.random.default_rng(seed).uniform(-2, 4, count)
    scale = np.max(sizes[:, None] * np.abs(rate_derivatives(p, sizes)))
    assert np.max(np.abs(force_balance(p, sizes))) <= 1e-13 * max(1.0, scale)


@many
@given(seeds, ks, ls)
def test_residual_signs_and_ratio_of_the_theorem(seed, k, l):  # noqa: E741
    found = form_b(*distributions(seed, 3), k, l)
    a, b = found.overlap, found.own_overlap
    size = max(abs(k * found.pretrained), abs(found.aligned), abs(l * found.perturbation))
    assert abs(found.residual) <= 1e-13 * max(1.0, size)
    assert found.worsens_alignment == (a < 1) == (found.aligned > 0)
    assert found.improves_pretraining == ((1 - a) + l * (1 - b) > 0)
    if abs(1 - a) > 1e-9 and abs(found.pretrained) > 0:
        assert found.ratio == pytest.approx(-k / (1 + l * (1 - b) / (1 - a)), rel=1e-9)


@pytest.mark.parametrize("kind", ["disjoint", "pareto", "noise"])
@pytest.mark.parametrize("l", [1e-9, 0.01])
def test_the_ratio_grows_with_k_at_slope_one(kind, l):  # noqa: E741
    """Pareto masses or not. As l tends to 0 the ratio is -k exactly."""
    rng = np.random.default_rng(7)
    p = DISJOINT
    if kind == "pareto":
        p = np.array([rng.permutation((1 - rng.random(400)) ** (-1 / 1.2)) for _ in range(3)])
    if kind == "noise":
        p = rng.random((3, 400))
    p = p / p.sum(axis=1, keepdims=True)
    k = np.array([10.0, 100.0, 1e3, 1e4])
    ratios = np.array([form_b(*p, one, l).ratio for one in k])
    slope = np.polyfit(np.log(k), np.log(-ratios), 1)[0]
    assert slope == pytest.approx(1.0, abs=1e-6 if l < 1e-6 else 0.01)
    if l < 1e-6:
        np.testing.assert_allclose(ratios, -k, rtol=1e-6)


@many
@given(ks, st.sampled_from([0.0, 0.01, 0.1, 0.3, 0.49]), st.integers(1, 5), seeds)
def test_disjoint_supports_have_one_ratio_whatever_their_masses(k, l, leaves, seed):  # noqa: E741
    masses = np.random.default_rng(seed).dirichlet(np.ones(leaves), 3)
    p = np.zeros((3, 3 * leaves))
    for number, row in enumerate(masses):
        p[number, number * leaves : (number + 1) * leaves] = row
    assert form_b(*p, k, l).ratio == pytest.approx(-(k + 3 * l) / (1 - 2 * l), rel=1e-9)
    assert form_b(*p, k, 0.49).improves_pretraining and not form_b(*p, k, 0.51).improves_pretraining
    assert theory.flip(*p, k) == pytest.approx(0.5, rel=1e-9)


@some
@given(seeds, ks)
def test_the_flip_is_where_the_sign_changes(seed, k):
    p = distributions(seed, 3)
    at = theory.flip(*p, k)
    if 0 < at < np.inf:
        assert form_b(*p, k, at * (1 - 1e-6)).improves_pretraining
        assert not form_b(*p, k, at * (1 + 1e-6)).improves_pretraining
    elif at == 0:
        assert not form_b(*p, k, 0.0).improves_pretraining


@some
@given(ks, ls)
def test_form_a_fails_in_this_model(k, l):  # noqa: E741
    """It wants second = Theta(k) first; disjoint supports give second = first."""
    found = form_a(*DISJOINT, k, l)
    assert found.first == found.second == pytest.approx(1 / (k + 1 + l)) and found.ratio == pytest.approx(1 / k)
    measured = theory.finite_differences(DISJOINT, [k, 1.0, l], 2, step=1e-6) if l else None
    if measured is not None:
        np.testing.assert_allclose(measured[:2], [found.first, found.second], rtol=1e-3)


@some
@given(seeds, st.integers(2, 4))
def test_springs_pull_against_each_other(seed, count):
    p = distributions(seed, count)
    p = 0.9 * p + 0.1 / p.shape[1]  # finite in both directions
    sizes = np.random.default_rng(seed).uniform(0.5, 2.0, count)
    growth = 1e-5
    found = theory.springs(p, sizes, 0, growth)
    derivatives = rate_derivatives(p, sizes)[:, 0]
    np.testing.assert_allclose(found.deformation, growth * derivatives, rtol=1e-3, atol=1e-9 * growth + 1e-14)
    assert abs(found.force.sum()) < 1e-3 * np.abs(found.force).max() + 1e-12
    assert np.isfinite(found.reversed_deformation).all()
    if count == 2:
        assert found.force[0] == pytest.approx(-found.force[1], rel=1e-2, abs=1e-12)


@some
@given(seeds)
def test_divergences_are_those_of_the_mixture(seed):
    p, sizes = distributions(seed, 3), np.array([3.0, 1.0, 0.5])
    forward, backward = theory.divergences(p, sizes)
    assert (forward >= -1e-12).all() and (backward >= -1e-12).all()
    entropies = -np.sum(p * np.log(np.where(p > 0, p, 1.0)), axis=1)
    np.testing.assert_allclose(theory.rates(p, sizes), entropies + forward, rtol=1e-12)
    assert np.isinf(theory.divergences(DISJOINT, sizes)[1]).all()


@some
@given(st.lists(responses, min_size=3, max_size=3), st.integers(1, 5))
def test_the_theorem_on_real_trees(sets, depth):
    """The rates of a tree are those of the theorem, and so are their changes when a data set is given a larger size."""
    tree = grow([Corpus.from_sequences(texts, ALPHABET) for texts in sets], depth)
    p = tree.counts / tree.sizes[:, None]
    sizes = np.array([20.0, 1.0, 0.1])
    bits = depth * np.log(2)
    np.testing.assert_allclose(compression_rates(tree, sizes) * bits, theory.rates(p, sizes), rtol=1e-12, atol=1e-12)
    h = 1e-6
    up, down = (compression_rates(tree, sizes + [0, 0, move]) * bits for move in (h, -h))
    close((up - down) / (2 * h), rate_derivatives(p, sizes)[:, 2], up, h)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: theory.rates([0.5, 0.5], [1.0]), "expected \\[s, m\\] and \\[s\\]"),
        (lambda: theory.rates([[0.5, 0.4]], [1.0]), "add up to 1"),
        (lambda: theory.rates([[1.5, -0.5]], [1.0]), "masses from 0"),
        (lambda: theory.rates([[0.5, np.nan]], [1.0]), "masses from 0"),
        (lambda: theory.rates([[0.5, 0.5]], [0.0]), "finite numbers from 0"),
        (lambda: form_b(*DISJOINT, 0.0, 0.1), "k=0.0"),
        (lambda: form_b(*DISJOINT, 1.0, -0.1), "l=-0.1"),
        (lambda: form_a(*DISJOINT, -1.0, 0.1), "k=-1.0"),
        (lambda: theory.elasticity(*DISJOINT, 2.0, 0.0), "Give l > 0"),
    ],
)
def test_what_is_no_mixture_is_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_a_data_set_of_size_zero_takes_no_part():
    assert theory.overlaps(DISJOINT, [2.0, 1.0, 0.0])[2, 2] == np.inf
    np.testing.assert_allclose(force_balance(DISJOINT, [2.0, 1.0, 0.0]), [0.0, 0.0, 1.0], atol=1e-15)
