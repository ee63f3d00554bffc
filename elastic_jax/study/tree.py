"""Which runs make up a study, and when are two runs the same run?

A run is a trajectory: a stage applied to one parent checkpoint. Its identity is the hash of everything that its numbers depend
on: the stage's section of the resolved config, the parent's identity and the point taken from it, the data, the seed. It does
not name the length where the schedule is constant: then the model after m examples of a longer run *is* the model of volume m,
all volumes of a column share one run, and a larger study extends it. A schedule that decays depends on its end, so there every
volume is a run of its own.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from elastic_jax import objectives
from elastic_jax.config import Config
from elastic_jax.data.files import digest_of
from elastic_jax.models.config import ModelConfig
from elastic_jax.train.accumulate import Reduce
from elastic_jax.train.optim import OptimConfig, optim_config

STAGES = ("pretrain", "align", "perturb")
FORMAT = 2  # part of every identity: raised when the same config would give other numbers


@dataclasses.dataclass(frozen=True)
class Run:
    """One trajectory and the points of it that the study needs.

    Attributes:
      arm: "base" for pre-training, "aligned" for alignment and what follows it, "control" for perturbation from base.
      role: the data role that it trains on.
      updates: its length.
      checkpoints, measures: numbers of updates after which the state is kept, and measured.
      align_volume: examples of alignment behind its starting point.
    """

    stage: str
    arm: str
    role: str
    seed: int
    name: str
    identity: str
    parent: "Run | None"
    parent_updates: int
    align_volume: int
    objective: Mapping[str, Any]
    optim: OptimConfig
    batch_size: int
    accumulate: int
    reduce: Reduce
    updates: int
    checkpoints: frozenset[int]
    measures: frozenset[int]

    @property
    def key(self) -> str:
        """Name of its folder."""
        return f"{self.name}-{self.identity[:12]}"

    @property
    def schedule_updates(self) -> int:
        """What the learning rate depends on beside the update number; 0 for a constant schedule."""
        return 0 if self.optim.horizon_free else self.updates

    def describe(self) -> dict[str, Any]:
        """JSON for `run.json` and for the tree in the report."""
        return dict(
            run=self.key,
            id=self.identity[:12],
            name=self.name,
            parent=self.parent.key if self.parent else "",
            parent_examples=self.parent_updates * self.parent.batch_size if self.parent else 0,
            stage=self.stage,
            arm=self.arm,
            method=self.objective["name"],
            seed=self.seed,
            align_volume=self.align_volume,
            examples=self.updates * self.batch_size,
            updates=self.updates,
            batch_size=self.batch_size,
            points=sorted(point * self.batch_size for point in self.checkpoints),
        )


def log_spaced(updates: int, per_octave: int) -> frozenset[int]:
    """0, 1, 2, 4, ... with `per_octave` points for each doubling, and the last update."""
    points, k = {0, updates}, 0
    while (point := round(2 ** (k / per_octave))) < updates:
        points.add(point)
        k += 1
    return frozenset(points)


def build(config: Config, model: ModelConfig, digests: Mapping[str, str]) -> tuple[list[Run], list[str]]:
    """The runs of a study, parents before children, and notes on what is shared.

    Args:
      digests: content digest of the training data of each role.
    """
    # How it is computed, not what; the tokens in use follow from the data.
    execution = ("layout", "remat", "attention", "loss_chunk", "used_vocab")
    architecture = {k: v for k, v in dataclasses.asdict(model).items() if k not in execution}
    per_octave = config.measures.per_octave
    runs: list[Run] = []

    def add(
        stage: str, seed: int, arm: str, points: list[int], suffix: str, parent: Run | None, at: int, volume: int
    ) -> Run:
        section = config[stage]
        optim = optim_config(section.optim.to_dict())
        objective = objectives.settings(section.objective.to_dict())
        updates = max(points)
        what = dict(
            format=FORMAT,
            stage=stage,
            role=stage,
            seed=seed,
            model=architecture if parent is None else None,
            parent=parent.identity if parent else None,
            parent_updates=at,
            data=digests[stage],
            objective=objective,
            optim=optim.identity,
            batch_size=section.batch_size,
            accumulate=section.accumulate,
            horizon=None if optim.horizon_free else updates,
        )
        run = Run(
            stage=stage,
            arm=arm,
            role=stage,
            seed=seed,
            name=f"{stage if arm != 'control' else 'control'}-s{seed}{suffix}",
            identity=digest_of(what),
            parent=parent,
            parent_updates=at,
            align_volume=volume,
            objective=objective,
            optim=optim,
            batch_size=section.batch_size,
            accumulate=section.accumulate,
            reduce=section.reduce,
            updates=updates,
            checkpoints=frozenset(points),
            measures=log_spaced(updates, per_octave) | frozenset(points),
        )
        runs.append(run)
        return run

    def column(
        stage: str, seed: int, arm: str, suffix: str, parent: Run, at: int, volume: int
    ) -> list[tuple[int, Run]]:
        """One run for all volumes where they share their beginning, else one each; (volume, run) pairs."""
        section = config[stage]
        volumes = list(section.volumes)
        letter = "v" if stage == "align" else "p"
        if optim_config(section.optim.to_dict()).horizon_free:
            run = add(stage, seed, arm, [v // section.batch_size for v in volumes], suffix, parent, at, volume)
            return [(v, run) for v in volumes]
        return [
            (v, add(stage, seed, arm, [v // section.batch_size], f"{suffix}-{letter}{v}", parent, at, volume))
            for v in volumes
        ]

    for seed in config.seeds:
        pretrain_updates = config.pretrain.tokens // (config.pretrain.batch_size * config.data.seq_len)
        base = add("pretrain", seed, "base", [pretrain_updates], "", None, 0, 0)
        if config.perturb.control:
            column("perturb", seed, "control", "", base, base.updates, 0)
        for volume, aligned in column("align", seed, "aligned", "", base, base.updates, 0):
            at = volume // aligned.batch_size
            column("perturb", seed, "aligned", f"-a{volume}", aligned, at, volume)

    notes = []
    for stage in ("align", "perturb"):
        section = config[stage]
        shared = optim_config(section.optim.to_dict()).horizon_free
        what = "one run per parent, recorded at" if shared else "a run each, since the schedule depends on its end, for"
        notes.append(f"{stage} volumes: {what} {', '.join(map(str, section.volumes))} examples")
    if not config.perturb.control:
        notes.append("no control arm: perturb.control is off")
    if len(config.seeds) == 1:
        notes.append("one seed: no intervals over seeds")
    return runs, notes


def data_kinds(config: Config) -> dict[str, str]:
    """Kind of row, "text" or "pair", that each fine-tuning stage reads."""
    return {stage: objectives.make(config[stage].objective.to_dict()).rows for stage in ("align", "perturb")}
