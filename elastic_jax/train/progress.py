"""How far is the study, and when will it be done?

A bar in a terminal or a notebook, one line every few seconds in a log. It is given host floats and touches
no device.
"""

import contextlib
import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TextIO

from elastic_jax.models.flops import PerToken, utilisation
from elastic_jax.parallel import distributed

Mode = Literal["auto", "bar", "lines", "off"]


@dataclass(frozen=True)
class Snapshot:
    """What there is to show at one moment; None where it is not known (yet).

    Attributes:
      run: name of the run; the `index`-th (from 1) of `runs`.
      step, steps: optimizer updates done and planned.
      loss: the newest training loss.
      tokens_per_second: over the last seconds, all devices together, without the compiling step.
      tokens_per_device: the same, of one device; None when there is only one.
      mfu, mfu_full, hfu: shares of the peak in [0, 1]: causal attention, all pairs of tokens, and causal with what is recomputed
        (`models.flops`); None on CPU.
      eta, study_eta: seconds until the run and the whole study are done.
    """

    run: str
    index: int
    runs: int
    step: int
    steps: int
    loss: float | None = None
    tokens_per_second: float | None = None
    tokens_per_device: float | None = None
    mfu: float | None = None
    mfu_full: float | None = None
    hfu: float | None = None
    eta: float | None = None
    study_eta: float | None = None


def format_duration(seconds: float | None) -> str:
    """Hours, minutes and seconds, with days from one day on.

    >>> format_duration(41), format_duration(3723), format_duration(180000), format_duration(None)
    ('0:41', '1:02:03', '2d 2:00:00', '?')
    """
    if seconds is None or not math.isfinite(seconds):
        return "?"
    minutes, second = divmod(max(0, round(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    if hours == 0:
        return f"{minute}:{second:02d}"
    days, hour = divmod(hours, 24)
    return f"{f'{days}d ' if days else ''}{hour}:{minute:02d}:{second:02d}"


def format_count(value: float) -> str:
    """Three significant digits with a suffix.

    >>> format_count(950), format_count(12_345), format_count(1_234_567), format_count(999_999)
    ('950', '12.3k', '1.23M', '1.00M')
    """
    for suffix in ("", "k", "M", "G", "T"):
        # 999.5 would round to 1000: it belongs to the next suffix.
        if abs(value) < 999.5 or suffix == "T":
            break
        value /= 1000
    digits = 0 if not suffix or abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    return f"{value:.{digits}f}{suffix}"


def format_details(s: Snapshot) -> str:
    """The numbers of a line, without the names: `loss 2.13 12.3k tok/s eta 0:41 (study 3:10)`."""
    parts = []
    if s.loss is not None:
        parts.append(f"loss {s.loss:#.3g}")
    if s.tokens_per_second is not None:
        parts.append(f"{format_count(s.tokens_per_second)} tok/s")
    if s.tokens_per_device is not None:
        parts.append(f"({format_count(s.tokens_per_device)}/device)")
    if s.mfu is not None:
        parts.append(f"mfu {s.mfu:.0%}")
    if s.mfu_full is not None and s.hfu is not None:
        parts.append(f"(full {s.mfu_full:.0%}, hfu {s.hfu:.0%})")
    if s.eta is not None:
        parts.append(f"eta {format_duration(s.eta)}")
    if s.study_eta is not None:
        parts.append(f"(study {format_duration(s.study_eta)})")
    return " ".join(parts)


def format_line(s: Snapshot) -> str:
    """`[3/9 align-s0] step 120/256 47% loss 2.13 12.3k tok/s eta 0:41 (study 3:10)`"""
    head = f"[{s.index}/{s.runs} {s.run}] step {s.step}/{s.steps} {_fraction(s):.0%}"
    return f"{head} {format_details(s)}".rstrip()


def _fraction(s: Snapshot) -> float:
    return s.step / s.steps if s.steps else 1.0


class Rate:
    """Steps per second over a sliding window; pauses and what came before the first mark do not count.

    Args:
      window: seconds that the rate looks back, unless the steps are longer than that.
      clock: seconds that never go back.
    """

    def __init__(self, window: float = 30.0, clock: Callable[[], float] = time.monotonic):
        self._window = window
        self._clock = clock
        self._marks: deque[tuple[float, int]] = deque()  # (running time, step), oldest first
        self._paused = 0.0

    def mark(self, step: int) -> None:
        """Notes that `step` steps are done now."""
        now = self._clock() - self._paused
        self._marks.append((now, step))
        # The oldest mark kept is the newest one that is at least a window old: steps longer than that still
        # give a rate.
        while len(self._marks) > 2 and self._marks[1][0] <= now - self._window:
            self._marks.popleft()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        start = self._clock()
        try:
            yield
        finally:
            self._paused += self._clock() - start

    @property
    def steps_per_second(self) -> float | None:
        """None until two marks lie apart in time."""
        if len(self._marks) < 2:
            return None
        (start, first), (end, last) = self._marks[0], self._marks[-1]
        return (last - first) / (end - start) if end > start and last > first else None


class Progress:
    """Progress of one run within a study; a context manager.

    Args:
      run: its name; it is the `index`-th (from 1) of `runs`.
      steps: optimizer updates planned; `start` of them were done before (a resumed run).
      tokens_per_step: tokens in a global batch.
      study_tokens, study_tokens_done: tokens planned for the whole study, and those of it done before this
        run began (or, for a resumed run, before its first step); without them no study ETA is shown.
      flops_per_token: of training, from the analytical count; peak_flops: FLOP/s of all devices together,
        None on CPU. MFU is their rate over their peak, and is shown only when both are known; with all three counts also the
        full one and HFU. `devices` is how many the peak is of: above 1, tokens per second of one of them are shown too.
      interval: seconds between lines in a log; the last step always has one.
      mode: "auto" shows a bar in a terminal or notebook and lines elsewhere.
      active: whether this process shows anything; by default only process 0 does.
    """

    def __init__(
        self,
        run: str,
        *,
        steps: int,
        tokens_per_step: int,
        index: int = 1,
        runs: int = 1,
        start: int = 0,
        study_tokens: int | None = None,
        study_tokens_done: int = 0,
        flops_per_token: PerToken | float | None = None,
        peak_flops: float | None = None,
        devices: int = 1,
        interval: float = 10.0,
        window: float = 30.0,
        mode: Mode = "auto",
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        active: bool | None = None,
    ):
        self._run, self._index, self._runs = run, index, runs
        self._steps, self._step, self._start, self._tokens_per_step = steps, start, start, tokens_per_step
        self._study_tokens, self._study_tokens_done = study_tokens, study_tokens_done
        self._flops_per_token, self._peak_flops, self._devices = flops_per_token, peak_flops, devices
        self._interval, self._clock = interval, clock
        self._rate = Rate(window, clock)
        self._loss: float | None = None
        self._shown_step = start
        self._shown_at = clock()
        self._stream = stream
        self._bar: Any = None
        if not (distributed.is_main() if active is None else active):
            mode = "off"
        elif mode == "auto":
            mode = "bar" if _interactive(stream) else "lines"
        self._mode = mode
        if mode == "bar":
            self._open_bar()

    def update(self, step: int, loss: float | None = None) -> None:
        """Notes that `step` optimizer updates are done, the last known of which had `loss` (a host float)."""
        if self._mode == "off":
            return
        # The first call marks the end of the compiling step, so the rate begins after it.
        self._step = step
        self._rate.mark(step)
        if loss is not None:
            self._loss = float(loss)
        if self._mode == "bar":
            self._bar.update(self._task, completed=step, details=format_details(self.snapshot()))
        elif step >= self._steps or self._clock() - self._shown_at >= self._interval:
            self._print_line()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Work in between that is no training (measuring, saving), left out of tokens per second."""
        with self._rate.paused():
            yield

    def plan(self, steps: int) -> None:
        """There are `steps` to do after all."""
        self._steps = steps
        if self._mode == "bar":
            self._bar.update(self._task, total=steps)

    def snapshot(self) -> Snapshot:
        """The numbers as they are now."""
        rate = self._rate.steps_per_second
        tokens_per_second = mfu = mfu_full = hfu = eta = study_eta = None
        if rate is not None:
            tokens_per_second = rate * self._tokens_per_step or None  # a run of noise trains on none
            eta = max(0, self._steps - self._step) / rate
            if tokens_per_second is not None and self._flops_per_token and self._peak_flops:
                counts, share = (
                    self._flops_per_token,
                    partial(utilisation, tokens_per_second, peak_flops=self._peak_flops),
                )
                if isinstance(counts, PerToken):
                    mfu, mfu_full, hfu = share(counts.causal), share(counts.full), share(counts.executed)
                else:
                    mfu = share(counts)
            if tokens_per_second is not None and self._study_tokens is not None:
                here = (self._step - self._start) * self._tokens_per_step
                study_eta = max(0, self._study_tokens - self._study_tokens_done - here) / tokens_per_second
        return Snapshot(
            run=self._run,
            index=self._index,
            runs=self._runs,
            step=self._step,
            steps=self._steps,
            loss=self._loss,
            tokens_per_second=tokens_per_second,
            tokens_per_device=tokens_per_second / self._devices if tokens_per_second and self._devices > 1 else None,
            mfu=mfu,
            mfu_full=mfu_full,
            hfu=hfu,
            eta=eta,
            study_eta=study_eta,
        )

    def close(self) -> None:
        """Ends the bar, or prints the line of a last step that had none."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        elif self._mode == "lines" and self._step != self._shown_step:
            self._print_line()
        self._mode = "off"

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _print_line(self) -> None:
        self._shown_step, self._shown_at = self._step, self._clock()
        print(format_line(self.snapshot()), file=self._stream or sys.stderr, flush=True)

    def _open_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f} {task.percentage:.0f}%", markup=False),
            TextColumn("{task.fields[details]}", markup=False),
            console=Console(file=self._stream or sys.stderr),
            refresh_per_second=4,  # drawing takes host time that dispatch needs
        )
        self._task = self._bar.add_task(
            f"[{self._index}/{self._runs} {self._run}]", total=self._steps, completed=self._start, details=""
        )
        self._bar.start()


class Group:
    """Several runs that advance together, shown as one whose steps are those of all of them; a context manager.

    Args:
      whole: with the updates of all runs planned.
      pausing: whether all of them wait while one is measured or saved; otherwise they are in threads of their own.
    """

    def __init__(self, whole: Progress, pausing: bool = True):
        self._whole, self._pausing, self._lock = whole, pausing, threading.Lock()
        self._steps, self._done = whole.snapshot().steps, 0
        self._losses: dict[int, float] = {}
        self._members = 0

    @contextlib.contextmanager
    def member(self, start: int, stop: int, planned: int) -> Iterator["Member"]:
        """One of the runs, of `planned` updates, which goes from `start` to `stop`."""
        with self._lock:
            self._steps += stop - start - planned
            self._whole.plan(self._steps)
            self._members += 1
            number = self._members
        try:
            yield Member(self, number, start)
        finally:
            with self._lock:
                self._losses.pop(number, None)

    def advance(self, member: int, steps: int, loss: float | None) -> None:
        with self._lock:
            self._done += steps
            if loss is not None:
                self._losses[member] = loss
            mean = sum(self._losses.values()) / len(self._losses) if self._losses else None
            self._whole.update(self._done, mean)

    def paused(self) -> contextlib.AbstractContextManager[None]:
        return self._whole.paused() if self._pausing else contextlib.nullcontext()

    def __enter__(self) -> "Group":
        return self

    def __exit__(self, *_: object) -> None:
        self._whole.close()


class Member:
    """A run of a group; what a training loop uses of `Progress`."""

    def __init__(self, group: Group, number: int, start: int):
        self._group, self._number, self._step = group, number, start

    def update(self, step: int, loss: float | None = None) -> None:
        """As `Progress.update`."""
        self._group.advance(self._number, step - self._step, loss)
        self._step = step

    def paused(self) -> contextlib.AbstractContextManager[None]:
        """As `Progress.paused`."""
        return self._group.paused()


def _interactive(stream: TextIO | None) -> bool:
    output: TextIO = stream or sys.stderr
    if output.isatty():
        return True
    from rich.console import Console

    return Console(file=output).is_jupyter
