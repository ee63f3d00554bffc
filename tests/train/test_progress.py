"""Is what is shown about the progress true, and readable?"""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elastic_jax.models import flops
from elastic_jax.train.progress import (
    Group,
    Progress,
    Rate,
    Snapshot,
    format_count,
    format_duration,
    format_line,
)


class Clock:
    """A clock that goes only when told."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (40.6, "0:41"),
        (59.7, "1:00"),
        (190, "3:10"),
        (3600, "1:00:00"),
        (86399.6, "1d 0:00:00"),
        (-3, "0:00"),
        (None, "?"),
        (float("inf"), "?"),
    ],
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (999.4, "999"),
        (999.6, "1.00k"),
        (9994, "9.99k"),
        (9999, "10.0k"),
        (12345, "12.3k"),
        (99_960, "100k"),
        (1_234_567, "1.23M"),
        (5e15, "5000T"),
    ],
)
def test_counts(value, text):
    assert format_count(value) == text


@given(st.floats(1, 1e14))
def test_a_count_is_right_to_three_digits(value):
    text = format_count(value)
    scale = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}.get(text[-1], 1)
    shown = float(text.rstrip("kMGT")) * scale
    # Below 10 without a suffix whole numbers are shown.
    assert shown == pytest.approx(value, rel=0.0051, abs=0.5 if scale == 1 else 0)


def test_the_line_of_a_log():
    snapshot = Snapshot(
        run="align-s0",
        index=3,
        runs=9,
        step=120,
        steps=256,
        loss=2.1312,
        tokens_per_second=12_345,
        eta=41,
        study_eta=190,
    )
    assert format_line(snapshot) == "[3/9 align-s0] step 120/256 47% loss 2.13 12.3k tok/s eta 0:41 (study 3:10)"


def test_what_is_not_known_is_not_shown():
    assert format_line(Snapshot("base", 1, 1, 0, 10)) == "[1/1 base] step 0/10 0%"
    assert "nan" in format_line(Snapshot("base", 1, 1, 1, 10, loss=float("nan")))
    assert " mfu 41% " in format_line(Snapshot("base", 1, 1, 1, 10, mfu=0.414, eta=1.0))


def _progress(clock, stream=None, **settings):
    settings = {"steps": 100, "tokens_per_step": 1000, "mode": "lines", "active": True, **settings}
    return Progress("align-s0", clock=clock, stream=stream or io.StringIO(), **settings)


def test_the_compiling_step_is_not_in_the_rate():
    clock = Clock()
    progress = _progress(clock, study_tokens=300_000, study_tokens_done=100_000)
    clock.sleep(60)  # compiling
    progress.update(1, 3.0)
    assert progress.snapshot().tokens_per_second is None and progress.snapshot().eta is None
    for step in range(2, 12):
        clock.sleep(0.5)
        progress.update(step, 2.0)
    now = progress.snapshot()
    assert now.tokens_per_second == pytest.approx(2000)
    assert now.eta == pytest.approx(89 / 2)
    assert now.study_eta == pytest.approx((300_000 - 100_000 - 11_000) / 2000)
    assert now.loss == 2.0


def test_a_resumed_run_counts_only_its_own_steps():
    clock = Clock()
    progress = _progress(clock, start=50, study_tokens=100_000, study_tokens_done=50_000)
    for step in (51, 52, 53):
        clock.sleep(1.0)
        progress.update(step)
    now = progress.snapshot()
    assert now.tokens_per_second == pytest.approx(1000)
    assert now.eta == pytest.approx(47)
    assert now.study_eta == pytest.approx(47)


def test_the_rate_forgets_what_is_older_than_the_window():
    clock = Clock()
    rate = Rate(window=10, clock=clock)
    for step in range(20):
        rate.mark(step)
        clock.sleep(5)
    for step in range(20, 41):
        rate.mark(step)
        clock.sleep(1)
    assert rate.steps_per_second == pytest.approx(1.0)


def test_steps_longer_than_the_window_still_have_a_rate():
    clock = Clock()
    rate = Rate(window=10, clock=clock)
    for step in range(5):
        rate.mark(step)
        clock.sleep(60)
    assert rate.steps_per_second == pytest.approx(1 / 60)


@given(steps=st.lists(st.floats(0.01, 100), min_size=2, max_size=30))
def test_the_rate_lies_between_the_slowest_and_the_fastest_step(steps):
    clock = Clock()
    rate = Rate(window=10, clock=clock)
    for number, seconds in enumerate(steps):
        clock.sleep(seconds)
        rate.mark(number)
    timed = steps[1:]
    assert 1 / max(timed) * 0.999 <= rate.steps_per_second <= 1 / min(timed) * 1.001


def test_measuring_in_between_does_not_slow_the_rate():
    clock = Clock()
    progress = _progress(clock)
    for step in range(1, 6):
        clock.sleep(1.0)
        progress.update(step)
        with progress.paused():
            clock.sleep(20)
    assert progress.snapshot().tokens_per_second == pytest.approx(1000)


def test_mfu_needs_a_peak():
    def mfu(**settings):
        clock = Clock()
        progress = _progress(clock, flops_per_token=6e9, **settings)
        for step in (1, 2, 3):
            clock.sleep(1.0)
            progress.update(step)
        return progress.snapshot().mfu

    assert mfu(peak_flops=12e12) == pytest.approx(0.5)
    assert mfu(peak_flops=None) is None


def test_each_device_and_each_convention_has_its_number():
    clock = Clock()
    counts = flops.PerToken(causal=6e9, full=8e9, executed=9e9)
    progress = _progress(clock, flops_per_token=counts, peak_flops=12e12, devices=4)
    for step in (1, 2, 3):
        clock.sleep(1.0)
        progress.update(step)
    shown = progress.snapshot()
    assert shown.tokens_per_device == pytest.approx(shown.tokens_per_second / 4)
    assert (shown.mfu, shown.mfu_full, shown.hfu) == pytest.approx((0.5, 2 / 3, 0.75))
    assert "1.00k tok/s (250/device) mfu 50% (full 67%, hfu 75%)" in format_line(shown)


def test_a_log_has_a_line_every_interval_and_one_for_the_last_step():
    clock, stream = Clock(), io.StringIO()
    with _progress(clock, stream, steps=35, interval=10.0) as progress:
        for step in range(1, 36):
            clock.sleep(1.0)
            progress.update(step, 1.0)
    shown = [line.split()[3] for line in stream.getvalue().splitlines()]
    assert shown == ["10/35", "20/35", "30/35", "35/35"]


def test_a_run_that_stops_early_shows_where():
    stream = io.StringIO()
    with _progress(Clock(), stream) as progress:
        progress.update(1)
        progress.update(17)
    assert stream.getvalue().splitlines() == ["[1/1 align-s0] step 17/100 17%"]


def test_a_plain_stream_gets_lines_and_a_terminal_a_bar(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    plain, terminal = io.StringIO(), Terminal()
    for stream in (plain, terminal):
        with _progress(Clock(), stream, mode="auto", steps=2) as progress:
            progress.update(1, 2.0)
            progress.update(2, 1.5)
    assert plain.getvalue() == "[1/1 align-s0] step 2/2 100% loss 1.50\n"
    assert "\x1b[" in terminal.getvalue()
    assert "[1/1 align-s0]" in terminal.getvalue() and "2/2" in terminal.getvalue()
    assert "loss 1.50" in terminal.getvalue()


def test_runs_that_advance_together_are_one_line():
    clock, out = Clock(), io.StringIO()
    whole = _progress(clock, out, mode="lines", steps=10 + 10, tokens_per_step=100, interval=1000.0)
    with Group(whole) as group, group.member(0, 10, 10) as first:
        with group.member(4, 10, 10) as second:  # resumed: 4 of its updates were done before
            for number in range(1, 7):
                clock.sleep(0.5)
                first.update(number, 2.0)
                second.update(4 + number, 4.0)
            assert whole.snapshot().loss == 3.0 and (whole.snapshot().step, whole.snapshot().steps) == (12, 16)
            assert whole.snapshot().tokens_per_second == pytest.approx(11 * 100 / 2.5)  # all but the first
        first.update(7, 2.5)
        assert whole.snapshot().loss == 2.5  # of those that are there
    assert out.getvalue().count("13/16") == 1  # stopped early: the last line says where


def test_other_processes_are_silent():
    for mode in ("lines", "bar"):
        stream = Terminal()
        with _progress(Clock(), stream, mode=mode, active=False) as progress:
            progress.update(100, 1.0)
        assert stream.getvalue() == ""
