"""Which runs make up a study, and when are two runs the same run?

A run is a trajectory: a stage applied to one parent checkpoint. Its identity is the hash of everything that its numbers depend
on: the stage's section of the resolved config, the parent's identity and the point taken from it, the data, the seed. It does
not name the length where the schedule is constant: then the model after m examples of a longer run *is* the model of volume m,
all volumes of a column share one run, and a larger study extends it. A schedule that decays depends on its end, so there every
volume is a run of its own.

The resistance experiment (`resistance.slices`) trains points of an alignment on what its other points write. What a checkpoint
writes follows from it, the queries and how is sampled, so that these runs too are known before anything is trained.

With `base.hf` the roots are not trained: they are checkpoints of others, of zero updates, known by the digest of their weights.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from elastic_jax import objectives
from elastic_jax.base import Base
from elastic_jax.config import Config
from elastic_jax.data.files import digest_of
from elastic_jax.models.config import ModelConfig
from elastic_jax.models.lora import LoraConfig, lora_config
from elastic_jax.train.accumulate import Reduce
from elastic_jax.train.last_batch import CHOICES, LastBatch, examples_after, updates_of
from elastic_jax.train.optim import OptimConfig, optim_config

STAGES = ("pretrain", "align", "perturb", "resistance")
FORMAT = 3  # part of every identity: raised when the same config would give other numbers

# Fields of `ModelConfig` that say how it is computed, not what; the tokens in use follow from the data.
EXECUTION = ("layout", "remat", "attention", "loss_chunk", "used_vocab")


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
      last_batch: what its last batch is, where that is not whole.
      last_rows: examples in it; 0 where it is whole.
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
    last_batch: LastBatch = "whole"
    last_rows: int = 0
    nominal: tuple[tuple[int, int], ...] = ()

    def examples_at(self, updates: int) -> int:
        """Examples that it has been trained on after so many updates."""
        return examples_after(updates, self.batch_size, self.updates, self.last_rows)

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
            **(dict(line=self.line) if self.line else {}),
            **(dict(line=self.cross.line, pair=[self.cross.earlier, self.cross.later]) if self.cross else {}),
        )


def log_spaced(updates: int, per_octave: int) -> frozenset[int]:
    """0, 1, 2, 4, ... with `per_octave` points for each doubling, and the last update."""
    points, k = {0, updates}, 0
    while (point := round(2 ** (k / per_octave))) < updates:
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


def slice_updates(config: Config) -> list[int]:
    """Updates of alignment after which `resistance.slices` end; [] without them."""
    volumes, batch = config.align.volumes, config.align.batch_size
    return [round(share * max(volumes) / batch) for share in config.resistance.slices] if volumes else []


def _answers(config: Config, author: Run, updates: int, queries: str) -> Answers:
    section = config.resistance
    how = {name: section[name] for name in ("temperature", "top_k", "top_p", "length")}
    return Answers(author, updates, digest_of(["answers", FORMAT, author.identity, updates, queries, how]))


def build(
    config: Config, model: ModelConfig, digests: Mapping[str, str], bases: Sequence[tuple[Base, str]] = ()
) -> tuple[list[Run], list[str]]:
    """The runs of a study, parents before children, and notes on what is shared.

    Args:
      digests: content digest of the training data of each role, and of the queries under "resistance".
      bases: with `base.hf`, the checkpoints that it names and the digest of the weights of each.
    """
    architecture = architecture_of(model)
    per_octave = config.measures.per_octave
    slices = slice_updates(config)
    runs: list[Run] = []

    def add(
        stage: str,
        seed: int,
        arm: str,
        points: list[int],
        suffix: str,
        parent: Run | None,
        at: int,
        volume: int,
        *,
        what_else: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> Run:
        """One run; `fields` and `what_else` are of the resistance experiment: fields of `Run`, and what of them is in the identity."""
        section = config["align" if fields.get("line") else stage]
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
            data=digests.get(stage, ""),
            objective=objective,
            optim=optim.identity,
            batch_size=section.batch_size,
            accumulate=section.accumulate,
            horizon=None if optim.horizon_free else updates,
        )
        lora = None if stage == "pretrain" else lora_config(config.lora.to_dict())
        if lora is not None:  # rank 0 leaves identities as they were before there was a choice
            what["lora"] = lora.identity
        what.update(what_else or {})
        run = Run(
            stage=stage,
            arm=arm,
            role=fields.pop("role", stage),
            seed=seed,
            name=f"{stage if arm in ('base', 'aligned') else arm}-s{seed}{suffix}",
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
            checkpoints=fields.pop("checkpoints", frozenset(points)),
            measures=fields.pop("measures", log_spaced(updates, per_octave) | frozenset(points)),
            pretrain_tokens=parent.pretrain_tokens if parent else updates * section.batch_size * config.data.seq_len,
            lora=lora,
            **fields,
        )
        runs.append(run)
        return run

    def imported(base: Base, digest: str, seed: int, suffix: str) -> Run:
        """A root that is there already. Seeds have one each, since what is sampled from it depends on them."""
        what = dict(format=FORMAT, stage="pretrain", seed=seed, model=architecture, base=digest)
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
        runs.append(run)
        return run

    def column(
        stage: str, seed: int, arm: str, suffix: str, parent: Run, at: int, volume: int
    ) -> list[tuple[int, Run]]:
        """One run for all volumes where they share their beginning, else one each; (volume, run) pairs.

        They do where the schedule is constant, and all batches are whole.
        """
        section = config[stage]
        size, how = section.batch_size, section.last_batch

        def incomplete(those: Sequence[int]) -> dict[str, Any]:
            """Fields of a run some of whose volumes are no whole number of batches."""
            rests = [v % size for v in those if v % size]
            if not rests or how == "drop":
                return dict(nominal=tuple((v, v // size) for v in those if v % size))
            return dict(what_else=dict(last_batch=[how, rests[-1]]), last_batch=how, last_rows=rests[-1])

        volumes = list(section.volumes)
        if not volumes:
            return []
        letter = "v" if stage == "align" else "p"
        if _shared(section):
            points = {v // size for v in volumes} | (set(slices) if stage == "align" else set())
            run = add(stage, seed, arm, sorted(points), suffix, parent, at, volume, **incomplete(volumes))
            return [(v, run) for v in volumes]
        constant, found = optim_config(section.optim.to_dict()).horizon_free, []
        for v in volumes:
            ends = [updates_of(v, size, how)]
            # Under a constant schedule the way there is that of the longer ones: only the ends differ.
            fields = incomplete([v])
            if constant:
                fields["measures"] = frozenset(ends)
            found.append((v, add(stage, seed, arm, ends, f"{suffix}-{letter}{v}", parent, at, volume, **fields)))
        return found

    def branches(root: Run, suffix: str) -> None:
        if config.perturb.control:
            column("perturb", root.seed, "control", suffix, root, root.updates, 0)
        aligned = None
        for volume, aligned in column("align", root.seed, "aligned", suffix, root, root.updates, 0):
            at = updates_of(volume, aligned.batch_size, config.align.last_batch)
            column("perturb", root.seed, "aligned", f"{suffix}-a{volume}", aligned, at, volume)
        if slices and aligned is not None:
            resistance(root, aligned, suffix)

    def resistance(root: Run, aligned: Run, suffix: str) -> None:
        """The pairs of slices of the alignment and of its controls, each trained on what the other writes."""
        section, seed = config.resistance, root.seed
        natural = "".join(str(i + 1) for i in range(len(slices)))

        def line(name: str, arm: str, role: str, parts: tuple[tuple[int, int], ...], points: list[int]) -> Run:
            what = dict(role=role, data=digests[role], line=parts)
            tail = f"{suffix}-order{name}" if arm == "reordered" else suffix
            where = dict(line=name, parts=parts, role=role, measures=frozenset(points))
            return add("resistance", seed, arm, points, tail, root, root.updates, 0, what_else=what, **where)

        def pairs(name: str, ends: list[tuple[Run, int]]) -> None:
            """Both directions of every pair of the points `ends`, which are in the order of the line."""
            written = [_answers(config, run, at, digests["resistance"]) for run, at in ends]
            tail = "" if name == natural else f"-order{name}" if name != "other" else "-other"
            for earlier, later in itertools.combinations(range(len(ends)), 2):
                for arm, start, author in (("inverse", later, earlier), ("forward", earlier, later)):
                    run, at = ends[start]
                    cross = Cross(
                        line=name,
                        earlier=earlier + 1,
                        later=later + 1,
                        answers=written[author],
                        opposite=written[start],
                        queries=section.queries,
                        cut=section.equal_tokens,
                    )
                    what = dict(data=cross.answers.identity, queries=cross.queries)
                    what |= dict(cut_to=cross.opposite.identity) if cross.cut else {}
                    updates = cross.queries // section.batch_size
                    add(
                        "resistance",
                        seed,
                        arm,
                        [updates],
                        f"{suffix}{tail}-{start + 1}to{author + 1}",
                        run,
                        at,
                        at * run.batch_size,
                        what_else=what,
                        role="answers",
                        checkpoints=frozenset(),  # nothing starts from it
                        cross=cross,
                    )

        pairs(natural, [(aligned, at) for at in slices])
        ranges = list(zip([0, *slices], slices, strict=False))
        for order in section.orders:
            parts = tuple(ranges[int(number) - 1] for number in str(order))
            points = list(itertools.accumulate(end - begin for begin, end in parts))
            run = line(str(order), "reordered", "align", parts, points)
            pairs(str(order), [(run, at) for at in points])
        if section.other_task:
            last = slices[-1]
            other = line("other", "other", "perturb", ((0, last),), [last])
            pairs("other", [(aligned, last), (other, last)])

    for seed in config.seeds:
        for base, digest in bases:
            suffix = f"-{base.slug}"
            branches(imported(base, digest, seed, suffix), suffix)
        if not bases:
            updates = config.pretrain.tokens // (config.pretrain.batch_size * config.data.seq_len)
            branches(add("pretrain", seed, "base", [updates], "", None, 0, 0), "")

    notes = [
        f"base {base.label}: {base.where}{f', revision {base.revision}' if base.revision else ''}, weights {digest[:12]}"
        for base, digest in bases
    ]
    if (lora := lora_config(config.lora.to_dict())) is not None:
        notes.append(
            f"LoRA: what follows the base trains adapters of rank {lora.rank} on {', '.join(lora.targets)}, not all parameters"
        )
    for stage in ("align", "perturb"):
        section = config[stage]
        if not section.volumes:
            notes.append(f"{stage}: not run, since {stage}.volumes is empty")
            continue
        constant = optim_config(section.optim.to_dict()).horizon_free
        why = "the last batch may not be whole" if constant else "the schedule depends on its end"
        what = "one run per parent, recorded at" if _shared(section) else f"a run each, since {why}, for"
        notes.append(f"{stage} volumes: {what} {', '.join(map(str, section.volumes))} examples")
        notes.extend(_incomplete_notes(stage, section))
    if slices:
        section = config.resistance
        ends = ", ".join(f"{at * config.align.batch_size:,}" for at in slices)
        notes.append(
            f"resistance: slices end at {ends} examples of alignment; each writes {section.queries + section.heldout} answers, of which "
            f"{section.queries} are trained on" + (", cut to equal lengths" if section.equal_tokens else "")
        )
    if config.perturb.volumes and not config.perturb.control:
        notes.append("no control arm: perturb.control is off")
    if len(config.seeds) == 1:
        notes.append("one seed: no intervals over seeds")
    return runs, notes


def _shared(section: Config) -> bool:
    """Whether the volumes of a stage are points of one run."""
    whole = section.last_batch in ("whole", "drop") or not any(v % section.batch_size for v in section.volumes)
    return whole and optim_config(section.optim.to_dict()).horizon_free


def _incomplete_notes(stage: str, section: Config) -> list[str]:
    """What becomes of the examples of this stage that do not fill a batch, and which volumes train nothing."""
    size, how = section.batch_size, section.last_batch
    if how == "whole":
        return []
    made = ", ".join(f"{v} makes {updates_of(v, size, how)}" for v in section.volumes)
    found = [f"{stage}.last_batch={how}, batches of {size}: {CHOICES[how]}. Updates: {made}"]
    none = [str(v) for v in section.volumes if not updates_of(v, size, how)]
    if none:
        found.append(
            f"{stage} volumes {', '.join(none)} make no update at all: what is shown there is the model before {stage}, unchanged"
        )
    return found


def data_kinds(config: Config) -> dict[str, str]:
    """Kind of row, "text" or "pair", that each fine-tuning stage reads."""
    return {stage: objectives.make(config[stage].objective.to_dict()).rows for stage in ("align", "perturb")}
