"""How long does one wait before anything happens? Import, the first update cold and with the compile cache, the quickstart.

    python benchmarks/startup.py [--out=FOLDER] [--quick]

Every measurement is a process of its own, since everything is imported and compiled once per process.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common

ROOT = Path(__file__).resolve().parents[1]
QUICKSTART = "configs/quickstart.py"
SMALL = "tests/study/small.py"


def imports(module: str) -> float:
    """Seconds of `import module`, beyond the start of Python."""
    script = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return float(done.stdout)


def first_update(config: str, workdir: Path, cache: Path) -> tuple[float, float]:
    """Seconds from the command to its first line, and to its first update written down; the command is then ended."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COMPILATION_CACHE")}
    environ |= dict(ELASTIC_COMPILE_CACHE=str(cache), PYTHONPATH=str(ROOT), PYTHONUNBUFFERED="1")
    command = [sys.executable, "-m", "elastic_jax.run", f"--config={config}", f"--workdir={workdir}"]
    began = time.perf_counter()
    with (
        open(workdir.with_suffix(".log"), "wb") as log,
        subprocess.Popen(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        assert process.stdout is not None
        process.stdout.readline()
        line = time.perf_counter() - began
        while not any(b'"train"' in path.read_bytes() for path in workdir.glob("runs/*/metrics.jsonl")):
            if process.poll() is not None:
                raise SystemExit(workdir.with_suffix(".log").read_text())
            time.sleep(0.01)
        update = time.perf_counter() - began
        process.kill()
    return line, update


def main() -> None:
    args = common.parser(__doc__).parse_args()
    config = SMALL if args.quick else QUICKSTART
    rows = [
        dict(what=f"import {module}", seconds=min(imports(module) for _ in range(1 if args.quick else 3)))
        for module in ("jax", "elastic_jax", "elastic_jax.study")
    ]
    with tempfile.TemporaryDirectory() as folder:
        for name in ("cold", "with the compile cache"):
            line, update = first_update(config, Path(folder) / name.replace(" ", "-"), Path(folder) / "cache")
            rows.append(dict(what=f"{config}: first line, {name}", seconds=line))
            rows.append(dict(what=f"{config}: first update, {name}", seconds=update))
    common.report(
        "startup",
        "Time before anything happens",
        dict(what="", seconds="seconds"),
        rows,
        notes=[
            "Each row is a process of its own. Imports: the best of three, without the start of Python. The first update comes after "
            "drawing the data, compiling the step and the measures, and measuring the random weights."
        ],
        out=args.out,
    )


if __name__ == "__main__":
    main()
