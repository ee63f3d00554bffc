"""What were the seconds of a run spent on?

Only the updates make progress; the rest (compiling, restoring, measuring, saving, waiting for data) is what a faster machine
does not shorten. What happens now is also what `train.watchdog` has to know: a long measurement is no hang.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import jax

Phase = Literal["init", "compile", "restore", "step", "measure", "save", "stall"]
PHASES: tuple[Phase, ...] = ("init", "compile", "restore", "step", "measure", "save", "stall")
FILE = "goodput.json"
STALLED = 0.01  # share of the time of updates from which waiting for data is worth a warning

# Of jax.monitoring: making the program, and the compiler or the cache in its place. Tracing is left out: it reports functions
# within functions, each with the time of those inside.
_COMPILING = ("/jax/core/compile/jaxpr_to_mlir_module_duration", "/jax/core/compile/backend_compile_duration")


class Ledger:
    """Seconds by phase; a context manager, inside of which it hears of compilations in its own thread.

    A phase within another stops the outer one: every second is counted once.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._spent = dict.fromkeys(PHASES, 0.0)
        self._began = self._counted = clock()
        self._phases: list[Phase] = ["init"]
        self._thread = threading.get_ident()

    @property
    def phase(self) -> Phase:
        """What is done now; may be asked in any thread."""
        return self._phases[-1]

    @contextlib.contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        self._count()
        self._phases.append(phase)
        try:
            yield
        finally:
            self._count()
            self._phases.pop()

    def seconds(self) -> dict[str, float]:
        self._count()
        return {phase: round(spent, 3) for phase, spent in self._spent.items()}

    def __enter__(self) -> "Ledger":
        jax.monitoring.register_event_duration_secs_listener(self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._hear)

    def _count(self) -> None:
        now = self._clock()
        self._spent[self.phase] += now - self._counted
        self._counted = now

    def _hear(self, event: str, duration_secs: float, **_: Any) -> None:
        if event in _COMPILING and threading.get_ident() == self._thread:
            self._count()
            taken = min(duration_secs, self._spent[self.phase])  # it was counted as part of the phase that asked for it
            self._spent[self.phase] -= taken
            self._spent["compile"] += taken


def add(before: Mapping[str, Any], seconds: Mapping[str, float]) -> dict[str, Any]:
    """What `FILE` holds after another session of the run: `before` is what it held, {} at first.

    `goodput` is the share of the updates in all seconds, in [0, 1].
    """
    earlier = before.get("seconds", {})
    total = {phase: round(earlier.get(phase, 0.0) + seconds.get(phase, 0.0), 3) for phase in PHASES}
    whole = sum(total.values())
    return dict(
        seconds=total,
        goodput=round(total["step"] / whole, 4) if whole else 0.0,
        sessions=before.get("sessions", 0) + 1,
    )


def remark(seconds: Mapping[str, float]) -> str:
    """A warning when the devices waited for data; "" otherwise."""
    stall, step = seconds["stall"], seconds["step"]
    if stall <= STALLED * step:
        return ""
    return (
        f"the devices waited {stall:.1f} s for data, {stall / (step + stall):.0%} of the time of the updates: the pipeline is too "
        "slow. benchmarks/data.py measures it; a local disk or fewer processes per host may help."
    )
