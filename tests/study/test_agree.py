"""Do all processes see the same time and the same interruption at the same update, with few messages?"""

import json

from elastic_jax.study import agree


def test_one_process_asks_itself():
    asked = []
    pulse = agree.Pulse(lambda: asked)
    assert not pulse.interrupted()
    asked.append("SIGTERM")
    assert pulse.interrupted() and pulse.clock() <= pulse.clock()


class Wire:
    """What process 0 sends, for another process to read."""

    def __init__(self):
        self.sent = []

    def broadcast(self, text):
        self.sent.append(text)
        return text


def test_messages_come_about_once_a_second_and_no_update_is_missed(monkeypatch):
    now, asked, wire = 0.0, [], Wire()
    monkeypatch.setattr(agree.jax, "process_count", lambda: 2)
    monkeypatch.setattr(agree.distributed, "Channel", lambda name: wire)
    monkeypatch.setattr(agree.time, "monotonic", lambda: now)
    main = agree.Pulse(lambda: asked)
    seen = []
    for update in range(1000):
        now += 0.01
        if update == 700:
            asked.append("SIGTERM")
        seen.append((main.interrupted(), main.clock()))
    assert len(wire.sent) < 20  # ten seconds of updates, and the first ones
    stop = seen.index(next(one for one in seen if one[0]))
    assert 700 <= stop < 850  # at most about a second later
    now = 100.0  # updates become slow: the distance between messages was fitted to fast ones, and is so only once
    before = len(wire.sent)
    for _ in range(300):
        now += 5.0
        main.interrupted()
    assert len(wire.sent) - before > 180

    replay = iter(wire.sent)
    monkeypatch.setattr(agree.distributed, "is_main", lambda: False)
    monkeypatch.setattr(wire, "broadcast", lambda text: next(replay))
    other = agree.Pulse(lambda: [])
    assert [(other.interrupted(), other.clock()) for _ in range(1000)] == seen
    assert json.loads(wire.sent[0])["end"] is False
