"""Which of the processes of a job are there, before anything else begins?

`jax.distributed` only says that somebody is missing, and when its time is up it aborts. So the processes meet first, at the
address where the service of jax will be a moment later: each tells process 0 its id and host, and hears of all the others.

The connections stay. The kernel closes them when a process ends in whatever way, so that the others know at once, also where
they wait for it in a collective that gives no error.
"""

import contextlib
import json
import logging
import math
import selectors
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from elastic_jax.errors import UserError

_log = logging.getLogger(__name__)

_HELLO = "elastic_jax"
_LONGEST = 2**20  # bytes of one message; whoever sends more is not one of us
_LATER = 30.0  # seconds for the answer of process 0 after its own time is up
GRACE = (
    10.0  # seconds between the end of a process and that of the others: most notice it themselves, and say it better
)
# Seconds of waiting after which the log says so, and those between further lines: longer than processes that are started together
# are apart.
FIRST_WORD, NEXT_WORD = 10.0, 60.0
_PATIENCE = 5.0  # seconds for one who has connected to say who it is
# A machine without power says nothing: after a minute of silence the kernel asks, and gives up after another.
_ALIVE = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)] + [
    (socket.IPPROTO_TCP, getattr(socket, name), value)
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 6))
    if hasattr(socket, name)
]


@dataclass(frozen=True)
class Launch:
    """Where the processes meet (`host:port` of process 0), which of them this is, and how many there are."""

    coordinator: str
    process_id: int
    process_count: int


@dataclass(frozen=True)
class Arrival:
    """A process, the name of its host, and when it came: seconds after process 0 began to wait."""

    process: int
    host: str
    seconds: float


@dataclass(frozen=True)
class Meeting:
    """All processes in process order, and the connections: of process 0 to every other, of the others to process 0."""

    arrivals: list[Arrival]
    lines: dict[int, socket.socket]

    def watch(self, lost: Callable[[str], None], grace: float = GRACE) -> None:
        """Calls `lost`, in a thread and once, when a process has ended without `leave`; on process 0 and so on all.

        Args:
          lost: hears who it was, such as `process 1 on host-a`.
          grace: seconds before that, in which this process may come to its own end.
        """
        threading.Thread(target=self._watch, args=(lost, grace), name="other processes", daemon=True).start()

    def leave(self) -> None:
        """To be called where this process ends as it should: the others need not worry."""
        for line in self.lines.values():
            with contextlib.suppress(OSError):
                _send(line, dict(hello=_HELLO, bye=True))

    def _watch(self, lost: Callable[[str], None], grace: float) -> None:
        hosts = {one.process: one.host for one in self.arrivals}
        with selectors.DefaultSelector() as waiting:
            for process, line in self.lines.items():
                for level, name, value in _ALIVE:
                    line.setsockopt(level, name, value)
                waiting.register(line, selectors.EVENT_READ, process)
            while waiting.get_map():
                for key, _ in waiting.select():
                    word = _receive(self.lines[key.data], time.monotonic() + _PATIENCE)
                    waiting.unregister(key.fileobj)
                    if word.get("bye"):
                        continue
                    who = word.get("lost") or f"process {key.data} on {hosts[key.data]}"
                    for line in self.lines.values():  # process 0 tells the others whom it lost
                        with contextlib.suppress(OSError):
                            _send(line, dict(hello=_HELLO, lost=who))
                    time.sleep(grace)
                    lost(who)
                    return


class _Waiting:
    """Says in the log, from time to time, what is waited for."""

    def __init__(self, deadline: float):
        self._began, self._deadline = time.monotonic(), deadline
        self._next = self._began + FIRST_WORD

    @property
    def left(self) -> float:
        """Seconds until there is something to do: the next line, or the end."""
        return min(self._deadline, self._next) - time.monotonic()

    def say(self, what: Callable[[], str]) -> None:
        now = time.monotonic()
        if now < self._next or now >= self._deadline:
            return
        self._next = now + NEXT_WORD
        _log.warning(
            "%s. Waiting for %.0f s, and for %.0f s more (ELASTIC_JOIN_SECONDS).",
            what(),
            now - self._began,
            math.ceil(self._deadline - now),
        )


def meet(launch: Launch, deadline: float) -> Meeting:
    """Waits until all processes of `launch` are there.

    Args:
      deadline: of `time.monotonic`.

    Raises:
      UserError: on all that came, naming those that did not, or two with one id, or another number of processes; or nothing
        (or something else) answers at the address.
    """
    return _host(launch, deadline) if launch.process_id == 0 else _visit(launch, deadline)


def late(arrivals: Sequence[Arrival], bound: float) -> str:
    """The processes that came more than `bound` seconds after the first of the others; "" when there are none."""
    first = min((one.seconds for one in arrivals[1:]), default=0.0)
    slow = sorted((one for one in arrivals if one.seconds - first > bound), key=lambda one: -one.seconds)
    if not slow:
        return ""
    shown = [f"process {one.process} on {one.host} {one.seconds - first:.0f} s after the first" for one in slow]
    return f"slow to start: {shortened(shown)}."


def split(coordinator: str) -> tuple[str, int]:
    """Host and port; raises UserError where they are not both there."""
    host, colon, port = coordinator.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(f"ELASTIC_COORDINATOR={coordinator!r}: expected host:port, e.g. worker-0:1234.")
    return host.strip("[]"), int(port)


def shortened(items: Sequence[str], most: int = 8) -> str:
    """The items with commas between them, and how many more there are."""
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def _host(launch: Launch, deadline: float) -> Meeting:
    began, count = time.monotonic(), launch.process_count
    guests: dict[int, tuple[socket.socket, Arrival]] = {}
    accepted: list[socket.socket] = []
    error = ""
    waiting = _Waiting(deadline)
    with contextlib.ExitStack() as open_sockets:
        server = open_sockets.enter_context(_listen(launch))
        while not error and not _complete(guests, count):
            if time.monotonic() >= deadline:
                error = _missing(launch, guests, time.monotonic() - began)
                break
            waiting.say(lambda: f"process 0 at {launch.coordinator} has not heard from {_absent(launch, guests)}")
            server.settimeout(max(0.01, waiting.left))
            try:
                guest, _ = server.accept()
            except TimeoutError:
                continue
            open_sockets.callback(guest.close)
            accepted.append(guest)
            word = _receive(guest, time.monotonic() + _PATIENCE)
            if word.get("hello") == _HELLO:  # a port is also knocked at by health checks
                error = _seat(launch, guests, guest, word, time.monotonic() - began)
        here = Arrival(0, socket.gethostname(), 0.0)
        arrivals = [here, *(guests[process][1] for process in sorted(guests))]
        server.close()  # before the answer: the next to listen at this address is jax
        answer = dict(hello=_HELLO, error=error, arrivals=[[a.process, a.host, a.seconds] for a in arrivals])
        for guest, _ in guests.values():
            with contextlib.suppress(OSError):
                _send(guest, answer)
        if not error:
            open_sockets.pop_all()
            seated = [guest for guest, _ in guests.values()]
            for guest in accepted:
                if guest not in seated:
                    guest.close()
    if error:
        raise UserError(error)
    return Meeting(arrivals, {process: guest for process, (guest, _) in guests.items()})


def _complete(guests: dict[int, tuple[socket.socket, Arrival]], count: int) -> bool:
    """Whether all are there; those that have ended while they waited are sent off once the table is full."""
    if len(guests) == count - 1:
        for process in [process for process, (guest, _) in guests.items() if _is_gone(guest)]:
            del guests[process]
    return len(guests) == count - 1


def _seat(
    launch: Launch, guests: dict[int, tuple[socket.socket, Arrival]], guest: socket.socket, word: dict, seconds: float
) -> str:
    """Takes up one who came; returns what is wrong with it."""
    process, host = int(word["process"]), str(word["host"])
    arrival = Arrival(process, host, seconds)
    if int(word["count"]) != launch.process_count:
        guests[-1] = guest, arrival  # it hears of it as well
        return (
            f"process {process} on {host} was started with ELASTIC_PROCESS_COUNT={word['count']}, process 0 with "
            f"{launch.process_count}. Start all with the same."
        )
    if process in guests and not _is_gone(guests[process][0]):
        first = guests[process][1].host
        guests[-1] = guest, arrival
        return (
            f"ELASTIC_PROCESS_ID={process} is used twice, on {first} and on {host}. Ids go from 0 to "
            f"{launch.process_count - 1}, each used once."
        )
    guests[process] = guest, arrival
    return ""


def _absent(launch: Launch, guests: dict[int, tuple[socket.socket, Arrival]]) -> str:
    return shortened([f"process {process}" for process in range(1, launch.process_count) if process not in guests])


def _missing(launch: Launch, guests: dict[int, tuple[socket.socket, Arrival]], waited: float) -> str:
    missing = launch.process_count - 1 - sum(process in guests for process in range(1, launch.process_count))
    there = [
        f"{a.process} on {a.host} after {a.seconds:.1f} s"
        for _, a in sorted(guests.values(), key=lambda g: g[1].process)
    ]
    return (
        f"{missing} of the {launch.process_count} processes did not come within {waited:.0f} s: {_absent(launch, guests)}. "
        f"There are: {shortened([f'0 on {socket.gethostname()}', *there])}.\n"
        "Look at the logs of the missing: one may not have started, not reach "
        f"{launch.coordinator} (a firewall, a name that only process 0 knows), or have the id of another."
    )


def _listen(launch: Launch) -> socket.socket:
    _, port = split(launch.coordinator)
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        raise UserError(
            f"ELASTIC_COORDINATOR={launch.coordinator}: port {port} of this machine is taken "
            f"({error.strerror}).\n"
            "Another process 0 may be running here; otherwise choose another port for all processes."
        ) from error


def _visit(launch: Launch, deadline: float) -> Meeting:
    host = _connected(launch, deadline)
    word = dict(hello=_HELLO, process=launch.process_id, host=socket.gethostname(), count=launch.process_count)
    _send(host, word)
    answer = _receive(host, deadline + _LATER)
    if answer.get("hello") != _HELLO or answer["error"]:
        host.close()
    if answer.get("hello") != _HELLO:
        raise UserError(
            f"ELASTIC_COORDINATOR={launch.coordinator} is not process 0 of this job, or it ended: it answered nothing that "
            "process 0 would say. Give the address of the machine of process 0, and look at its log."
        )
    if answer["error"]:
        raise UserError(answer["error"])
    return Meeting([Arrival(*one) for one in answer["arrivals"]], {0: host})


def _connected(launch: Launch, deadline: float) -> socket.socket:
    host, port = split(launch.coordinator)
    pause, waiting = 0.1, _Waiting(deadline)
    while True:
        try:
            left = max(0.1, deadline - time.monotonic())
            return socket.create_connection((host, port), timeout=min(10.0, left))
        except OSError as error:
            if time.monotonic() + pause >= deadline:
                raise UserError(
                    f"Process {launch.process_id} on {socket.gethostname()} cannot reach the coordinator "
                    f"{launch.coordinator}: {error.strerror or error}.\n"
                    "Process 0 has to run on that machine, and the port has to be open between the two "
                    "(a name that only the other knows, a firewall, an exited process 0)."
                ) from error
            reason = error.strerror or str(error)
        waiting.say(
            lambda reason=reason: (
                f"process {launch.process_id} on {socket.gethostname()} cannot reach the coordinator {launch.coordinator} yet: "
                f"{reason}"
            )
        )
        time.sleep(pause)
        pause = min(2 * pause, 5.0)


def _send(to: socket.socket, word: dict) -> None:
    to.settimeout(_PATIENCE)
    to.sendall(json.dumps(word).encode() + b"\n")


def _receive(source: socket.socket, deadline: float) -> dict:
    """One line of JSON; {} where none comes."""
    got = b""
    try:
        while not got.endswith(b"\n") and len(got) < _LONGEST:
            source.settimeout(max(0.1, deadline - time.monotonic()))
            part = source.recv(65536)
            if not part:
                break
            got += part
        word = json.loads(got)
    except (OSError, ValueError):
        return {}
    return word if isinstance(word, dict) else {}


def _is_gone(guest: socket.socket) -> bool:
    guest.setblocking(False)
    try:
        return guest.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
