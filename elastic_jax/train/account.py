"""Where did the time go?

Two sources, one set of kinds: what runs wrote down of themselves (`train.goodput`), however many sessions they took, and the clock of
this process for what belongs to no run (preparing data, drawing the report).
"""

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

# Kinds beside the training of each stage, which goes by the stage's name.
DATA, COMPILE, MEASURE, SAVE, WAIT, REPORT, REST = (
    "data",
    "compiling",
    "measuring",
    "checkpoints",
    "waiting for batches",
    "report",
    "the rest",
)
_PHASES = dict(
    compile=COMPILE, measure=MEASURE, save=SAVE, restore=SAVE, stall=WAIT, init=REST
)  # of goodput, but `step`


class Account:
    """Seconds by kind since it was opened; may be used in several threads.

    Seconds of runs that were trained at the same time are all counted, so that the sum may be more than what a clock says.
    """

    def __init__(self) -> None:
        self._began, self._lock = time.monotonic(), threading.Lock()
        self._spent: dict[str, float] = {}

    @property
    def seconds(self) -> float:
        """Since it was opened, by the clock."""
        return time.monotonic() - self._began

    @property
    def spent(self) -> dict[str, float]:
        """By kind, so far."""
        with self._lock:
            return dict(self._spent)

    def add(self, spent: Mapping[str, float]) -> None:
        with self._lock:
            for kind, seconds in spent.items():
                self._spent[kind] = self._spent.get(kind, 0.0) + seconds

    @contextlib.contextmanager
    def during(self, kind: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.add({kind: time.monotonic() - began})

    def __str__(self) -> str:
        return line(self.spent, self.seconds)


def of_run(stage: str, seconds: Mapping[str, float]) -> dict[str, float]:
    """What a run's phases (`goodput.PHASES`) count as."""
    found: dict[str, float] = {}
    for phase, spent in seconds.items():
        kind = stage if phase == "step" else _PHASES[phase]
        found[kind] = found.get(kind, 0.0) + spent
    return found


def of_runs(runs: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, float]:
    """Of several, as (stage, what `goodput.FILE` holds); a run that is not there yet holds nothing."""
    whole = Account()
    for stage, written in runs:
        whole.add(of_run(stage, written.get("seconds", {})))
    return whole.spent


def line(spent: Mapping[str, float], clock: float | None = None) -> str:
    """In words, the largest first; kinds below a tenth of a second are among the rest.

    Args:
      clock: seconds from beginning to end. What of it belongs to no kind is the rest, and where the kinds are more than it, several
        runs were trained at the same time.
    """
    shown = {kind: seconds for kind, seconds in spent.items() if kind != REST and seconds >= 0.1}
    rest = (sum(spent.values()) if clock is None else max(clock, sum(spent.values()))) - sum(shown.values())
    parts = [f"{kind} {seconds:,.1f}" for kind, seconds in sorted(shown.items(), key=lambda item: -item[1])]
    parts += [f"{REST} {rest:,.1f}"] if rest >= 0.1 else []
    whole = sum(spent.values()) if clock is None else clock
    more = f", {sum(spent.values()) / clock:.1f} at a time" if clock and sum(spent.values()) > 1.05 * clock else ""
    return f"{', '.join(parts) or 'nothing'} ({whole:,.1f} s in all{more})"
