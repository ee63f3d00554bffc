"""Does a study that is killed with SIGKILL, again and again, end with the table of one that never was?"""

import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import small_studies

OFTEN = "--config.checkpoint_seconds=0.001"


def lines_of(workdir: Path, run: str) -> int:
    return sum(path.read_bytes().count(b"\n") for path in workdir.glob(f"runs/{run}-*/metrics.jsonl"))


# What has to be seen in the workdir; the process is killed a random moment later.
MOMENTS: list[tuple[str, Callable[[Path], bool]]] = [
    ("the workdir is made", lambda w: w.exists()),
    ("data is prepared", lambda w: any(w.glob("data/*"))),
    ("pre-training begins", lambda w: any(w.glob("runs/pretrain-*/run.json"))),
    ("pre-training is measured", lambda w: any(w.glob("runs/pretrain-*/measures.parquet"))),
    ("pre-training goes on", lambda w: lines_of(w, "pretrain-s0") >= 8),
    ("a checkpoint is written", lambda w: any(w.glob("runs/*/checkpoints/*tmp*"))),
    ("the control run goes on", lambda w: lines_of(w, "control-s0") >= 3),
    ("alignment goes on", lambda w: lines_of(w, "align-s0") >= 4),
    ("a perturb run is measured", lambda w: any(w.glob("runs/perturb-s0-a16-*/measures.parquet"))),
    ("the report is written", lambda w: (w / "measures.parquet").exists()),
]


@pytest.mark.slow
@pytest.mark.parametrize("seed, together", [(0, "off"), (1, "2")], ids=["one by one", "as populations"])
def test_killed_at_random_moments_it_ends_with_the_same_table(
    tmp_path: Path, uninterrupted: Path, seed: int, together: str
) -> None:
    rng, overrides = random.Random(seed), [OFTEN, f"--config.population={together}"]
    workdir, killed = tmp_path / "w", 0
    chosen = sorted(rng.sample(range(len(MOMENTS)), 6))
    for index in chosen:
        name, seen = MOMENTS[index]
        process = subprocess.Popen(
            small_studies.command(workdir, *overrides),
            env=small_studies.environment(), cwd=small_studies.ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        deadline = time.monotonic() + 240
        while process.poll() is None and not seen(workdir):
            assert time.monotonic() < deadline, f"never seen: {name}"
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        _, err = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), f"after {name!r}:\n{err.decode()}"
        killed += process.returncode == -signal.SIGKILL
    assert killed >= 4
    done = small_studies.shell(workdir, *overrides)
    assert done.returncode == 0, done.stderr
    small_studies.assert_same(small_studies.table(workdir), small_studies.table(uninterrupted))
    assert small_studies.losses(workdir) == small_studies.losses(uninterrupted)
    again = small_studies.shell(workdir, *overrides)
    assert again.returncode == 0 and "All runs were done already; nothing was computed." in again.stdout
