"""A measures table of models that differ in pre-training or size, perturbed and moved at random, with known ways back."""

import dataclasses
from pathlib import Path

import numpy as np
import planted

from elastic_jax.analysis import table

SHAPE = {16: 0.5, 64: 1.0, 256: 1.5}  # of the way back; its mean over the volumes of perturbation is 1


@dataclasses.dataclass(frozen=True)
class Plant:
    """The way back of model i at x examples is SHAPE[x] (level + slope i), so the slope is per doubling of the axis.

    Attributes:
      flipped: seeds in which training and noise carry each other's names.
      order: seed -> which model has the way back of which place; by default its own.
      sign: -1: alignment lowers the score.
    """

    trained: tuple[float, float] = (0.2, 0.04)  # level, slope
    noise: tuple[float, float] = (0.05, 0.0)
    axis: str = "pretrain_tokens"
    models: int = 4
    seeds: tuple[int, ...] = (0, 1, 2)
    volumes: tuple[int, ...] = (256, 1024)
    draws: int = 2
    jitter: float = 0.004
    flipped: tuple[int, ...] = ()
    order: dict[int, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    sign: float = 1.0
    aligned: float = 0.9


def study_of(folder: Path, plant: Plant = Plant(), change=None):
    """The study, read back from a file; `change` of its rows before."""
    return table.select(table.load(write(folder, plant, change)))


def write(folder: Path, plant: Plant = Plant(), change=None) -> Path:
    rng, rows, runs = np.random.default_rng(7), [], []

    def run(name, parent, stage, arm, seed, volume, points, model):
        made = dict(
            run=f"{name}-{planted.hash_text(name + model):08x}", name=name, parent=parent["run"] if parent else "", stage=stage, arm=arm,
            method="sft", seed=seed, align_volume=volume, parent_examples=0, examples=max(points), updates=max(points) // 16,
            points=[] if stage == "noise" else list(points), wall_seconds=1.0, model=model["name"],
        )  # fmt: skip
        runs.append(made)
        return made

    def add(made, model, examples, volume, **values):
        for key, (value, stderr) in values.items():
            measure, _, split = key.partition("__")
            rows.append(
                planted._fact(split, measure, "unit", value)
                | {k: made[k] for k in ("run", "parent", "stage", "arm", "method", "seed")}
                | dict(model=model["name"], params=model["params"], pretrain_tokens=model["pretrain_tokens"])
                | dict(align_volume=volume, examples=examples, updates=examples // 16, tokens=examples * 24)
                | dict(stderr=stderr, n=256)
            )

    def measured(way, rise, start, seed):
        score = start - plant.sign * way
        out = dict(score__samples=(score, 0.002), bits_per_token__pretrain=(2.0 + rise + 0.01 * seed, 0.01))
        return out | dict(bits_per_token__align=(2.5 + 2 * rise, 0.01), kl_base_model__pretrain=(0.1 + rise, 0.01))

    class Model(dict):
        """Its name, where text is joined."""

        def __radd__(self, text):
            return text + self["name"]

    models = [Model(name=f"m{i}", params=1000, pretrain_tokens=10_000) for i in range(plant.models)]
    for i, model in enumerate(models):
        model[plant.axis] = model[plant.axis] * 2**i
    for seed in plant.seeds:
        slopes = {side: getattr(plant, side)[1] + plant.jitter * rng.standard_normal() for side in ("trained", "noise")}
        order = plant.order.get(seed, tuple(range(plant.models)))
        for i, model in enumerate(models):
            base = 0.5 + 0.01 * rng.standard_normal()
            root = run(f"pretrain-s{seed}", None, "pretrain", "base", seed, 0, (4096,), model)
            add(root, model, 4096, 0, **measured(0.0, 0.0, base, seed))
            align = run(f"align-s{seed}", root, "align", "aligned", seed, 0, plant.volumes, model)
            align["parent_examples"] = 4096
            start = base + plant.sign * (plant.aligned - 0.5)
            for volume in plant.volumes:
                add(align, model, volume, volume, **measured(0.0, 0.0, start, seed))
                way = {side: getattr(plant, side)[0] + slopes[side] * order[i] for side in slopes}
                if seed in plant.flipped:
                    way = dict(trained=way["noise"], noise=way["trained"])
                perturb = run(
                    f"perturb-s{seed}-a{volume}", align, "perturb", "aligned", seed, volume, tuple(SHAPE), model
                )
                for x, part in {0: 0.0, **SHAPE}.items():
                    add(perturb, model, x, volume, **measured(part * way["trained"], part * 0.1, start, seed))
                for draw in range(1, plant.draws + 1):
                    made = run(
                        f"noise-s{seed}-a{volume}-d{draw}", perturb, "noise", "noise", seed, volume, tuple(SHAPE), model
                    )
                    for x, part in SHAPE.items():
                        away = part * way["noise"] + 0.01 * (draw - (plant.draws + 1) / 2)
                        add(made, model, x, volume, **measured(away, part * (0.02 + 0.03 * i), start, seed))
                        add(
                            made,
                            model,
                            x,
                            volume,
                            weight_change__perturb=(part, np.nan),
                            weight_change__noise=(part, np.nan),
                        )
                        add(made, model, x, volume, weight_norm__align=(10.0, np.nan))
    frame = table.frame(rows, list(rows[0]))
    info = dict(runs=runs, config=dict(seeds=list(plant.seeds), data={}), notes=[])
    folder.mkdir(parents=True, exist_ok=True)
    return planted.write(
        folder / "measures.parquet", change(frame) if change else frame, {"studies": {"planted": info}}
    )
