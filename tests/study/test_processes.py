"""Do two processes that a launcher starts train the study that one process trains?"""

import json
import socket
import subprocess
from pathlib import Path

import numpy as np
import pytest
import small_studies

pytestmark = pytest.mark.distributed


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def launch(workdir: Path, *more: str, count: int = 2, devices: int = 1) -> list[subprocess.CompletedProcess]:
    """The command in `count` processes of this machine."""
    port = free_port()
    started = [
        subprocess.Popen(
            small_studies.command(workdir, *more),
            env=small_studies.environment(
                devices,
                ELASTIC_COORDINATOR=f"127.0.0.1:{port}",
                ELASTIC_PROCESS_ID=str(index),
                ELASTIC_PROCESS_COUNT=str(count),
            ),
            cwd=small_studies.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for index in range(count)
    ]  # fmt: skip
    ended = []
    try:
        for process in started:
            out, err = process.communicate(timeout=400)
            ended.append(subprocess.CompletedProcess(process.args, process.returncode, out, err))
    finally:
        for process in started:
            process.kill()
    return ended


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(tmp_path: Path) -> None:
    one = small_studies.shell(tmp_path / "one", devices=2)
    assert one.returncode == 0, one.stderr
    timed = "--config.checkpoint_seconds=0.001"  # temporary checkpoints too
    for round_ in range(2):  # the second continues with everything done
        two = launch(tmp_path / "two", timed)
        assert [done.returncode for done in two] == [0, 0], "\n".join(done.stderr for done in two)
        assert "report:" in two[0].stdout
        said = [line for line in two[1].stdout.splitlines() if not line.startswith("[Gloo]")]
        assert said == []  # process 0 alone speaks
        assert ("nothing was computed" in two[0].stdout) == bool(round_)
    found, wanted = small_studies.losses(tmp_path / "two"), small_studies.losses(tmp_path / "one")
    assert found.keys() == wanted.keys()
    for run, values in wanted.items():
        # The same two devices; only the sum over them is carried out by another library.
        np.testing.assert_allclose(found[run], values, rtol=1e-5, err_msg=run)
    small_studies.assert_close(small_studies.table(tmp_path / "two"), small_studies.table(tmp_path / "one"))
    environment = json.loads((tmp_path / "two" / "environment.json").read_text())
    assert environment["processes"] == 2 and len(environment["devices"]) == 2


@pytest.mark.slow
def test_a_mistake_is_told_by_every_process(tmp_path: Path) -> None:
    """Process 0 alone looks at the data and the folder; the others must not wait for it."""
    ended = launch(tmp_path / "w", "--config.data.align.rows=16")
    for done in ended:
        assert done.returncode == 2, done.stderr
        assert "align.volumes asks for 32 examples, but data has 16" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_processes_with_different_configs_are_told(tmp_path: Path) -> None:
    port = free_port()
    started = [
        subprocess.Popen(
            small_studies.command(tmp_path / "w", f"--config.name=study{index}"),
            env=small_studies.environment(
                ELASTIC_COORDINATOR=f"127.0.0.1:{port}", ELASTIC_PROCESS_ID=str(index), ELASTIC_PROCESS_COUNT="2"
            ),
            cwd=small_studies.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for index in range(2)
    ]  # fmt: skip
    for process in started:
        _, err = process.communicate(timeout=200)
        assert process.returncode == 2 and "another config" in err, err
