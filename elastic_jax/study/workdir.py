"""What lies in a working directory, on a disk or in a bucket?"""

import contextlib
import io
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from elastic_jax.analysis import table
from elastic_jax.analysis.table import Frame
from elastic_jax.data import files
from elastic_jax.errors import UserError, first_line
from elastic_jax.study import lock as lock_lib
from elastic_jax.train import account, goodput

FORMAT = 1
ROW_COLUMNS = (
    "examples",
    "updates",
    "tokens",
    "measure",
    "split",
    "unit",
    "value",
    "stderr",
    "n",
    "commit",
    "text",
    "protocol",
)


_REQUESTS = 16  # at the same time to a bucket, where each takes tens of milliseconds
_COMMITTED = "commit_success.txt"  # orbax's mark of a complete checkpoint where it cannot rename one


def _own_beginning(name: str) -> bool:
    """What may be there of a command that was killed before it had written study.json."""
    return name in (".lock", ".locks") or name.startswith("study.json.tmp-")


class Workdir:
    """Paths, and reading and writing of the small files; every write is atomic.

    Args:
      path: a folder or `gs://bucket/folder`.

    Raises:
      UserError: a store that is not supported, or the package for it is not installed.
    """

    def __init__(self, path: os.PathLike | str):
        self.path = files.to_path(path)
        self._held = lock_lib.Held()

    @property
    def is_remote(self) -> bool:
        """Whether it lies in a bucket."""
        return files.is_remote(self.path)

    @property
    def table(self) -> epath.Path:
        return self.path / "measures.parquet"

    @property
    def report(self) -> epath.Path:
        return self.path / "report"

    @property
    def data(self) -> Path:
        """Prepared data, which is read at random and so needs a disk: a cache of this machine where the workdir is a bucket."""
        return files.cache_folder() if self.is_remote else Path(self.path / "data")

    @property
    def judged(self) -> epath.Path:
        """What judges have said of texts: `measures.scorers.judged`."""
        return self.path / "judged"

    @property
    def answers(self) -> epath.Path:
        """What checkpoints wrote for others to be trained on: `study.answers`."""
        return self.path / "answers"

    def run(self, key: str) -> epath.Path:
        return self.path / "runs" / key

    def open(self, create: bool) -> None:
        """Check that this is a working directory of ours, or may become one.

        Raises:
          UserError: it holds other things, is a file, cannot be written, or is not there (with create=False).
        """
        try:
            ours = (self.path / "study.json").exists()
        except Exception as error:
            if not self.is_remote:
                raise
            raise UserError(
                f"--workdir={self.path}: the bucket cannot be reached ({first_line(error, 200)}). Check its name, your permissions there, "
                "and your credentials (gcloud auth application-default login)."
            ) from error
        if not self.is_remote and self.path.exists() and not self.path.is_dir():
            raise UserError(f"--workdir={self.path}: this is a file. Give a folder.")
        if not ours and not create:
            raise UserError(
                f"--workdir={self.path}: no study here (no study.json). Start one with python -m elastic_jax.run."
            )
        try:
            if not ours and self.path.exists() and any(not _own_beginning(p.name) for p in self.path.iterdir()):
                raise UserError(
                    f"--workdir={self.path}: this folder holds other files and no study.json, so it is not one of ours. "
                    "Give a new or empty folder."
                )
            if create:
                self._create(ours)
        except OSError as error:
            raise UserError(
                f"--workdir={self.path}: cannot be written ({error.strerror or error}). Give another folder."
            ) from None
        found = self.studies_file().get("format")
        if found != FORMAT:
            raise UserError(
                f"--workdir={self.path}: written in format {found}, this version reads {FORMAT}. Use a new folder."
            )

    def _create(self, ours: bool) -> None:
        if not self.is_remote:
            self.path.mkdir(parents=True, exist_ok=True)
        if not ours:  # before anything else: a folder without it is not ours
            self._write_json("study.json", dict(format=FORMAT, latest="", studies={}))
        if not self.is_remote:
            (self.path / "runs").mkdir(exist_ok=True)
            if not os.access(self.path, os.W_OK):
                raise PermissionError("not writable")

    @contextlib.contextmanager
    def lock(self, keys: Sequence[str] | None = None) -> Iterator[None]:
        """Be the only writer of the whole workdir, or of the runs `keys`; see `elastic_jax.study.lock`.

        Temporary files that a killed writer of the same left behind are removed.

        Raises:
          UserError: another process has the whole, or one of these runs, or (for the whole) any run.
        """
        with lock_lib.hold(self.path, keys) as self._held:
            if not self.is_remote:
                folders = [self.run(key) for key in keys or ()]
                if keys is None:
                    folders = [self.path, self.report, self.answers, *(self.path / "runs").iterdir()]
                files.sweep(folders)
            try:
                yield
            finally:
                self._held = lock_lib.Held()

    def holders(self) -> dict[str, lock_lib.Holder]:
        """Who writes here now, by run, with `elastic_jax.study.lock.STUDY` for the whole."""
        return lock_lib.holders(self.path)

    def check_lock(self) -> None:
        """Raises UserError where another process has taken over the lock that this one had."""
        self._held.check()

    def studies_file(self) -> dict[str, Any]:
        try:
            return json.loads((self.path / "study.json").read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise UserError(
                f"{self.path / 'study.json'}: cannot be read ({error}). Restore it, or use a new --workdir."
            ) from None

    def study(self, name: str | None = None) -> dict[str, Any]:
        """What is known of a study; the latest by default."""
        found = self.studies_file()
        name = name or found["latest"]
        if name not in found["studies"]:
            known = ", ".join(found["studies"]) or "none yet"
            raise UserError(f"--study={name}: no such study in {self.path}. There: {known}.")
        return found["studies"][name]

    def record_study(self, name: str, entry: Mapping[str, Any]) -> None:
        found = self.studies_file()
        found["latest"] = name
        found["studies"][name] = dict(entry)
        self._write_json("study.json", found)
        self._write_json("config.json", entry["config"])
        self._write_json("environment.json", entry["environment"])

    def write_run(self, key: str, name: str, value: Mapping[str, Any]) -> None:
        self._write_json(f"runs/{key}/{name}", value)

    def read_run(self, key: str, name: str) -> dict[str, Any]:
        """A JSON file of a run; {} where there is none or it is torn."""
        try:
            return json.loads((self.run(key) / name).read_text())
        except (OSError, json.JSONDecodeError):
            return {}

    def is_done(self, key: str, protocol: str, checkpoints: Collection[int], measures: Collection[int]) -> bool:
        """Whether a run has these checkpoints, and was measured at these updates under this protocol."""
        done = self.read_run(key, "DONE")
        measured = done.get("measured", {}).get(protocol, [])
        return set(checkpoints) <= set(done.get("checkpoints", [])) and set(measures) <= set(measured)

    def reached(self, key: str) -> int:
        """Updates of the run's newest checkpoint; 0 where it has none."""
        folder = self.run(key) / "checkpoints"
        steps = sorted((int(p.name) for p in folder.glob("*") if p.name.isdigit()), reverse=True)
        if self.is_remote:
            steps = [step for step in steps if (folder / str(step) / _COMMITTED).exists()]
        return steps[0] if steps else 0

    def rows(self, key: str) -> Frame:
        """Everything measured in a run so far, under any protocol."""
        path = self.run(key) / "measures.parquet"
        if not path.exists():
            return pd.DataFrame(columns=list(ROW_COLUMNS))
        return pq.read_table(io.BytesIO(path.read_bytes())).to_pandas()

    def is_measured(self) -> bool:
        """Whether any run of a study here has been measured."""
        keys = {run["run"] for entry in self.studies_file()["studies"].values() for run in entry["runs"]}
        return any(self.each(lambda key: (self.run(key) / "measures.parquet").exists(), sorted(keys)))

    def add_rows(self, key: str, rows: list[dict[str, Any]]) -> None:
        new = pd.DataFrame(rows, columns=list(ROW_COLUMNS))
        old = self.rows(key)
        both = pd.concat([old, new], ignore_index=True) if len(old) else new
        self._write_parquet(self.run(key) / "measures.parquet", both, {})

    def each(self, function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        """`function` of every item, several at a time where the files lie in a bucket."""
        if not self.is_remote:
            return [function(item) for item in items]
        with ThreadPoolExecutor(_REQUESTS) as threads:
            return list(threads.map(function, items))

    def write_table(self) -> epath.Path:
        """The one long table: the rows of every study here, each under its own protocol and at its own points."""
        studies = self.studies_file()["studies"]
        frames = [self._study_rows(name, entry) for name, entry in studies.items()]
        frames = [frame for frame in frames if len(frame)]
        whole = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(table.COLUMNS))
        for column in table.STRINGS:
            whole[column] = whole[column].fillna("").astype(str)
        for column in table.INTEGERS:
            whole[column] = whole[column].fillna(0).astype(np.int64)
        for column in table.FLOATS:
            whole[column] = whole[column].astype(np.float64)
        hidden = ("facts", "protocol", "model", "params", "export")
        public = {}
        for name, entry in studies.items():
            public[name] = {k: v for k, v in entry.items() if k not in hidden}
            done = self.each(lambda run: self.read_run(run["run"], "DONE"), entry["runs"])
            spent = self.each(lambda run: self.read_run(run["run"], goodput.FILE), entry["runs"])
            public[name]["runs"] = [
                dict(
                    run, wall_seconds=end.get("wall_seconds"), spent=account.of_run(run["stage"], of.get("seconds", {}))
                )
                for run, end, of in zip(entry["runs"], done, spent, strict=True)
            ]
        metadata = {table.SCHEMA_KEY: json.dumps({"studies": public}).encode()}
        self._write_parquet(self.table, whole[list(table.COLUMNS)], metadata)
        return self.table

    def _study_rows(self, name: str, entry: Mapping[str, Any]) -> Frame:
        common = dict(study=name, params=entry["params"])
        # What is known of the data holds for all bases alike.
        of_all = dict(common, model="" if len(entry.get("bases", ())) > 1 else entry["model"])
        frames = [pd.DataFrame([dict(fact, **of_all) for fact in entry["facts"]])]
        every = self.each(lambda run: self.rows(run["run"]), entry["runs"])
        for run, rows in zip(entry["runs"], every, strict=True):
            rows = rows[(rows.protocol == entry["protocol"]) & rows.updates.isin(run["measured"])]
            if not len(rows):
                continue
            rows = rows.drop(columns="protocol").drop_duplicates(["updates", "measure", "split", "text"])
            # A volume whose rest did not fill a batch is the model that it left, under the volume's own number.
            there = [
                rows[rows.updates == updates].assign(examples=volume) for volume, updates in run.get("nominal", ())
            ]
            rows = pd.concat([rows, *there], ignore_index=True) if there else rows
            rows = rows.assign(**common, **{k: run[k] for k in ("run", "parent", "stage", "arm", "method", "seed")})
            # A study that was recorded by a version without bases has neither.
            rows["model"] = run.get("model") or entry["model"]
            rows["pretrain_tokens"] = run.get("pretrain_tokens", 0)
            aligning = run["stage"] == "align"
            rows["align_volume"] = rows.examples if aligning else run["align_volume"]
            rows["perturb_volume"] = rows.examples if run["stage"] in ("perturb", "noise") else 0
            frames.append(rows.sort_values("updates", kind="stable"))
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()

    def _write_json(self, name: str, value: Any) -> None:
        self.check_lock()
        files.write_text(self.path / name, json.dumps(value, indent=1, sort_keys=True) + "\n")

    def _write_parquet(self, path: epath.Path, frame: Frame, metadata: Mapping[bytes, bytes]) -> None:
        self.check_lock()
        arrow = pa.Table.from_pandas(frame, preserve_index=False)
        arrow = arrow.replace_schema_metadata(dict(metadata))
        buffer = io.BytesIO()
        pq.write_table(arrow, buffer)
        files.write_bytes(path, buffer.getvalue())
