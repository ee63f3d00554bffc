"""How does a run end that would hang for ever?

A collective waits for every process. One that is stopped, or a network that swallows packets, gives no error: the others wait.
So a thread looks whether updates are completed. When none is for `factor` times the median, or a measurement or a save has been going on
for longer than any should, it writes down what every Python thread was doing and ends the process with the exit code on which a
scheduler queues the job again.
"""

import contextlib
import faulthandler
import os
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable

import jax
from etils import epath

from elastic_jax.data import files
from elastic_jax.parallel import distributed
from elastic_jax.train import interrupt

_ACTIVE = ("step", "stall")  # of train.goodput: the others have no median
_DOING = dict(
    init="what comes before the first update",
    compile="compiling",
    restore="a restore",
    measure="a measurement",
    save="a save",
)
_KNOWN = 5  # updates after which the median means something
FIRST = 3600.0  # seconds for the first of them, which include the compiler
_LAST_WORDS = 10.0  # seconds for the file of stacks, and for the other processes to notice as well


class Watchdog:
    """Watches the updates of one run; a context manager around its training.

    Args:
      run: its name, for the message.
      factor: times the median of the last updates; 0 switches the watchdog off.
      floor: seconds below which no update is too long.
      patience: seconds that anything else may take (a save, a restore, the measures of a point); 0 for as long as it likes.
      folder: where the stacks are written to.
      phase: what is done now, as `train.goodput` names it.
      end: what happens at last.
    """

    def __init__(
        self,
        run: str,
        *,
        factor: float,
        floor: float,
        patience: float = 0.0,
        folder: os.PathLike | str,
        phase: Callable[[], str],
        end: Callable[[], None] = interrupt.end,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._run, self._factor, self._floor, self._patience = run, factor, floor, patience
        self._folder, self._phase, self._end, self._clock = epath.Path(folder), phase, end, clock
        self._took: deque[float] = deque(maxlen=101)
        self._update, self._last = 0, clock()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def alive(self, update: int) -> None:
        """Notes that `update` is completed."""
        now = self._clock()
        self._took.append(now - self._last)
        self._update, self._last = update, now

    @property
    def limit(self) -> float:
        """Seconds that an update may take now."""
        if len(self._took) < _KNOWN:
            return max(self._floor, FIRST)
        return max(self._floor, self._factor * statistics.median(self._took))

    def __enter__(self) -> "Watchdog":
        if self._factor:
            self._last = self._clock()
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        seen: tuple[str, int] | None = None
        since = self._clock()
        while not self._over.wait(min(5.0, max(0.05, self._floor / 10))):
            now, phase = self._clock(), self._phase()
            if phase in _ACTIVE:
                seen = None
                if now - self._last > self.limit:
                    median = statistics.median(self._took) if self._took else float("nan")
                    self._bark(
                        f"no update was completed for {now - self._last:.0f} s after update {self._update}",
                        f"the limit is {self.limit:.0f} s, the median {median:.3g} s (--config.watchdog.factor, "
                        "--config.watchdog.floor_seconds)",
                    )
                    return
                continue
            self._last = now
            if seen != (phase, self._update):
                seen, since = (phase, self._update), now
            elif self._patience and now - since > self._patience:
                self._bark(
                    f"{_DOING.get(phase, phase)} after update {self._update} has not ended in {now - since:.0f} s",
                    f"the limit is {self._patience:.0f} s (--config.watchdog.patience_seconds, where longer is to be expected)",
                )
                return

    def _bark(self, what: str, limit: str) -> None:
        rank, count = jax.process_index(), jax.process_count()
        process = f" (process {rank} of {count})" if count > 1 else ""
        stacks = _stacks()
        words = [
            f"{self._run} is stuck: {what} on {socket.gethostname()}{process}; {limit}.",
        ]
        # Neither the file system nor the service need answer any more: what hangs must not hang this.
        told = threading.Thread(target=self._tell, args=(words, stacks, rank, count), daemon=True)
        told.start()
        told.join(_LAST_WORDS)
        with contextlib.suppress(OSError, ValueError):  # nobody may be listening
            print(stacks, *words, f"Exit code {interrupt.EXIT}; the same command continues.", sep="\n", file=sys.stderr)
        self._end()

    def _tell(self, words: list[str], stacks: str, rank: int, count: int) -> None:
        with contextlib.suppress(OSError):
            path = self._folder / f"stuck-{rank}.txt"
            files.write_text(path, f"{words[0]}\n\n{stacks}")
            words.append(f"Stacks: {path}")
        if count == 1:
            return
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            distributed.publish(f"elastic_jax/stuck/{rank}", str(self._update))
            began = time.monotonic()
            while time.monotonic() - began < _LAST_WORDS / 2:
                noticed = {int(process) for process in distributed.published("elastic_jax/stuck")}
                if len(noticed) == count:
                    break
                time.sleep(0.1)
            if silent := sorted(set(range(count)) - noticed):
                words.append(f"Did not notice it, and so are dead, stopped or the cause: {distributed.named(silent)}.")


def _stacks() -> str:
    """What every Python thread is doing, the newest call first."""
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read()
