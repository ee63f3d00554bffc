"""Which runs does the experiment on orders add: tasks trained one after the other, in every order?

Of the tasks of `data.tasks` every ordered choice of one, of two and of all three is the end of a run, which trains the last task of it from
the end of the run of the others: 3 + 6 + 6 runs for the 15 models. All train `order.volume` examples, and wherever a task stands it
sees the same ones in the same order, so that what comes out differs by what came before.
"""

import itertools

from elastic_jax.config import Config
from elastic_jax.data import tasks
from elastic_jax.study.tree.grow import Tree, Trunk
from elastic_jax.study.tree.runs import Run


def grow(tree: Tree, trunk: Trunk) -> None:
    """The runs on one base: single tasks, then pairs, then triples."""
    volume, names = tree.config.order.volume, tuple(tree.config.data.tasks.names)
    if not volume:
        return
    updates = volume // tree.config.order.batch_size
    done: dict[tuple[str, ...], Run] = {(): trunk.root}
    for count in range(1, len(names) + 1):
        for sequence in itertools.permutations(names, count):
            parent, role = done[sequence[:-1]], tasks.role(sequence[-1])
            done[sequence] = tree.add(
                "order",
                "order",
                parent,
                [updates],
                at=parent.updates,
                suffix=f"{trunk.suffix}-{'-'.join(sequence)}",
                what_else=dict(role=role, data=tree.digests.get(role, "")),
                role=role,
                sequence=sequence,
                measures=frozenset({updates}),  # its beginning is its parent's end
            )


def notes(config: Config) -> list[str]:
    """What is trained in which orders."""
    names, volume = tuple(config.data.tasks.names), config.order.volume
    if not volume:
        return []
    runs = sum(len(list(itertools.permutations(names, count))) for count in range(1, len(names) + 1))
    return [
        f"order: {', '.join(names)}, {volume:,} examples of each, one after the other in every order; {runs} runs on each base, each from "
        "the end of the one that it continues"
    ]
