import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "data.py"


@pytest.mark.slow
def test_the_benchmark_of_the_pipeline_runs(tmp_path):
    command = [sys.executable, str(SCRIPT), "--quick", f"--out={tmp_path}"]
    environ = dict(os.environ, PYTHONPATH=str(SCRIPT.parents[1]), XLA_FLAGS="")
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    read = json.loads((tmp_path / "data.json").read_text())["rows"]
    assert {row["where"] for row in read} == {"memory", "disk"}
    assert {row["pack"] for row in read} == {"stored, none", "stored, best_fit", "best_fit of each batch"}
    assert all(row["tokens_per_second"] > 0 and 0 < row["efficiency"] <= 1 for row in read)
    by_pack = {row["pack"]: row["efficiency"] for row in read if row["examples"] == 64}
    assert by_pack["stored, none"] < by_pack["best_fit of each batch"] < by_pack["stored, best_fit"]
    prepared = json.loads((tmp_path / "data_prepare.json").read_text())["rows"]
    assert any(row.get("memory_mb", 0) > 0 for row in prepared)
    assert "| read from |" in (tmp_path / "data.md").read_text()
