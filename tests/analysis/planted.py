"""A measures table with planted truth: every curve is a known function, so all quantities are known."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

SPLITS = ("pretrain", "align", "perturb")
BATCH, ROW_TOKENS = 16, 24


@dataclasses.dataclass(frozen=True)
class Plant:
    """What to plant. The score of an aligned model under perturbation falls on straight lines over
    log2(examples): from `aligned` at the first recorded point to `final` at the last, so interpolation is
    exact.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    volumes: tuple[int, ...] = (256, 1024, 4096)
    points: tuple[int, ...] = (16, 32, 64, 128, 256, 512, 1024)
    base: float = 0.5
    final: float = 0.1
    noise: float = 0.01
    control: bool = True
    kl_data: bool = True
    samples: bool = True
    kl_floor: float = 0.004  # where KL to base bottoms out
    speed: float = 1.0  # log2 of examples by which each volume step shifts the curve to the left
    methods: tuple[str, ...] = ("sft",)
    upside_down: bool = False  # alignment lowers the score instead
    control_fall: float = 1.0  # how far the control falls, beside what it does by default
    stderr: float = 0.01  # of scores, over texts
    stream: int = 11  # of the scatter between seeds

    def aligned(self, volume: int) -> float:
        return 0.8 + 0.03 * self.volumes.index(volume)

    def half_at(self, volume: int) -> float:
        """Planted half-life in examples."""
        return 128.0 * 2 ** (-self.speed * self.volumes.index(volume))

    def score(self, volume: int, examples: float) -> float:
        """Linear in log2(examples), through (aligned + base) / 2 at `half_at`, within [final, aligned]."""
        if volume == 0:
            fall = self.base * (1 - self.control_fall * math.log2(1 + examples / 16) / 8)
            return max(fall, self.final)
        if examples == 0:
            return self.aligned(volume)
        middle, drop = (self.aligned(volume) + self.base) / 2, (self.aligned(volume) - self.base) / 4
        line = middle - drop * (math.log2(examples) - math.log2(self.half_at(volume)))
        return min(max(line, self.final), self.aligned(volume))

    def crossing(self, volume: int) -> float:
        """Planted crossing of the baseline: two octaves after the half-life."""
        return 4 * self.half_at(volume)

    def kl(self, volume: int, examples: float) -> float:
        """KL to base, nats/token: a V over log2(examples) with its floor at `crossing`."""
        if volume == 0:
            return 0.02 * math.log2(1 + examples / 16)
        start = 0.12 + 0.04 * self.volumes.index(volume)
        if examples == 0:
            return start
        distance = math.log2(examples) - math.log2(self.crossing(volume))
        return min(self.kl_floor + (0.03 if distance < 0 else 0.02) * abs(distance), start)


def table(plant: Plant = Plant()) -> tuple[pd.DataFrame, dict]:
    """Rows and schema metadata."""
    rows: list[dict] = []
    runs: list[dict] = []
    rng = np.random.default_rng(plant.stream)
    flip = (lambda value: 1 - value) if plant.upside_down else (lambda value: value)

    def add(run: dict, examples: int, values: dict, align_volume: int) -> None:
        perturb = examples if run["stage"] == "perturb" else 0
        for (measure, split, unit), value in values.items():
            rows.append(
                dict(
                    study="planted",
                    run=run["run"],
                    parent=run["parent"],
                    stage=run["stage"],
                    arm=run["arm"],
                    method=run["method"],
                    model="lm-width32-depth2",
                    params=35_000,
                    align_volume=align_volume,
                    perturb_volume=perturb,
                    examples=examples,
                    updates=examples // BATCH,
                    tokens=examples * ROW_TOKENS,
                    measure=measure,
                    split=split,
                    unit=unit,
                    value=value,
                    stderr=plant.stderr if measure == "score" else 0.002,
                    n=256,
                    seed=run["seed"],
                    commit="0123abc",
                    text="",
                )
            )

    def sample(run: dict, examples: int, align_volume: int, score: float) -> None:
        if not plant.samples:
            return
        for i, text in enumerate(("the film ⟶ was warm and bright", "a short plot ⟶ dull <b>cold</b> & slow")):
            add(
                run,
                examples,
                {("sample", "samples", "probability"): float(np.clip(score + 0.1 * i, 0, 1))},
                align_volume,
            )
            rows[-1]["text"] = text

    def values(score: float, kl: float, shift: float) -> dict:
        out = {("score", "samples", "probability"): flip(score)}
        for i, split in enumerate(SPLITS):
            bits = 2.6 + 0.2 * i + shift * (1 if i != 1 else -1)
            out[("bits_per_token", split, "bits/token")] = bits
            out[("bits_per_byte", split, "bits/byte")] = bits / 4
            out[("normalised_compression", split, "bits/token")] = bits - 7
            out[("kl_base_model", split, "nats/token")] = kl * (1 + 0.2 * i)
            out[("kl_model_base", split, "nats/token")] = kl * (1.1 + 0.2 * i)
            if plant.kl_data:
                out[("kl_data_model", split, "nats/token")] = 0.1 + 0.1 * i + abs(shift)
        return out

    def run_of(
        name: str, parent: dict | None, stage: str, arm: str, method: str, seed: int, volume: int, points
    ) -> dict:
        identity = f"{hash_text(name + method + (parent['run'] if parent else '') + str(seed)):08x}"
        run = dict(
            run=f"{name}-{identity}",
            id=identity,
            name=name,
            parent=parent["run"] if parent else "",
            stage=stage,
            arm=arm,
            method=method,
            seed=seed,
            align_volume=volume,
            parent_examples=0,
            examples=max(points),
            updates=max(points) // BATCH,
            points=[0, *points],
            wall_seconds=12.5,
        )
        runs.append(run)
        return run

    for seed in plant.seeds:
        jitter = float(rng.normal() * plant.noise)
        pretrain = run_of("pretrain", None, "pretrain", "base", "likelihood", seed, 0, (1024, 8192, 65536))
        for examples in (0, 1024, 8192, 65536):
            left = 3.0 * math.exp(-math.log2(1 + examples / 512) / 3) * (examples < 65536)
            fresh = values(plant.base + jitter, 0.0, left)
            kept = {k: v for k, v in fresh.items() if not k[0].startswith(("kl_base", "kl_model"))}
            add(pretrain, examples, kept, 0)
        sample(pretrain, 65536, 0, plant.base)
        parents: list[tuple[dict, int]] = []
        for method in plant.methods:
            align = run_of("align", pretrain, "align", "aligned", method, seed, max(plant.volumes), plant.volumes)
            align["parent_examples"] = 65536
            for volume in (0, *plant.volumes):
                score = plant.aligned(volume) if volume else plant.base
                kl = plant.kl(volume, 0)
                add(align, volume, values(score + jitter, kl, kl), volume)
            sample(align, max(plant.volumes), max(plant.volumes), plant.aligned(max(plant.volumes)))
            parents += [(align, volume) for volume in plant.volumes]
        if plant.control:
            parents.append((pretrain, 0))
        for parent, volume in parents:
            arm = "aligned" if volume else "control"
            perturb = run_of(f"perturb-{volume}", parent, "perturb", arm, "sft", seed, volume, plant.points)
            perturb["parent_examples"] = volume or 65536
            scale = 1 + float(rng.normal() * plant.noise) if volume else 1.0
            for examples in (0, *plant.points):
                score = plant.score(volume, examples * scale) + jitter
                kl = plant.kl(volume, examples * scale)
                add(perturb, examples, values(score, kl, kl), volume)
            sample(perturb, max(plant.points), volume, plant.final)
    for split, count in (("pretrain", 65536), ("align", 4096), ("perturb", 1024)):
        for measure, unit, value in (
            ("rows", "count", count),
            ("tokens", "count", count * ROW_TOKENS),
            ("loss_tokens", "count", count * 20),
            ("truncated_rows", "count", 0),
            ("truncated_tokens", "count", 0),
            ("dropped_rows", "count", 0),
            ("dropped_tokens", "count", 0),
            ("entropy", "nats/token", 1.9),
        ):
            rows.append(_fact(split, measure, unit, value))
    rows.append(_fact("align&perturb", "overlap", "count", 0))
    rows.append(_fact("test", "scorer_accuracy", "fraction", 0.93))
    info = {
        "fingerprint": "f00dfeed",
        "config": {"data": {"kind": "universe", "task": "sentiment"}, "seeds": list(plant.seeds)},
        "command": "python -m elastic_jax.run --config=configs/quickstart.py --workdir=runs/quickstart",
        "environment": {
            "commit": "0123abc",
            "python": "3.11.9",
            "platform": "Linux",
            "devices": ["cpu:0"],
            "versions": {"jax": "0.10.2", "flax": "0.12.8"},
        },
        "runs": runs,
        "notes": ["prefix sharing: constant schedule, one run serves every volume"],
    }
    return pd.DataFrame(rows), {"studies": {"planted": info}}


def hash_text(text: str) -> int:
    """The same on every run, unlike hash()."""
    value = 2166136261
    for byte in text.encode():
        value = (value ^ byte) * 16777619 % 2**32
    return value


def _fact(split: str, measure: str, unit: str, value: float) -> dict:
    return dict(
        study="planted",
        run="",
        parent="",
        stage="data",
        arm="",
        method="",
        model="",
        params=0,
        align_volume=0,
        perturb_volume=0,
        examples=0,
        updates=0,
        tokens=0,
        measure=measure,
        split=split,
        unit=unit,
        value=float(value),
        stderr=0.01 if measure == "entropy" else np.nan,
        n=0,
        seed=0,
        commit="0123abc",
        text="",
    )


def write(path: Path, rows: pd.DataFrame, metadata: dict) -> Path:
    data = pa.Table.from_pandas(rows, preserve_index=False)
    data = data.replace_schema_metadata({**(data.schema.metadata or {}), b"elastic_jax": json.dumps(metadata).encode()})
    pq.write_table(data, path)
    return path
