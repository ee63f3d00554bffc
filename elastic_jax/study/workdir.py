"""What lies in a working directory, and who may write there?"""

import contextlib
import fcntl
import io
import json
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from elastic_jax.analysis import table
from elastic_jax.analysis.table import Frame
from elastic_jax.data import files
from elastic_jax.errors import UserError

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


def _own_beginning(name: str) -> bool:
    """What may be there of a command that was killed before it had written study.json."""
    return name == ".lock" or name.startswith("study.json.tmp-")


class Workdir:
    """Paths, and reading and writing of the small files; every write is atomic."""

    def __init__(self, path: os.PathLike | str):
        self.path = Path(path).expanduser()

    @property
    def table(self) -> Path:
        return self.path / "measures.parquet"

    @property
    def report(self) -> Path:
        return self.path / "report"

    @property
    def data(self) -> Path:
        return self.path / "data"

    def run(self, key: str) -> Path:
        return self.path / "runs" / key

    def open(self, create: bool) -> None:
        """Check that this is a working directory of ours, or may become one.

        Raises:
          UserError: it holds other things, is a file, cannot be written, or is not there (with create=False).
        """
        ours = (self.path / "study.json").exists()
        if self.path.exists() and not self.path.is_dir():
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
                self.path.mkdir(parents=True, exist_ok=True)
                if not ours:  # before anything else: a folder without it is not ours
                    self._write_json("study.json", dict(format=FORMAT, latest="", studies={}))
                (self.path / "runs").mkdir(exist_ok=True)
                if not os.access(self.path, os.W_OK):
                    raise PermissionError("not writable")
        except OSError as error:
            raise UserError(
                f"--workdir={self.path}: cannot be written ({error.strerror or error}). Give another folder."
            ) from None
        found = self.studies_file().get("format")
        if found != FORMAT:
            raise UserError(
                f"--workdir={self.path}: written in format {found}, this version reads {FORMAT}. Use a new folder."
            )

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """One writer at a time; the lock goes with the process, however it ends."""
        with open(self.path / ".lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(
                    f"--workdir={self.path}: another process is running a study here. Wait for it, or stop it."
                ) from None
            yield

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
        return max((int(p.name) for p in (self.run(key) / "checkpoints").glob("*") if p.name.isdigit()), default=0)

    def rows(self, key: str) -> Frame:
        """Everything measured in a run so far, under any protocol."""
        path = self.run(key) / "measures.parquet"
        if not path.exists():
            return pd.DataFrame(columns=list(ROW_COLUMNS))
        return pq.read_table(path).to_pandas()

    def add_rows(self, key: str, rows: list[dict[str, Any]]) -> None:
        new = pd.DataFrame(rows, columns=list(ROW_COLUMNS))
        old = self.rows(key)
        both = pd.concat([old, new], ignore_index=True) if len(old) else new
        self._write_parquet(self.run(key) / "measures.parquet", both, {})

    def write_table(self) -> Path:
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
        hidden = ("facts", "protocol", "model", "params")
        public = {}
        for name, entry in studies.items():
            public[name] = {k: v for k, v in entry.items() if k not in hidden}
            public[name]["runs"] = [
                dict(run, wall_seconds=self.read_run(run["run"], "DONE").get("wall_seconds")) for run in entry["runs"]
            ]
        metadata = {table.SCHEMA_KEY: json.dumps({"studies": public}).encode()}
        self._write_parquet(self.table, whole[list(table.COLUMNS)], metadata)
        return self.table

    def _study_rows(self, name: str, entry: Mapping[str, Any]) -> Frame:
        common = dict(study=name, model=entry["model"], params=entry["params"])
        frames = [pd.DataFrame([dict(fact, **common) for fact in entry["facts"]])]
        for run in entry["runs"]:
            rows = self.rows(run["run"])
            rows = rows[(rows.protocol == entry["protocol"]) & rows.updates.isin(run["measured"])]
            if not len(rows):
                continue
            rows = rows.drop(columns="protocol").drop_duplicates(["updates", "measure", "split", "text"])
            rows = rows.assign(**common, **{k: run[k] for k in ("run", "parent", "stage", "arm", "method", "seed")})
            aligning = run["stage"] == "align"
            rows["align_volume"] = rows.examples if aligning else run["align_volume"]
            rows["perturb_volume"] = rows.examples if run["stage"] == "perturb" else 0
            frames.append(rows.sort_values("updates", kind="stable"))
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()

    def _write_json(self, name: str, value: Any) -> None:
        files.write_text(self.path / name, json.dumps(value, indent=1, sort_keys=True) + "\n")

    def _write_parquet(self, path: Path, frame: Frame, metadata: Mapping[bytes, bytes]) -> None:
        arrow = pa.Table.from_pandas(frame, preserve_index=False)
        arrow = arrow.replace_schema_metadata(dict(metadata))
        buffer = io.BytesIO()
        pq.write_table(arrow, buffer)
        files.write_bytes(path, buffer.getvalue())
