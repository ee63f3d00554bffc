"""How does a config become measured runs and a report?

config -> tree of runs -> each run trained, measured, checkpointed -> one table -> report. Everything is kept under one working
directory, so that the same call continues, and a larger study takes over what is there.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

from elastic_jax import config as config_lib
from elastic_jax import environment, report
from elastic_jax.config import Config
from elastic_jax.data import files
from elastic_jax.data.build import StudyData, build
from elastic_jax.errors import UserError, closest
from elastic_jax.measures.protocol import Protocol
from elastic_jax.models.config import model_config
from elastic_jax.models.transformer import Decoder
from elastic_jax.parallel import distributed, together
from elastic_jax.parallel.mesh import batch_shards, check_batch, make_mesh, without_lanes
from elastic_jax.study import agree, execute, population, tree
from elastic_jax.study.tree import Run
from elastic_jax.study.workdir import Workdir
from elastic_jax.train.accumulate import check_accumulate

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

    def __init__(self, config: Config, workdir: epath.PathLike):
        config_lib.validate(config)
        self.config = config
        self.workdir = Workdir(workdir)
        self.mesh: Mesh = make_mesh(**config.mesh)
        for stage in tree.STAGES:
            section = config[stage]
            check_batch(f"{stage}.batch_size", section.batch_size, self.mesh)
            check_accumulate(stage, section.batch_size, section.accumulate, section.reduce, batch_shards(self.mesh))
        if self.mesh.shape["run"] == 1 and batch_shards(self.mesh) % jax.process_count():
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
        data = made[0] if made else make()
        if jax.process_count() > 1:  # hosts without a common disk have prepared each their own
            together.same_for_all("The prepared data", data.digest, "Give every host the same raw files and versions.")
        return data

    @cached_property
    def model(self) -> Decoder:
        section = {k: v for k, v in self.config.model.items() if v is not None}
        return Decoder(model_config(section, self.data.tokenizer.vocab_size, self.config.data.seq_len))

    @cached_property
    def protocol(self) -> Protocol:
        return Protocol(self.model, self.data, without_lanes(self.mesh), self.config.measures.to_dict())

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
        _ = self._width
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
            self.config.checkpoint_seconds,
            self.config.log.seconds,
            self.config.log.tensorboard,
            self.config.watchdog.factor,
            self.config.watchdog.floor_seconds,
        )
        return execute.Executor(self.workdir, self.model, self.mesh, self.data, self.protocol, settings)

    @cached_property
    def _width(self) -> int:
        """Lanes of a population; 1 where every run is trained by itself."""
        return population.width(self.config.population, self.mesh, self.model.size)

    def status(self) -> list[Status]:
        found = []
        for run in self.runs:
            done = self._executor.is_done(run)
            reached = run.updates if done else min(self.workdir.reached(run.key), run.updates)
            found.append(Status(run, done, reached))
        return found

    def run(self, stage: str | None = None, only: Sequence[str] | None = None) -> epath.Path | None:
        """Train and measure what is missing, then write the table and the report.

        Args:
          stage: stop after this stage ("pretrain", "align" or "perturb"); by default everything.
          only: keys of runs: these alone, once their parents are done, and neither table nor report; several processes may
            train different runs of a study at the same time.

        Returns:
          The report, of what is measured so far; None on processes other than 0, and with `only`.
        """
        if stage is not None and stage not in tree.STAGES:
            raise UserError(f"--stage={stage}: expected one of {', '.join(tree.STAGES)}.")
        if stage is not None and only is not None:
            raise UserError("--only and --stage: give one of them.")
        wanted = self._only(only) if only is not None else self.runs if stage is None else _needed(self.runs, stage)
        keys = [run.key for run in wanted] if only is not None else None
        with contextlib.ExitStack() as held:
            agree.from_main(lambda: held.enter_context(self.workdir.lock(keys)))
            self.check()
            self.record(again=only is None)
            open_keys = agree.from_main(lambda: [run.key for run in wanted if not self._executor.is_done(run)])
            todo = [run for run in wanted if run.key in open_keys]
            if todo and distributed.is_main():
                self._stamp.unlink(missing_ok=True)
            self._train(wanted, todo, alone=only is not None)
            if only is not None:
                return None
            return self.write_report(fresh=bool(todo)) if distributed.is_main() else None

    def _only(self, keys: Sequence[str]) -> list[Run]:
        """The runs with these keys. Raises UserError for one that is not of this study, or whose parent is not done."""
        known = {run.key: run for run in self.runs}
        for key in keys:
            if key not in known:
                raise UserError(f"--only={key}: no such run in {self.config.name}. {closest(key, known)}")

        def first_open() -> list[str]:
            for key in keys:
                parent = known[key].parent
                if parent is not None and parent.key not in keys and not self._executor.is_done(parent):
                    return [key, parent.key]
            return []

        found = agree.from_main(first_open)
        if found:
            raise UserError(
                f"--only={found[0]}: its parent {found[1]} is not done. Run --only={found[1]} first, or both together."
            )
        return [run for run in self.runs if run.key in keys]

    def _train(self, wanted: list[Run], todo: list[Run], alone: bool) -> None:
        """Bring the runs `todo` to their ends, siblings together where that is faster."""
        cost = {run.key: run.updates * self._executor.positions(run) for run in wanted}
        total, spent = sum(cost.values()), sum(cost.values()) - sum(cost[run.key] for run in todo)
        width = self._width
        # Of the whole tree, so that who is trained with whom does not depend on what is done already.
        groups = population.siblings(self.runs, self._executor.rows) if width > 1 else [[run] for run in self.runs]
        for group in groups:
            several = len(group) > 1
            here = [run for run in group if run in todo]
            for runs in [here] if several and here else [[run] for run in here]:
                show = partial(
                    execute.display,
                    model=self.model,
                    index=wanted.index(runs[0]) + 1,
                    runs=len(wanted),
                    study=(total, spent),
                    seconds=self.config.log.seconds,
                    count=self.mesh.size,
                    tokens_per_step=cost[runs[0].key] // runs[0].updates,
                )
                repair = [run.key for run in wanted] if alone else None
                if several:
                    lanes = population.lanes(width, len(group), self.mesh)
                    with execute.display_together(runs, show) as together_shown:
                        self._executor.execute_together(runs, together_shown, lanes, repair)
                else:
                    self._executor.execute(runs[0], show, repair)
                distributed.barrier(runs[0].key)
                spent += sum(cost[run.key] for run in runs)

    def record(self, again: bool = True) -> None:
        """Write down what the study is, where the table and the report find it.

        Args:
          again: also where that is written already; several processes at once need not.
        """
        if not distributed.is_main():
            return
        known = self.workdir.studies_file()["studies"].get(self.config.name, {})
        same = known.get("fingerprint") == self.fingerprint
        if same and not again:
            return
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
            facts=self._executor.data_facts(self.runs),
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

    def write_report(self, fresh: bool = True) -> epath.Path:
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
    def _stamp(self) -> epath.Path:
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


def open_study(config: Config, workdir: epath.PathLike) -> Study:
    """Bind a config to a working directory; nothing is computed yet."""
    return Study(config, workdir)


def run(
    config: Config, workdir: epath.PathLike, stage: str | None = None, only: Sequence[str] | None = None
) -> epath.Path | None:
    """Run a whole study, or continue it; returns the path of the report. `stage` and `only` as for `Study.run`."""
    return Study(config, workdir).run(stage, only)


def say(text: str) -> None:
    """To the person at the terminal, from process 0."""
    if distributed.is_main():
        print(text, file=sys.stdout, flush=True)


def devices() -> str:
    """What it runs on, in words: `8 x NVIDIA H200 (gpu), 2 processes`."""
    found, count = jax.devices(), jax.process_count()
    platform = "" if found[0].device_kind == found[0].platform else f" ({found[0].platform})"
    return f"{len(found)} x {found[0].device_kind}{platform}" + (f", {count} processes" if count > 1 else "")


def describe_plan(study: Study) -> dict[str, Any]:
    """Totals for one line."""
    runs = study.runs
    updates = sum(run.updates for run in runs)
    tokens = sum(run.updates * run.batch_size for run in runs) * study.config.data.seq_len
    return dict(runs=len(runs), updates=updates, tokens=tokens, params=study.model.size)
