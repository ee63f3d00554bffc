"""How does a run come into the tree?

A branch is a module with `grow(tree, trunk)`, which adds the runs of one experiment on one base, and `notes(config)`, which says what
is shared and what is not. `study.tree.BRANCHES` lists them; everything that a branch needs of the others is in the `Trunk`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from elastic_jax import objectives
from elastic_jax.base import Base
from elastic_jax.config import Config
from elastic_jax.data.files import digest_of
from elastic_jax.models.config import ModelConfig
from elastic_jax.models.lora import lora_config
from elastic_jax.study.tree.runs import FORMAT, Run
from elastic_jax.train.optim import OptimConfig, optim_config

# Fields of `ModelConfig` that say how it is computed, not what; the tokens in use follow from the data.
EXECUTION = ("layout", "remat", "attention", "loss_chunk", "used_vocab")


@dataclasses.dataclass(frozen=True)
class Trunk:
    """What the branches of one base grow from.

    Attributes:
      root: the base.
      suffix: what the names of its runs end in, before what says which of them it is; "" where a study has one base.
      aligned: the alignments by volume, in the order of `align.volumes`; one run for all of them where they share it.
      perturbed: the same of what perturbs each volume of alignment; under 0 what perturbs the base.
    """

    root: Run
    suffix: str
    aligned: Sequence[tuple[int, Run]]
    perturbed: Mapping[int, Sequence[tuple[int, Run]]]


class Tree:
    """The runs of a study as they are added, parents before children.

    Args:
      digests: content digest of the training data of each role, and of the queries under "resistance".
    """

    def __init__(self, config: Config, model: ModelConfig, digests: Mapping[str, str]):
        self.config, self.digests = config, digests
        self.runs: list[Run] = []
        self._architecture = architecture_of(model)

    def add(
        self,
        stage: str,
        arm: str,
        parent: Run | None,
        points: Sequence[int],
        *,
        seed: int | None = None,
        at: int = 0,
        suffix: str = "",
        align_volume: int = 0,
        section: str = "",
        what_else: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> Run:
        """One run.

        Args:
          points: updates after which it is kept and measured; the largest is its length.
          seed: by default the parent's.
          at: updates of the parent that it starts from.
          suffix: of its name.
          section: of the config, that says how it is trained; by default that of the stage.
          what_else: what its identity depends on beside, or instead of, what every run's does.
          fields: of `Run`, instead of those that follow from the above.
        """
        if seed is None:
            assert parent is not None
            seed = parent.seed
        how = self.config[section or stage]
        optim = optim_config(how.optim.to_dict())
        objective = objectives.settings(how.objective.to_dict())
        updates = max(points)
        what = dict(
            format=FORMAT,
            stage=stage,
            role=stage,
            seed=seed,
            model=self._architecture if parent is None else None,
            parent=parent.identity if parent else None,
            parent_updates=at,
            data=self.digests.get(stage, ""),
            objective=objective,
            optim=optim.identity,
            batch_size=how.batch_size,
            accumulate=how.accumulate,
            horizon=None if optim.horizon_free else updates,
        )
        lora = None if stage == "pretrain" else lora_config(self.config.lora.to_dict())
        if lora is not None:  # rank 0 leaves identities as they were before there was a choice
            what["lora"] = lora.identity
        what.update(what_else or {})
        measures = log_spaced(updates, self.config.measures.per_octave) | frozenset(points)
        run = Run(
            stage=stage,
            arm=arm,
            role=fields.pop("role", stage),
            seed=seed,
            name=f"{stage if arm in ('base', 'aligned') else arm}-s{seed}{suffix}",
            identity=digest_of(what),
            parent=parent,
            parent_updates=at,
            align_volume=align_volume,
            objective=objective,
            optim=optim,
            batch_size=how.batch_size,
            accumulate=how.accumulate,
            reduce=how.reduce,
            updates=updates,
            checkpoints=fields.pop("checkpoints", frozenset(points)),
            measures=fields.pop("measures", measures),
            pretrain_tokens=parent.pretrain_tokens if parent else updates * how.batch_size * self.config.data.seq_len,
            lora=lora,
            **fields,
        )
        self.runs.append(run)
        return run

    def imported(self, base: Base, digest: str, seed: int, suffix: str) -> Run:
        """A root that is there already. Seeds have one each, since what is sampled from it depends on them."""
        what = dict(format=FORMAT, stage="pretrain", seed=seed, model=self._architecture, base=digest)
        run = Run(
            stage="pretrain",
            arm="base",
            role="pretrain",
            seed=seed,
            name=f"base-s{seed}{suffix}",
            identity=digest_of(what),
            parent=None,
            parent_updates=0,
            align_volume=0,
            objective=dict(name=""),
            optim=OptimConfig(),
            batch_size=1,
            accumulate=1,
            reduce="step",
            updates=0,
            checkpoints=frozenset(),
            measures=frozenset({0}),
            base=base,
            pretrain_tokens=base.tokens,
        )
        self.runs.append(run)
        return run


def log_spaced(updates: int, per_octave: int) -> frozenset[int]:
    """0, 1, 2, 4, ... with `per_octave` points for each doubling, and the last update; with 0 both ends alone."""
    points, k = {0, updates}, 0
    while per_octave and (point := round(2 ** (k / per_octave))) < updates:
        points.add(point)
        k += 1
    return frozenset(points)


def architecture_of(model: ModelConfig) -> dict[str, Any]:
    """The model as it counts in an identity: what differs from the defaults of `ModelConfig`, and what has none.

    A switch that is added later, and is off by default, so leaves every identity as it was.
    """
    fields = {f.name: getattr(model, f.name) for f in dataclasses.fields(model) if f.name not in EXECUTION}
    defaults = {f.name: f.default for f in dataclasses.fields(model)}
    return {name: value for name, value in fields.items() if value != defaults[name]}
