"""Does every benchmark run, and write its table?"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


NAMES = ["step", "attention", "loss", "scaling", "startup", "gpu", "plans", "generate", "imports", "theory", "suite"]
FEWER = {"suite": ["--recipes=rebound"]}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_quick_run_writes_json_and_table(name, tmp_path):
    environ = dict(os.environ, PYTHONPATH=str(ROOT))
    environ.pop("XLA_FLAGS", None)  # one device, as users have
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / f"{name}.py", "--quick", f"--out={tmp_path}", *FEWER.get(name, ())],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for found in tmp_path.glob("*.json"):
        written = json.loads(found.read_text())
        assert written["rows"] and written["versions"]["jax"] and written["cores"] >= 1
        table = found.with_suffix(".md").read_text()
        assert table.startswith(f"# {written['title']}") and table.count("\n|") >= 2 + len(written["rows"])
        break
    else:
        pytest.fail(f"{name}.py wrote no table")
