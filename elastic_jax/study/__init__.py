"""How does a config become measured runs and a report?

config -> tree of runs -> each run trained, measured, checkpointed -> one table -> report. Everything is kept under one working
directory, so that the same call continues, and a larger study takes over what is there.
"""

import contextlib
import dataclasses
import sys
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from elastic_jax import config as config_lib
from elastic_jax import environment, report
from elastic_jax.config import Config
from elastic_jax.data import files
from elastic_jax.data.build import StudyData, build
from elastic_jax.errors import UserError
from elastic_jax.measures.protocol import Protocol
from elastic_jax.models.config import model_config
from elastic_jax.models.transformer import Decoder
from elastic_jax.parallel import distributed
from elastic_jax.parallel.mesh import batch_shards, check_batch, make_mesh
from elastic_jax.study import agree, execute, tree
from elastic_jax.study.tree import Run
from elastic_jax.study.workdir import Workdir

DATA_TIMEOUT = 24 * 3600.0  # seconds for process 0 to prepare the data while the others wait


@dataclasses.dataclass(frozen=True)
class Status:
    """One run of the tree: how much of it is done."""

    run: Run
    done: bool
    updates: int  # that reached a checkpoint


class Study:
    """A config bound to a working directory and a device mesh.

    Raises:
      UserError: the config cannot work, or the folder is not one of ours.
    """

    def __init__(self, config: Config, workdir: str | Path):
        config_lib.validate(config)
        self.config = config
        self.workdir = Workdir(workdir)
        self.mesh: Mesh = make_mesh(**config.mesh)
        for stage in tree.STAGES:
            parts = config[stage].batch_size // config[stage].accumulate
            check_batch(f"{stage}.batch_size / accumulate", parts, self.mesh)
        if batch_shards(self.mesh) % jax.process_count():
            raise UserError(
                f"mesh: data x fsdp = {batch_shards(self.mesh)} parts of a batch do not divide over {jax.process_count()} "
                "processes. Every process reads rows of its own: lower mesh.tensor."
            )
        agree.from_main(lambda: self.workdir.open(create=True))

    @cached_property
    def data(self) -> StudyData:
        """Prepared on first use, by process 0 before the others look."""
        make = partial(build, self.config.data.to_dict(), self.workdir.data, objectives=tree.data_kinds(self.config))
        made: list[StudyData] = []
        agree.from_main(lambda: made.append(make()), DATA_TIMEOUT)
        return made[0] if made else make()

    @cached_property
    def model(self) -> Decoder:
        section = {k: v for k, v in self.config.model.items() if v is not None}
        return Decoder(model_config(section, self.data.tokenizer.vocab_size, self.config.data.seq_len))

    @cached_property
    def protocol(self) -> Protocol:
        return Protocol(self.model, self.data, self.mesh, self.config.measures.to_dict())

    @cached_property
    def _tree(self) -> tuple[list[Run], list[str]]:
        digests = {role: prepared.digest for role, prepared in self.data.train.items()}
        return tree.build(self.config, self.model.config, digests)

    @property
    def runs(self) -> list[Run]:
        """Parents before children."""
        return self._tree[0]

    @property
    def notes(self) -> list[str]:
        return self._tree[1]

    def check(self) -> None:
        """Everything that can be known to fail before the first update.

        Raises:
          UserError: too few rows for a volume, a model that does not fit the mesh, or samples longer than a row.
        """
        self.model.shardings(self.mesh)
        for stage in ("align", "perturb"):
            rows, largest = self.data.train[stage].rows, max(self.config[stage].volumes)
            if largest > rows:
                raise UserError(
                    f"{stage}.volumes asks for {largest} examples, but data has {rows} for {stage}. Lower the volumes, or raise "
                    f"{'data.rows.' + stage if self.config.data.kind == 'text' else f'data.{stage}.rows'}."
                )
        asked, length = self.config.measures.sample_tokens, self.data.prompts.shape[1]
        longest = self.config.data.seq_len + 1 - length
        if asked > longest:
            raise UserError(
                f"measures.sample_tokens={asked}: after prompts of {length} tokens a row of data.seq_len="
                f"{self.config.data.seq_len} has room for {longest}. Use {longest} or less, or 0 to fill the row."
            )

    @cached_property
    def _executor(self) -> execute.Executor:
        settings = execute.Settings(
            self.config.checkpoint_seconds, self.config.log.seconds, self.config.log.tensorboard
        )
        return execute.Executor(self.workdir, self.model, self.mesh, self.data, self.protocol, settings)

    def status(self) -> list[Status]:
        found = []
        for run in self.runs:
            done = self._executor.is_done(run)
            reached = run.updates if done else min(self.workdir.reached(run.key), run.updates)
            found.append(Status(run, done, reached))
        return found

    def run(self, stage: str | None = None) -> Path | None:
        """Train and measure what is missing, then write the table and the report.

        Args:
          stage: stop after this stage ("pretrain", "align" or "perturb"); by default everything.

        Returns:
          The report, of what is measured so far; None on processes other than 0.
        """
        if stage is not None and stage not in tree.STAGES:
            raise UserError(f"--stage={stage}: expected one of {', '.join(tree.STAGES)}.")
        with contextlib.ExitStack() as held:
            agree.from_main(lambda: held.enter_context(self.workdir.lock()))
            self.check()
            self.record()
            wanted = self.runs if stage is None else _needed(self.runs, stage)
            open_keys = agree.from_main(lambda: [run.key for run in wanted if not self._executor.is_done(run)])
            todo = [run for run in wanted if run.key in open_keys]
            if todo and distributed.is_main():
                self._stamp.unlink(missing_ok=True)
            length = self.config.data.seq_len
            cost = {run.key: run.updates * run.batch_size * length for run in wanted}
            total, spent = sum(cost.values()), sum(cost.values()) - sum(cost[run.key] for run in todo)
            for run in todo:
                show = partial(
                    execute.display,
                    model=self.model,
                    index=wanted.index(run) + 1,
                    runs=len(wanted),
                    study=(total, spent),
                    seconds=self.config.log.seconds,
                    count=self.mesh.size,
                )
                self._executor.execute(run, show)
                distributed.barrier(run.key)
                spent += cost[run.key]
            return self.write_report(fresh=bool(todo)) if distributed.is_main() else None

    def record(self) -> None:
        """Write down what the study is, where the table and the report find it."""
        if not distributed.is_main():
            return
        known = self.workdir.studies_file()["studies"].get(self.config.name, {})
        same = known.get("fingerprint") == self.fingerprint
        runs = [dict(run.describe(), measured=sorted(run.measures)) for run in self.runs]
        made_with = known["environment"] if same else environment.describe()
        entry = dict(
            fingerprint=self.fingerprint,
            config=config_lib.plain(self.config),
            environment=made_with,
            command=made_with["command"],
            model=self.model_name,
            params=self.model.size,
            protocol=self.protocol.digest,
            facts=self.data.facts,
            notes=self.notes,
            runs=runs,
        )
        self.workdir.record_study(self.config.name, entry)

    @property
    def fingerprint(self) -> str:
        return config_lib.fingerprint(self.config)

    @property
    def model_name(self) -> str:
        c = self.model.config
        return f"{self.config.model.size or 'custom'}: {c.layers} layers, width {c.embed}, vocabulary {c.vocab_size}"

    def write_report(self, fresh: bool = True) -> Path:
        """Table and report from what is measured so far; nothing is written again where nothing changed."""
        index = self.workdir.report / "index.html"
        if not fresh and index.exists() and self._stamp.exists() and self._stamp.read_text() == self.fingerprint:
            return index
        self._stamp.unlink(missing_ok=True)
        self.workdir.write_table()
        eps = self.config.measures.kl_eps
        report.render(self.workdir.table, self.workdir.report, study=self.config.name, eps=eps)
        files.write_text(self._stamp, self.fingerprint)
        return index

    @property
    def _stamp(self) -> Path:
        """Says that the report shows all there is of the study with this fingerprint; gone while it does not."""
        return self.workdir.report / "fingerprint"


def _needed(runs: list[Run], stage: str) -> list[Run]:
    """The runs of a stage and all that they descend from."""
    keys: set[str] = set()
    for run in runs:
        node = run if run.stage == stage else None
        while node is not None:
            keys.add(node.key)
            node = node.parent
    return [run for run in runs if run.key in keys]


def open_study(config: Config, workdir: str | Path) -> Study:
    """Bind a config to a working directory; nothing is computed yet."""
    return Study(config, workdir)


def run(config: Config, workdir: str | Path, stage: str | None = None) -> Path | None:
    """Run a whole study, or continue it; returns the path of the report."""
    return Study(config, workdir).run(stage)


def say(text: str) -> None:
    """To the person at the terminal, from process 0."""
    if distributed.is_main():
        print(text, file=sys.stdout, flush=True)


def devices() -> str:
    found = jax.devices()
    return f"{len(found)} x {found[0].device_kind}"


def describe_plan(study: Study) -> dict[str, Any]:
    """Totals for one line."""
    runs = study.runs
    updates = sum(run.updates for run in runs)
    tokens = sum(run.updates * run.batch_size for run in runs) * study.config.data.seq_len
    return dict(runs=len(runs), updates=updates, tokens=tokens, params=study.model.size)
