"""Do the launch scripts print, in a dry run, exactly what they would start?"""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
STUDY = ["--config=configs/quickstart.py:tiny", "--workdir=runs/two"]


def printed(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout


@pytest.mark.parametrize("count", [1, 3])
def test_local_dry_run_is_one_command_per_process(count):
    lines = printed("launch/local.sh", str(count), "--dry-run", "--", *STUDY).splitlines()
    found = [
        re.fullmatch(r"(\S+) (\S+) ELASTIC_PROCESS_ID=(\d+) python -m elastic_jax.run (.*)", line) for line in lines
    ]
    assert sorted(int(match[3]) for match in found if match) == list(range(count))
    assert {match[2] for match in found if match} == {f"ELASTIC_PROCESS_COUNT={count}"}
    assert {match[4] for match in found if match} == {" ".join(STUDY)}
    assert len({match[1] for match in found if match}) == 1  # all meet at one place
    assert re.fullmatch(r"ELASTIC_COORDINATOR=127\.0\.0\.1:\d+", lines[0].split()[0])


def test_local_says_how_it_is_used():
    done = subprocess.run(["launch/local.sh"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and "usage: launch/local.sh COUNT" in done.stderr


def test_slurm_script_is_valid_shell_with_its_directives_first():
    text = (ROOT / "launch/slurm.sbatch").read_text()
    assert text.index("#SBATCH") < text.index("set -euo pipefail")  # Slurm reads none after the first command
    printed("bash", "-n", "launch/slurm.sbatch")
