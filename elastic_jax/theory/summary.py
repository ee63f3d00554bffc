"""What does the theory say about some data sets, depth by depth?"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from elastic_jax.errors import UserError
from elastic_jax.theory import elasticity
from elastic_jax.theory.coding import code_length
from elastic_jax.theory.corpus import Corpus
from elastic_jax.theory.mass import fit_pareto, vuong
from elastic_jax.theory.rates import compression_rates, normalised_rates
from elastic_jax.theory.tree import Cut, Tree, grow


def depths(deepest: int) -> list[int]:
    """1, 2, 4, ... and the deepest."""
    return sorted({*(1 << n for n in range(deepest.bit_length()) if 1 << n <= deepest), deepest})


def trees(corpora: Sequence[Corpus], deepest: int, cut: Cut) -> list[Tree]:
    """The tree of the data sets pruned at each of `depths`."""
    if cut == "blocks":  # which other depths cut elsewhere
        return [grow(corpora, depth, cut) for depth in depths(deepest)]
    tree = grow(corpora, deepest, cut)
    return [tree.prune(depth) for depth in depths(deepest)]


def code_lengths(grown: Sequence[Tree], names: Sequence[str]) -> pd.DataFrame:
    """Of each data set by itself and in the union. Columns: depth, set, paths, leaves, eos_mass, entropy, huffman, ideal (bits a path),
    rate (bits a token, under the code of the union) and normalised."""
    rows = []
    for tree in grown:
        rates, normalised = compression_rates(tree), normalised_rates(tree)
        for number, name in enumerate(names):
            found, counts = code_length(tree, data_set=number), tree.counts[number]
            rows.append(
                dict(
                    depth=tree.depth,
                    set=name,
                    paths=int(tree.sizes[number]),
                    leaves=found.leaves,
                    eos_mass=float(counts[tree.ended].sum() / counts.sum()),
                    entropy=found.entropy,
                    huffman=found.huffman,
                    ideal=found.ideal,
                    rate=rates[number],
                    normalised=normalised[number],
                )
            )
    return pd.DataFrame(rows)


def mass_laws(grown: Sequence[Tree], names: Sequence[str]) -> pd.DataFrame:
    """Pareto fits of the leaf counts. Columns: depth, set, alpha, low, high, x_min, tail, distance, favours (Vuong's test), p, and why
    there is no fit."""
    rows = []
    for tree in grown:
        for number, name in enumerate(names):
            row = dict(depth=tree.depth, set=name)
            try:
                fit = fit_pareto(tree.counts[number])
                tested = vuong(tree.counts[number], fit)
                row |= dict(alpha=fit.alpha, low=fit.low, high=fit.high, x_min=fit.x_min, tail=fit.tail)
                row |= dict(distance=fit.distance, favours=tested.favours, p=tested.p, reason="")
            except UserError as error:
                row |= dict(reason=str(error).partition(";")[0])
            rows.append(row)
    columns = ["depth", "set", "alpha", "low", "high", "x_min", "tail", "distance", "favours", "p", "reason"]
    return pd.DataFrame(rows, columns=columns)


def responses(grown: Sequence[Tree], sizes: Sequence[float]) -> pd.DataFrame:
    """Theorem 4.2 for three data sets in the order pre-training, alignment, perturbation, if a model were trained on their union.

    Columns: depth, k, l, overlap (A), own_overlap (B), pretrained, aligned (d gamma / dl in nats a path), ratio, per_k (ratio / -k),
    residual (of the force balance).
    """
    rows = []
    for tree in grown:
        p = tree.counts / tree.sizes[:, None]
        pretrain, align, perturb = np.asarray(sizes, float)
        found = elasticity.elasticity(*p, k=pretrain / align, l=perturb / align)
        rows.append(
            dict(
                depth=tree.depth,
                k=found.k,
                l=found.l,
                overlap=found.overlap,
                own_overlap=found.own_overlap,
                pretrained=found.pretrained,
                aligned=found.aligned,
                ratio=found.ratio,
                per_k=-found.ratio / found.k,
                residual=found.residual,
            )
        )
    return pd.DataFrame(rows)
