"""A study of three tasks in every order whose effects are known."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import planted

from elastic_jax.analysis import table

TASKS = ("safe", "true", "kind")
ORDERS = [order for count in (1, 2, 3) for order in itertools.permutations(TASKS, count)]
UPDATES = 8
GAIN = dict(zip(TASKS, (1.0, 0.5, 0.25), strict=True))  # bits per token, of the task by itself
LEFT = (1.0, 0.7, 0.4)  # share of the gain with none, one and two tasks since


def left(sequence: Sequence[str], task: str) -> float:
    """The share of its gain that the model has."""
    return LEFT[len(sequence) - 1 - sequence.index(task)] if task in sequence else 0.0


def write(
    path: Path,
    seeds: Sequence[int] = (0, 1, 2),
    share: Callable[[Sequence[str], str], float] = left,
    renamed: Callable[[int, tuple[str, ...]], tuple[str, ...]] = lambda seed, sequence: sequence,
    reached: Callable[[int, tuple[str, ...]], bool] = lambda seed, sequence: True,
    names: Sequence[str] = ("planted",),
    noise: float = 0.004,
) -> Path:
    """The table.

    Args:
      share: of a sequence and a task: the share of the task's gain.
      renamed: of a seed and a sequence: under which other sequence its model is filed.
      reached: which runs have been measured.
      names: of studies that are all like this.
    """
    rows, studies = [], {}
    for name in names:
        rng, runs = np.random.default_rng(7), []
        for seed in seeds:
            runs.append(_run("pretrain", "base", seed, (), ""))
            for task in TASKS:
                _measure(rows, name, runs[-1], task, 5.0 + seed * 0.3, 0.3)
            for sequence in ORDERS:
                filed = renamed(seed, sequence)
                run = _run("order", "order", seed, filed, filed[:-1])
                runs.append(run)
                for task in TASKS if reached(seed, sequence) else ():
                    gain = GAIN[task] * share(sequence, task)
                    loss = 5.0 + seed * 0.3 - gain + noise * rng.standard_normal()
                    _measure(rows, name, run, task, loss, 0.3 + gain / 4)
        studies[name] = dict(runs=runs, config={})
    return planted.write(path, table.frame(rows, list(rows[0])), {"studies": studies})


def _key(seed: int, sequence: Sequence[str]) -> str:
    return f"order-s{seed}-{'-'.join(sequence)}-00" if sequence else f"pretrain-s{seed}-00"


def _run(stage: str, arm: str, seed: int, sequence: Sequence[str], before: Sequence[str]) -> dict:
    found = dict(run=_key(seed, sequence), stage=stage, arm=arm, seed=seed, updates=UPDATES, examples=UPDATES * 16)
    found |= dict(parent=_key(seed, before) if sequence else "", parent_examples=UPDATES * 16, points=[UPDATES * 16])
    found |= dict(name=found["run"].removesuffix("-00"), id="00", method="sft", align_volume=0, batch_size=16)
    return found | (dict(sequence=list(sequence)) if sequence else {})


def _measure(rows: list, study: str, run: Mapping, task: str, loss: float, score: float) -> None:
    for measure, unit, value in (("bits_per_token", "bits/token", loss), ("score", "probability", score)):
        fact = planted._fact(f"task-{task}", measure, unit, value) | dict(study=study, stderr=0.003, n=64)
        fact |= {name: run[name] for name in ("run", "parent", "stage", "arm", "method", "seed", "updates", "examples")}
        rows.append(fact | dict(model="m", params=7))
    kl = 0.0 if run["stage"] == "pretrain" else 0.1
    if task == TASKS[0]:
        for measure, unit, value in (("bits_per_token", "bits/token", 3.0 + kl), ("kl_base_model", "nats/token", kl)):
            if run["stage"] == "pretrain" and measure == "kl_base_model":
                continue
            fact = planted._fact("pretrain", measure, unit, value) | dict(study=study, stderr=0.003, n=64)
            fact |= {n: run[n] for n in ("run", "parent", "stage", "arm", "method", "seed", "updates", "examples")}
            rows.append(fact | dict(model="m", params=7))
