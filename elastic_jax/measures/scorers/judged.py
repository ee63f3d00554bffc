"""Has this judge seen this text before?

What a judge said is kept as segments: files that are written whole, under names of their own, and never changed. So processes
need no lock, and a bucket serves as well as a disk. A segment that cannot be read is dropped, and its texts are judged again.
"""

import hashlib
import io
import logging
import uuid
import zipfile
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from elastic_jax.data.files import is_temporary, write_bytes
from elastic_jax.errors import first_line
from elastic_jax.measures.scorers.base import Scorer, asked
from elastic_jax.parallel import distributed

_log = logging.getLogger(__name__)
_KEY = 16  # bytes of SHA-256 that stand for a text: two of 10^12 texts share them with a probability below 10^-14
_SUFFIX = ".npz"
_PATIENCE = 3600.0  # seconds that other processes wait for one that asks alone
_MANY = 64  # segments that a process reads before it joins them


def key_of(prompt: str, answer: str) -> bytes:
    """Of a text: its prompt and its answer, and where one ends."""
    digest = hashlib.sha256(f"{len(prompt)}:{prompt}{answer}".encode("utf-8", "surrogatepass"))
    return digest.digest()[:_KEY]


class Judged:
    """What one judge has said, on disk: text -> score.

    Args:
      folder: of this judge alone; made when there is something to write.
    """

    def __init__(self, folder: epath.Path):
        self._folder = folder
        self._known: dict[bytes, float] = {}
        self._read: set[str] = set()

    def __len__(self) -> int:
        return len(self._known)

    def look(self, keys: Sequence[bytes]) -> dict[bytes, float]:
        """Scores of those keys that are known; reads what other processes have written since."""
        if not all(key in self._known for key in keys):
            self._refresh()
        return {key: self._known[key] for key in keys if key in self._known}

    def add(self, scores: dict[bytes, float]) -> None:
        """Keeps further scores, as one segment."""
        self._known |= scores
        name = f"{uuid.uuid4().hex}{_SUFFIX}"
        self._read.add(name)
        self._folder.mkdir(parents=True, exist_ok=True)
        write_bytes(self._folder / name, _packed(scores))

    def _refresh(self) -> None:
        found = [None]
        while None in found:  # what another process has just joined to a larger segment is in the next listing
            names = self._names()
            found = [self._segment(name) for name in names if name not in self._read]
            for scores in found:
                self._known |= scores or {}
        if len(names) > _MANY:
            self._join(names)

    def _names(self) -> list[str]:
        if not self._folder.exists():
            return []
        found = (path.name for path in self._folder.iterdir())
        return sorted(name for name in found if name.endswith(_SUFFIX) and not is_temporary(name))

    def _segment(self, name: str) -> dict[bytes, float] | None:
        """What a segment holds; None where it has gone since it was listed."""
        path = self._folder / name
        self._read.add(name)
        try:
            return _unpacked(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            _log.warning("%s is damaged (%s): its texts will be judged again.", path, first_line(error))
            path.unlink(missing_ok=True)
            return {}

    def _join(self, names: Sequence[str]) -> None:
        """One segment instead of many. It holds all that they hold before any of them goes."""
        self.add(self._known)
        for name in names:
            (self._folder / name).unlink(missing_ok=True)


def _packed(scores: dict[bytes, float]) -> bytes:
    keys = np.frombuffer(b"".join(scores), np.uint8).reshape(-1, _KEY)
    values = np.fromiter(scores.values(), np.float64, len(scores))
    buffer = io.BytesIO()
    np.savez(buffer, keys=keys, values=values, sha256=_checksum(keys, values))
    return buffer.getvalue()


def _unpacked(content: bytes) -> dict[bytes, float]:
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        keys, values, checksum = stored["keys"], stored["values"], stored["sha256"]
    if keys.shape != (len(values), _KEY) or not np.array_equal(checksum, _checksum(keys, values)):
        raise ValueError("a checksum differs")
    return {key.tobytes(): float(value) for key, value in zip(keys, values, strict=True)}


def _checksum(keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.frombuffer(hashlib.sha256(keys.tobytes() + values.tobytes()).digest(), np.uint8)


class Cached:
    """A scorer that asks another one about each text once, and remembers on disk what it said.

    With several processes, process 0 says what is known, so that all of them send the same texts through the model.

    Args:
      root: where the folders of judges lie; scores of this one go to a folder named by its digest.
      together: whether all processes have to ask, since its model lies on the devices of all of them; else process 0 does alone.
    """

    def __init__(self, scorer: Scorer, root: epath.Path, together: bool = True):
        self._scorer, self._root, self._together = scorer, root, together
        self._judged: Judged | None = None
        self.asked = self.judged = 0

    @property
    def name(self) -> str:
        return self._scorer.name

    @property
    def digest(self) -> str:
        return self._scorer.digest

    @property
    def unit(self) -> str:
        return self._scorer.unit

    @property
    def low(self) -> float | None:
        return self._scorer.low

    @property
    def high(self) -> float | None:
        return self._scorer.high

    def score(self, prompts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        """As the scorer's own, float64 [n]; each text that is not known yet goes to it once."""
        if self._judged is None:
            self._judged = Judged(self._root / self.digest[:16])
        keys = [key_of(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
        first = {key: i for i, key in reversed(list(enumerate(keys)))}
        known = self._look(list(first))
        new = {key: i for key, i in first.items() if key not in known}
        if new:
            said = self._ask([prompts[i] for i in new.values()], [answers[i] for i in new.values()])
            fresh = {key: float(value) for key, value in zip(new, said, strict=True)}
            known |= fresh
            if distributed.is_main():
                self._judged.add(fresh)
        self.asked += len(keys)
        self.judged += len(new)
        _log.info(
            "%s: %d texts, %d of them new (so far %d and %d)", self.name, len(keys), len(new), self.asked, self.judged
        )
        return np.array([known[key] for key in keys])

    def _ask(self, prompts: list[str], answers: list[str]) -> Sequence[float]:
        if self._together or jax.process_count() == 1:
            return asked(self._scorer, prompts, answers).tolist()
        from elastic_jax.study import agree

        return agree.from_main(lambda: asked(self._scorer, prompts, answers).tolist(), _PATIENCE)

    def _look(self, keys: list[bytes]) -> dict[bytes, float]:
        judged: Any = self._judged
        if jax.process_count() == 1:
            return judged.look(keys)
        from elastic_jax.study import agree

        told = agree.from_main(lambda: {key.hex(): value for key, value in judged.look(keys).items()})
        return {bytes.fromhex(key): value for key, value in told.items()}
