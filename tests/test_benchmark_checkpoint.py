"""Does the benchmark of checkpoints run, and does memory stay where it is over many saves?"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_benchmark_runs_and_fifty_saves_leave_no_memory_behind(tmp_path):
    command = [sys.executable, "benchmarks/checkpoint.py", "--quick", f"--out={tmp_path}", f"--folder={tmp_path}"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = {row["what"]: row for row in json.loads((tmp_path / "checkpoint.json").read_text())["rows"]}
    assert rows["save, until complete"]["rate"] > 0 and rows["restore, with its checksums"]["rate"] > 0
    assert "| one update |" in (tmp_path / "checkpoint.md").read_text()
    (memory,) = [row for what, row in rows.items() if what.startswith("resident memory")]
    state = 11.0  # MB: a state left behind by every save would be 440
    assert memory["growth"] < 2 * state
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.json", "checkpoint.md"]
