"""How does a config become measured runs and a report?

config -> tree of runs -> each run trained, measured, checkpointed -> one table -> report. Everything is kept under one working
directory, so that the same call continues, and a larger study takes over what is there.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import jax
from etils import epath
from jax.sharding import Mesh

from elastic_jax import config as config_lib
from elastic_jax import environment, report
from elastic_jax.base import Base
from elastic_jax.config import Config
from elastic_jax.data import files, heldout, tasks
from elastic_jax.data.build import StudyData, build
from elastic_jax.errors import UserError, closest
from elastic_jax.measures.likelihood import make_row_sums
from elastic_jax.measures.protocol import Protocol
from elastic_jax.measures.questions import NO_FRAME, frame_of
from elastic_jax.measures.scorers import further
from elastic_jax.models.adapted import Adapted
from elastic_jax.models.config import model_config
from elastic_jax.models.filters import Choice
from elastic_jax.models.lora import lora_config
from elastic_jax.models.transformer import Decoder, Params
from elastic_jax.parallel import distributed, together
from elastic_jax.parallel.mesh import batch_shards, check_batch, make_mesh, without_lanes
from elastic_jax.study import agree, answers, execute, population, threads, tree
from elastic_jax.study.session import Session
from elastic_jax.study.tree import Run
from elastic_jax.study.workdir import Workdir
from elastic_jax.train import account
from elastic_jax.train.accumulate import check_accumulate

if TYPE_CHECKING:
    from elastic_jax.study.sources import Sources

DATA_TIMEOUT = 24 * 3600.0  # seconds for process 0 to prepare the data while the others wait


@dataclasses.dataclass(frozen=True)
class Status:
    """One run of the tree: how much of it is done."""

    run: Run
    done: bool
    updates: int  # that reached a checkpoint


class Study:
    """A config bound to a working directory and a device mesh.

    Args:
      weights: False where a plan is all that is asked of the study: then those of a base and of judges need not be there, and its
        runs are not told from those of other weights.
      session: what it shares with other studies of this process.

    Raises:
      UserError: the config cannot work, or the folder is not one of ours.
    """

    def __init__(self, config: Config, workdir: epath.PathLike, weights: bool = True, session: Session | None = None):
        config_lib.validate(config)
        if config.variants:
            raise UserError(
                f"{config.name} has variants ({', '.join(config.variants)}), which are a study each: study.suite.Suite runs them all."
            )
        self.config, self.session = config, session or Session()
        self._weights = weights
        self.workdir = Workdir(workdir)
        self.mesh: Mesh = make_mesh(**config.mesh)
        for stage in config_lib.stages(config):
            section = config[stage]
            check_batch(f"{stage}.batch_size", section.batch_size, self.mesh)
            check_accumulate(stage, section.batch_size, section.accumulate, section.reduce, batch_shards(self.mesh))
        if self.mesh.shape["run"] == 1 and batch_shards(self.mesh) % jax.process_count():
            raise UserError(
                f"mesh: data x fsdp = {batch_shards(self.mesh)} parts of a batch do not divide over {jax.process_count()} "
                "processes. Every process reads rows of its own: lower mesh.tensor."
            )
        # Opened before anything is prepared: a judge that is not there would be missed when the first run is measured.
        self._scorers = further.open_all(
            config.measures.scorers if weights else (),
            without_lanes(self.mesh),
            batch_size=config.measures.batch_size,
            cache=self.workdir.judged,
        )
        agree.from_main(lambda: self.workdir.open(create=True))

    @cached_property
    def data(self) -> StudyData:
        """Prepared on first use, by process 0 before the others look."""
        section = self.config.data.to_dict()
        if self.sources:
            from elastic_jax.study import sources

            section = sources.data_section(self.sources, self.config)
        pretrain = "pretrain" in config_lib.stages(self.config)
        make = partial(build, section, self.workdir.data, objectives=tree.data_kinds(self.config), pretrain=pretrain)
        made: list[StudyData] = []
        with self.session.account.during(account.DATA):
            agree.from_main(lambda: made.append(make()), DATA_TIMEOUT)
            data = made[0] if made else make()
        if jax.process_count() > 1:  # hosts without a common disk have prepared each their own
            together.same_for_all("The prepared data", data.digest, "Give every host the same raw files and versions.")
        return data

    @cached_property
    def sources(self) -> "Sources":
        """The checkpoints of `base.hf`, opened but not read; {} where the study pre-trains."""
        if not self.config.base.hf:
            return {}
        from elastic_jax.study import sources  # readers of checkpoints, which a study of its own does without

        return sources.opened(self.config, self._weights)

    @cached_property
    def model(self) -> Decoder:
        tokens, length = self.data.tokenizer.vocab_size, self.config.data.seq_len
        if not self.sources:
            return Decoder(model_config(config_lib.model_section(self.config), tokens, length))
        from elastic_jax.study import sources

        return Decoder(sources.model_config(self.sources, self.config, tokens))

    @cached_property
    def protocol(self) -> Protocol:
        settings = self.config.measures.to_dict()
        text = self.config.data.kind == "text" and self._scorers
        frame = frame_of(self.config.data.template, self.data.tokenizer) if text else NO_FRAME
        mesh, size = without_lanes(self.mesh), settings["batch_size"]
        sums = self.session.once(
            ("row sums", self.model.config, mesh, size), lambda: make_row_sums(self.model, mesh, size)
        )
        return Protocol(self.model, self.data, mesh, settings, self._scorers, frame, sums)

    @cached_property
    def _tree(self) -> tuple[list[Run], list[str]]:
        digests = {role: prepared.digest for role, prepared in self.data.train.items()}
        asked = self.config.resistance
        if asked.slices:
            digests["resistance"] = answers.queries_digest(self.data, asked.queries + asked.heldout)
        return tree.build(self.config, self.model.config, digests, list(self._base_digests.items()))

    @cached_property
    def _base_digests(self) -> dict[Base, str]:
        """Identity of the weights of every base."""
        if not self._weights:
            return dict.fromkeys(self.sources, "weights not read")
        found = {base: source.digest for base, source in self.sources.items()}
        if found and jax.process_count() > 1:
            what = "The weights of " + " and ".join(base.label for base in found)
            together.same_for_all(what, " ".join(found.values()), "Give every host the same files of base.hf.")
        return found

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
        lora = lora_config(self.config.lora.to_dict())
        if lora is not None:  # a rank that the base has no room for
            Adapted(self.model.config, lora).shardings(self.mesh)
        self._check_bases()
        _ = self._at_once
        for stage in ("align", "perturb"):
            rows, largest = self.data.train[stage].rows, max(self.config[stage].volumes, default=0)
            if largest > rows:
                raise UserError(
                    f"{stage}.volumes asks for {largest} examples, but data has {rows} for {stage}. Lower the volumes, or raise "
                    f"{'data.rows.' + stage if self.config.data.kind == 'text' else f'data.{stage}.rows'}."
                )
        self._check_resistance()
        for task in self.config.data.tasks.names if self.config.order.volume else ():
            rows = self.data.train[tasks.role(task)].rows
            if self.config.order.volume > rows:
                raise UserError(
                    f"order.volume={self.config.order.volume}: data has {rows} rows for {task}. Lower it, or raise data.tasks.rows."
                )
        measures, c = self.config.measures, self.model.config
        Choice(measures.temperature, measures.top_k, measures.top_p).check(c.used_vocab or c.vocab_size)
        asked, length = measures.sample_tokens, self.data.prompts.shape[1]
        longest = self.config.data.seq_len + 1 - length
        if asked > longest:
            raise UserError(
                f"measures.sample_tokens={asked}: after prompts of {length} tokens a row of data.seq_len="
                f"{self.config.data.seq_len} has room for {longest}. Use {longest} or less, or 0 to fill the row."
            )

    def _check_resistance(self) -> None:
        """Raises UserError for more queries than there are, answers longer than a row, and slices longer than the other task."""
        asked, c = self.config.resistance, self.model.config
        if not asked.slices:
            return
        answers.room(self.data, c.seq_len, asked.length, asked.queries + asked.heldout)
        Choice(asked.temperature, asked.top_k, asked.top_p).check(c.used_vocab or c.vocab_size, "resistance")
        last, rows = tree.slice_updates(self.config)[-1] * self.config.align.batch_size, self.data.train["perturb"].rows
        if asked.other_task and last > rows:
            raise UserError(
                f"resistance.other_task trains on {last} examples of the data of perturb, as many as the last slice ends at, and there "
                f"are {rows}. Lower resistance.slices, or raise "
                f"{'data.rows.perturb' if self.config.data.kind == 'text' else 'data.perturb.rows'}."
            )

    def _check_bases(self) -> None:
        """Raises UserError for weights that are named twice, or are not those that the study began with."""
        if not self.sources or not self._weights:
            return
        known: dict[str, Base] = {}
        for base, digest in self._base_digests.items():
            if digest in known:
                raise UserError(
                    f"base.hf: {known[digest].label} and {base.label} hold the same weights. Name them once."
                )
            known[digest] = base
        agree.from_main(lambda: self._check_unchanged())

    def _check_unchanged(self) -> None:
        before = self.workdir.studies_file()["studies"].get(self.config.name, {}).get("bases", [])
        digests = {(one["hf"], one["revision"]): one["digest"] for one in before}
        for base, digest in self._base_digests.items():
            old = digests.get((base.where, base.revision), digest)
            if old != digest:
                raise UserError(
                    f"{base.field}: the weights are not those that study {self.config.name} began with (then {old[:12]}, now "
                    f"{digest[:12]}). Put the old ones back, or give the study another name."
                )

    @cached_property
    def _executor(self) -> execute.Executor:
        settings = execute.Settings(
            self.config.checkpoint_seconds,
            self.config.log.seconds,
            self.config.log.tensorboard,
            self.config.watchdog.factor,
            self.config.watchdog.floor_seconds,
            self.config.watchdog.patience_seconds,
        )
        asked = self.config.resistance.to_dict()
        fields = {f.name: asked[f.name] for f in dataclasses.fields(answers.Settings) if f.name in asked}
        asking = answers.Settings(**dict(fields, batch_size=self.config.measures.batch_size))
        return execute.Executor(
            self.workdir, self.model, self.mesh, self.data, self.protocol, settings, self.sources, asking, self.session
        )

    def params_at(self, run: Run, updates: int) -> Params:
        """Parameters at a kept point of a run of this study; nothing is trained.

        Raises:
          UserError: the point is damaged.
        """
        return self._executor.params_at(run, updates, repair=False)

    @cached_property
    def _width(self) -> int:
        """Lanes of a population; 1 where every run is trained by itself."""
        return population.width(self.config.population, self.mesh, self.model.size)

    @cached_property
    def _at_once(self) -> int:
        """Threads, each of which trains a run."""
        return threads.count(self.config.at_once, self.mesh, self.model.size, self._width)

    def status(self) -> list[Status]:
        found = []
        for run in self.runs:
            done = self._executor.is_done(run)
            reached = run.updates if done else min(self.workdir.reached(run.key), run.updates)
            found.append(Status(run, done, reached))
        return found

    def run(self, stage: str | None = None, only: Sequence[str] | None = None, page: bool = True) -> epath.Path | None:
        """Train and measure what is missing, then write the table and the report.

        Args:
          stage: stop after this stage (one of `tree.STAGES`); by default everything.
          only: keys of runs: these alone, once their parents are done, and neither table nor report; several processes may
            train different runs of a study at the same time.
          page: write table and report; a suite does that once, for all of its studies.

        Returns:
          The report, of what is measured so far; None on processes other than 0, with `only`, and without `page`.
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
                _stamp(self.workdir).unlink(missing_ok=True)
            self._train(wanted, todo, alone=only is not None)
            if only is not None or not page:
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
                for needed in known[key].requires:
                    if needed.key not in keys and not self._executor.is_done(needed):
                        parent = known[key].parent
                        what = (
                            "its parent"
                            if parent is not None and needed.key == parent.key
                            else "the author of its answers,"
                        )
                        return [key, needed.key, what]
            return []

        found = agree.from_main(first_open)
        if found:
            raise UserError(
                f"--only={found[0]}: {found[2]} {found[1]} is not done. Run --only={found[1]} first, or both together."
            )
        return [run for run in self.runs if run.key in keys]

    def _train(self, wanted: list[Run], todo: list[Run], alone: bool) -> None:
        """Bring the runs `todo` to their ends, several together where that is faster."""
        cost = {run.key: run.updates * self._executor.positions(run) if run.trains else 0 for run in wanted}
        total, spent = sum(cost.values()), sum(cost.values()) - sum(cost[run.key] for run in todo)
        width = self._width
        if self._at_once > 1 and len(todo) > 1:
            return self._train_in_threads(wanted, todo, cost, alone)
        # Of the whole tree, so that who is trained with whom does not depend on what is done already.
        trained = [run for run in self.runs if run.trains]
        groups = [[run] for run in self.runs if run.base is not None]
        groups += population.siblings(trained, self._executor.rows) if width > 1 else [[run] for run in trained]
        groups += [[run] for run in self.runs if run.draw]
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
                    tokens_per_step=cost[runs[0].key] // max(runs[0].updates, 1),
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

    def _train_in_threads(self, wanted: list[Run], todo: list[Run], cost: dict[str, int], alone: bool) -> None:
        """Runs that do not wait for one another at the same time, shown as one."""
        self.protocol.make_ready()
        repair = [run.key for run in wanted] if alone else None
        updates = sum(run.updates for run in todo if run.trains)
        show = partial(
            execute.display,
            model=self.model,
            index=len(wanted) - len(todo) + 1,
            runs=len(wanted),
            study=(sum(cost.values()), sum(cost.values()) - sum(cost[run.key] for run in todo)),
            seconds=self.config.log.seconds,
            count=self.mesh.size,
            tokens_per_step=sum(cost[run.key] for run in todo) // max(updates, 1),
        )
        with execute.display_together(todo, show, pausing=False) as shown:
            threads.run_all(
                todo,
                self._at_once,
                lambda run: self._executor.execute(run, shown, repair),
                stop=self._executor.halt.set,
            )

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
            bases=[
                dict(hf=base.where, revision=base.revision, label=base.label, digest=digest)
                for base, digest in self._base_digests.items()
            ],
            protocol=self.protocol.digest,
            export=dict(  # what `elastic_jax.hf.export` has to know to write a checkpoint down
                model=dataclasses.asdict(self.model.config),
                tokenizer=self.data.tokenizer.digest,
                data=self.data.digest,
                hf_config=next((source.hf_config for source in self.sources.values()), None),
            ),
            facts=[*self._executor.data_facts(self.runs), *heldout.compressed(self.data)],
            notes=self.notes,
            scorers=[one.describe() for one in self._scorers],
            runs=runs,
        )
        self.workdir.record_study(self.config.name, entry)

    @property
    def fingerprint(self) -> str:
        return config_lib.fingerprint(self.config)

    @property
    def model_name(self) -> str:
        if self.sources:
            return ", ".join(base.label for base in self.sources)
        c, size = self.model.config, config_lib.model_section(self.config).get("size")
        return f"{size or 'custom'}: {c.layers} layers, width {c.embed}, vocabulary {c.vocab_size}"

    def write_report(self, fresh: bool = True) -> epath.Path:
        """Table and report from what is measured so far; nothing is written again where nothing changed."""
        with self.session.account.during(account.REPORT):
            return write_report(self.workdir, self.config.name, self.fingerprint, self.config.measures.kl_eps, fresh)


def _needed(runs: list[Run], stage: str) -> list[Run]:
    """The runs of a stage and all that they descend from."""
    keys: set[str] = set()
    waiting = [run for run in runs if run.stage == stage]
    while waiting:
        run = waiting.pop()
        if run.key not in keys:
            keys.add(run.key)
            waiting.extend(run.requires)
    return [run for run in runs if run.key in keys]


def write_report(workdir: Workdir, name: str, fingerprint: str, eps: float, fresh: bool) -> epath.Path:
    """Table and report of a study, or of all variants of one config under its name; see `Study.write_report`."""
    index, stamp = workdir.report / "index.html", _stamp(workdir)
    if not fresh and index.exists() and stamp.exists() and stamp.read_text() == fingerprint:
        return index
    stamp.unlink(missing_ok=True)
    workdir.write_table()
    report.render(workdir.table, workdir.report, study=name, eps=eps)
    files.write_text(stamp, fingerprint)
    return index


def _stamp(workdir: Workdir) -> epath.Path:
    """Says that the report shows all there is of the study with this fingerprint; gone while it does not."""
    return workdir.report / "fingerprint"


def open_study(config: Config, workdir: epath.PathLike) -> Study:
    """Bind a config to a working directory; nothing is computed yet."""
    return Study(config, workdir)


def run(
    config: Config, workdir: epath.PathLike, stage: str | None = None, only: Sequence[str] | None = None
) -> epath.Path | None:
    """Run a whole study, or continue it; returns the path of the report. `stage` and `only` as for `Study.run`. A config with
    variants is run as all of them."""
    from elastic_jax.study.suite import Suite

    return Suite(config, workdir).run(stage, only)


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
    updates = sum(run.updates for run in runs if run.trains)
    tokens = sum(run.updates * run.batch_size for run in runs if run.trains) * study.config.data.seq_len
    return dict(runs=len(runs), updates=updates, tokens=tokens, params=study.model.size)
