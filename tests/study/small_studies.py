"""How do tests run the small study, and when are the tables of two studies the same?"""

import contextlib
import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from elastic_jax import config as config_lib
from elastic_jax import study as study_lib
from elastic_jax.parallel.mesh import make_mesh
from elastic_jax.study import Study, execute

ROOT = Path(__file__).resolve().parents[2]
CONFIG = str(Path(__file__).with_name("small.py"))
# Sums over devices are added in another order than on one. The differences of float32 grow over the updates of the study
# (fewer than 20, learning rate 0.02): 100 epsilons were seen, an error in a gradient makes thousands.
LOSS_RTOL = 2e-4
# The resistance experiment on top of the small study, whose runs it shares.
CROSSED = {
    "resistance.slices": (0.5, 1.0),
    "resistance.batch_size": 2,
    "resistance.queries": 4,
    "resistance.heldout": 4,
    "resistance.length": 12,
    "resistance.temperature": 1.0,
    "resistance.top_p": 1.0,
    "resistance.orders": ("21",),
    "resistance.other_task": True,
}


def load(argument: str = "", overrides: Mapping[str, Any] | None = None):
    return config_lib.load(CONFIG + (f":{argument}" if argument else ""), overrides)


@contextlib.contextmanager
def on_devices(count: int) -> Iterator[None]:
    """Studies made inside see only the first `count` devices."""
    few = partial(make_mesh, devices=jax.devices()[:count])
    with mock.patch.object(study_lib, "make_mesh", few):
        yield


def run(
    workdir: Path,
    argument: str = "",
    overrides: Mapping[str, Any] | None = None,
    *,
    devices: int = 1,
    stage: str | None = None,
    page: bool = False,
) -> Study:
    """Run the study to its end; without `page` no figures are drawn, which takes longer than the small study itself."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(on_devices(devices))
        if not page:
            stack.enter_context(mock.patch.object(study_lib.report, "render", _no_figures))
        study = Study(load(argument, overrides), workdir)
        study.run(stage)
    return study


def _no_figures(measures: Path, out: Path, study: str | None = None, *, eps: float) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    (out / "index.html").write_text(f"{study} {time.time_ns()}")
    return out / "index.html"


@dataclasses.dataclass(frozen=True)
class Trained:
    """One stretch of training: updates `start` (exclusive) to `stop`."""

    run: str
    start: int
    stop: int


@contextlib.contextmanager
def watched() -> Iterator[list[Trained]]:
    """What is trained inside."""
    found: list[Trained] = []
    real = execute.Executor._training

    def training(self, run, *args, start, stop, **kwargs):
        found.append(Trained(run.name, start, stop))
        return real(self, run, *args, start=start, stop=stop, **kwargs)

    with mock.patch.object(execute.Executor, "_training", training):
        yield found


class Stopped(BaseException):
    """As if the process had ended here: nothing may catch it and go on."""


@contextlib.contextmanager
def stopping(owner: object, name: str, call: int, after: bool):
    """The `call`-th call of `owner.name` is the last thing that happens, before or after it is carried out."""
    real, calls = getattr(owner, name), 0

    def stand_in(*args, **kwargs):
        nonlocal calls
        calls += 1
        result = real(*args, **kwargs) if calls < call or after else None
        if calls == call:
            raise Stopped
        return result

    with mock.patch.object(owner, name, stand_in), pytest.raises(Stopped):
        yield


def table(workdir: Path, study: str | None = None) -> pd.DataFrame:
    """The table but for the commit, which may change between two commands."""
    rows = pq.read_table(workdir / "measures.parquet").to_pandas().drop(columns="commit")
    return rows if study is None else rows[rows.study == study].reset_index(drop=True)


def assert_same(found: pd.DataFrame, wanted: pd.DataFrame) -> None:
    """Equal in every column and bit."""
    pd.testing.assert_frame_equal(found, wanted, check_exact=True)


POINT = ["run", "stage", "arm", "seed", "updates", "align_volume", "measure", "split"]


def assert_close(found: pd.DataFrame, wanted: pd.DataFrame) -> None:
    """The same measures to within float32 sums in another order.

    A sampled token may flip where two are nearly equally likely: of `n` samples two may differ, and texts are not compared.
    """
    found, wanted = (t[t.measure != "sample"].sort_values(POINT, ignore_index=True) for t in (found, wanted))
    pd.testing.assert_frame_equal(
        found[[*POINT, "examples", "tokens", "n"]], wanted[[*POINT, "examples", "tokens", "n"]]
    )
    sampled = (found.split == "samples").to_numpy()
    assert (abs(found.value - wanted.value)[sampled] <= 2 / found.n[sampled]).all()
    exact = ~sampled
    # Divergences are differences of nearly equal numbers: their error is that of the losses.
    np.testing.assert_allclose(found.value[exact], wanted.value[exact], rtol=LOSS_RTOL, atol=LOSS_RTOL)


def losses(workdir: Path) -> dict[str, list[float]]:
    """Training losses of every run, by update."""
    from elastic_jax.train import metrics

    return {
        folder.name.rsplit("-", 1)[0]: [
            row["loss"] for row in metrics.read(folder / "metrics.jsonl") if row["kind"] == "train"
        ]
        for folder in sorted((workdir / "runs").iterdir())
    }


def environment(devices: int = 1, **values: str) -> dict[str, str]:
    """For a process of its own, with fake devices of its own."""
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": str(ROOT),
        **values,
    }


def command(workdir: Path, *more: str, config: str = CONFIG) -> list[str]:
    return [sys.executable, "-m", "elastic_jax.run", f"--config={config}", f"--workdir={workdir}", *more]


def shell(
    workdir: Path, *more: str, devices: int = 1, config: str = CONFIG, **values: str
) -> subprocess.CompletedProcess:
    """The command, to its end."""
    return subprocess.run(
        command(workdir, *more, config=config), env=environment(devices, **values), cwd=ROOT, capture_output=True, text=True,
        timeout=600,
    )  # fmt: skip
