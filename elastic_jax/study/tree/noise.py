"""Which random changes of the weights stand beside the perturbations of aligned models?

A perturbation moves each weight tensor by some distance. What of its effect is the size of that change, and what its direction? Beside
every perturbation of an aligned model stand `noise.draws` others that are no training: from the same checkpoint as far, tensor by tensor,
in a random direction (`models.displacement`), at each of its kept points. They train nothing, so each is known by the perturbation whose
distances it copies and by its number.
"""

import dataclasses

from elastic_jax.config import Config
from elastic_jax.data.files import digest_of
from elastic_jax.study.tree.grow import Tree, Trunk
from elastic_jax.study.tree.runs import FORMAT


def grow(tree: Tree, trunk: Trunk) -> None:
    """`noise.draws` runs for every perturbation of an aligned model that trains anything."""
    for volume, column in trunk.perturbed.items():
        for like in {run.key: run for _, run in column}.values():
            points = like.checkpoints - {0}
            if not volume or not points:
                continue
            for draw in range(1, tree.config.noise.draws + 1):
                tree.runs.append(
                    dataclasses.replace(
                        like,
                        stage="noise",
                        arm="noise",
                        name=f"noise{like.name.removeprefix('perturb')}-d{draw}",
                        identity=digest_of(["noise", FORMAT, like.identity, draw]),
                        parent=like,
                        parent_updates=like.updates,
                        checkpoints=frozenset(),
                        measures=points,
                        draw=draw,
                    )
                )


def notes(config: Config) -> list[str]:
    """How many there are."""
    draws = config.noise.draws
    if not draws:
        return []
    return [
        f"noise: beside every perturbation of an aligned model {draws} random change{'s' * (draws > 1)} of the weights of the same size, tensor by "
        "tensor, measured where the perturbation is kept"
    ]
