"""Who may write to a working directory now?

One process holds the whole of it, or several hold runs, each its own; the two exclude each other.

On a disk the locks are `flock`s, which go with their process, however it ends: exclusive on `.lock` for the whole, shared on it and
exclusive on `.locks/RUN` for a run. In a bucket a lock is an object under `.locks/`, made and renewed by conditional puts, which
the store carries out one after the other. Whoever wants a lock that is there watches it: one that is not renewed in `Times.lost`
seconds belongs to a dead process and is taken over. So the clocks of the hosts do not matter.
"""

import contextlib
import dataclasses
import fcntl
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from etils import epath

from elastic_jax.data import files
from elastic_jax.errors import UserError

log = logging.getLogger(__name__)
STUDY = "study"  # the name of the lock of the whole; runs have a "-" in theirs
_ATTEMPTS = 5  # whoever looks at a local lock holds it for a moment


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds between renewals, without renewal until a lock is taken over, and between looks at the lock of another."""

    renew: float = 15.0
    lost: float = 60.0
    look: float = 2.0


@dataclasses.dataclass(frozen=True)
class Holder:
    """Who has a lock. `renewed` is on the clock of its host, in seconds since 1970; None on a disk, where it is alive."""

    host: str
    pid: int
    since: float
    renewed: float | None = None
    token: str = ""
    machine: str = ""  # boot and process namespace: where the process id means the same

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Busy(Exception):
    """Another process has the lock."""

    def __init__(self, name: str, holder: Holder | None):
        super().__init__(name, holder)
        self.name, self.holder = name, holder


class Held:
    """The locks that this process has."""

    def check(self) -> None:
        """Raises UserError where another process has taken over; on a disk none can."""


@contextlib.contextmanager
def hold(root: epath.Path, keys: Sequence[str] | None = None, times: Times | None = None) -> Iterator[Held]:
    """Hold the whole of `root`, or the runs `keys` of it.

    Raises:
      UserError: another process has what is asked for.
    """
    try:
        with contextlib.ExitStack() as stack:
            if files.is_remote(root):
                held = stack.enter_context(hold_leases(store_of(root), keys, times or Times()))
            else:
                held = stack.enter_context(_hold_files(root, keys))
            yield held
    except Busy as busy:
        who = f" ({busy.holder})" if busy.holder else ""
        if busy.name == STUDY:
            what = "another process is running a study here"
        elif keys is None:
            what = f"another process is running a study here: its run {busy.name}"
        else:
            what = f"another process is running {busy.name}"
        raise UserError(f"--workdir={root}: {what}{who}. Wait for it, or stop it.") from None


def holders(root: epath.Path) -> dict[str, Holder]:
    """The locks that are held, by run, with STUDY for the whole. In a bucket that of a dead process is among them until it is
    taken over; its `renewed` is old."""
    if files.is_remote(root):
        store = store_of(root)
        found = {name: _parse(store.read(name).result().value) for name in _names(store)}
    else:
        places = {STUDY: root / ".lock"}
        if (root / ".locks").is_dir():
            places |= {place.name: place for place in (root / ".locks").iterdir()}
        found = {name: _holder_of_file(place) for name, place in places.items() if place.exists()}
    return {name: holder for name, holder in found.items() if holder is not None}


def _me() -> Holder:
    now = time.time()
    return Holder(socket.gethostname(), os.getpid(), now, now, uuid.uuid4().hex, _machine())


def _machine() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _parse(content: bytes) -> Holder | None:
    try:
        return Holder(**json.loads(content))
    except (ValueError, TypeError):
        return None


def _encoded(holder: Holder) -> bytes:
    return json.dumps(dataclasses.asdict(holder)).encode()


# On a disk.


@contextlib.contextmanager
def _hold_files(root: epath.Path, keys: Sequence[str] | None) -> Iterator[Held]:
    with contextlib.ExitStack() as stack:
        whole = stack.enter_context(open(root / ".lock", "a+b"))
        try:
            _flock(whole, STUDY, fcntl.LOCK_EX if keys is None else fcntl.LOCK_SH)
        except Busy:
            for name, holder in holders(root).items() if keys is None else ():
                raise Busy(name, holder) from None  # those that share it have written who they are elsewhere
            raise
        taken = [whole] if keys is None else []
        if keys is not None:
            (root / ".locks").mkdir(exist_ok=True)
        for key in keys or ():
            file = stack.enter_context(open(root / ".locks" / key, "a+b"))
            _flock(file, key, fcntl.LOCK_EX)
            taken.append(file)
        content = _encoded(dataclasses.replace(_me(), renewed=None))
        for file in taken:
            file.truncate(0)
            file.write(content)
            file.flush()
        yield Held()


def _flock(file: Any, name: str, how: int) -> None:
    for attempt in range(_ATTEMPTS):
        try:
            return fcntl.flock(file, how | fcntl.LOCK_NB)
        except OSError:
            if attempt + 1 < _ATTEMPTS:
                time.sleep(0.05)
    file.seek(0)
    raise Busy(name, _parse(file.read()))


def _holder_of_file(path: epath.Path) -> Holder | None:
    with open(path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return _parse(file.read())
    return None


# In a bucket.


def store_of(root: epath.Path) -> Any:
    """A tensorstore key-value store for the locks of a workdir: it offers conditional puts, which epath does not."""
    import tensorstore as ts

    bucket, _, folder = os.fspath(root).removeprefix("gs://").partition("/")
    path = f"{folder.rstrip('/')}/.locks/".lstrip("/")
    return ts.KvStore.open({"driver": "gcs", "bucket": bucket, "path": path}).result()


@contextlib.contextmanager
def hold_leases(store: Any, keys: Sequence[str] | None, times: Times) -> Iterator[Held]:
    """As `hold`, with locks that are objects of `store`.

    Its own are put first and the others looked for afterwards: of two that come at the same time, at least one sees the other.
    """
    with contextlib.closing(_Leases(store, times)) as leases:
        for name in [STUDY] if keys is None else keys:
            leases.take(name)
        clear(store, set(_names(store)) - {STUDY} if keys is None else {STUDY}, times)
        yield leases


def _names(store: Any) -> list[str]:
    return [name.decode() for name in store.list().result()]


def clear(store: Any, names: Iterable[str], times: Times) -> None:
    """Removes the locks of dead processes among `names`.

    Raises:
      Busy: one is alive.
    """
    seen = {}
    for name in names:
        found = store.read(name).result()
        if found.state != "value":
            continue
        holder = _parse(found.value)
        if holder is not None and _is_dead(holder):
            store.write(name, None, if_equal=found.stamp.generation).result()
            continue
        seen[name] = found.stamp.generation, holder
    if seen:
        who = ", ".join(sorted({str(holder) for _, holder in seen.values() if holder}))
        log.info("Locked by %s: waiting up to %.0f s for a sign of life.", who or "somebody", times.lost)
    deadline = time.monotonic() + times.lost
    while seen:
        late = time.monotonic() >= deadline
        for name, (generation, holder) in list(seen.items()):
            found = store.read(name).result()
            if found.state != "value":
                del seen[name]
            elif found.stamp.generation != generation:
                raise Busy(name, _parse(found.value) or holder)
            elif late:
                log.warning("The lock of %s was left behind by %s; removing it.", name, holder or "somebody")
                store.write(name, None, if_equal=generation).result()
                del seen[name]
        if seen:
            time.sleep(times.look)


def _is_dead(holder: Holder) -> bool:
    """Known at once only where a process id of the holder means the same as here."""
    if not holder.machine or holder.machine != _machine():
        return False
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False


class _Leases(Held):
    """Lock objects, renewed by a thread until `close`."""

    def __init__(self, store: Any, times: Times):
        self._store, self._times, self._me = store, times, _me()
        self._generations: dict[str, bytes] = {}
        self._lost: Busy | None = None
        self._guard = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="renew-locks", daemon=True)

    def take(self, name: str) -> None:
        clear(self._store, [name], self._times)
        missing = self._store.read(name).result()
        with self._guard:
            self._put(name, missing.stamp.generation if missing.state != "value" else None)
        if not self._thread.is_alive():
            self._thread.start()

    def check(self) -> None:
        if self._lost is not None:
            raise UserError(
                f"The lock of {self._lost.name} was taken over by {self._lost.holder or 'another process'}, because this one "
                f"had given no sign of life for {self._times.lost:.0f} s. What was computed is kept."
            )

    def close(self) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        for name, generation in self._generations.items():
            with contextlib.suppress(Exception):  # a lock that stays is taken over by the next
                self._store.write(name, None, if_equal=generation).result()

    def _put(self, name: str, generation: bytes | None) -> None:
        content = _encoded(dataclasses.replace(self._me, renewed=time.time()))
        written = self._store.write(name, content, if_equal=generation).result().generation if generation else b""
        if not written:
            # A put whose answer was lost is sent again and refused: then what is there is ours.
            found = self._store.read(name).result()
            holder = _parse(found.value)
            if holder is None or holder.token != self._me.token:
                raise Busy(name, holder)
            written = found.stamp.generation
        self._generations[name] = written

    def _renew(self) -> None:
        while not self._ended.wait(self._times.renew):
            for name in list(self._generations):
                try:
                    with self._guard:
                        self._put(name, self._generations[name])
                except Busy as busy:
                    self._generations.pop(name)
                    self._lost = busy
                except Exception as error:  # of the network; the next round tells whether the lock is still ours
                    log.warning("The lock of %s could not be renewed: %s", name, error)
