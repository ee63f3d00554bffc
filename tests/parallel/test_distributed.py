"""Do processes become one program, and do they say which of them does not fit?"""

import json
import os
import socket
import subprocess
import sys
import textwrap
import time

import jax
import pytest

from elastic_jax.errors import UserError
from elastic_jax.parallel import distributed
from elastic_jax.parallel.distributed import launch_from
from elastic_jax.parallel.hardware import host_cores, host_memory, peak_flops
from elastic_jax.parallel.rendezvous import Launch


def _environment(**values):
    return {f"ELASTIC_{name.upper()}": str(value) for name, value in values.items()}


def test_without_a_launcher_nothing_happens():
    assert launch_from(environ={}) is None
    assert distributed.initialize(environ={"SLURM_JOB_NUM_NODES": "4", "SLURM_PROCID": "1"}) is False
    assert not jax.distributed.is_initialized()


def test_a_launch_comes_from_the_environment_and_arguments_win():
    environ = _environment(coordinator="worker-0:1234", process_id=1, process_count=4)
    assert launch_from(environ=environ) == Launch("worker-0:1234", 1, 4)
    assert launch_from(process_id=3, environ=environ) == Launch("worker-0:1234", 3, 4)
    assert launch_from(process_id=0, environ=environ) == Launch("worker-0:1234", 0, 4)


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        (_environment(coordinator="a:1"), r"ELASTIC_PROCESS_ID=\?.*\n?.*unset all three"),
        (_environment(process_id=0, process_count=2), r"ELASTIC_COORDINATOR=\?"),
        (_environment(coordinator="a:1", process_id=2, process_count=2), "from 0 to count - 1"),
        (_environment(coordinator="a:1", process_id="x", process_count=2), "expected a whole number"),
        (_environment(coordinator="worker-0", process_id=0, process_count=2), "host:port"),
        (_environment(coordinator="worker-0:99999", process_id=0, process_count=2), "host:port"),
    ],
)
def test_an_impossible_launch_is_refused(environ, message):
    with pytest.raises(UserError, match=message):
        launch_from(environ=environ)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1.2.3", "[::1]", "0.0.0.0"])
@pytest.mark.parametrize(
    "elsewhere",
    [
        {"SLURM_JOB_NUM_NODES": "2"},
        {"TPU_WORKER_HOSTNAMES": "t1v-w-0,t1v-w-1"},
        {"JOB_COMPLETION_INDEX": "0"},
        {"OMPI_COMM_WORLD_LOCAL_SIZE": "4", "OMPI_COMM_WORLD_SIZE": "8"},
    ],
)
def test_a_loopback_coordinator_is_refused_when_processes_are_elsewhere(host, elsewhere):
    launch = _environment(coordinator=f"{host}:1234", process_id=0, process_count=2)
    assert launch_from(environ=launch) == Launch(f"{host}:1234", 0, 2)
    with pytest.raises(UserError, match="this machine alone"):
        launch_from(environ=launch | elsewhere)
    other = launch | elsewhere | {"ELASTIC_COORDINATOR": "worker-0:1234"}
    assert launch_from(environ=other) == Launch("worker-0:1234", 0, 2)


def test_an_unknown_mode_is_refused():
    with pytest.raises(UserError, match="--distributed=yes"):
        distributed.initialize("yes", environ={})


def test_an_unreachable_coordinator_is_named():
    start = time.monotonic()
    with pytest.raises(UserError, match=f"cannot reach the coordinator 127.0.0.1:{(port := _free_port())}"):
        distributed.initialize(coordinator=f"127.0.0.1:{port}", process_id=1, process_count=2, timeout=0.5, environ={})
    assert time.monotonic() - start < 5


def test_how_long_to_wait_comes_from_the_environment():
    assert distributed.join_seconds({}) == distributed.TIMEOUT
    assert distributed.join_seconds({"ELASTIC_JOIN_SECONDS": "0.5"}) == 0.5
    environ = _environment(coordinator=f"127.0.0.1:{_free_port()}", process_id=1, process_count=2, join_seconds=0.5)
    start = time.monotonic()
    with pytest.raises(UserError, match="cannot reach the coordinator"):
        distributed.initialize(environ=environ)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan", "inf", "1e6"])
def test_a_wrong_time_to_wait_is_refused(text):
    with pytest.raises(UserError, match=f"ELASTIC_JOIN_SECONDS='{text}': expected seconds"):
        distributed.join_seconds({"ELASTIC_JOIN_SECONDS": text})


def test_a_taken_port_is_named():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} of this machine is taken"):
            distributed.initialize(
                coordinator=f"127.0.0.1:{port}", process_id=0, process_count=2, timeout=5, environ={}
            )


def test_one_process_is_a_program_of_its_own(cpu_devices):
    distributed.barrier("alone")
    assert distributed.is_main()
    assert distributed.broadcast_text("hello") == "hello"
    pod = distributed.preflight("fingerprint")
    assert pod.processes == 1 and pod.devices == len(jax.devices()) and pod.hosts == (socket.gethostname(),)


def test_importing_the_package_imports_no_heavy_framework(clean_import):
    assert clean_import == []


@pytest.mark.parametrize(
    ("kind", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA B200", 2250),
        ("NVIDIA L4", 121),
        ("Tesla T4", 65),
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5e", 197),
        ("TPU v5", 459),
        ("TPU v5p", 459),
        ("TPU v6 lite", 918),
        ("TPU7x", 2307 / 2),
    ],
)
def test_peaks_by_the_names_that_jax_gives(kind, tera):
    assert peak_flops(kind) == pytest.approx(tera * 1e12)


@pytest.mark.parametrize("kind", ["cpu", "", "NVIDIA L40S", "NVIDIA GB200", "TPU v4 lite", "TPU v3", "NVIDIA T400"])
def test_an_unknown_device_has_no_peak(kind):
    assert peak_flops(kind) is None


def test_the_host_has_cores_and_memory():
    assert 1 <= host_cores() <= (os.cpu_count() or 1)
    memory = host_memory()
    assert memory is None or memory > 100 * 2**20


_WORKER = """
    import json, os, sys, time
    from elastic_jax.errors import UserError
    from elastic_jax.parallel import distributed
    try:
        joined = distributed.initialize(timeout=60)
        import jax
        if "PATIENCE" in os.environ and jax.process_index() == 1:
            distributed._wait("never", "never", float(os.environ["PATIENCE"]) + 2)  # as if it hung here
        wrong = 30.0 * jax.process_index()
        pod = distributed.preflight(sys.argv[1], timeout=float(os.environ.get("PATIENCE", 60)),
                                    clock=lambda: time.time() + wrong)
        texts = distributed.gather(str(jax.process_index()))
        text = distributed.broadcast_text(f"from {jax.process_index()}")
        more = distributed.broadcast_text(f"again from {jax.process_index()}")
        distributed.barrier("end", timeout=60)
        distributed.barrier("end", timeout=60)
        try:
            distributed.initialize(timeout=5)
            again = ""
        except UserError as error:
            again = str(error)
        result = dict(joined=joined, main=distributed.is_main(), processes=pod.processes, devices=pod.devices,
                      hosts=pod.hosts, text=text, more=more, again=again, skew=pod.skew, texts=texts)
    except UserError as error:
        result = dict(error=str(error))
    print(json.dumps(result), flush=True)
"""


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _start(script, arguments, count=2, devices=(2, 2), **values):
    port = _free_port()
    workers = []
    for process, argument in enumerate(arguments):
        environ = {
            **os.environ,
            **_environment(coordinator=f"127.0.0.1:{port}", process_id=process, process_count=count),
            **values,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices[process]}",
        }
        workers.append(
            subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(script), argument],
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    results = []
    try:
        for worker in workers:
            out, errors = worker.communicate(timeout=180)
            lines = [line for line in out.splitlines() if line.startswith("{")]
            assert lines, errors
            results.append(json.loads(lines[-1]))
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
    return results


@pytest.mark.distributed
def test_two_processes_pass_the_preflight():
    first, second = _start(_WORKER, ["same", "same"])
    for result in (first, second):
        assert "error" not in result, result
        assert result["joined"] and result["processes"] == 2 and result["devices"] == 4
        assert result["hosts"] == [socket.gethostname()] * 2
        assert result["text"] == "from 0" and result["more"] == "again from 0" and result["texts"] == ["0", "1"]
        ours, theirs = result["skew"]
        assert ours == 0 and theirs == pytest.approx(30, abs=1)
        assert "call initialize() once" in result["again"]
    assert first["main"] and not second["main"]


@pytest.mark.distributed
def test_another_config_is_named_on_every_process():
    results = _start(_WORKER, ["one", "two"])
    for result in results:
        assert "another config than 'one'" in result["error"]
        assert f"process 1 on {socket.gethostname()}: 'two'" in result["error"]


@pytest.mark.distributed
def test_another_number_of_devices_is_named():
    for result in _start(_WORKER, ["same", "same"], devices=(2, 1)):
        assert "another number of devices than 2" in result["error"]


@pytest.mark.distributed
def test_a_process_that_never_comes_is_waited_for_and_then_reported():
    (result,) = _start(_WORKER.replace("initialize(timeout=60)", "initialize(timeout=3)"), ["same"])
    assert "1 of the 2 processes did not come within 3 s: process 1" in result["error"]
    assert f"There are: 0 on {socket.gethostname()}." in result["error"]


@pytest.mark.distributed
def test_a_process_that_hangs_before_the_preflight_is_named_with_its_host():
    first, _ = _start(_WORKER, ["same", "same"], PATIENCE="3")
    assert f"No answer within 3 s from process 1 on {socket.gethostname()}. See the log there." == first["error"]


_HELD = """
    import json, os, time
    from elastic_jax.errors import UserError
    from elastic_jax.parallel import distributed
    distributed.initialize(timeout=60)
    import jax
    if jax.process_index() == 1:
        counter = distributed._counter
        distributed._counter = HELD
    start = time.monotonic()
    try:
        distributed.preflight(timeout=4)
        result = dict(error="")
    except UserError as error:
        result = dict(error=str(error), lost=distributed.lost_peer(error), seconds=time.monotonic() - start)
    print(json.dumps(result), flush=True)
    time.sleep(3)  # process 0 holds the service by which the other reads
    os._exit(0)  # the thread that hangs would keep it
"""


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(
    ("held", "message"),
    [
        ("lambda: time.sleep(60)", "No program over all devices within 4 s on process 1 on {host}. See the log there."),
        (
            "lambda: lambda: time.sleep(60)",
            "The first sum over all devices did not come to its end within 4 s on process 0 on {host}, process 1 on {host}. "
            "Check the network between these machines and the log of each.",
        ),
    ],
    ids=["before the sum", "in the sum"],
)
def test_a_process_that_hangs_in_the_first_sum_is_named_with_its_host(held, message):
    for result in _start(_HELD.replace("HELD", held), ["", ""]):
        assert result["error"] == message.format(host=socket.gethostname())
        assert result["lost"] and 4 <= result["seconds"] < 15


def test_a_wrong_clock_is_named_with_its_host_and_seconds():
    assert distributed._clocks(["a", "b", "c"], [0.0, distributed.CLOCK_BOUND, -0.5]) == ""
    text = distributed._clocks(["a", "b", "b", "c"], [0.0, 3.0, 3.1, -7.25])
    assert text.startswith("clocks differ by more than 2 s: b is 3.0 s ahead of a, c is 7.2 s behind a.")


@pytest.mark.parametrize(
    ("words", "lost"),
    [
        ("UNKNOWN: Gloo all-reduce failed: [...pair.cc:538] Read error [127.0.0.1]:1: Connection reset by peer", True),
        ("NCCL operation ncclGroupEnd() failed: remote process exited or there was a network error", True),
        ("RESOURCE_EXHAUSTED: Out of memory", False),
        ("operands could not be broadcast together", False),
    ],
)
def test_the_loss_of_a_process_is_told_from_other_errors(monkeypatch, words, lost):
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    assert distributed.lost_peer(ValueError(words)) is lost
    assert distributed.lost_peer(distributed.PeerLost("gone"))
    assert not distributed.lost_peer(UserError("Connection reset by peer"))
