"""Which runs make up a study, and when are two runs the same run?

A run is a trajectory: a stage applied to one parent checkpoint. Its identity is the hash of everything that its numbers depend
on: the stage's section of the resolved config, the parent's identity and the point taken from it, the data, the seed. It does
not name the length where the schedule is constant: then the model after m examples of a longer run *is* the model of volume m,
all volumes of a column share one run, and a larger study extends it. A schedule that decays depends on its end, so there every
volume is a run of its own.

Every seed, and every base of it, has a trunk: base, alignments, perturbations (`tree.rebound`). The other experiments are branches of
it, a module each (`BRANCHES`); how one is added is said in `tree.grow`.

With `base.hf` the roots are not trained: they are checkpoints of others, of zero updates, known by the digest of their weights.
"""

from collections.abc import Iterator, Mapping, Sequence

from elastic_jax import objectives
from elastic_jax.base import Base
from elastic_jax.config import Config
from elastic_jax.models.config import ModelConfig
from elastic_jax.models.lora import lora_config
from elastic_jax.study.tree import noise, order, rebound, resistance
from elastic_jax.study.tree.grow import EXECUTION, Tree, Trunk, architecture_of, log_spaced
from elastic_jax.study.tree.resistance import slice_updates
from elastic_jax.study.tree.runs import FORMAT, STAGES, Answers, Cross, Run

BRANCHES = (resistance, noise, order)

__all__ = [
    "BRANCHES",
    "EXECUTION",
    "FORMAT",
    "STAGES",
    "Answers",
    "Cross",
    "Run",
    "Tree",
    "Trunk",
    "architecture_of",
    "build",
    "data_kinds",
    "log_spaced",
    "slice_updates",
]


def build(
    config: Config, model: ModelConfig, digests: Mapping[str, str], bases: Sequence[tuple[Base, str]] = ()
) -> tuple[list[Run], list[str]]:
    """The runs of a study, parents before children, and notes on what is shared.

    Args:
      digests: content digest of the training data of each role, and of the queries under "resistance".
      bases: with `base.hf`, the checkpoints that it names and the digest of the weights of each.
    """
    tree = Tree(config, model, digests)
    for seed in config.seeds:
        for root, suffix in _roots(tree, seed, bases):
            trunk = rebound.grow(tree, root, suffix)
            for branch in BRANCHES:
                branch.grow(tree, trunk)
    notes = [
        f"base {base.label}: {base.where}{f', revision {base.revision}' if base.revision else ''}, weights {digest[:12]}"
        for base, digest in bases
    ]
    if (lora := lora_config(config.lora.to_dict())) is not None:
        notes.append(
            f"LoRA: what follows the base trains adapters of rank {lora.rank} on {', '.join(lora.targets)}, not all parameters"
        )
    for part in (rebound, *BRANCHES):
        notes.extend(part.notes(config))
    if len(config.seeds) == 1:
        notes.append("one seed: no intervals over seeds")
    return tree.runs, notes


def _roots(tree: Tree, seed: int, bases: Sequence[tuple[Base, str]]) -> Iterator[tuple[Run, str]]:
    """Bases of a seed, each added when it is asked for, and what the names of the runs on it end in."""
    for base, digest in bases:
        suffix = f"-{base.slug}"
        yield tree.imported(base, digest, seed, suffix), suffix
    if not bases:
        section = tree.config.pretrain
        updates = section.tokens // (section.batch_size * tree.config.data.seq_len)
        yield tree.add("pretrain", "base", None, [updates], seed=seed), ""


def data_kinds(config: Config) -> dict[str, str]:
    """Kind of row, "text" or "pair", that each fine-tuning stage reads."""
    return {stage: objectives.make(config[stage].objective.to_dict()).rows for stage in ("align", "perturb")}
