"""How do several processes become one program, and how do they notice that they are not?

Nothing here happens on import. A launcher asks for it, with `ELASTIC_COORDINATOR`, `ELASTIC_PROCESS_ID` and
`ELASTIC_PROCESS_COUNT`, with the same as arguments, or with "auto" where jax finds them itself (Slurm, TPU,
GKE).
"""

import contextlib
import importlib.metadata
import ipaddress
import itertools
import json
import logging
import os
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from elastic_jax.errors import UserError, first_line
from elastic_jax.parallel import rendezvous
from elastic_jax.parallel.rendezvous import Launch

# The 300 s of jax are too short for a pod whose machines pull images one after the other.
TIMEOUT = 1800.0
_LONGEST_JOIN = 86_400.0
# jax ends the process with a stack trace when its own time is up; ours comes first, with words.
_GRACE = 60.0
# Where a process is lost jax aborts the others (SIGABRT), which no scheduler reads as "queue it again". `train.watchdog` comes
# long before, with stacks and an exit code; jax stays as the last resort.
HEARTBEAT = 1800.0
CLOCK_BOUND = 2.0  # seconds by which the clocks of two hosts may differ; NTP keeps them within some milliseconds
SLOW = 30.0  # seconds after the first process from which a late one is named

# What jax and the libraries under it say when another process is gone. Gloo comes as a ValueError, NCCL and the service as a
# RuntimeError.
_LOST = (
    "Gloo ",
    "NCCL operation",
    "ncclRemoteError",
    "ncclSystemError",
    "CoordinationService",
    "coordination service",
    "heartbeat timeout",
    "Connection reset by peer",
    "Connection closed by peer",
    "Socket closed",
)

_JOINED = "elastic_jax/joined"

_log = logging.getLogger(__name__)
_counts: dict[str, "itertools.count[int]"] = {}
_meeting: rendezvous.Meeting | None = None  # of this process, which can join others only once


@dataclass(frozen=True)
class Pod:
    """What `preflight` found.

    Attributes:
      processes, devices: of all hosts together.
      hosts: names, in process order.
      skew: seconds by which each clock is ahead of that of process 0, in process order; 0 where it is within the error of the
        measurement.
    """

    processes: int
    devices: int
    hosts: tuple[str, ...]
    skew: tuple[float, ...] = (0.0,)


class PeerLost(UserError):
    """Another process is gone or stuck: all have to be started again, and continue."""


def launch_from(
    coordinator: str = "",
    process_id: int | None = None,
    process_count: int | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Launch | None:
    """The launch that the arguments, or else the environment, ask for; None when they ask for none.

    Raises:
      UserError: only part of it is given, or it cannot be right.
    """
    coordinator = coordinator or environ.get("ELASTIC_COORDINATOR", "")
    process_id = _number("ELASTIC_PROCESS_ID", environ) if process_id is None else process_id
    process_count = _number("ELASTIC_PROCESS_COUNT", environ) if process_count is None else process_count
    if not coordinator and process_id is None and process_count is None:
        return None
    if not coordinator or process_id is None or process_count is None:
        raise UserError(
            f"A distributed launch needs all of ELASTIC_COORDINATOR={coordinator or '?'}, "
            f"ELASTIC_PROCESS_ID={'?' if process_id is None else process_id}, "
            f"ELASTIC_PROCESS_COUNT={'?' if process_count is None else process_count}.\n"
            "Set those that are shown as ?, or unset all three to run in one process."
        )
    if process_count < 1 or not 0 <= process_id < process_count:
        raise UserError(
            f"ELASTIC_PROCESS_ID={process_id} of ELASTIC_PROCESS_COUNT={process_count}: "
            f"ids go from 0 to count - 1, each used once."
        )
    host, port = rendezvous.split(coordinator)
    if process_count > 1 and _is_loopback(host) and (evidence := _several_hosts(environ)):
        raise UserError(
            f"ELASTIC_COORDINATOR={coordinator} is this machine alone, but {evidence}: "
            "the other machines would wait for themselves.\n"
            f"Give the name or address of the machine of process 0, e.g. {socket.gethostname()}:{port} "
            "if that is this one."
        )
    return Launch(coordinator, process_id, process_count)


def initialize(
    mode: str = "",
    *,
    coordinator: str = "",
    process_id: int | None = None,
    process_count: int | None = None,
    timeout: float | None = None,
    environ: Mapping[str, str] = os.environ,
) -> bool:
    """Joins the other processes, if a launcher asked for that; to be called before jax sees its devices.

    Args:
      mode: "" follows the arguments and `ELASTIC_*`; "auto" lets jax ask Slurm, Open MPI, the TPU metadata
        or Kubernetes.
      coordinator, process_id, process_count: see `Launch`; each falls back to its environment variable.
      timeout: seconds to wait for the other processes; by default `ELASTIC_JOIN_SECONDS`, or else `TIMEOUT`.

    Returns:
      Whether this process is now one of several launched together.

    Raises:
      UserError: the launch is incomplete or wrong, the coordinator or a process does not come, or jax is in
      use already.
    """
    global _meeting
    if mode not in ("", "auto"):
        raise UserError(f'--distributed={mode}: expected nothing, or "auto".')
    launch = launch_from(coordinator, process_id, process_count, environ)
    if launch is None and not mode:
        return False
    if jax.distributed.is_initialized():
        raise UserError("This process has joined a distributed run already: call initialize() once.")
    timeout = join_seconds(environ) if timeout is None else timeout
    # The default of jax today, but it has been another: without it, CPU processes cannot reduce over each
    # other.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # It takes SIGTERM away from train.interrupt, and would only note it down.
    jax.config.update("jax_enable_preemption_service", False)
    arguments: dict[str, Any] = dict(heartbeat_timeout_seconds=int(HEARTBEAT))
    if launch is not None:
        # Otherwise jax asks the cluster for what is not given, and takes only one GPU per process under
        # Slurm.
        arguments |= dict(
            coordinator_address=launch.coordinator,
            process_id=launch.process_id,
            num_processes=launch.process_count,
            cluster_detection_method="deactivate",
        )
        _log.info("process %d of %d, coordinator %s", launch.process_id, launch.process_count, launch.coordinator)
        deadline = time.monotonic() + timeout
        _meeting = rendezvous.meet(launch, deadline)
        if launch.process_id == 0 and (remark := rendezvous.late(_meeting.arrivals, SLOW)):
            _log.warning(remark)
        timeout = max(1.0, deadline - time.monotonic())
    _connect(arguments, timeout, launch)
    rank, count = _place()
    if count == 1:
        return False
    publish(f"{_JOINED}/{rank}", socket.gethostname())
    return True


def join_seconds(environ: Mapping[str, str] = os.environ) -> float:
    """How long to wait for the other processes: `ELASTIC_JOIN_SECONDS`, or `TIMEOUT`.

    Raises:
      UserError: it is no such number.
    """
    text = environ.get("ELASTIC_JOIN_SECONDS", "")
    if not text:
        return TIMEOUT
    with contextlib.suppress(ValueError):
        if 0 < (seconds := float(text)) <= _LONGEST_JOIN:
            return seconds
    raise UserError(
        f"ELASTIC_JOIN_SECONDS={text!r}: expected seconds to wait for the other processes, above 0 and at most "
        f"{_LONGEST_JOIN:.0f} (a day); unset, it is {TIMEOUT:.0f}."
    )


def watch(lost: Callable[[str], None]) -> None:
    """Calls `lost`, in a thread, when another process has ended without `leave`. Not with "auto", where jax found them."""
    if _meeting is not None:
        _meeting.watch(lost)


def leave() -> None:
    """To be called where this process ends as it should, so that the others do not take it for lost."""
    if _meeting is not None:
        _meeting.leave()


def is_main() -> bool:
    """Whether this is process 0: the only one that writes files and shows progress."""
    return jax.process_index() == 0


def barrier(name: str, timeout: float = TIMEOUT) -> None:
    """Waits until every process is here; it needs no device, so a process stuck in a computation is noticed
    too.

    Raises:
      UserError: after `timeout` seconds some are still missing; the message says which.
    """
    if jax.process_count() > 1:
        _wait(unique(f"barrier/{name}"), name, timeout)


def broadcast_text(text: str, timeout: float = TIMEOUT) -> str:
    """The text that process 0 gave, on every process. The others' argument is not used."""
    if jax.process_count() == 1:
        return text
    return _broadcast(unique("text"), text, timeout)


def _broadcast(key: str, text: str, timeout: float) -> str:
    if is_main():
        _client().key_value_set(key, text)
    try:
        return _client().blocking_key_value_get(key, int(timeout * 1000))
    except jax.errors.JaxRuntimeError as error:
        raise PeerLost(f"Process 0 sent no text within {timeout:.0f} s; see its log.\n{error}") from error


class Channel:
    """`broadcast_text` for what is sent for ever, between updates: old messages are deleted.

    The processes may be apart by the updates that jax dispatches ahead, never by `_KEPT` messages.
    """

    _KEPT = 16

    def __init__(self, name: str):
        self._key, self._sent = unique(name), 0

    def broadcast(self, text: str, timeout: float = TIMEOUT) -> str:
        received = _broadcast(f"{self._key}/{self._sent}", text, timeout)
        if is_main() and self._sent >= self._KEPT:
            _client().key_value_delete(f"{self._key}/{self._sent - self._KEPT}")
        self._sent += 1
        return received


def gather(text: str, timeout: float = TIMEOUT) -> list[str]:
    """The texts of all processes in process order, on every process.

    Raises:
      PeerLost: after `timeout` seconds some are still missing; the message names them.
    """
    if jax.process_count() == 1:
        return [text]
    key = unique("gather")
    _client().key_value_set(f"{key}/{jax.process_index()}", text)
    deadline = time.monotonic() + timeout
    texts = []
    for process in range(jax.process_count()):
        left = max(0.0, deadline - time.monotonic())
        try:
            texts.append(_client().blocking_key_value_get(f"{key}/{process}", int(left * 1000)))
        except jax.errors.JaxRuntimeError as error:
            there = {int(name.rpartition("/")[2]) for name, _ in _client().key_value_dir_get(key)}
            missing = [other for other in range(jax.process_count()) if other not in there]
            raise PeerLost(f"No answer within {timeout:.0f} s from {named(missing)}. See the log there.") from error
    return texts


def publish(key: str, text: str) -> None:
    """A word for every process that reads `key`; the last one stays. Needs no device."""
    _client().key_value_set(key, text, allow_overwrite=True)


def published(folder: str) -> dict[str, str]:
    """What was published under `folder/`, by the last part of its key."""
    return {key.rpartition("/")[2]: text for key, text in _client().key_value_dir_get(folder)}


def wait_for(key: str, timeout: float) -> str:
    """What is published as `key`, once it is; "" after `timeout` seconds.

    Raises:
      jax.errors.JaxRuntimeError: the service is gone.
    """
    try:
        return _client().blocking_key_value_get(key, int(timeout * 1000))
    except jax.errors.JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" not in str(error):
            raise
        return ""


def hosts_service() -> bool:
    """Whether the service by which the processes meet lives in this one. Asks no device."""
    from jax._src import distributed

    return distributed.global_state.service is not None and _place()[1] > 1


def lost_peer(error: BaseException) -> bool:
    """Whether `error` says that another process of this job is gone."""
    if isinstance(error, PeerLost):
        return True
    if isinstance(error, UserError) or not jax.distributed.is_initialized():
        return False
    return any(words in str(error) for words in _LOST)


def preflight(fingerprint: str = "", timeout: float = TIMEOUT, clock: Callable[[], float] = time.time) -> Pod:
    """Checks that the processes are one program before they begin: same config and versions, all devices
    reachable.

    A clock that is more than `CLOCK_BOUND` seconds away from that of process 0 is named in the log.

    Args:
      fingerprint: of the resolved config; it has to be the same everywhere.
      timeout: seconds to wait for the slowest process.
      clock: seconds since 1970.

    Raises:
      UserError: naming the hosts that differ or are missing. Every process raises the same.
    """
    count = jax.process_count()
    mine = {
        "host": socket.gethostname(),
        "fingerprint": fingerprint,
        "versions": versions(),
        "devices": jax.local_device_count(),
        "kind": jax.local_devices()[0].device_kind,
    }
    everyone = [json.loads(text) for text in gather(json.dumps(mine), timeout)]
    hosts = [one["host"] for one in everyone]
    skew = _skew(clock, timeout) if count > 1 else [0.0]
    if is_main() and (remark := _clocks(hosts, skew)):
        _log.warning(remark)
    for field, what, cure in (
        ("fingerprint", "another config", "Start every process with the same --config and overrides."),
        ("versions", "other versions", "Install the same versions on every machine."),
        ("kind", "another kind of device", "Use machines of one kind."),
        ("devices", "another number of devices", "Give every process the same number of devices."),
    ):
        if message := _difference(everyone, field, what):
            raise UserError(f"{message}\n{cure}")
    found = _count_together(hosts, timeout) if count > 1 else _counter()()
    if found != jax.device_count():
        raise UserError(
            f"A sum over all devices counted {found}, but there are {jax.device_count()} "
            f"on {', '.join(sorted(set(hosts)))}. "
            "A collective that is wrong here is wrong in training: check the network of these machines and "
            "the versions of jaxlib and the driver."
        )
    return Pod(count, jax.device_count(), tuple(hosts), tuple(skew))


def versions() -> str:
    """Of what has to be the same on all hosts for the same program to come out of the compiler."""
    found = []
    for package in ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin", "numpy", "elastic_jax"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{package} {importlib.metadata.version(package)}")
    return ", ".join([f"python {sys.version_info.major}.{sys.version_info.minor}", *found])


def _skew(clock: Callable[[], float], timeout: float) -> list[float]:
    """Seconds by which each clock is ahead of that of process 0.

    Process 0 answers each of the others in turn with its own time. The answer was given at some moment between question and
    receipt, so half of that time is the error; what is within it counts as 0.
    """
    key, client, process = unique("clocks"), _client(), jax.process_index()
    milliseconds = int(timeout * 1000)
    if is_main():
        for other in range(1, jax.process_count()):
            client.blocking_key_value_get(f"{key}/ask/{other}", milliseconds)
            client.key_value_set(f"{key}/turn/{other}", "")
            client.blocking_key_value_get(f"{key}/now/{other}", milliseconds)
            client.key_value_set(f"{key}/answer/{other}", repr(clock()))
        mine = 0.0
    else:
        client.key_value_set(f"{key}/ask/{process}", "")
        client.blocking_key_value_get(f"{key}/turn/{process}", milliseconds)  # there may be many before it
        asked = clock()
        client.key_value_set(f"{key}/now/{process}", "")
        answer = float(client.blocking_key_value_get(f"{key}/answer/{process}", milliseconds))
        received = clock()
        ahead = (asked + received) / 2 - answer
        mine = ahead if abs(ahead) > (received - asked) / 2 else 0.0
    return [float(text) for text in gather(repr(mine), timeout)]


def _clocks(hosts: Sequence[str], skew: Sequence[float]) -> str:
    """Which hosts have the wrong time; "" when none has."""
    wrong: dict[str, float] = {}
    for host, seconds in zip(hosts, skew, strict=True):
        if abs(seconds) > CLOCK_BOUND:
            wrong.setdefault(host, seconds)
    if not wrong:
        return ""
    shown = rendezvous.shortened(
        [f"{host} is {abs(s):.1f} s {'ahead of' if s > 0 else 'behind'} {hosts[0]}" for host, s in wrong.items()]
    )
    return (
        f"clocks differ by more than {CLOCK_BOUND:.0f} s: {shown}. No decision depends on it, but times in logs and of files do: "
        "let NTP set them."
    )


def named(processes: Sequence[int]) -> str:
    """`process 1 on host-a, process 3 on host-b`"""
    hosts = {}
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        hosts = published(_JOINED)
    return rendezvous.shortened([f"process {one} on {hosts.get(str(one), 'an unknown host')}" for one in processes])


def _difference(everyone: list[dict[str, Any]], field: str, what: str) -> str:
    """Who has a value of `field` that the others have not; "" when it is the same for all."""
    values = [one[field] for one in everyone]
    if len(set(values)) == 1:
        return ""
    # The most frequent is taken for the right one; between equals, that of the lowest process.
    expected, _ = Counter(values).most_common(1)[0]
    lines = [
        f"  process {process} on {one['host']}: {one[field]!r}"
        for process, one in enumerate(everyone)
        if one[field] != expected
    ]
    shown = lines[:8] + ([f"  and {len(lines) - 8} more"] if len(lines) > 8 else [])
    head = f"{len(lines)} of {len(everyone)} processes have {what} than {expected!r}, the most frequent:"
    return "\n".join([head, *shown])


def _count_together(hosts: Sequence[str], timeout: float) -> int:
    """What `_counter` counts, within `timeout` seconds on every process.

    A collective that misses a process ends after the time of its backend (gloo: 30 s), or never, and names nobody. So nobody begins
    before all have the program, and it runs in a thread, which can be left where it hangs.

    Raises:
      PeerLost: naming the processes that did not get as far as the others.
    """
    key, rank, count = unique("count"), jax.process_index(), len(hosts)
    deadline = time.monotonic() + timeout
    found: list[int] = []
    failure: list[Exception] = []

    def run() -> None:
        try:
            counter = _counter()
            publish(f"{key}/ready/{rank}", "ready")
            if all(wait_for(f"{key}/ready/{other}", max(0.0, deadline - time.monotonic())) for other in range(count)):
                found.append(counter())
                publish(f"{key}/counted/{rank}", "counted")
        except Exception as error:
            failure.append(error)

    thread = threading.Thread(target=run, name="sum over all devices", daemon=True)
    thread.start()
    thread.join(timeout)
    if found:
        return found[0]
    if failure and not lost_peer(failure[0]):
        raise failure[0]

    def missing(state: str) -> list[int]:
        there = published(f"{key}/{state}")
        return [other for other in range(count) if str(other) not in there]

    said = f"\n{first_line(failure[0])}" if failure else ""
    if absent := missing("ready"):
        raise PeerLost(
            f"No program over all devices within {timeout:.0f} s on {named(absent)}. See the log there.{said}"
        )
    within = "" if failure else f" within {timeout:.0f} s"
    raise PeerLost(
        f"The first sum over all devices did not come to its end{within} on {named(missing('counted'))}. "
        f"Check the network between these machines and the log of each.{said}"
    )


def _counter() -> Callable[[], int]:
    """What gives the number of devices that a sum over all of them sees: compiled, and not yet run."""
    mesh = jax.make_mesh((jax.device_count(),), ("all",), axis_types=(AxisType.Auto,))
    spread = NamedSharding(mesh, PartitionSpec("all"))
    ones = jax.make_array_from_callback(
        (jax.device_count(),), spread, lambda index: np.ones(jax.device_count(), np.int32)[index]
    )
    program = jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, PartitionSpec())).lower(ones).compile()
    return lambda: int(program(ones).addressable_data(0))


def _connect(arguments: dict[str, Any], timeout: float, launch: Launch | None) -> None:
    """`jax.distributed.initialize` in its own thread: on a time-out jax aborts the process, it does not
    raise."""
    failure: list[BaseException] = []

    def connect() -> None:
        try:
            jax.distributed.initialize(initialization_timeout=int(timeout + _GRACE), **arguments)
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=connect, name="jax.distributed.initialize", daemon=True)
    thread.start()
    thread.join(timeout)
    if thread.is_alive():
        who = f"the {launch.process_count} processes" if launch else "the processes"
        raise UserError(
            f"Not all of {who} had joined after {timeout:.0f} s. Look at the logs of the others: "
            "one may not have started, have another ELASTIC_COORDINATOR, or have the id of another."
        )
    if not failure:
        return
    error = failure[0]
    if "before" in str(error) and "JAX" in str(error):
        raise UserError(
            "jax was in use before this process joined the others. Call initialize() before anything that "
            "asks for devices or computes."
        ) from error
    if launch is None:
        raise UserError(
            f"--distributed=auto found no Slurm, Open MPI, TPU or Kubernetes launch to join: {error}\n"
            "Set ELASTIC_COORDINATOR, ELASTIC_PROCESS_ID and ELASTIC_PROCESS_COUNT instead."
        ) from error
    raise UserError(
        f"Process {launch.process_id} of {launch.process_count} could not join at {launch.coordinator}: {error}"
    ) from error


def _place() -> tuple[int, int]:
    """Which process this is and how many there are, asked of no device: one that does not start would hang here."""
    from jax._src import distributed

    return distributed.global_state.process_id, distributed.global_state.num_processes or 1


def _client() -> Any:
    # The service has no public door for texts and timed barriers; Orbax goes through the same one.
    from jax._src import distributed

    client = distributed.global_state.client
    if client is None:
        raise UserError(
            f"{jax.process_count()} processes share these devices, but have not been introduced. "
            "Start each with --distributed=auto, or with ELASTIC_COORDINATOR and its process id and count."
        )
    return client


def _wait(key: str, name: str, timeout: float) -> None:
    try:
        _client().wait_at_barrier(key, int(timeout * 1000))
    except jax.errors.JaxRuntimeError as error:
        raise PeerLost(
            f"Not every process reached {name!r} within {timeout:.0f} s; task numbers below are process ids.\n{error}"
        ) from error


def unique(name: str) -> str:
    """A key new to the service, and the same on every process: all make the same calls in the same order."""
    return f"elastic_jax/{name}/{next(_counts.setdefault(name, itertools.count()))}"


def _number(name: str, environ: Mapping[str, str]) -> int | None:
    text = environ.get(name, "")
    if not text:
        return None
    try:
        return int(text)
    except ValueError:
        raise UserError(f"{name}={text!r}: expected a whole number.") from None


def _is_loopback(host: str) -> bool:
    if host.lower() in ("localhost", "localhost.localdomain", "ip6-localhost"):
        return True
    with contextlib.suppress(ValueError):  # a name, not an address
        return ipaddress.ip_address(host).is_loopback or ipaddress.ip_address(host).is_unspecified
    return False


def _several_hosts(environ: Mapping[str, str]) -> str:
    """What in the environment shows that the processes are on several machines; "" when nothing does."""
    for name in ("SLURM_JOB_NUM_NODES", "SLURM_NNODES"):
        if (_number(name, environ) or 1) > 1:
            return f"{name}={environ[name]}"
    if "," in environ.get("TPU_WORKER_HOSTNAMES", ""):
        return "TPU_WORKER_HOSTNAMES lists several machines"
    if environ.get("JOB_COMPLETION_INDEX"):
        return "every pod of an indexed Kubernetes job is a machine of its own"
    local, world = _number("OMPI_COMM_WORLD_LOCAL_SIZE", environ), _number("OMPI_COMM_WORLD_SIZE", environ)
    if local is not None and world is not None and local < world:
        return f"Open MPI started {world} processes, {local} of them here"
    return ""
