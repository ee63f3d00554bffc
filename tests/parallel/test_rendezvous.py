"""Do the processes of a job learn of each other, and of those that are missing, before anything else begins?"""

import queue
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from elastic_jax.errors import UserError
from elastic_jax.parallel import rendezvous
from elastic_jax.parallel.rendezvous import Arrival, Launch

HOST = socket.gethostname()


def _free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def _meet(processes, count, seconds, counts=None):
    """What each of `processes` gets: the arrivals, or the message of its error."""
    port = _free_port()

    def one(place):
        launch = Launch(f"127.0.0.1:{port}", processes[place], (counts or {}).get(place, count))
        try:
            meeting = rendezvous.meet(launch, time.monotonic() + seconds)
            for line in meeting.lines.values():
                line.close()
            return meeting.arrivals
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(len(processes)) as pool:
        return list(pool.map(one, range(len(processes))))


def test_all_learn_of_all():
    results = _meet([2, 0, 3, 1], 4, 30)
    assert results[0] == results[1] == results[2] == results[3]
    assert [(one.process, one.host) for one in results[0]] == [(process, HOST) for process in range(4)]


def test_a_process_of_its_own_waits_for_nobody():
    ((alone,),) = _meet([0], 1, 30)
    assert alone.process == 0


def test_those_that_came_hear_who_is_missing():
    results = _meet([0, 2], 4, 1.0)
    assert results[0] == results[1]
    assert "2 of the 4 processes did not come within 1 s: process 1, process 3. " in results[0]
    assert f"There are: 0 on {HOST}, 2 on {HOST} after 0." in results[0]


def test_an_id_that_is_used_twice_is_told_to_all():
    results = _meet([0, 1, 1], 3, 30)
    for message in results:
        assert f"ELASTIC_PROCESS_ID=1 is used twice, on {HOST} and on {HOST}" in message


def test_another_number_of_processes_is_told_to_all():
    for message in _meet([0, 1], 2, 30, counts={1: 3}):
        assert f"process 1 on {HOST} was started with ELASTIC_PROCESS_COUNT=3, process 0 with 2" in message


def test_something_else_at_the_address_is_not_the_coordinator():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            guest, _ = server.accept()
            guest.recv(1000)
            guest.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            guest.close()

        threading.Thread(target=answer).start()
        launch = Launch(f"127.0.0.1:{server.getsockname()[1]}", 1, 2)
        with pytest.raises(UserError, match="is not process 0 of this job"):
            rendezvous.meet(launch, time.monotonic() + 30)


def test_a_health_check_and_a_process_that_was_started_again_do_no_harm():
    port = _free_port()
    launch = Launch(f"127.0.0.1:{port}", 0, 3)
    with ThreadPoolExecutor(3) as pool:
        host = pool.submit(rendezvous.meet, launch, time.monotonic() + 30)
        with rendezvous._connected(launch, time.monotonic() + 30) as probe:
            probe.sendall(b"GET / HTTP/1.0\r\n\r\n")
        # A process 1 that ends while it waits for process 2.
        with socket.create_connection(("127.0.0.1", port)) as ended:
            rendezvous._send(ended, dict(hello="elastic_jax", process=1, host="gone", count=3))
        others = [
            pool.submit(rendezvous.meet, Launch(f"127.0.0.1:{port}", process, 3), time.monotonic() + 30)
            for process in (1, 2)
        ]
        meetings = [host.result(), *(other.result() for other in others)]
    assert all([one.process for one in meeting.arrivals] == [0, 1, 2] for meeting in meetings)
    assert "gone" not in {one.host for one in meetings[0].arrivals}
    for meeting in meetings:
        for line in meeting.lines.values():
            line.close()


@pytest.mark.parametrize("gone", [0, 2])
def test_the_end_of_a_process_is_known_to_all_at_once(gone):
    port = _free_port()
    heard = [queue.Queue() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        meetings = list(
            pool.map(lambda i: rendezvous.meet(Launch(f"127.0.0.1:{port}", i, 4), time.monotonic() + 30), range(4))
        )
    meetings[3].leave()  # it has nothing to do any more
    for process in range(3):
        if process != gone:
            meetings[process].watch(heard[process].put, grace=0.1)
    for line in meetings[gone].lines.values():
        line.close()
    for process in range(3):
        if process != gone:
            assert heard[process].get(timeout=30) == f"process {gone} on {HOST}"
    for meeting in meetings:
        for line in meeting.lines.values():
            line.close()


@pytest.mark.parametrize(
    ("coordinator", "reason"), [("127.0.0.1:{port}", "Connection refused"), ("no-such-host.invalid:{port}", "")]
)
def test_a_wrong_coordinator_is_told_while_it_is_tried(coordinator, reason, monkeypatch, caplog):
    monkeypatch.setattr(rendezvous, "FIRST_WORD", 0.2)
    monkeypatch.setattr(rendezvous, "NEXT_WORD", 0.5)
    coordinator = coordinator.format(port=_free_port())
    with pytest.raises(UserError, match="cannot reach the coordinator"):
        rendezvous.meet(Launch(coordinator, 1, 2), time.monotonic() + 1.5)
    said = [record.getMessage() for record in caplog.records if record.name == rendezvous.__name__]
    assert 1 <= len(said) <= 3, said
    for line in said:
        assert line.startswith(f"process 1 on {HOST} cannot reach the coordinator {coordinator} yet: {reason}"), line
    assert said[0].endswith(" more (ELASTIC_JOIN_SECONDS).")


def test_process_0_tells_whom_it_waits_for(monkeypatch, caplog):
    monkeypatch.setattr(rendezvous, "FIRST_WORD", 0.2)
    monkeypatch.setattr(rendezvous, "NEXT_WORD", 60.0)
    _meet([0, 2], 4, 1.0)
    said = [record.getMessage() for record in caplog.records if "has not heard" in record.getMessage()]
    assert len(said) == 1 and "has not heard from process 1, process 3. Waiting for 0 s, and for 1 s more" in said[0]


def test_those_that_come_together_say_nothing(caplog):
    _meet([0, 1], 2, 30)
    assert not caplog.records


def test_late_ones_are_named():
    arrivals = [Arrival(0, "a", 0.0), Arrival(1, "b", 5.0), Arrival(2, "c", 50.0), Arrival(3, "d", 36.0)]
    assert rendezvous.late(arrivals, 30) == (
        "slow to start: process 2 on c 45 s after the first, process 3 on d 31 s after the first."
    )
    assert rendezvous.late(arrivals, 60) == rendezvous.late(arrivals[:1], 1) == ""
