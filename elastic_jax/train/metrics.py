"""Where do the numbers of a run go while it trains?

Into `metrics.jsonl`, always, and into TensorBoard unless that is switched off. Another tracker is an object
with the four methods of `Writer`.
"""

import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, Protocol

from etils import epath

from elastic_jax.data import files
from elastic_jax.errors import UserError
from elastic_jax.parallel import distributed
from elastic_jax.train.tensorboard import TensorBoard

Kind = Literal["train", "measure"]
FILE = "metrics.jsonl"
# An object store cannot append: the file is written again as a whole. Not at every line, and the longer it is the more seldom,
# so that a run of any length uploads no more than so many bytes per second.
_REMOTE_SECONDS = 30.0
_REMOTE_BYTES_PER_SECOND = 1e6


class Writer(Protocol):
    """What a tracker has to offer. Values are host floats: to read one from a device would make it wait."""

    def write(self, updates: int, values: Mapping[str, float], kind: Kind = "train") -> None:
        """Records `values` after `updates` optimizer updates."""
        ...

    def truncate(self, after_updates: int) -> None:
        """Forgets what was written for more than `after_updates` updates: a restored run writes it again."""
        ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """Appends one JSON object per line: `{"updates": 20, "kind": "train", "time": 1.7e9, "loss": 2.13}`.

    `time` is in seconds since 1970. A value that is not finite becomes null, which is all that JSON can say
    about it. Every line is handed to the operating system at once, so a killed process loses none; a machine
    that loses power may leave half a line, which the next writer removes. In a bucket the file is written as a
    whole, at intervals and by `flush`: before every checkpoint, so that what is lost is trained again.
    """

    def __init__(self, path: epath.PathLike):
        self._path = epath.Path(path)
        self._local = not files.is_remote(self._path)
        if self._local:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file: Any = None
        self._lines: list[str] = []  # the whole file, where it cannot be appended to
        self._size = self._uploaded = 0
        self._written = time.monotonic()
        self._open()

    def write(self, updates: int, values: Mapping[str, float], kind: Kind = "train") -> None:
        row: dict[str, Any] = {"updates": int(updates), "kind": kind, "time": round(time.time(), 3)}
        if clash := row.keys() & values.keys():
            raise ValueError(f"{sorted(clash)} are names of the line itself; give the values other names.")
        for name, value in values.items():
            value = float(value)
            row[name] = value if math.isfinite(value) else None
        line = json.dumps(row, allow_nan=False) + "\n"
        if self._local:
            self._file.write(line)
            self._file.flush()
        else:
            self._lines.append(line)
            self._size += len(line)
            if time.monotonic() - self._written > max(_REMOTE_SECONDS, self._size / _REMOTE_BYTES_PER_SECOND):
                self.flush()

    def truncate(self, after_updates: int) -> None:
        """Drops the lines of later updates; the others stay as they are, byte for byte.

        Raises:
          UserError: a line other than the last is not JSON, so that what to keep cannot be known.
        """
        self.close()
        lines = [line for line, row in _parse(self._path) if row["updates"] <= after_updates]
        self._replace(lines)
        self._open()

    def flush(self) -> None:
        if self._local:
            self._file.flush()
        elif len(self._lines) != self._uploaded:
            self._replace(self._lines)
            self._uploaded = len(self._lines)
            self._written = time.monotonic()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        elif not self._local:
            self.flush()

    def _open(self) -> None:
        if not self._local:
            self._lines = [line for line, _ in _parse(self._path)]
            self._size, self._uploaded = sum(map(len, self._lines)), len(self._lines)
            return
        if self._path.exists():
            with open(self._path, "rb+") as file:
                whole = file.read().rfind(b"\n") + 1
                file.truncate(whole)  # half a line would swallow the next one
        self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115 - closed by close()

    def _replace(self, lines: Iterable[str]) -> None:
        files.write_text(self._path, "".join(lines))


class MetricWriter:
    """All the trackers of one run behind one; a context manager.

    Args:
      folder: of the run; local or `gs://`.
      tensorboard: whether to write event files to `folder/tensorboard`.
      others: further trackers.
      active: whether this process writes; by default only process 0 does.
    """

    def __init__(
        self,
        folder: epath.PathLike,
        *,
        tensorboard: bool = True,
        others: Iterable[Writer] = (),
        active: bool | None = None,
    ):
        folder = epath.Path(folder)
        self._writers: list[Writer] = []
        if distributed.is_main() if active is None else active:
            self._writers.append(JsonLines(folder / FILE))
            if tensorboard:
                self._writers.append(TensorBoard(folder / "tensorboard"))
            self._writers.extend(others)

    def write(self, updates: int, values: Mapping[str, float], kind: Kind = "train") -> None:
        """Records `values` (host floats) after `updates` optimizer updates."""
        for writer in self._writers:
            writer.write(updates, values, kind)

    def truncate(self, after_updates: int) -> None:
        """Forgets what is later than the restored checkpoint, so that a resumed run records nothing twice."""
        for writer in self._writers:
            writer.truncate(after_updates)

    def flush(self) -> None:
        for writer in self._writers:
            writer.flush()

    def close(self) -> None:
        for writer in self._writers:
            writer.close()

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read(path: epath.PathLike) -> list[dict[str, Any]]:
    """The lines of a metrics file, without a torn last one; null comes back as NaN.

    Raises:
      UserError: another line is not JSON.
    """
    return [{name: math.nan if value is None else value for name, value in row.items()} for _, row in _parse(path)]


def _parse(path: epath.PathLike) -> Iterator[tuple[str, dict[str, Any]]]:
    path = epath.Path(path)
    if not path.exists():
        return
    # Bytes, because half a line may end inside a character.
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        if not line.endswith(b"\n"):
            return
        try:
            row = json.loads(line)
            row["updates"]
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines):
                return
            raise UserError(
                f"{path}:{number} is not a line of metrics: {line[:60]!r}. Delete that line, or move the file away."
            ) from error
        yield line.decode(), row
