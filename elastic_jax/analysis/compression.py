"""What happens to the compression of each distribution while the model is aligned and then perturbed?"""

from elastic_jax.analysis import rebound, statistics, table
from elastic_jax.analysis.table import AXES, Frame, Study

MEASURES = ("bits_per_token", "bits_per_byte", "normalised_compression", "kl_data_model")
_KEYS = (
    "stage",
    "model",
    "align_method",
    "perturb_method",
    "arm",
    "align_volume",
    "measure",
    "split",
    "unit",
)


def changes(study: Study) -> Frame:
    """Change of each rate between the first and the last recorded point of every align and perturb run, per
    seed.

    delta = rate(end) - rate(start), in the unit of the measure; negative: that distribution is compressed
    better. In an align run with several recorded volumes each volume is an end. Columns: stage, model,
    align_method, perturb_method, arm, align_volume, measure, split, unit, seed, start, end, delta.
    """
    out = []
    for measure in MEASURES:
        part = study.rows[(study.rows.measure == measure) & (study.rows.stage != "data")]
        for split in sorted(set(part.split)):
            unit = str(part[part.split == split].unit.iloc[0])
            for path in rebound.trajectories(study, measure, split):
                fixed = dict(zip(rebound.CONDITION, path.condition, strict=True))
                record = {
                    "stage": "perturb",
                    **fixed,
                    "seed": path.seed,
                    "start": path.start,
                    "end": path.final,
                }
                out.append(record | {"measure": measure, "split": split, "unit": unit})
            for row in align_points(study, measure, split).query("examples > 0").to_dict("records"):
                record = {k: row[k] for k in ("model", "align_method", "seed")}
                record |= {
                    "stage": "align",
                    "perturb_method": "",
                    "arm": "aligned",
                    "align_volume": row["examples"],
                }
                record |= {"start": row["base"], "end": row["value"]}
                out.append(record | {"measure": measure, "split": split, "unit": unit})
    frame = table.frame(out, [*_KEYS, "seed", "start", "end"])
    return frame.assign(delta=frame.end - frame.start)


def aggregate(values: Frame, level: float = statistics.LEVEL) -> Frame:
    """Mean change over seeds with its interval, for a table made by `changes`."""
    out = []
    for key, part in values.groupby(list(_KEYS), sort=True):
        estimate = statistics.mean_interval(part.sort_values("seed").delta.to_numpy(), level)
        out.append(
            dict(zip(_KEYS, key, strict=True))
            | {"mean": estimate.mean, "low": estimate.low, "high": estimate.high}
            | {"n": estimate.n, "reason": estimate.reason}
        )
    return table.frame(out, [*_KEYS, "mean", "low", "high", "n", "reason"])


def align_points(study: Study, measure: str, split: str) -> Frame:
    """Recorded points of the align runs, the base model at 0.

    Runs of one seed that differ in budget give their last points. Columns: model, align_method, seed,
    examples, updates, tokens, value, base.
    """
    rows = study.rows
    rows = rows[(rows.stage == "align") & (rows.measure == measure) & (rows.split == split)]
    out = []
    for key, part in rows.groupby(["model", "align_method", "seed"], sort=True):
        model, method, seed = key
        runs = [group for _, group in part.groupby("run", sort=True)]
        points = runs[0] if len(runs) == 1 else table.stack([group.tail(1) for group in runs])
        base = study.base_point(str(part.run.iloc[0]), measure, split)[0]
        points = points[points.examples > 0].drop_duplicates("examples").sort_values("examples", kind="stable")
        fixed = {"model": model, "align_method": method, "seed": int(seed)}
        out.append(fixed | dict.fromkeys(AXES, 0) | {"value": base, "base": base})
        for row in points[[*AXES, "value"]].to_dict("records"):
            out.append(fixed | row | {"base": base})
    return table.frame(out, ["model", "align_method", "seed", *AXES, "value", "base"])


def align_curves(study: Study, measure: str, split: str, level: float = statistics.LEVEL) -> Frame:
    """`align_points` over seeds. Columns: model, align_method, examples, ..., tokens, mean, low, high, n."""
    out = []
    points = align_points(study, measure, split)
    seeds = points.groupby(["model", "align_method"]).seed.nunique().to_dict()
    for key, part in points.groupby(["model", "align_method", "examples"], sort=True):
        model, method, examples = key
        if part.seed.nunique() < seeds[(model, method)]:
            continue
        estimate = statistics.mean_interval(part.value.to_numpy(), level)
        out.append(
            {"model": model, "align_method": method, "examples": int(examples)}
            | {"updates": part.updates.mean(), "tokens": part.tokens.mean()}
            | {"mean": estimate.mean, "low": estimate.low, "high": estimate.high, "n": estimate.n}
        )
    return table.frame(out, ["model", "align_method", *AXES, "mean", "low", "high", "n"])
