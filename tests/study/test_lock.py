"""Does one process write at a time, on a disk and in a bucket, and what happens to the lock of one that died?"""

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
import tensorstore as ts
from etils import epath

from elastic_jax.errors import UserError
from elastic_jax.study import lock
from elastic_jax.study.lock import STUDY, Busy, Times, clear, hold, hold_leases, holders

QUICK = Times(renew=0.05, lost=0.4, look=0.02)
COMBINATIONS = [
    (None, None, False),
    (None, ["a-1"], False),
    (["a-1"], None, False),
    (["a-1"], ["a-1"], False),
    (["a-1", "b-2"], ["c-3", "b-2"], False),
    (["a-1"], ["b-2"], True),
]


@pytest.fixture
def store():
    """Of tensorstore too, with the same conditional puts as its driver for Google Cloud Storage."""
    return ts.KvStore.open("memory://").result()


def another_process(root: Path, keys: Sequence[str] | None) -> subprocess.CompletedProcess:
    script = (
        "import json, sys; from etils import epath; from elastic_jax.study.lock import hold\n"
        "with hold(epath.Path(sys.argv[1]), json.loads(sys.argv[2])): pass"
    )
    return subprocess.run([sys.executable, "-c", script, root, json.dumps(keys)], capture_output=True, text=True)


@pytest.mark.parametrize(("first", "second", "together"), COMBINATIONS)
def test_the_whole_and_its_runs_exclude_each_other_on_a_disk(tmp_path, first, second, together):
    root = epath.Path(tmp_path)
    with ExitStack() as stack, hold(root, first):
        if together:
            stack.enter_context(hold(root, second))
            assert holders(root).keys() == {*first, *second}
        else:
            with pytest.raises(UserError, match=rf"another process is running .*process {os.getpid()} on "):
                stack.enter_context(hold(root, second))
            assert holders(root).keys() == (set(first) if first else {STUDY})
    assert holders(root) == {}
    with hold(root, second):
        pass


@pytest.mark.parametrize(("first", "second", "together"), COMBINATIONS)
def test_the_whole_and_its_runs_exclude_each_other_in_a_bucket(store, first, second, together):
    with ExitStack() as stack, hold_leases(store, first, QUICK):
        if together:
            stack.enter_context(hold_leases(store, second, QUICK))
            assert {name.decode() for name in store.list().result()} == {*first, *second}
        else:
            with pytest.raises(Busy) as busy:
                stack.enter_context(hold_leases(store, second, QUICK))
            assert busy.value.holder.pid == os.getpid() and busy.value.name in (first or [STUDY])
            assert {name.decode() for name in store.list().result()} == (set(first) if first else {STUDY})
    assert store.list().result() == []


def test_a_lock_on_a_disk_goes_with_its_process(tmp_path):
    with hold(epath.Path(tmp_path)):
        refused = another_process(tmp_path, None)
    assert refused.returncode == 1 and f"process {os.getpid()} on" in refused.stderr
    for keys in (["a-1"], None):
        assert another_process(tmp_path, keys).returncode == 0
        with hold(epath.Path(tmp_path)):
            pass


def left_behind(store, name: str, **changes) -> lock.Holder:
    holder = dataclasses.replace(lock._me(), **changes)
    store.write(name, lock._encoded(holder)).result()
    return holder


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.skipif(not lock._machine(), reason="process ids mean something where /proc tells boot and namespace")
def test_a_dead_process_of_this_machine_is_known_at_once(store):
    left_behind(store, STUDY, pid=dead_pid())
    began = time.monotonic()
    with hold_leases(store, ["a-1"], Times()):
        assert time.monotonic() - began < 5.0
        assert store.list().result() == [b"a-1"]


@pytest.mark.parametrize("machine", ["", "another boot"])
def test_a_lock_that_nobody_renews_is_taken_over_after_a_while(store, machine):
    """The process id is that of a dead one here, which says nothing about another machine."""
    left_behind(store, "a-1", pid=dead_pid(), machine=machine, renewed=time.time() + 1e6)  # whose clock is ahead
    began = time.monotonic()
    with hold_leases(store, None, QUICK):
        assert time.monotonic() - began >= QUICK.lost
        assert store.list().result() == [STUDY.encode()]


def test_a_lock_that_is_renewed_is_respected_however_old_it_says_it_is(store):
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(0.1):
            left_behind(store, STUDY, renewed=0.0, since=0.0)

    left_behind(store, STUDY, renewed=0.0, since=0.0)
    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(Busy):
            clear(store, [STUDY], QUICK)
    finally:
        ended.set()
        thread.join()


def test_whoever_lost_its_lock_is_told_and_leaves_the_new_one_alone(store):
    with hold_leases(store, None, QUICK) as held:
        held.check()
        new = left_behind(store, STUDY, host="elsewhere")  # as if this process had been asleep
        deadline = time.monotonic() + 10
        with pytest.raises(UserError, match=rf"taken over by process {new.pid} on elsewhere"):
            while time.monotonic() < deadline:
                held.check()
                time.sleep(0.01)
    assert json.loads(store.read(STUDY).result().value)["host"] == "elsewhere"


def test_a_put_whose_answer_was_lost_still_counts(store):
    with hold_leases(store, ["a-1"], QUICK) as held:
        # The store took the renewal and the answer never came: the generation that is known is an old one.
        held._put("a-1", store.read("b-2").result().stamp.generation)
        held._put("a-1", b"\x00\x00")
        held.check()
    assert store.list().result() == []


def test_of_many_that_want_it_one_gets_it(store):
    got, gate = [], threading.Barrier(6)

    def want() -> None:
        gate.wait()
        try:
            with hold_leases(store, ["a-1"], QUICK):
                got.append(threading.get_ident())
                time.sleep(4 * QUICK.lost)
        except Busy:
            pass

    threads = [threading.Thread(target=want) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1
