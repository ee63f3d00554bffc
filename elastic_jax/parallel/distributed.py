"""How do several processes become one program, and how do they notice that they are not?

Nothing here happens on import. A launcher asks for it, with `ELASTIC_COORDINATOR`, `ELASTIC_PROCESS_ID` and
`ELASTIC_PROCESS_COUNT`, with the same as arguments, or with "auto" where jax finds them itself (Slurm, TPU,
GKE).
"""

import contextlib
import ipaddress
import itertools
import json
import logging
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from elastic_jax.errors import UserError

# The 300 s of jax are too short for a pod whose machines pull images one after the other.
TIMEOUT = 1800.0
# jax ends the process with a stack trace when its own time is up; ours comes first, with words.
_GRACE = 60.0

_log = logging.getLogger(__name__)
_counts: dict[str, "itertools.count[int]"] = {}


@dataclass(frozen=True)
class Launch:
    """Where the processes meet (`host:port` of process 0), which of them this is, and how many there are."""

    coordinator: str
    process_id: int
    process_count: int


@dataclass(frozen=True)
class Pod:
    """What `preflight` found: processes, devices of all of them, and host names in process order."""

    processes: int
    devices: int
    hosts: tuple[str, ...]


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
    host, port = _split(coordinator)
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
    timeout: float = TIMEOUT,
    environ: Mapping[str, str] = os.environ,
) -> bool:
    """Joins the other processes, if a launcher asked for that; to be called before jax sees its devices.

    Args:
      mode: "" follows the arguments and `ELASTIC_*`; "auto" lets jax ask Slurm, Open MPI, the TPU metadata
        or Kubernetes.
      coordinator, process_id, process_count: see `Launch`; each falls back to its environment variable.
      timeout: seconds to wait for the other processes.

    Returns:
      Whether this process is now one of several launched together.

    Raises:
      UserError: the launch is incomplete or wrong, the coordinator or a process does not come, or jax is in
      use already.
    """
    if mode not in ("", "auto"):
        raise UserError(f'--distributed={mode}: expected nothing, or "auto".')
    launch = launch_from(coordinator, process_id, process_count, environ)
    if launch is None and not mode:
        return False
    if jax.distributed.is_initialized():
        raise UserError("This process has joined a distributed run already: call initialize() once.")
    # The default of jax today, but it has been another: without it, CPU processes cannot reduce over each
    # other.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    arguments: dict[str, Any] = {}
    if launch is not None:
        # Otherwise jax asks the cluster for what is not given, and takes only one GPU per process under
        # Slurm.
        arguments = dict(
            coordinator_address=launch.coordinator,
            process_id=launch.process_id,
            num_processes=launch.process_count,
            cluster_detection_method="deactivate",
        )
        _log.info("process %d of %d, coordinator %s", launch.process_id, launch.process_count, launch.coordinator)
        deadline = time.monotonic() + timeout
        if launch.process_id == 0:
            _check_port_is_free(launch)
        else:
            _wait_for_coordinator(launch, deadline)
        timeout = max(1.0, deadline - time.monotonic())
    _connect(arguments, timeout, launch)
    return jax.process_count() > 1


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
        _wait(_unique(f"barrier/{name}"), name, timeout)


def broadcast_text(text: str, timeout: float = TIMEOUT) -> str:
    """The text that process 0 gave, on every process. The others' argument is not used."""
    if jax.process_count() == 1:
        return text
    key = _unique("text")
    if is_main():
        _client().key_value_set(key, text)
    try:
        return _client().blocking_key_value_get(key, int(timeout * 1000))
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"Process 0 sent no text within {timeout:.0f} s; see its log.\n{error}") from error


def preflight(fingerprint: str = "", timeout: float = TIMEOUT) -> Pod:
    """Checks that the processes are one program before they begin: same config and versions, all devices
    reachable.

    Args:
      fingerprint: of the resolved config; it has to be the same everywhere.
      timeout: seconds to wait for the slowest process.

    Raises:
      UserError: naming the hosts that differ or are missing. Every process raises the same.
    """
    count = jax.process_count()
    mine = {
        "host": socket.gethostname(),
        "fingerprint": fingerprint,
        "jax": jax.__version__,
        "devices": jax.local_device_count(),
        "kind": jax.local_devices()[0].device_kind,
    }
    everyone = [mine]
    if count > 1:
        key = _unique("preflight")
        _client().key_value_set(f"{key}/{jax.process_index()}", json.dumps(mine))
        _wait(f"{key}/barrier", "preflight", timeout)
        everyone = [
            json.loads(_client().blocking_key_value_get(f"{key}/{process}", int(timeout * 1000)))
            for process in range(count)
        ]
    for field, what, cure in (
        ("fingerprint", "another config", "Start every process with the same --config and overrides."),
        ("jax", "another version of jax", "Install the same versions on every machine."),
        ("kind", "another kind of device", "Use machines of one kind."),
        ("devices", "another number of devices", "Give every process the same number of devices."),
    ):
        if message := _difference(everyone, field, what):
            raise UserError(f"{message}\n{cure}")
    found = _count_devices()
    if found != jax.device_count():
        raise UserError(
            f"A sum over all devices counted {found}, but there are {jax.device_count()} "
            f"on {', '.join(sorted({one['host'] for one in everyone}))}. "
            "A collective that is wrong here is wrong in training: check the network of these machines and "
            "the versions of jaxlib and the driver."
        )
    return Pod(count, jax.device_count(), tuple(one["host"] for one in everyone))


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


def _count_devices() -> int:
    """The number of devices that a sum over all of them sees."""
    mesh = jax.make_mesh((jax.device_count(),), ("all",), axis_types=(AxisType.Auto,))
    spread = NamedSharding(mesh, PartitionSpec("all"))
    ones = jax.make_array_from_callback(
        (jax.device_count(),), spread, lambda index: np.ones(jax.device_count(), np.int32)[index]
    )
    total = jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, PartitionSpec()))(ones)
    return int(total.addressable_data(0))


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


def _check_port_is_free(launch: Launch) -> None:
    _, port = _split(launch.coordinator)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise UserError(
                f"ELASTIC_COORDINATOR={launch.coordinator}: port {port} of this machine is taken "
                f"({error.strerror}).\n"
                "Another process 0 may be running here; otherwise choose another port for all processes."
            ) from error


def _wait_for_coordinator(launch: Launch, deadline: float) -> None:
    host, port = _split(launch.coordinator)
    pause = 0.1
    while True:
        try:
            left = max(0.1, deadline - time.monotonic())
            with socket.create_connection((host, port), timeout=min(10.0, left)):
                return
        except OSError as error:
            if time.monotonic() + pause >= deadline:
                raise UserError(
                    f"Process {launch.process_id} on {socket.gethostname()} cannot reach the coordinator "
                    f"{launch.coordinator}: {error.strerror or error}.\n"
                    "Process 0 has to run on that machine, and the port has to be open between the two "
                    "(a name that only the other knows, a firewall, an exited process 0)."
                ) from error
        time.sleep(pause)
        pause = min(2 * pause, 5.0)


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
        raise UserError(
            f"Not every process reached {name!r} within {timeout:.0f} s; task numbers below are process ids.\n{error}"
        ) from error


def _unique(name: str) -> str:
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


def _split(coordinator: str) -> tuple[str, int]:
    host, colon, port = coordinator.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(f"ELASTIC_COORDINATOR={coordinator!r}: expected host:port, e.g. worker-0:1234.")
    return host.strip("[]"), int(port)


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
