"""What are the weights of a run of noise, and how far were they moved?

From the checkpoint that a perturbation began from, every weight tensor is moved in a random direction by as much as the perturbation had
moved it at the point in question. Points of one run go in one direction. It depends on the seed and on the number of the draw alone, so
that two models of one shape, such as a model after less and after more pre-training, are moved in the same one.
"""

import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from elastic_jax.models import displacement
from elastic_jax.models.transformer import Decoder, Params
from elastic_jax.study.tree import Run

CHANGE, NORM = "weight_change", "weight_norm"


def direction_key(run: Run) -> jax.Array:
    """What the direction of a run of noise is drawn with."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(np.uint32(run.seed)), zlib.crc32(b"noise")), run.draw)


def points(
    run: Run, numbers: Iterable[int], model: Decoder, mesh: Mesh, params_at: Callable[[Run, int], Params]
) -> Iterator[tuple[Params, list[dict[str, Any]]]]:
    """Of each of these points of a run of noise the parameters, and rows that say how far they are from where they began.

    The rows, Euclidean over all weights: `weight_change` of the perturbation (split "perturb") and of the noise ("noise"), which differ by
    rounding, and `weight_norm` of the aligned model ("align").

    Args:
      params_at: a run and a kept point of it -> its parameters, with adapters merged.
    """
    like = run.parent
    assert like is not None and like.parent is not None
    start = params_at(like.parent, like.parent_updates)
    norm = displacement.total(displacement.norms(model, start, mesh))
    for number in numbers:
        # The perturbed parameters are gone before the moved ones are made: there need not be room for both.
        lengths = displacement.distances(model, start, params_at(like, number), mesh)
        moved = displacement.displaced(model, start, lengths, direction_key(run), mesh)
        changed = displacement.total(displacement.distances(model, start, moved, mesh))
        yield (
            moved,
            [
                _row(CHANGE, "perturb", displacement.total(lengths)),
                _row(CHANGE, "noise", changed),
                _row(NORM, "align", norm),
            ],
        )


def _row(measure: str, split: str, value: float) -> dict[str, Any]:
    return dict(measure=measure, split=split, unit="norm", value=value, stderr=float("nan"), n=0, text="")
