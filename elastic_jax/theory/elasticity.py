"""How does the compression of each data set respond, when one of them grows?

Everything here follows from joint compression (`rates`): the model of a union is the mixture of its data sets. It holds for any
distributions; that masses are Pareto is not needed. Distributions are rows of float64 over common leaves, rates are in nats, sizes
in any common unit.

The theorem of the paper, in the notation of its second published form: pre-training data D_p = D_1 u D_2 u D_3 in equal parts,
alignment data D_a distributed as D_2, perturbation data D_t distributed as D_3; k = |D_p| / |D_a|, l = |D_t| / |D_a|, and the model is
trained on all of them *together*. That training is joint is an assumption; pre-training, aligning and perturbing one after the other
is another setting, about which nothing is proved.
"""

import dataclasses
import math
from typing import Any

import numpy as np
from jaxtyping import Float

from elastic_jax.errors import UserError


def mixture(p: Any, sizes: Any) -> Float[np.ndarray, " m"]:
    """p^D = sum_i |D_i| p_i / sum_i |D_i|, the best common model of data sets with leaf masses p_i (paper, before Theorem 4.2)."""
    p, sizes = _checked(p, sizes)
    return sizes @ p / sizes.sum()


def rates(p: Any, sizes: Any) -> Float[np.ndarray, " s"]:
    """gamma^{D_i} = - sum p_i log p^D in nats for a path: entropy of D_i plus KL(p_i || p^D). Unit: the paper divides by the depth d."""
    p, sizes = _checked(p, sizes)
    return _cross_entropies(p, mixture(p, sizes))


def divergences(p: Any, sizes: Any) -> tuple[Float[np.ndarray, " s"], Float[np.ndarray, " s"]]:
    """KL(p_i || p^D) and KL(p^D || p_i) in nats.

    The first is the one that the rates contain, and that held-out samples can estimate. The second is how the paper prints Hooke's
    law; it is infinite where D_i lacks a leaf of another data set.
    """
    p, sizes = _checked(p, sizes)
    q = mixture(p, sizes)
    backward = np.array([_cross_entropy(q, row) for row in p]) - _cross_entropy(q, q)
    return _cross_entropies(p, q) - np.array([_cross_entropy(row, row) for row in p]), backward


def overlaps(p: Any, sizes: Any) -> Float[np.ndarray, "s s"]:
    """S_ij = sum p_i p_j / p^D over the leaves: 0 for disjoint supports, and 1 between a data set distributed as the mixture and any other.

    Infinite between data sets of size 0 that share a leaf which the mixture lacks.
    """
    p, sizes = _checked(p, sizes)
    q = mixture(p, sizes)
    there = q > 0
    outside = p[:, ~there] @ p[:, ~there].T
    return np.where(outside > 0, np.inf, (p[:, there] / q[there]) @ p[:, there].T)


def rate_derivatives(p: Any, sizes: Any) -> Float[np.ndarray, "s s"]:
    """d gamma^{D_i} / d |D_j| = (1 - S_ij) / N, in nats per unit of size; N the sum of sizes, S of `overlaps`.

    From d log p^D / d |D_j| = p_j / (N p^D) - 1 / N. Symmetric: D_i responds to D_j as D_j to D_i.
    """
    _, sizes = _checked(p, sizes)
    return (1.0 - overlaps(p, sizes)) / sizes.sum()


def finite_differences(p: Any, sizes: Any, number: int, step: float = 1e-4) -> Float[np.ndarray, " s"]:
    """The derivatives by |D_number| measured instead of derived: central differences of `rates`, in nats per unit of size.

    Args:
      step: relative to the sum of the sizes. A data set smaller than the step gets a second-order forward difference instead.
    """
    p, sizes = _checked(p, sizes)
    h = step * sizes.sum()
    move = h * np.eye(len(sizes))[number]
    with np.errstate(invalid="ignore"):  # a rate that is infinite on both sides has no derivative
        return _differences(p, sizes, number, h, move)


def _differences(p: np.ndarray, sizes: np.ndarray, number: int, h: float, move: np.ndarray) -> np.ndarray:
    if sizes[number] >= h:
        return (rates(p, sizes + move) - rates(p, sizes - move)) / (2 * h)
    return (4 * rates(p, sizes + move) - 3 * rates(p, sizes) - rates(p, sizes + 2 * move)) / (2 * h)


def force_balance(p: Any, sizes: Any) -> Float[np.ndarray, " s"]:
    """sum_i |D_i| d gamma^{D_i} / d |D_j| for every j: 0 but for rounding.

    It is the envelope theorem: the mixture minimises sum |D_i| gamma^{D_i} over all models, so that first-order changes cancel. It
    holds for every parametric model that is trained to convergence on the union, and is the exact content of the picture of springs.
    """
    p, sizes = _checked(p, sizes)
    return sizes[sizes > 0] @ rate_derivatives(p, sizes)[sizes > 0]


@dataclasses.dataclass(frozen=True)
class Springs:
    """Hooke's reading (paper, section 4): data sets are springs in series, pulled by one of them as it grows.

    Attributes:
      stiffness: |D_i|.
      deformation: change of KL(p_i || p^D), in nats.
      reversed_deformation: change of KL(p^D || p_i), as the paper prints it; NaN where that is infinite before and after.
      force: stiffness x deformation. With one other data set the two forces are equal and opposite; with more it is their sum that
        vanishes to first order, and not that all are equal.
    """

    stiffness: Float[np.ndarray, " s"]
    deformation: Float[np.ndarray, " s"]
    reversed_deformation: Float[np.ndarray, " s"]
    force: Float[np.ndarray, " s"]


def springs(p: Any, sizes: Any, number: int, growth: float) -> Springs:
    """How far each data set is stretched when |D_number| grows by `growth`; `stiffness` is that before."""
    p, sizes = _checked(p, sizes)
    before, after = divergences(p, sizes), divergences(p, sizes + growth * np.eye(len(sizes))[number])
    with np.errstate(invalid="ignore"):
        changed = [b - a for a, b in zip(before, after, strict=True)]
    return Springs(sizes, changed[0], changed[1], sizes * changed[0])


@dataclasses.dataclass(frozen=True)
class Elasticity:
    """Theorem 4.2 at one point, with units |D_a| = 1 and N = k + 1 + l.

    Attributes:
      k, l: |D_p| / |D_a| and |D_t| / |D_a|.
      overlap: A = sum p_a p_t / p^D.
      own_overlap: B = sum p_t^2 / p^D.
      pretrained: d gamma^{D_p} / dl = - [(1 - A) + l (1 - B)] / (N k), in nats.
      aligned: d gamma^{D_a} / dl = (1 - A) / N.
      perturbation: d gamma^{D_t} / dl = (1 - B) / N.
    """

    k: float
    l: float  # noqa: E741 (the paper's letter)
    overlap: float
    own_overlap: float
    pretrained: float
    aligned: float
    perturbation: float

    @property
    def ratio(self) -> float:
        """aligned / pretrained = -k / (1 + l (1 - B) / (1 - A)), which tends to -k as l tends to 0; NaN where both are 0."""
        if self.aligned == 0 or self.pretrained == 0:
            return math.nan if self.aligned == self.pretrained else math.copysign(math.inf, -self.aligned)
        return self.aligned / self.pretrained

    @property
    def worsens_alignment(self) -> bool:
        """A < 1: perturbation data is less like the alignment data than the mixture is."""
        return self.overlap < 1

    @property
    def improves_pretraining(self) -> bool:
        """(1 - A) + l (1 - B) > 0. With disjoint supports it ends at l = 1/2."""
        return self.pretrained < 0

    @property
    def residual(self) -> float:
        """The force balance, k dgamma^{D_p} + dgamma^{D_a} + l dgamma^{D_t}."""
        return self.k * self.pretrained + self.aligned + self.l * self.perturbation


def form_b(p_1: Any, p_2: Any, p_3: Any, k: float, l: float) -> Elasticity:  # noqa: E741
    """Theorem 4.2, the form of ACL 2025: how the rates respond to more perturbation data.

        d gamma^{D_a/D} / dl = Theta(-k d gamma^{D_p/D} / dl),  d gamma^{D_p/D} / dl < 0,  d gamma^{D_a/D} / dl > 0   (l << 1 << k)

    In this model it is exact for any distributions: see `Elasticity` for the closed forms, which the paper does not print. log M of the
    normalised rates does not depend on l.

    Args:
      p_1, p_2, p_3: leaf masses of the three parts of the pre-training data; D_a is distributed as p_2, D_t as p_3.
      k: > 0.
      l: >= 0.
    """
    p_p, p_a, p_t = _parts(p_1, p_2, p_3)
    return elasticity(p_p, p_a, p_t, k, l)


def elasticity(p_p: Any, p_a: Any, p_t: Any, k: float, l: float) -> Elasticity:  # noqa: E741
    """`form_b` for pre-training data of any distribution: nothing in the closed forms needs D_a and D_t to be parts of it."""
    if not (k > 0 and l >= 0):
        raise UserError(f"k={k}, l={l}: expected k > 0 and l >= 0.")
    p, sizes = _checked([p_p, p_a, p_t], [k, 1.0, l])
    s = overlaps(p, sizes)
    a, b, n = float(s[1, 2]), float(s[2, 2]), k + 1 + l
    if math.isinf(b):
        raise UserError(
            "l=0: the perturbation data has leaves that no other has, so that its own rate is infinite. Give l > 0."
        )
    return Elasticity(
        k, l, a, b, pretrained=-((1 - a) + l * (1 - b)) / (n * k), aligned=(1 - a) / n, perturbation=(1 - b) / n
    )


def flip(p_1: Any, p_2: Any, p_3: Any, k: float, most: float = 1e6) -> float:
    """The l at which d gamma^{D_p} / dl changes its sign, so that more perturbation data worsens pre-training data as well.

    1/2 for disjoint supports and every k. Found by bisection to the last bits; inf where there is none below `most`, 0 where
    pre-training data never improves.
    """
    parts = _parts(p_1, p_2, p_3)
    improves = lambda l: elasticity(*parts, k, l).improves_pretraining  # noqa: E731, E741
    if not improves(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while improves(high):
        low, high = high, 2 * high
        if low > most:
            return math.inf
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if improves(middle) else (low, middle)
    return high


@dataclasses.dataclass(frozen=True)
class FormA:
    """Both derivatives by l of the first published form, in nats, and their ratio second / (k first), which the form puts at Theta(1)."""

    first: float
    second: float
    ratio: float


def form_a(p_1: Any, p_2: Any, p_3: Any, k: float, l: float) -> FormA:  # noqa: E741
    """Theorem 3.13 of the submission of May 2024: pre-training data D_1, fine-tuning data D_2, perturbation data D_3, sizes k, 1, l.

        d gamma^{D_2/D} / dl = Theta(k d gamma^{D_1/D} / dl),  both > 0

    *It fails in the model of joint compression.* Both derivatives are (1 - S_i3) / N, which have no factor k: with disjoint supports
    they are equal, and `ratio` is 1 / k. Kept to show that; the theorem is `form_b`.
    """
    if not (k > 0 and l >= 0):
        raise UserError(f"k={k}, l={l}: expected k > 0 and l >= 0.")
    first, second, _ = rate_derivatives([p_1, p_2, p_3], [k, 1.0, l])[:, 2].tolist()
    return FormA(first, second, second / (k * first) if first else math.nan)


def _parts(p_1: Any, p_2: Any, p_3: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(p_p, p_a, p_t) of Theorem 4.2: the pre-training data has the three in equal parts."""
    p, _ = _checked([p_1, p_2, p_3], [1.0, 1.0, 1.0])
    return p.mean(axis=0), p[1], p[2]


def _cross_entropies(p: np.ndarray, q: np.ndarray) -> Float[np.ndarray, " s"]:
    return np.array([_cross_entropy(row, q) for row in p])


def _cross_entropy(p: np.ndarray, q: np.ndarray) -> float:
    """- sum p log q in nats; inf where q lacks a leaf of p."""
    there = p > 0
    with np.errstate(divide="ignore"):
        return -float(np.sum(p[there] * np.log(q[there])))


def _checked(p: Any, sizes: Any) -> tuple[Float[np.ndarray, "s m"], Float[np.ndarray, " s"]]:
    p, sizes = np.asarray(p, np.float64), np.asarray(sizes, np.float64)
    if p.ndim != 2 or sizes.shape != p.shape[:1]:
        raise UserError(f"distributions of shape {p.shape} and sizes of {sizes.shape}: expected [s, m] and [s].")
    if not (p >= 0).all() or not np.allclose(p.sum(axis=1), 1.0, rtol=0, atol=1e-9):
        raise UserError("distributions: every row needs masses from 0 that add up to 1.")
    if not (sizes >= 0).all() or not 0 < sizes.sum() < math.inf:
        raise UserError(f"sizes={sizes.tolist()}: expected finite numbers from 0, not all of them 0.")
    return p, sizes
