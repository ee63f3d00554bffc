"""Do two processes that a launcher starts train the study that one process trains?"""

import json
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import small_studies

pytestmark = pytest.mark.distributed


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def start(
    workdir: Path,
    *more: str,
    count: int = 2,
    devices: int = 1,
    workdirs: dict[int, Path] | None = None,
    config: str = small_studies.CONFIG,
) -> list[subprocess.Popen]:
    """The command in `count` processes of this machine; `workdirs` are those of processes that see another one."""
    port = free_port()
    return [
        subprocess.Popen(
            small_studies.command((workdirs or {}).get(index, workdir), *more, config=config),
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


def end(started: list[subprocess.Popen]) -> list[subprocess.CompletedProcess]:
    """What they said and ended with."""
    ended = []
    try:
        for process in started:
            out, err = process.communicate(timeout=400)
            ended.append(subprocess.CompletedProcess(process.args, process.returncode, out, err))
    finally:
        for process in started:
            process.kill()
    return ended


def launch(workdir: Path, *more: str, **options: Any) -> list[subprocess.CompletedProcess]:
    return end(start(workdir, *more, **options))


def until(started: list[subprocess.Popen], workdir: Path, updates: int) -> None:
    """Waits until so many updates of pre-training are written down."""
    deadline = time.monotonic() + 240
    while sum(path.read_bytes().count(b'"train"') for path in workdir.glob("runs/pretrain-*/metrics.jsonl")) < updates:
        for process in started:
            if process.poll() is not None:
                raise AssertionError(f"ended before: {process.communicate()}")
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(tmp_path: Path) -> None:
    one = small_studies.shell(tmp_path / "one", devices=4)
    assert one.returncode == 0, one.stderr
    timed = "--config.checkpoint_seconds=0.001"  # temporary checkpoints too
    for round_ in range(2):  # the second continues with everything done
        two = launch(tmp_path / "two", timed, devices=2)
        assert [done.returncode for done in two] == [0, 0], "\n".join(done.stderr for done in two)
        assert "report:" in two[0].stdout
        said = [line for line in two[1].stdout.splitlines() if not line.startswith("[Gloo]")]
        assert said == []  # process 0 alone speaks
        assert ("nothing was computed" in two[0].stdout) == bool(round_)
    found, wanted = small_studies.losses(tmp_path / "two"), small_studies.losses(tmp_path / "one")
    assert found.keys() == wanted.keys()
    for run, values in wanted.items():
        # The same four devices; only the sum over them is carried out by another library.
        np.testing.assert_allclose(found[run], values, rtol=1e-5, err_msg=run)
    small_studies.assert_close(small_studies.table(tmp_path / "two"), small_studies.table(tmp_path / "one"))
    environment = json.loads((tmp_path / "two" / "environment.json").read_text())
    assert environment["processes"] == 2 and len(environment["devices"]) == 4


@pytest.mark.slow
def test_two_processes_train_a_population_as_one_trains_its_runs(tmp_path: Path) -> None:
    lanes = ("--config.mesh.run=2", "--config.population=2")  # one on each process
    two = launch(tmp_path / "two", *lanes)
    assert [done.returncode for done in two] == [0, 0], "\n".join(done.stderr for done in two)
    assert "control-s0 and 1 more" in two[0].stderr or "and 2 more" in two[0].stderr
    one = small_studies.shell(tmp_path / "one")
    assert one.returncode == 0, one.stderr
    found, wanted = small_studies.losses(tmp_path / "two"), small_studies.losses(tmp_path / "one")
    assert found.keys() == wanted.keys()
    for run, values in wanted.items():
        np.testing.assert_allclose(found[run], values, rtol=1e-5, err_msg=run)
    small_studies.assert_close(small_studies.table(tmp_path / "two"), small_studies.table(tmp_path / "one"))


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


# One run alone, long enough to be ended in the middle.
UPDATES = 60
ONE_RUN = (
    "--stage=pretrain",
    f"--config.pretrain.tokens={UPDATES * 8 * 32}",
    "--config.checkpoint_seconds=0.05",
    "--config.data.pretrain.rows=512",
)


def assert_asked_again(ended: list[subprocess.CompletedProcess]) -> None:
    for done in ended:
        assert done.returncode == 75, done.stderr
        assert "Exit code 75; the same command continues." in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_ended_and_continued_on_other_numbers_of_processes_the_losses_are_those_of_one(tmp_path: Path) -> None:
    """Two processes, one of them killed; four, one of them told to end; then a single one: the same order of data throughout."""
    one = small_studies.shell(tmp_path / "one", *ONE_RUN, devices=8)
    assert one.returncode == 0, one.stderr
    workdir = tmp_path / "many"

    two = start(workdir, *ONE_RUN, count=2, devices=2)
    until(two, workdir, 12)
    two[1].send_signal(signal.SIGKILL)
    first, killed = end(two)
    assert killed.returncode == -signal.SIGKILL
    assert_asked_again([first])
    assert (
        "Interrupted by the loss of " in first.stderr
    )  # by the error of gloo, or where that gives none by the open connection

    four = start(workdir, *ONE_RUN, count=4, devices=2)
    until(four, workdir, 35)
    four[3].send_signal(signal.SIGTERM)
    ended = end(four)
    assert_asked_again(ended)
    said = [re.search(r"by SIGTERM on \S+: pretrain-s0-\S+ saved after update (\d+)\.", done.stderr) for done in ended]
    assert all(said) and len({match[1] for match in said if match}) == 1, [done.stderr for done in ended]

    last = small_studies.shell(workdir, *ONE_RUN, devices=2)
    assert last.returncode == 0, last.stderr
    found, wanted = small_studies.losses(workdir), small_studies.losses(tmp_path / "one")
    assert found.keys() == wanted.keys() == {"pretrain-s0"}
    # Rows in another order, or of another batch, would change the losses by a hundredth and more.
    np.testing.assert_allclose(found["pretrain-s0"], wanted["pretrain-s0"], rtol=small_studies.LOSS_RTOL)
    assert len(found["pretrain-s0"]) == UPDATES


@pytest.mark.slow
def test_a_stopped_process_ends_the_others_with_their_stacks(tmp_path: Path) -> None:
    workdir = tmp_path / "w"
    long = [
        *ONE_RUN,
        "--config.pretrain.tokens=3000000",
        "--config.checkpoint_seconds=600",
        "--config.watchdog.factor=2",
        "--config.watchdog.floor_seconds=10",
    ]
    started = start(workdir, *long)
    until(started, workdir, 17)  # measured at 16 and at 32: it is stopped in an update, which is what is watched
    started[1].send_signal(signal.SIGSTOP)
    (first,) = end(started[:1])
    started[1].kill()
    started[1].communicate()
    assert_asked_again([first])
    assert "pretrain-s0 is stuck: no update was completed for" in first.stderr
    assert re.search(r"Did not notice it, and so are dead, stopped or the cause: process 1 on \S+\.", first.stderr)
    (stacks,) = workdir.glob("runs/*/stuck-0.txt")
    assert "train/loop.py" in stacks.read_text() and "train/loop.py" in first.stderr


@pytest.mark.slow
def test_a_process_that_sees_another_checkpoint_is_named(tmp_path: Path) -> None:
    one = small_studies.shell(tmp_path / "w", "--stage=pretrain", devices=2)
    assert one.returncode == 0, one.stderr
    shutil.copytree(tmp_path / "w", tmp_path / "stale")
    torn = max((p for p in (tmp_path / "stale" / "runs").glob("*/checkpoints/8/params/**/*") if p.is_file()), key=_size)
    torn.write_bytes(torn.read_bytes()[:-10])
    for done in launch(tmp_path / "w", "--stage=align", workdirs={1: tmp_path / "stale"}):
        assert done.returncode == 2, done.stderr
        assert re.search(r"checkpoints/8 is not the same for process 1 on \S+ as for process 0", done.stderr), (
            done.stderr
        )
        assert "one folder that all hosts mount" in done.stderr


def _size(path: Path) -> int:
    return path.stat().st_size


@pytest.mark.slow
def test_two_processes_start_from_the_base_that_one_starts_from(tmp_path: Path) -> None:
    checkpoints.llama(tmp_path / "model", seed=1)
    for name, seed in (("train", 0), ("test", 1)):
        checkpoints.reviews(tmp_path / f"{name}.jsonl", 240, seed=seed)
    config = str(small_studies.ROOT / "configs" / "rebound_published.py:tiny")
    own = [f"--config.data.{name}={tmp_path / name}.jsonl" for name in ("train", "test")]
    own += [f"--config.base.hf={tmp_path / 'model'}", "--config.mesh.data=1", "--config.mesh.fsdp=-1"]
    one = small_studies.shell(tmp_path / "one", *own, devices=2, config=config)
    assert one.returncode == 0, one.stderr
    two = launch(tmp_path / "two", *own, config=config)
    assert [done.returncode for done in two] == [0, 0], "\n".join(done.stderr for done in two)
    small_studies.assert_close(small_studies.table(tmp_path / "two"), small_studies.table(tmp_path / "one"))


@pytest.mark.slow
def test_two_processes_write_the_answers_that_one_writes(tmp_path: Path, crossed: Path) -> None:
    flags = [f"--config.{name}={value}" for name, value in small_studies.CROSSED.items()]
    two = launch(tmp_path / "two", *flags)
    assert [done.returncode for done in two] == [0, 0], "\n".join(done.stderr for done in two)
    small_studies.assert_close(small_studies.table(tmp_path / "two"), small_studies.table(crossed))
