"""Does every second have a kind, and none two?"""

import pytest

from elastic_jax.train import account, goodput


def test_every_phase_of_a_run_has_a_kind():
    seconds = {phase: 2.0**i for i, phase in enumerate(goodput.PHASES)}
    found = account.of_run("align", seconds)
    assert sum(found.values()) == sum(seconds.values())
    assert found["align"] == seconds["step"]
    assert found[account.SAVE] == seconds["save"] + seconds["restore"]


def test_seconds_of_several_runs_are_added_by_stage_and_kind():
    step = lambda spent, saving: dict(seconds=dict(step=spent, save=saving))  # noqa: E731
    found = account.of_runs(
        [("align", step(1.0, 0.5)), ("perturb", step(2.0, 0.25)), ("align", step(4.0, 0)), ("x", {})]
    )
    assert found == {"align": 5.0, "perturb": 2.0, account.SAVE: 0.75}


def test_what_the_clock_shows_beyond_the_kinds_is_the_rest(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(account.time, "monotonic", lambda: now[0])
    made = account.Account()
    with made.during(account.DATA):
        now[0] += 3.0
    made.add({account.MEASURE: 5.0, account.REST: 0.25, account.WAIT: 0.04})
    now[0] += 6.0
    assert made.spent == {account.DATA: 3.0, account.MEASURE: 5.0, account.REST: 0.25, account.WAIT: 0.04}
    assert str(made) == "measuring 5.0, data 3.0, the rest 1.0 (9.0 s in all)"


@pytest.mark.parametrize(
    ("spent", "clock", "expected"),
    [
        ({}, None, "nothing (0.0 s in all)"),
        ({"align": 30.0, "measuring": 10.0}, 20.0, "align 30.0, measuring 10.0 (20.0 s in all, 2.0 at a time)"),
        ({"align": 1200.0}, None, "align 1,200.0 (1,200.0 s in all)"),
    ],
)
def test_in_words(spent, clock, expected):
    assert account.line(spent, clock) == expected
