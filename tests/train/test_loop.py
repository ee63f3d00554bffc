"""Do the things of training happen in the documented order, and can it stop and go on anywhere?"""

import itertools
import threading
import time

import jax
import numpy as np
import pytest
import tiny

from elastic_jax import objectives
from elastic_jax.errors import UserError
from elastic_jax.parallel.mesh import put_local
from elastic_jax.train import loop, optim
from elastic_jax.train import state as state_lib
from elastic_jax.train.checkpoint import Checkpoints
from elastic_jax.train.interrupt import Interrupted
from elastic_jax.train.step import make_train_step

KEY = jax.random.key(3)


class Metric:
    """A number on a device: to read it is an event."""

    def __init__(self, events, name, number):
        self.events, self.name, self.number = events, name, number

    def __float__(self):
        if self.name == "loss":
            self.events.append(f"fetch {self.number}")
        return dict(loss=self.number / 10, finite=1.0, tokens=100.0)[self.name]


def recorded(
    *,
    start=0,
    stop=6,
    measure_at=(),
    save_at=(),
    seconds_per_update=1.0,
    save_seconds=float("inf"),
    interrupt_at=None,
):
    """The events of a loop whose step is fake: its state is the number of updates."""
    events, now, asked = [], [0.0], itertools.count(start + 1)

    def step(state, batch, key):
        assert batch == {"tokens": f"on device {state + 1}"}
        events.append(f"launch {state + 1}")
        now[0] += seconds_per_update
        return state + 1, {name: Metric(events, name, state + 1) for name in ("loss", "finite", "tokens")}

    def note(name):
        def hook(state, number, tokens):
            assert state == number and tokens == 100 * number
            events.append(f"{name} {number}")

        return hook

    def log(number, metrics, tokens):
        assert metrics == dict(loss=number / 10, tokens=100.0) and tokens == 100 * number
        events.append(f"log {number}")

    hooks = loop.Hooks(
        put=lambda batch: {"tokens": f"on device {batch['tokens']}"},
        measure=note("measure"),
        save=note("save"),
        log=log,
        measure_at=frozenset(measure_at),
        save_at=frozenset(save_at),
        save_seconds=save_seconds,
        clock=lambda: now[0],
        alive=lambda number: events.append(f"alive {number}"),
        interrupted=lambda: next(asked) == interrupt_at,
    )
    batches = ({"tokens": n, "row": np.array([n])} for n in itertools.count(start + 1))
    try:
        end = loop.train(start, step, batches, KEY, start=start, stop=stop, tokens=100 * start, hooks=hooks)
        assert end == stop
    except Interrupted as error:
        events.append(str(error))
    return events


def test_the_order_of_things():
    assert recorded(stop=5, measure_at={0, 2}, save_at={0, 2, 4}) == [
        "measure 0",
        "save 0",
        "launch 1",
        "launch 2",  # before anything of update 1 is waited for
        *("fetch 1", "alive 1", "log 1"),
        *("fetch 2", "alive 2", "log 2"),  # something is due: its own loss first
        *("measure 2", "save 2"),
        "launch 3",
        "launch 4",
        *("fetch 3", "alive 3", "log 3", "fetch 4", "alive 4", "log 4"),
        "save 4",
        "launch 5",
        *("fetch 5", "alive 5", "log 5"),
    ]


def test_a_part_of_the_run_does_its_part_of_the_work():
    points = dict(measure_at={0, 2, 4, 9}, save_at={3, 4})
    events = recorded(start=2, stop=4, **points)
    assert [e for e in events if not e.startswith(("fetch", "alive", "log"))] == [
        "measure 2",
        "launch 3",
        "save 3",
        "launch 4",
        "measure 4",
        "save 4",
    ]
    assert recorded(start=4, stop=4, **points) == ["measure 4", "save 4"]


def test_every_update_is_logged_once_and_in_order():
    logs = [e for e in recorded(stop=7, measure_at={3}, save_at={5}) if e.startswith("log")]
    assert logs == [f"log {n}" for n in range(1, 8)]


def test_the_clock_saves_in_between():
    events = recorded(stop=12, save_at={5}, seconds_per_update=2.0, save_seconds=5.0)
    # 6 seconds have passed after update 3; the save at 5 counts, so the next is due after 8.
    assert [e for e in events if e.startswith("save")] == ["save 3", "save 5", "save 8", "save 11"]
    assert events.index("log 3") < events.index("save 3") < events.index("launch 4")


def test_asked_to_stop_it_saves_at_once_and_goes():
    events = recorded(stop=9, measure_at={3}, save_at={5}, interrupt_at=3)
    assert events[-6:] == ["fetch 3", "alive 3", "log 3", "measure 3", "save 3", "saved after update 3"]
    assert "launch 4" not in events
    assert recorded(stop=9, save_at={2}, interrupt_at=2).count("save 2") == 1
    assert recorded(stop=2, interrupt_at=2)[-2:] == ["save 2", "saved after update 2"]


def names_of_threads():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("next-batch")]


def test_one_batch_is_made_ready_ahead_and_no_more_than_asked_for():
    taken = []

    def source():
        for number in itertools.count(1):
            taken.append(number)
            yield {"row": np.array([number]), "tokens": number}

    def settled(count):
        deadline = time.monotonic() + 10
        while len(taken) < count and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.02)  # one more would have been taken by now
        return taken == list(range(1, count + 1))

    with loop.ahead(source(), lambda batch: batch["tokens"] * 10, 3) as ready:
        assert taken == []
        assert next(ready)[1] == 10 and settled(2)
        assert next(ready)[1] == 20 and settled(3)
        assert next(ready)[1] == 30 and settled(3)
        assert list(ready) == []
    assert names_of_threads() == []


@pytest.mark.parametrize("fails", ["batches", "put"])
def test_what_fails_ahead_is_raised_at_its_update_and_leaves_no_thread(fails):
    launched = []

    def source():
        for number in itertools.count(1):
            if fails == "batches" and number == 3:
                raise OSError("shard 3 is gone")
            yield {"row": np.array([number]), "tokens": number}

    def put(batch):
        if fails == "put" and batch["tokens"] == 3:
            raise OSError("shard 3 is gone")
        return batch

    def step(state, batch, key):
        launched.append(batch["tokens"])
        return state, dict(loss=0.0, grad_norm=0.0, finite=1.0, tokens=1)

    hooks = loop.Hooks(put=put, measure=lambda *_: None, save=lambda *_: None, log=lambda *_: None)
    with pytest.raises(OSError, match="shard 3 is gone"):
        loop.train(0, step, source(), KEY, start=0, stop=9, tokens=0, hooks=hooks)
    assert launched == [1, 2] and names_of_threads() == []


MODEL, TX = tiny.decoder(), optim.make(optim.OptimConfig(lr=0.01, warmup=3), 10)
SICK = 1  # texts have no token below 2


def batches(start, sick=None):
    for number in itertools.count(start + 1):
        batch = tiny.text_batch(4, seed=number)
        if number == sick:
            batch["tokens"][2, 0] = SICK
        yield {**batch, "row": np.arange(4) + 10 * number}


@pytest.fixture(scope="module")
def step():
    return make_train_step(MODEL, objectives.sft(), TX, tiny.mesh(1, 2))


def fresh():
    mesh = tiny.mesh(1, 2)
    params = tiny.random_params(MODEL)
    params["embedding"][SICK] = np.nan  # noticed by the rows that hold this token and by no other
    params = jax.device_put(params, MODEL.shardings(mesh))
    return jax.jit(lambda p: state_lib.create(p, TX), out_shardings=state_lib.shardings(MODEL, TX, mesh))(params)


def run(step, state, folder, *, start=0, stop=6, tokens=0, sick=None, save_at=()):
    logged = {}
    checkpoints = Checkpoints(folder, MODEL, tiny.mesh(1, 2))
    hooks = loop.Hooks(
        put=lambda batch: put_local(batch, tiny.mesh(1, 2)),
        measure=lambda state, number, tokens: None,
        save=lambda state, number, tokens: checkpoints.save(state, number, dict(tokens=tokens)),
        log=lambda number, metrics, tokens: logged.update({number: (metrics, tokens)}),
        save_at=frozenset(save_at),
    )
    try:
        stream = batches(start, sick)
        end = loop.train(state, step, stream, KEY, start=start, stop=stop, tokens=tokens, hooks=hooks)
        return jax.device_get(end), logged
    finally:
        checkpoints.close()


def load(folder, number):
    checkpoints = Checkpoints(folder, MODEL, tiny.mesh(1, 2))
    try:
        return checkpoints.restore(number, TX)
    finally:
        checkpoints.close()


def test_interrupted_is_uninterrupted(step, tmp_path):
    whole, logged = run(step, fresh(), tmp_path / "whole")
    _, first = run(step, fresh(), tmp_path / "parts", stop=4, save_at={2})
    state, meta = load(tmp_path / "parts", 2)
    assert meta["tokens"] == first[2][1]
    rest, second = run(step, state, tmp_path / "parts", start=2, tokens=meta["tokens"])
    tiny.assert_trees_equal(rest, whole)
    assert {n: first[n] for n in (1, 2)} | second == logged
    assert logged[6][1] == sum(int(next(batches(n))["mask"].sum()) for n in range(6))


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_what_was_saved(step, tmp_path):
    _, healthy = run(step, fresh(), tmp_path / "healthy", save_at={2})
    for stop in (3, 6):  # found when it is due, and found one update later
        folder = tmp_path / f"sick{stop}"
        with pytest.raises(loop.NotFinite, match=r"update 3: loss nan.*rows \[30, 31, 32, 33\].*optim\.lr") as raised:
            run(step, fresh(), folder, stop=stop, sick=3, save_at={2, 3, 4})
        assert isinstance(raised.value, UserError)
        checkpoints = Checkpoints(folder, MODEL, tiny.mesh(1, 2))
        assert checkpoints.updates() == [2]
        checkpoints.close()
        state, _ = load(folder, 2)
        expected, _ = load(tmp_path / "healthy", 2)
        tiny.assert_trees_equal(jax.device_get(state), jax.device_get(expected))
        # The same command again, with the row repaired, is the run without the fault.
        _, logged = run(step, state, folder, start=2, tokens=healthy[2][1])
        assert logged == {n: healthy[n] for n in (3, 4, 5, 6)}


def test_an_on_policy_batch_is_written_with_the_parameters_of_its_update(step, tmp_path):
    seen = []

    def rollout(params, batch, number):
        seen.append((number, np.array(params["final_norm"]["scale"])))
        return {**batch, "mask": batch["mask"] * 0}

    losses = {}
    hooks = loop.Hooks(
        put=lambda batch: put_local(batch, tiny.mesh(1, 2)),
        measure=lambda *_: None,
        save=lambda *_: None,
        log=lambda number, metrics, tokens: losses.update({number: metrics["loss"]}),
        rollout=rollout,
    )
    loop.train(fresh(), step, batches(0), KEY, start=0, stop=2, tokens=0, hooks=hooks)
    assert [number for number, _ in seen] == [1, 2] and set(losses.values()) == {0.0}
    np.testing.assert_array_equal(seen[0][1], tiny.random_params(MODEL)["final_norm"]["scale"])
