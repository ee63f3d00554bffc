"""Does a process that is asked to end do so with the right code, at once or when it has saved?"""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from elastic_jax.train import interrupt

ROOT = Path(__file__).parents[2]


@pytest.fixture
def left():
    """The reasons for which the process would have ended at once."""
    reasons = []
    with interrupt.listening(reasons.append):
        yield reasons


def kill(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


def until(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    assert condition()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_where_nothing_can_be_saved_it_ends_at_once(left, number):
    kill(number)
    until(lambda: left)
    assert left[0].startswith(f"{number.name} on ")


def test_a_training_loop_is_asked_to_save(left):
    with interrupt.deferred():
        kill()
        until(interrupt.requested)
        kill(signal.SIGUSR1)  # the second says nothing new
        time.sleep(0.1)
        assert not left and interrupt.requested().startswith("SIGTERM on ")
        end = interrupt.Interrupted("run saved after update 7")
    assert end.code == 75 and "run saved after update 7. Exit code 75" in end.farewell


def test_what_takes_long_inside_a_loop_is_given_a_moment(left):
    with interrupt.deferred():
        with interrupt.at_once(patience=30):
            kill()
            until(interrupt.requested)
        time.sleep(0.1)
        assert not left  # it came back to the loop, which asks
        with interrupt.at_once():
            until(lambda: left)


def test_the_first_ctrl_c_saves_and_the_second_ends(left, capsys):
    with interrupt.deferred():
        kill(signal.SIGINT)
        until(interrupt.requested)
        assert "saving first" in capsys.readouterr().err and interrupt.Interrupted("x").code == 130
        with pytest.raises(KeyboardInterrupt):
            kill(signal.SIGINT)
            time.sleep(1)
    assert not left


def test_ctrl_c_elsewhere_is_a_keyboard_interrupt(left):
    with pytest.raises(KeyboardInterrupt):
        kill(signal.SIGINT)
        time.sleep(1)


def test_the_handlers_of_before_come_back():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]
    with interrupt.listening(lambda reason: None):
        assert signal.getsignal(signal.SIGTERM) is not before[0]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)] == before
    assert interrupt.requested() == "" and not any(t.name == "signals" and t.is_alive() for t in _joined())


def _joined():
    for thread in threading.enumerate():
        if thread.name == "signals":
            thread.join(10)
    return threading.enumerate()


SCRIPT = """
import hashlib
from elastic_jax.train import interrupt
with interrupt.listening():
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"a", b"b", 10**9)  # minutes in C, as in the compiler
"""


def test_it_ends_though_the_main_thread_is_not_in_python():
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75 and "Exit code 75; the same command continues." in err
