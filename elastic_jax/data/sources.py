"""What rows and columns do these files hold, and where does each row come from?

A source is local files (`.jsonl`, `.csv`, `.tsv`, `.parquet`, `.txt`, each also `.gz`; comma separated, with
`*` patterns) or a TensorFlow data set: `tfds:name`, or `tfds:/folder/of/a/prepared/one`. The latter is read
through `tfds.data_source` from ArrayRecord files, which needs no TensorFlow.
"""

import contextlib
import csv
import dataclasses
import glob
import gzip
import io
import json
import os
import sys
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from elastic_jax.data.files import sha256_of_file
from elastic_jax.errors import UserError, closest, first_line

SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet", ".txt")
TFDS = "tfds:"
FIELDS = ("train", "test", "prose")


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """Rows of a source.

    Attributes:
      field: the config field that names the source, for errors: "data.train".
      rows: column -> value.
      places: of every row, for errors: a file's number in `files`, and a line (or row) number from 1.
      files: names of the files.
      numeric_text: whether numbers were read as text (csv and tsv).
    """

    field: str
    rows: list[dict[str, Any]]
    places: list[tuple[int, int]]
    files: tuple[str, ...]
    numeric_text: bool = False

    def __len__(self) -> int:
        return len(self.rows)

    def place(self, row: int) -> str:
        """Where a row comes from: `reviews.jsonl:17`."""
        file, line = self.places[row]
        return f"{self.files[file]}:{line}"

    def row_id(self, row: int) -> str:
        """A name for a row that depends on no other row: its file's name and line."""
        file, line = self.places[row]
        return f"{os.path.basename(self.files[file])}:{line}"

    def columns(self) -> list[str]:
        """Names of the columns, those of the first row first."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def column(self, name: str, field: str) -> list[Any]:
        """Values of a column; `field` is the config field that asks for it.

        Raises:
          UserError: no row has the column, or some row does not.
        """
        try:
            return [row[name] for row in self.rows]
        except KeyError:
            missing = next(i for i, row in enumerate(self.rows) if name not in row)
        known = self.columns()
        if name not in known:
            raise UserError(
                f"{field}={name!r}: {self.field} ({', '.join(self.files[:3])}) has no such column. "
                f"It has: {', '.join(known)}. {closest(name, known)}"
            )
        raise UserError(
            f"{self.place(missing)}: no column {name!r} ({field}); this row has: "
            f"{', '.join(self.rows[missing])}.\n"
            "Repair the row, or leave such rows out of the file."
        )

    def texts(self, name: str, field: str) -> list[str]:
        """Values of a column that must all be text.

        Raises:
          UserError: some value is not, with its place.
        """
        values = self.column(name, field)
        for row, value in enumerate(values):
            if not isinstance(value, str):
                raise UserError(
                    f"{self.place(row)}: column {name!r} ({field}) holds {_shown(value)}, text was "
                    "expected.\n"
                    f'Repair the row, or leave such rows out with data.where="{name}.notnull()".'
                )
        return values

    def conversations(self, name: str, field: str) -> list[tuple[Mapping[str, Any], ...]]:
        """Values of a column that are messages, none where the value is a text.

        Raises:
          UserError: some value is neither, with its place.
        """
        found = []
        for row, value in enumerate(self.column(name, field)):
            turns = () if isinstance(value, str) else tuple(value) if isinstance(value, list | tuple) else (value,)
            known = [
                isinstance(turn, Mapping) and isinstance(turn.get("role"), str) and "content" in turn for turn in turns
            ]
            if not all(known) or not (turns or isinstance(value, str)):
                raise UserError(
                    f"{self.place(row)}: column {name!r} ({field}) holds {_shown(value)}; a text was expected, or a list of messages, "
                    'each with "role" and "content".'
                )
            found.append(turns)
        return found

    def keep(self, rows: Sequence[int]) -> "Table":
        """The table of some of its rows."""
        return dataclasses.replace(self, rows=[self.rows[i] for i in rows], places=[self.places[i] for i in rows])

    def where(self, expression: str) -> "Table":
        """The rows for which a pandas expression over the columns is true, such as `rating >= 9`.

        Raises:
          UserError: it cannot be evaluated, is not true or false for every row, or keeps nothing.
        """
        if not expression.strip():
            return self
        import pandas as pd

        frame = pd.DataFrame(self.rows)
        if self.numeric_text:
            for name in frame.columns:
                # A column that holds something else than numbers stays text.
                with contextlib.suppress(ValueError, TypeError):
                    frame[name] = pd.to_numeric(frame[name])
        try:
            result = frame.eval(expression, engine="python")
        except Exception as error:  # whatever the expression's own operations raise
            reason = str(error).strip("'\"") or type(error).__name__
            raise UserError(
                f"data.where={expression!r} cannot be evaluated on {self.field}: {reason}.\n"
                f"It is a pandas expression over the columns {', '.join(map(str, frame.columns))}; "
                'for example "rating >= 9" or "lang == \'en\'".'
            ) from error
        if not isinstance(result, pd.Series) or not pd.api.types.is_bool_dtype(result):
            raise UserError(
                f"data.where={expression!r} is not true or false for every row of {self.field}. "
                'Write a comparison, for example "rating >= 9".'
            )
        kept = self.keep([i for i, keep in enumerate(result.fillna(False).tolist()) if keep])
        if not kept.rows:
            raise UserError(
                f"data.where={expression!r} keeps none of the {len(self)} rows of {self.field}. "
                "Loosen it, or look at the columns' values."
            )
        return kept


def read(spec: str, field: str, *, split: str = "", split_field: str = "", tfds_dir: str = "") -> Table:
    """All rows of a source.

    Args:
      spec: as in the module's docstring.
      field: the config field it stands in, for errors.
      split: tfds only: the split, such as "train" or "train[:50%]".
      split_field: the config field of `split`, for errors.
      tfds_dir: tfds only: folder of prepared data sets ("" is tfds's own default).

    Raises:
      UserError: a file is missing, empty, of an unknown kind or unreadable, or a row is malformed.
    """
    if spec.startswith(TFDS):
        return _read_tfds(spec, field, split, split_field, tfds_dir)
    files = expand(spec, field)
    rows: list[dict[str, Any]] = []
    places: list[tuple[int, int]] = []
    kinds = set()
    for number, path in enumerate(files):
        kind, before = _suffix(path, field), len(rows)
        kinds.add(kind)
        for line, row in _READERS[kind](path, field):
            rows.append(row)
            places.append((number, line))
        if len(rows) == before:
            raise UserError(f"{field}: {path} is empty. Give a file with rows, or leave it out of {field}.")
    return Table(field, rows, places, tuple(map(str, files)), bool(kinds & {".csv", ".tsv"}))


def expand(spec: str, field: str) -> list[Path]:
    """The files of a comma separated list of paths and patterns; those of one pattern in order of name.

    Raises:
      UserError: a path or pattern matches nothing, or a folder.
    """
    found: dict[Path, None] = {}
    for part in (part.strip() for part in spec.split(",")):
        if not part:
            continue
        pattern = os.path.expanduser(part)
        matches = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern, recursive=True))
        if not matches:
            folder = os.path.dirname(pattern) or "."
            near = (
                closest(os.path.basename(pattern), os.listdir(folder))
                if os.path.isdir(folder)
                else f"There is no folder {folder} either."
            )
            raise UserError(
                f"{field}: no file {part} (looked from {os.getcwd()}). {near}\n"
                f"Give a path or pattern that exists, or {TFDS}<name>."
            )
        for match in matches:
            if os.path.isdir(match):
                raise UserError(f"{field}: {match} is a folder. Name its files: {match.rstrip('/')}/*.jsonl")
            found[Path(match)] = None
    if not found:
        raise UserError(f"{field} is empty. Give a path, a pattern, or {TFDS}<name>.")
    return list(found)


def _suffix(path: Path, field: str) -> str:
    name = path.name.lower().removesuffix(".gz")
    suffix = os.path.splitext(name)[1]
    if suffix not in SUFFIXES:
        raise UserError(
            f"{field}: {path} has the unknown file extension {suffix or '(none)'!r}. "
            f"Known: {', '.join(SUFFIXES)}, each also .gz. {closest(suffix, SUFFIXES)}"
        )
    return suffix


@contextlib.contextmanager
def _opened(path: Path, field: str) -> Iterator[BinaryIO]:
    """The unpacked bytes of a file; what goes wrong while they are read becomes a `UserError`."""
    packed = path.name.lower().endswith(".gz")
    try:
        with gzip.open(path, "rb") if packed else open(path, "rb") as file:
            yield file  # pyright: ignore[reportReturnType]
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(
            f"{field}: {path} cannot be unpacked ({error}). It is cut short or is no gzip file: get it again."
        ) from error
    except OSError as error:
        raise UserError(f"{field}: {path} cannot be read ({error.strerror or error}).") from error


def _lines(path: Path, field: str) -> Iterator[tuple[int, str]]:
    with _opened(path, field) as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path}:{number}: byte {error.start} is not UTF-8. Convert the file: iconv -t UTF-8 {path}"
                ) from error
            yield number, text.rstrip("\r\n")


def _read_jsonl(path: Path, field: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in _lines(path, field):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            line.encode()  # half a surrogate pair as a raw character
            if "\\u" in line:
                json.dumps(row, ensure_ascii=False).encode()  # and as an escape
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path}:{number}: not a JSON object ({error.msg}, column {error.colno}): {_shown(line)}\n"
                f"{field} expects one object per line. Repair or delete the line."
            ) from error
        except UnicodeEncodeError as error:
            raise UserError(
                f"{path}:{number}: holds half of a surrogate pair, which is no character. Repair or delete the line."
            ) from error
        if not isinstance(row, dict):
            raise UserError(
                f"{path}:{number}: {_shown(line)} is no JSON object.\n"
                f'{field} expects one object per line, such as {{"text": "...", "label": 1}}.'
            )
        yield number, row


def _read_txt(path: Path, field: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in _lines(path, field):
        if line.strip():
            yield number, {"text": line.strip()}


def _read_csv(path: Path, field: str) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the default refuses fields above 128 KiB
    delimiter = "\t" if _suffix(path, field) == ".tsv" else ","
    with _opened(path, field) as binary, io.TextIOWrapper(binary, "utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            header = next(reader, None)
            if header is None:
                return
            twice = [name for name, count in Counter(header).items() if count > 1]
            if twice:
                raise UserError(f"{path}:1: the column {twice[0]!r} occurs twice in the header. Rename one.")
            for values in reader:
                if not values:
                    continue
                if len(values) != len(header):
                    raise UserError(
                        f"{path}:{reader.line_num}: {len(values)} fields, but the header names {len(header)} "
                        f"({', '.join(header)}).\nQuote fields that hold {delimiter!r}, quotes or "
                        "line breaks."
                    )
                yield reader.line_num, dict(zip(header, values, strict=True))
        except csv.Error as error:
            raise UserError(f"{path}:{reader.line_num}: {error}. Repair or delete the line.") from error
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path}: not UTF-8 after line {reader.line_num}. Convert the file: iconv -t UTF-8 {path}"
            ) from error


def _read_parquet(path: Path, field: str) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _opened(path, field) as file:
        try:
            table = pq.read_table(io.BytesIO(file.read()))
        except pa.ArrowException as error:
            raise UserError(f"{field}: {path} is no whole parquet file ({error}). Get it again.") from error
    yield from enumerate(table.to_pylist(), 1)


_READERS = {
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
    ".txt": _read_txt,
}


def _tfds_builder(spec: str, field: str, tfds_dir: str) -> Any:
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError(
            f"{field}={spec!r}: tensorflow_datasets cannot be imported ({error}).\n"
            "Install it: pip install tensorflow-datasets importlib_resources array_record"
        ) from error
    name = spec.removeprefix(TFDS)
    folder = os.path.expanduser(name)
    try:
        if os.path.isabs(folder) or os.path.isdir(folder):
            return tfds.builder_from_directory(folder)
        return tfds.builder(name, data_dir=os.path.expanduser(tfds_dir) or None, file_format="array_record")
    except tfds.core.DatasetNotFoundError as error:
        known = tfds.list_builders(with_community_datasets=False)
        raise UserError(
            f"{field}={spec!r}: tensorflow-datasets has no such data set. {closest(name.split('/')[0], known)}"
        ) from error
    except Exception as error:  # tfds raises many kinds, from OSError to AssertionError
        raise UserError(
            f"{field}={spec!r} cannot be opened: {first_line(error)}\n"
            f"Give {TFDS}<name>, or {TFDS}<folder> with the folder that holds dataset_info.json."
        ) from error


def _read_tfds(spec: str, field: str, split: str, split_field: str, tfds_dir: str) -> Table:
    builder = _tfds_builder(spec, field, tfds_dir)
    try:
        if not builder.is_prepared():
            builder.download_and_prepare(file_format="array_record")
    except Exception as error:  # network, checksum and disk errors of many kinds
        raise UserError(
            f"{field}={spec!r} could not be downloaded and prepared: {first_line(error)}\n"
            "Without a network, prepare it elsewhere, copy its folder and give "
            f"{TFDS}/folder/<name>/<version> or data.tfds_dir."
        ) from error
    try:
        source = builder.as_data_source(split=split)
    except (ValueError, KeyError) as error:
        known = list(builder.info.splits)
        if split.split("[")[0] in known:
            raise UserError(f"{split_field}={split!r}: {first_line(error)}") from error
        raise UserError(f"{split_field}={split!r}: {spec} has the splits {', '.join(known)}.") from error
    except NotImplementedError as error:
        raise UserError(
            f"{field}={spec!r} is prepared as {builder.info.file_format}, which only TensorFlow reads.\n"
            "Give an empty folder as data.tfds_dir, to prepare it again as ArrayRecord."
        ) from error
    rows = [{name: _plain(value) for name, value in source[i].items()} for i in range(len(source))]
    if not rows:
        raise UserError(f"{split_field}={split!r} of {spec} is empty.")
    return Table(field, rows, [(0, i) for i in range(1, len(rows) + 1)], (f"{spec}/{split}",))


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _specs(config: Mapping[str, Any]) -> dict[str, str]:
    """Field of the section `data` -> the source that it names."""
    of_tasks = zip(config["tasks"]["names"], config["tasks"]["files"], strict=True)
    found = {field: config[field] for field in FIELDS if config[field]}
    return found | {f"tasks.{name}": spec for name, spec in of_tasks}


def _files(config: Mapping[str, Any], field: str, spec: str) -> list[Path]:
    if not spec.startswith(TFDS):
        return expand(spec, f"data.{field}")
    folder = Path(str(_tfds_builder(spec, f"data.{field}", config["tfds_dir"]).data_path))
    return sorted(path for path in folder.iterdir() if path.is_file())


def stamps(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Path, size, time and SHA-256 of every raw file that the section `data` names."""
    return [_stamp(field, path) for field, spec in _specs(config).items() for path in _files(config, field, spec)]


def unchanged(known: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The current stamps when every raw file has the content of its known stamp, else None.

    A file whose size and time are the known ones is not read. When no raw file is left at all, what was
    prepared from them still stands, and the known stamps are returned.
    """
    if not any(os.path.exists(stamp["path"]) for stamp in known):
        return [dict(stamp) for stamp in known]
    current = []
    for field, spec in _specs(config).items():
        before = [stamp for stamp in known if stamp["field"] == field]
        if spec.startswith(TFDS):
            # The folder is known: no need to import tensorflow_datasets for it.
            folder = Path(before[0]["path"]).parent
            paths = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
        else:
            paths = expand(spec, f"data.{field}")
        if [os.path.abspath(path) for path in paths] != [stamp["path"] for stamp in before]:
            return None
        for path, stamp in zip(paths, before, strict=True):
            status = path.stat()
            if (status.st_size, status.st_mtime_ns) == (stamp["size"], stamp["mtime_ns"]):
                current.append(dict(stamp))
            elif status.st_size == stamp["size"] and sha256_of_file(path) == stamp["sha256"]:
                current.append(dict(stamp) | dict(mtime_ns=status.st_mtime_ns))
            else:
                return None
    return current


def _stamp(field: str, path: Path) -> dict[str, Any]:
    status = path.stat()
    return dict(
        field=field,
        path=os.path.abspath(path),
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        sha256=sha256_of_file(path),
    )
