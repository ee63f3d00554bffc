"""What was measured, in which run, and which model did that run start from?"""

import dataclasses
import functools
import io
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from elastic_jax.errors import UserError, closest

STRINGS = (
    "study",
    "run",
    "parent",
    "stage",
    "arm",
    "method",
    "model",
    "measure",
    "split",
    "unit",
    "commit",
    "text",
)
INTEGERS = ("params", "pretrain_tokens", "align_volume", "perturb_volume", "examples", "updates", "tokens", "n", "seed")
FLOATS = ("value", "stderr")
COLUMNS = (*STRINGS, *INTEGERS, *FLOATS)
LATER = ("pretrain_tokens",)  # which tables of earlier versions lack: 0 there
SCHEMA_KEY = b"elastic_jax"
STAGES = ("data", "pretrain", "align", "perturb", "resistance", "noise", "order")
AXES = ("examples", "updates", "tokens")

if TYPE_CHECKING:
    # pandas' own types call every selection "Series or DataFrame or array"; tests check what frames hold.
    Frame = Any
else:
    Frame = pd.DataFrame

POINT = ("align_volume", *AXES, "value", "stderr")
Points = Mapping[str, np.ndarray]

_UNIQUE = ("study", "run", "stage", "seed", *AXES, "measure", "split")


@dataclasses.dataclass(frozen=True)
class Table:
    """All rows of one `measures.parquet` in a canonical order, and what its schema says about each study."""

    rows: Frame
    studies: Mapping[str, Mapping[str, Any]]
    path: str = ""


@dataclasses.dataclass(frozen=True)
class Model:
    """One base of a study: its name in the column `model`, its parameters, the tokens of its pre-training (0: not known)."""

    name: str
    params: int
    pretrain_tokens: int


@dataclasses.dataclass(frozen=True)
class Study:
    """One study of a table.

    `rows` has the columns of the file and two more: `align_method` (the method that aligned the model behind
    the row, "" for none) and `perturb_method` (the method of the perturb run, also of one whose size noise has; "" in other stages). `info` is
    the study's entry of the schema metadata; it may lack fields.
    """

    name: str
    rows: Frame
    info: Mapping[str, Any]

    @functools.cached_property
    def runs(self) -> list[dict[str, Any]]:
        """Planned runs from the metadata; where it has none, the runs seen in the rows."""
        planned = self.info.get("runs") or []
        if planned:
            return [dict(run) for run in planned]
        found = self.rows[self.rows.run != ""].groupby("run", sort=True)
        return [
            {
                "run": run,
                "name": run.rpartition("-")[0],
                "id": run.rpartition("-")[2],
                **rows.iloc[0][["parent", "stage", "arm", "method"]].to_dict(),
                "seed": int(rows.seed.iloc[0]),
                "align_volume": int(rows.align_volume.max()),
                "examples": int(rows.examples.max()),
                "updates": int(rows.updates.max()),
                "points": sorted({int(x) for x in rows.examples}),
            }
            for run, rows in found
        ]

    @functools.cached_property
    def models(self) -> list[Model]:
        """The bases by how much they were pre-trained; by their order in the config where nobody said, then by size."""
        rows = self.rows[self.rows.model != ""]
        named = [base.get("label") for base in self.info.get("bases") or []]
        found = [
            Model(str(name), int(part.params.max()), int(part.pretrain_tokens.max()))
            for name, part in rows.groupby("model", sort=True)
        ]
        place = {name: i for i, name in enumerate(named)}
        return sorted(
            found, key=lambda one: (one.pretrain_tokens, place.get(one.name, len(place)), one.params, one.name)
        )

    @functools.cached_property
    def ancestry(self) -> dict[str, str]:
        """Run -> its parent run; both are full names `<name>-<id>`. Runs from scratch map to ""."""
        pairs = self.rows.loc[self.rows.run != "", ["run", "parent"]].drop_duplicates()
        links = dict(zip(pairs.run, pairs.parent, strict=True))
        links.update({run["run"]: run.get("parent") or "" for run in self.runs})
        by_id = {name.rpartition("-")[2]: name for name in links}
        return {run: parent if parent in links else by_id.get(parent, "") for run, parent in links.items()}

    @functools.cached_property
    def stage_of(self) -> dict[str, str]:
        """Run -> stage."""
        stages = {run["run"]: run["stage"] for run in self.runs if run.get("stage")}
        pairs = self.rows.loc[self.rows.run != "", ["run", "stage"]].drop_duplicates()
        return {**stages, **dict(zip(pairs.run, pairs.stage, strict=True))}

    def lineage(self, run: str) -> list[str]:
        """`run`, its parent, the parent's parent, ... up to the run that started from scratch."""
        chain: list[str] = []
        while run and run not in chain:
            chain.append(run)
            run = self.ancestry.get(run, "")
        return chain

    @functools.cached_property
    def points(self) -> dict[tuple[str, str, str], Points]:
        """(run, measure, split) -> its recorded points in the order of training."""
        rows = self.rows[(self.rows.run != "") & (self.rows.measure != "sample")]
        groups = rows.groupby(["run", "measure", "split"], sort=True).indices
        columns = {name: rows[name].to_numpy() for name in POINT}
        return {
            (str(run), str(measure), str(split)): {name: column[at] for name, column in columns.items()}
            for (run, measure, split), at in groups.items()
        }

    def base_point(self, run: str, measure: str, split: str) -> tuple[float, float]:
        """Value and standard error of the base model from which `run` descends; NaN where it was not
        measured.

        It is the pre-training run's row at the point where the branch left it (its last row where the
        metadata does not say), or else the starting point of the first run of the branch.
        """
        chain = self.lineage(run)
        places = [i for i, name in enumerate(chain) if self.stage_of.get(name) == "pretrain"]
        if places:
            part = self.points.get((chain[places[0]], measure, split))
            if part is not None:
                branch = chain[places[0] - 1] if places[0] else ""
                there = np.flatnonzero(part["examples"] == self.left_parent_at.get(branch))
                i = int(there[-1]) if len(there) else -1
                return float(part["value"][i]), float(part["stderr"][i])
            chain = chain[: places[0]]
        first = chain[-1] if chain else ""
        if first and (self.stage_of.get(first) == "align" or self.arm_of.get(first) == "control"):
            part = self.points.get((first, measure, split))
            if part is not None and part["updates"][0] == 0:
                return float(part["value"][0]), float(part["stderr"][0])
        return np.nan, np.nan

    @functools.cached_property
    def memo(self) -> dict[tuple, Any]:
        """Results derived from this study, kept by the functions that derive them."""
        return {}

    @functools.cached_property
    def left_parent_at(self) -> dict[str, Any]:
        """Run -> examples of its parent at which it started, where the metadata says so."""
        return {run["run"]: run.get("parent_examples") for run in self.runs}

    @functools.cached_property
    def arm_of(self) -> dict[str, str]:
        """Run -> arm."""
        pairs = self.rows.loc[self.rows.run != "", ["run", "arm"]].drop_duplicates()
        return dict(zip(pairs.run, pairs.arm, strict=True))

    def base_runs(self) -> list[str]:
        """The pre-training runs behind the study's branches."""
        return sorted(run for run, stage in self.stage_of.items() if stage == "pretrain")

    def progress(self) -> tuple[int, int]:
        """(finished, planned) runs: a run is finished when the table reaches its last planned point."""
        reached = self.rows[self.rows.run != ""].groupby("run").examples.max().to_dict()
        planned = self.runs
        done = sum(
            run["run"] in reached
            and reached[run["run"]] >= max([*(run.get("points") or [0]), run.get("examples") or 0])
            for run in planned
        )
        return done, len(planned)


def frame(records: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Frame:
    """Records as a table with these columns, also where there is no record."""
    return pd.DataFrame(records, columns=list(columns))


def stack(frames: Sequence[Frame]) -> Frame:
    """Tables below one another, rows numbered anew."""
    return pd.concat(frames, ignore_index=True)


def load(path: epath.PathLike) -> Table:
    """Reads `measures.parquet` and checks that it is ours.

    Raises:
      UserError: the file is missing, is no parquet file, lacks columns or metadata, or gives one point two
        values.
    """
    path = epath.Path(path)
    if not path.exists():
        raise UserError(
            f"{path}: no such file. A study writes measures.parquet into its workdir when its first run "
            "is measured; start or resume it with python -m elastic_jax.run --config=... --workdir=..."
        )
    try:
        table = pq.read_table(io.BytesIO(path.read_bytes()))
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} is not a parquet file ({error}). Give the measures.parquet of a workdir.") from error
    missing = [name for name in COLUMNS if name not in (*table.column_names, *LATER)]
    metadata = (table.schema.metadata or {}).get(SCHEMA_KEY)
    if missing or metadata is None:
        what = f"lacks the columns {', '.join(missing)}" if missing else "has no schema metadata under `elastic_jax`"
        raise UserError(f"{path} {what}: it was not written by a study. Give the measures.parquet of a workdir.")
    try:
        studies = json.loads(metadata)["studies"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: its schema metadata `elastic_jax` is damaged ({error}). Measure again.") from error
    rows = table.select([name for name in COLUMNS if name in table.column_names]).to_pandas()
    return Table(_canonical(rows.reindex(columns=list(COLUMNS)), str(path)), studies, str(path))


def _canonical(rows: Frame, where: str) -> Frame:
    """Types, row order and uniqueness, so that nothing later depends on how the file was put together."""
    try:
        for name in STRINGS:
            rows[name] = rows[name].fillna("").astype(str).astype(object)
        for name in INTEGERS:
            rows[name] = rows[name].fillna(0).astype("int64")
        for name in FLOATS:
            rows[name] = rows[name].astype("float64")
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: column {name} has values of another type ({error}).") from error
    rows["_stage"] = rows.stage.map({name: i for i, name in enumerate(STAGES)}).fillna(len(STAGES)).astype(int)
    order = ["study", "_stage", "run", *AXES, "measure", "split", "seed", "value", "text"]
    rows = rows.drop_duplicates().sort_values(order, kind="stable", ignore_index=True).drop(columns="_stage")
    single = rows[(rows.measure != "sample") & (rows.stage != "data")]
    twice = single.duplicated(list(_UNIQUE), keep=False)
    if twice.any():
        row = single[twice].iloc[0]
        raise UserError(
            f"{where}: {row['run']} has more than one value of {row.measure} ({row.split}) at "
            f"{row.examples} examples. Each point is measured once; remove the rows that do not belong there."
        )
    return rows


def select(table: Table, study: str | None = None) -> Study:
    """One study of the table, by name; the name may be left out when there is only one. The name that several are variants of
    (`analysis.join`) gives all of them as one.

    Raises:
      UserError: no such study, or several and none named.
    """
    from elastic_jax.analysis import join

    names = sorted({*table.rows.study, *table.studies} - {""})
    if not names:
        raise UserError(f"{table.path} holds no study yet: it has no rows.")
    suite = join.common(names)
    if study is None and len(names) > 1 and not suite:
        raise UserError(f"{table.path} holds {len(names)} studies: {', '.join(names)}. Choose one with --study=...")
    name = study or (suite if len(names) > 1 else names[0])
    if name not in names and (variants := join.members(name, [n for n in table.studies if n in names])):
        parts = {variant.removeprefix(name + join.SEPARATOR): select(table, variant) for variant in variants}
        return join.join(name, parts)
    if name not in names:
        raise UserError(f"--study={name}: no such study in {table.path}. {closest(name, names)}")
    rows = table.rows[table.rows.study == name].reset_index(drop=True)
    if rows.empty:
        raise UserError(f"Study {name} in {table.path} has no measured rows yet. Run or resume it first.")
    plain = Study(name, rows, table.studies.get(name, {}))
    methods = {run["run"]: run.get("method") or "" for run in plain.runs}
    methods.update(dict(zip(rows.run, rows.method, strict=True)))
    behind = {}
    for run in plain.stage_of:
        aligned = [r for r in plain.lineage(run) if plain.stage_of.get(r) == "align"]
        behind[run] = methods.get(aligned[0], "") if aligned else ""
    rows = rows.assign(
        align_method=rows.run.map(behind).fillna(""),
        perturb_method=rows.method.where(rows.stage.isin(["perturb", "noise"]), ""),
    )
    return Study(name, rows, plain.info)
