"""How is a benchmark recorded, and how do two programs run side by side?

Every script writes NAME.json (all numbers, machine, versions, commit) and NAME.md (the table that people read). Programs that are
compared run as separate processes which take turns, so that a slow minute of the machine hits both and neither's threads
disturb the other.
"""

import argparse
import datetime
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from elastic_jax import environment
from elastic_jax.data import files
from elastic_jax.parallel import hardware
from elastic_jax.parallel.platforms import package_version

RESULTS = Path(__file__).resolve().parent / "results"


def parser(description: str | None) -> argparse.ArgumentParser:
    """Every benchmark has --out and --quick."""
    made = argparse.ArgumentParser(description=description, allow_abbrev=False)
    made.add_argument("--out", type=Path, default=RESULTS, help="folder for NAME.json and NAME.md")
    made.add_argument("--quick", action="store_true", help="seconds instead of minutes; the numbers mean nothing")
    return made


def report(
    name: str,
    title: str,
    columns: Mapping[str, str],
    rows: Sequence[Mapping[str, Any]],
    *,
    notes: Sequence[str] = (),
    out: Path = RESULTS,
) -> str:
    """Write NAME.json and NAME.md, and print the table.

    Args:
      columns: key of the rows -> heading with its unit; keys that are not named are in the JSON alone.
      notes: sentences below the table: what was held equal, what the numbers do not say.
    """
    where = machine()
    out.mkdir(parents=True, exist_ok=True)
    files.write_text(
        out / f"{name}.json",
        json.dumps(dict(title=title, rows=list(rows), notes=list(notes), **where), indent=1) + "\n",
    )
    versions = ", ".join(f"{package} {version}" for package, version in where["versions"].items())
    lines = [f"# {title}", "", table(columns, rows), ""]
    lines += [f"{note}\n" for note in notes]
    lines.append(
        f"{where['processor']}, {where['cores']} cores; {where['date']}, commit {where['commit'] or 'unknown'}; {versions}."
    )
    text = "\n".join(lines) + "\n"
    files.write_text(out / f"{name}.md", text)
    print(text)
    return text


def table(columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table; numbers to three digits, "-" where a row has no value."""
    body = [[_cell(row.get(key)) for key in columns] for row in rows]
    numeric = [all(isinstance(row.get(key), int | float | None) for row in rows) for key in columns]
    rule = ["---:" if right else ":---" for right in numeric]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [list(columns.values()), rule, *body])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def machine() -> dict[str, Any]:
    """Processor, devices, versions, commit and date."""
    import jax

    versions = environment.versions()
    for package in ("torch", "transformers", "trl"):
        if found := package_version(package):
            versions[package] = found
    return dict(
        processor=_processor(),
        cores=hardware.host_cores(),
        memory_bytes=hardware.host_memory(),
        platform=platform.platform(),
        python=platform.python_version(),
        devices=[device.device_kind for device in jax.devices()],
        versions=versions,
        commit=environment.commit(),
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def peak_memory() -> int:
    """The most resident memory that this program has had, in bytes. On Linux without what the process was before it became this
    program, which getrusage counts as well."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


class Contestant:
    """A process that makes ready once and then runs a round whenever it is asked, so that several can take turns.

    The script `file` is started with `--contestant=SPEC` (JSON), in our environment with `environ` added, and has to call `serve`.
    """

    def __init__(self, file: str, spec: Mapping[str, Any], environ: Mapping[str, str] | None = None):
        command = [sys.executable, file, f"--contestant={json.dumps(dict(spec))}"]
        environ = {**os.environ, **(environ or {})}
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ)
        self.ready = self._read()

    def round(self) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write("round\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"a contestant ended with code {self._process.wait()}; its error stands above")


def serve(run_round: Callable[[], Mapping[str, Any]], **ready: Any) -> None:
    """The contestant's side: announce, then a round for every line of the standard input."""
    print(json.dumps(ready), flush=True)
    for _ in sys.stdin:
        print(json.dumps(dict(run_round(), peak_memory=peak_memory())), flush=True)


def timed(run: Callable[[], Any], times: int) -> float:
    """Seconds of one call, the mean of `times` calls; `run` has to wait for its result."""
    began = time.perf_counter()
    for _ in range(times):
        run()
    return (time.perf_counter() - began) / times
