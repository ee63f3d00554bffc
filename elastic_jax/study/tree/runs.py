"""What is a run, and by what is it known?

A run is a trajectory: a stage applied to one parent checkpoint. Its identity is the hash of everything that its numbers depend on.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from elastic_jax.base import Base
from elastic_jax.models.lora import LoraConfig
from elastic_jax.train.accumulate import Reduce
from elastic_jax.train.last_batch import LastBatch, examples_after
from elastic_jax.train.optim import OptimConfig

STAGES = ("pretrain", "align", "perturb", "resistance", "noise", "order")
FORMAT = 3  # part of every identity: raised when the same config would give other numbers


@dataclasses.dataclass(frozen=True)
class Answers:
    """What a checkpoint writes to the shared queries, by which it is known before it is written (`study.answers`).

    Attributes:
      author, updates: the checkpoint: a run, and a kept point of it.
      identity: of the author, the point, the queries and how is sampled.
    """

    author: "Run"
    updates: int
    identity: str

    @property
    def key(self) -> str:
        """Name of its file."""
        return f"{self.author.name}-{self.updates * self.author.batch_size}-{self.identity[:12]}"


@dataclasses.dataclass(frozen=True)
class Cross:
    """Which of two slices is trained on the answers of which.

    Attributes:
      line: the order in which the slices were trained, "123"; "other": the second of the pair was trained on the other task instead.
      earlier, later: the pair, by number in the line from 1.
      answers: what the run trains on.
      opposite: what the run of the other direction trains on.
      queries: how many of the answers are trained on; the others are held out.
      cut: whether every answer is cut to the length that it and its opposite have in common.
    """

    line: str
    earlier: int
    later: int
    answers: Answers
    opposite: Answers
    queries: int
    cut: bool


@dataclasses.dataclass(frozen=True)
class Run:
    """One trajectory and the points of it that the study needs.

    Attributes:
      arm: "base" for pre-training, "aligned" for alignment and what follows it, "control" for perturbation from base. Of the
        resistance experiment: "reordered" for an alignment on the slices in another order, "other" for one on the data of
        perturbation; "inverse" for a later slice trained on an earlier one's answers, "forward" for the other way round.
        "order" for tasks trained one after the other.
      base: the checkpoint of others that a root of zero updates stands for; None of every other run.
      pretrain_tokens: of the pre-training that it descends from; 0 where that is not known.
      lora: the adapters that it trains, on the parameters at the root; None where it trains all parameters.
      role: the data role that it trains on.
      updates: its length.
      checkpoints, measures: numbers of updates after which the state is kept, and measured.
      align_volume: examples of alignment behind its starting point.
      line: of an alignment for the resistance experiment: see `Cross`.
      parts: ranges of batches of its data's order that it trains on, one after the other; () for the first `updates`.
      cross: of a run that trains on answers.
      sequence: of the experiment on orders: the tasks that its end has behind it, its own last.
      last_batch: what its last batch is, where that is not whole.
      last_rows: examples in it; 0 where it is whole.
      draw: number of the random direction, from 1, of a run of stage "noise": the weights that its parent, a perturbation, began from,
        changed as much as the parent changed them; 0 of a run that trains.
      nominal: (volume, updates) of the volumes of which not all is trained on, since the rest does not fill a batch.
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
    base: Base | None = None
    pretrain_tokens: int = 0
    lora: LoraConfig | None = None
    line: str = ""
    parts: tuple[tuple[int, int], ...] = ()
    cross: Cross | None = None
    sequence: tuple[str, ...] = ()
    last_batch: LastBatch = "whole"
    last_rows: int = 0
    nominal: tuple[tuple[int, int], ...] = ()
    draw: int = 0

    def examples_at(self, updates: int) -> int:
        """Examples that it has been trained on after so many updates."""
        return examples_after(updates, self.batch_size, self.updates, self.last_rows)

    @property
    def trains(self) -> bool:
        """Whether there is anything to train: a base is there already, and noise is none."""
        return self.base is None and not self.draw

    @property
    def requires(self) -> "tuple[Run, ...]":
        """The runs that have to be done before it: its parent, and whoever wrote what it trains on."""
        authors = (self.cross.answers.author, self.cross.opposite.author) if self.cross else ()
        return tuple({run.key: run for run in (self.parent, *authors) if run is not None}.values())

    @property
    def randomness(self) -> str:
        """Runs with an equal one and an equal seed draw the same numbers: the lines of slices are alignments."""
        return "align" if self.line else self.stage

    @property
    def root(self) -> "Run":
        """The run at the beginning of its line."""
        return self if self.parent is None else self.parent.root

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
            parent_examples=self.parent.examples_at(self.parent_updates) if self.parent else 0,
            stage=self.stage,
            arm=self.arm,
            method=self.objective["name"],
            seed=self.seed,
            align_volume=self.align_volume,
            examples=self.examples_at(self.updates),
            updates=self.updates,
            batch_size=self.batch_size,
            points=sorted(map(self.examples_at, self.checkpoints)),
            model=self.root.base.label if self.root.base else "",
            pretrain_tokens=self.pretrain_tokens,
            **(dict(last_rows=self.last_rows) if self.last_rows else {}),
            **(dict(nominal=[list(pair) for pair in self.nominal]) if self.nominal else {}),
            **(dict(lora=self.lora.identity) if self.lora else {}),
            **(dict(draw=self.draw) if self.draw else {}),
            **(dict(line=self.line) if self.line else {}),
            **(dict(sequence=list(self.sequence)) if self.sequence else {}),
            **(dict(line=self.cross.line, pair=[self.cross.earlier, self.cross.later]) if self.cross else {}),
        )
