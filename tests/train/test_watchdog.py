"""Does a run that is stuck end with its stacks, and one that is only slow not?"""

import subprocess
import sys
import threading
import time
from pathlib import Path

from elastic_jax.train.watchdog import FIRST, Watchdog


def watchdog(folder, phase="step", **options):
    ended = threading.Event()
    settings = dict(factor=3.0, floor=0.2, folder=folder, phase=lambda: phase, end=ended.set)
    return Watchdog("run", **{**settings, **options}), ended


def test_the_limit_follows_the_median(tmp_path):
    now = 0.0
    dog, _ = watchdog(tmp_path, floor=5.0, clock=lambda: now)
    assert dog.limit == FIRST  # the compiler may be at work
    for update, seconds in enumerate((100.0, 2.0, 2.0, 2.0, 50.0, 2.0)):
        now += seconds
        dog.alive(update)
    assert dog.limit == 6.0
    for update in range(20):
        now += 0.1
        dog.alive(update)
    assert dog.limit == 5.0


def stuck(dog, ended, seconds):
    with dog:
        for update in range(1, 7):
            time.sleep(0.01)
            dog.alive(update)
        return ended.wait(seconds)


def test_an_update_that_does_not_end_ends_the_process_with_stacks(tmp_path, capsys):
    assert stuck(*watchdog(tmp_path), 60)
    said = capsys.readouterr().err
    assert "run is stuck: no update was completed for" in said and "after update 6" in said
    assert "Exit code 75" in said and "in stuck" in said  # the function above
    assert "in stuck" in (tmp_path / "stuck-0.txt").read_text()


def test_it_ends_the_process_though_the_stacks_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    assert stuck(*watchdog(tmp_path / "file" / "below"), 60)


def test_measuring_and_saving_may_take_long(tmp_path):
    for phase in ("measure", "save", "restore", "init"):
        assert not stuck(*watchdog(tmp_path, phase), 0.8)


def test_a_save_that_does_not_end_ends_the_process(tmp_path, capsys):
    assert stuck(*watchdog(tmp_path, "save", patience=0.3), 60)
    said = capsys.readouterr().err
    assert "run is stuck: a save after update 6 has not ended in" in said and "patience_seconds" in said
    assert "in stuck" in (tmp_path / "stuck-0.txt").read_text()


def test_many_short_measurements_are_not_a_long_one(tmp_path):
    phases = ["measure"]
    dog, ended = watchdog(tmp_path, patience=0.5)
    dog._phase = lambda: phases[0]
    with dog:
        for update in range(1, 20):
            dog.alive(update)
            assert not ended.wait(0.1)


def test_it_can_be_off(tmp_path):
    assert not stuck(*watchdog(tmp_path, factor=0.0), 0.8)


SCRIPT = """
import sys, time
from elastic_jax.train.watchdog import Watchdog
with Watchdog("run", factor=2, floor=0.3, folder=sys.argv[1], phase=lambda: "step") as dog:
    for update in range(6):
        dog.alive(update)
    time.sleep(200)
"""


def test_the_exit_code_is_the_one_to_queue_again(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 75 and "the same command continues" in done.stderr
