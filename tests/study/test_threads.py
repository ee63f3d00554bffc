"""Is a run the same when others are trained beside it, each in a thread?"""

import json
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
import small_studies
import tiny

from elastic_jax import config as config_lib
from elastic_jax.errors import UserError
from elastic_jax.study import Study, threads
from elastic_jax.train import account, interrupt

ALIGNED, PERTURBED = 2, 5


def run_of(key: str, *required: Any) -> Any:
    return SimpleNamespace(key=key, requires=required)


@pytest.fixture
def family() -> list[Any]:
    """Two lines of a base, an alignment and two perturbations, the second of which also needs the first."""
    made = []
    for seed in "ab":
        base = run_of(f"base-{seed}")
        align = run_of(f"align-{seed}", base)
        first = run_of(f"first-{seed}", align)
        made += [base, align, first, run_of(f"second-{seed}", align, first)]
    return made


@pytest.mark.parametrize("count", [1, 2, 5])
def test_no_run_begins_before_what_it_requires_and_no_more_than_asked_are_at_work(family, count):
    done, at_work, most, lock = [], set(), [], threading.Lock()

    def execute(run):
        with lock:
            assert all(needed.key in done for needed in run.requires)
            at_work.add(run.key)
            most.append(len(at_work))
        time.sleep(0.005)
        with lock:
            at_work.remove(run.key)
            done.append(run.key)

    threads.run_all(family, count, execute)
    assert sorted(done) == sorted(run.key for run in family) and max(most) <= count
    assert count == 1 or max(most) > 1


def test_what_is_required_and_not_among_the_runs_is_done_already(family):
    done = []
    threads.run_all(family[PERTURBED:], 2, lambda run: done.append(run.key))
    assert len(done) == len(family) - PERTURBED


def test_after_a_failure_the_others_at_work_end_and_none_begins(family):
    both, done = threading.Barrier(2, timeout=10), []

    def execute(run):
        if run.key.startswith("base"):
            both.wait()  # the bases are at work at the same time
            if run.key == "base-a":
                raise UserError("base-a cannot be trained")
            time.sleep(0.05)
        done.append(run.key)

    with pytest.raises(UserError, match="base-a cannot"):
        threads.run_all(family, 2, execute)
    assert done == ["base-b"]


def test_an_interruption_of_the_waiting_thread_lets_the_others_save(family, monkeypatch):
    halt, ended = threading.Event(), []

    def execute(run):
        assert halt.wait(10)
        ended.append(run.key)

    monkeypatch.setattr(threads, "wait", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        threads.run_all(family, 2, execute, stop=halt.set)
    assert ended and all(key.startswith("base") for key in ended)


@pytest.mark.parametrize(
    ("setting", "params", "lanes", "expected"),
    [
        ("off", 1000, 1, 1),
        ("3", 10**9, 1, 3),
        ("auto", 1000, 1, 5),
        ("auto", 10**8, 1, 1),
        ("auto", 1000, 4, 1),
        ("1", 1000, 4, 1),
    ],
)
def test_how_many_at_once(setting, params, lanes, expected, monkeypatch, cpu_devices):
    monkeypatch.setattr(threads.hardware, "host_cores", lambda: 5)
    assert threads.count(setting, tiny.mesh(), params, lanes) == expected


def test_several_devices_or_lanes_do_not_go_with_threads(cpu_devices):
    with pytest.raises(UserError, match="at_once=2 with several devices"):
        threads.count("2", tiny.mesh(2, 1, 1), 1000, 1)
    with pytest.raises(UserError, match="at_once=2 with a population of 4"):
        threads.count("2", tiny.mesh(), 1000, 4)
    assert threads.count("auto", tiny.mesh(2, 1, 1), 1000, 1) == 1
    for wrong in ("0", "two", "-1"):
        with pytest.raises(UserError, match=f"at_once={wrong}: expected auto, off, or"):
            config_lib.validate(config_lib.load(config_lib.default(), {"at_once": wrong}))


def test_a_study_in_threads_is_the_one_without_and_goes_on_after_an_interruption(finished, with_data, monkeypatch):
    workdir, listener = with_data("threads"), SimpleNamespace(reason="")
    with small_studies.on_devices(1):
        study = Study(small_studies.load("", {"at_once": 3}), workdir)
        at_work, real = set(), study._executor._protocol.measure.__func__

        def measure(self, *args):
            at_work.add(threading.current_thread().name)
            if len(at_work) > 1 and threading.active_count() > 2 and not listener.reason:
                listener.reason = "SIGTERM on here"  # while at least one other run is at work
            return real(self, *args)

        monkeypatch.setattr(interrupt, "requested", lambda: listener.reason)
        monkeypatch.setattr(type(study._executor._protocol), "measure", measure)
        with pytest.raises(interrupt.Interrupted):
            study.run(page=False)
        monkeypatch.undo()
        assert 0 < sum(status.done for status in study.status()) < len(study.runs)
        study = Study(small_studies.load("", {"at_once": 3}), workdir, session=study.session)
        study.run(page=False)
        study.workdir.write_table()
    small_studies.assert_same(small_studies.table(workdir), small_studies.table(finished))
    spent = account.of_runs(
        (run.stage, json.loads((workdir / "runs" / run.key / "goodput.json").read_text())) for run in study.runs
    )
    of_session = study.session.account.spent
    for kind in ("pretrain", "align", "perturb", account.MEASURE):
        assert spent[kind] > 0 and of_session[kind] == pytest.approx(spent[kind], abs=0.05)
