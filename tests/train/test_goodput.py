"""Is every second of a run counted once?"""

import jax
import jax.numpy as jnp

from elastic_jax.train import goodput
from elastic_jax.train.goodput import Ledger


def test_a_phase_inside_another_stops_it():
    now = 0.0
    ledger = Ledger(lambda: now)
    now = 2.0
    with ledger.during("step"):
        now = 5.0
        with ledger.during("measure"):
            assert ledger.phase == "measure"
            now = 9.0
        now = 10.0
    now = 11.0
    seconds = ledger.seconds()
    assert {k: v for k, v in seconds.items() if v} == dict(init=3.0, step=4.0, measure=4.0)
    assert set(seconds) == set(goodput.PHASES)


def test_a_phase_ends_with_its_error():
    ledger = Ledger()
    try:
        with ledger.during("save"):
            raise ZeroDivisionError
    except ZeroDivisionError:
        assert ledger.phase == "init"


def test_compiling_is_taken_out_of_the_phase_that_asked_for_it():
    def new(x):  # jax has compiled no such function before
        return jnp.sum(jnp.cos(x) * 3.25)

    with Ledger() as ledger, ledger.during("step"):
        jax.block_until_ready(jax.jit(new)(jnp.ones(7)))
        inside = ledger.seconds()
    assert inside["compile"] > 0 and inside["step"] >= 0
    jax.block_until_ready(jax.jit(lambda x: new(x) + 1)(jnp.ones(7)))  # nobody listens any more
    assert ledger.seconds()["compile"] == inside["compile"]


def test_sessions_add_up():
    first = goodput.add({}, dict(step=3.0, compile=1.0))
    assert first["goodput"] == 0.75 and first["sessions"] == 1
    second = goodput.add(first, dict(step=5.0, stall=1.0))
    assert second["seconds"]["step"] == 8.0 and second["goodput"] == 0.8 and second["sessions"] == 2


def test_waiting_for_data_is_remarked_above_one_per_cent():
    assert goodput.remark(dict(stall=1.0, step=100.0)) == ""
    assert "waited 2.0 s for data, 2% of the time" in goodput.remark(dict(stall=2.0, step=98.0))
