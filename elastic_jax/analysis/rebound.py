"""How far, how fast and in which measure does an aligned model return to its base when it is trained the
other way?

Everything is computed per seed on the recorded points of one perturb run (a `Trajectory`), and only then put
together over seeds. Between recorded points positions are interpolated linearly in the measure and in the
logarithm of the axis; in the first interval, which starts at 0, linearly in both. What the record does not
reach is censored, never guessed.

Source of the quantities: Ji et al., arXiv 2406.06144: Definition 3.6 (elasticity), section 5 (rebound), Table
3 (eps).
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float

from elastic_jax.analysis import statistics, table
from elastic_jax.analysis.table import AXES, POINT, Frame, Points, Study

EPS = 0.01
CONDITION = ("model", "align_method", "perturb_method", "arm", "align_volume")
DIRECTIONS = ("kl_base_model", "kl_model_base")
_SCORE = ("score", "samples")
FURTHER = "score_"  # what measures of `measures.scorers` begin with
_CENSORED = "not reached within the record"


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """One perturbation from one starting point with one seed.

    Attributes:
      condition: values of CONDITION; arm is "aligned" or "control" (straight from the base).
      seed, run: where it comes from; `run` is the last run where a schedule needs one run per volume.
      points: arrays [n] examples, updates, tokens, value, stderr; the first entry is the starting point, at
        0.
      base, base_stderr: the same measure of the base model, NaN where it was not measured.
    """

    condition: tuple[str, str, str, str, int]
    seed: int
    run: str
    points: Points
    base: float
    base_stderr: float

    @property
    def arm(self) -> str:
        return self.condition[3]

    @property
    def align_volume(self) -> int:
        return self.condition[4]

    @property
    def start(self) -> float:
        """The measure before any perturbation; NaN where point 0 is missing."""
        return float(self.value[0]) if self.points["examples"][0] == 0 else math.nan

    @property
    def final(self) -> float:
        return float(self.value[-1])

    def axis(self, name: str) -> Float[np.ndarray, " n"]:
        return self.points[name].astype(np.float64)

    @property
    def value(self) -> Float[np.ndarray, " n"]:
        return self.points["value"]


@dataclasses.dataclass(frozen=True)
class Reached:
    """Where a level is first reached. Not reached: `at` is NaN and `bound` is the end of the record."""

    at: float
    bound: float = math.nan
    reason: str = ""


def trajectories(study: Study, measure: str = "score", split: str = "samples") -> list[Trajectory]:
    """Every perturbation of the study in one measure, in a fixed order.

    Runs of one condition and seed that differ in budget (schedules that depend on the total need one run per
    volume) are one trajectory made of their last points. A missing starting point is taken from the parent's
    recorded point. Seeds that have not yet reached the last point of their condition are left out: a mean
    whose seeds change along the curve would move without any model moving.
    """
    if ("trajectories", measure, split) in study.memo:
        return list(study.memo["trajectories", measure, split])
    grouped: dict[tuple, list[tuple[str, Points]]] = {}
    for condition, seed, run in _perturb_runs(study):
        part = study.points.get((run, measure, split))
        if part is not None:
            grouped.setdefault((condition, seed), []).append((run, part))
    found: list[Trajectory] = []
    for (condition, seed), parts in sorted(grouped.items()):
        parts.sort(key=lambda one: (int(one[1]["examples"][-1]), one[0]))
        run, points = parts[-1]
        if len(parts) > 1:
            points = _last_points([part for _, part in parts])
        if points["examples"][0] != 0:
            points = _with_parent_point(study, run, measure, split, condition[4], points)
        found.append(Trajectory(condition, seed, run, points, *study.base_point(run, measure, split)))
    last: dict[tuple, int] = {}
    for one in found:
        last[one.condition] = max(last.get(one.condition, 0), int(one.points["examples"][-1]))
    complete = [one for one in found if one.points["examples"][-1] == last[one.condition]]
    study.memo["trajectories", measure, split] = tuple(complete)
    return complete


def _perturb_runs(study: Study) -> list[tuple[tuple[str, str, str, str, int], int, str]]:
    rows = study.rows.loc[study.rows.stage == "perturb", [*CONDITION, "seed", "run"]].drop_duplicates()
    return [((a, b, c, d, int(e)), int(seed), run) for a, b, c, d, e, seed, run in rows.itertuples(index=False)]


def _last_points(parts: Sequence[Points]) -> Points:
    """One curve of runs that differ in budget: any starting point, then the end of each run."""
    ends = [{name: column[-1:] for name, column in part.items()} for part in parts if part["examples"][-1] > 0]
    starts = [{name: column[:1] for name, column in part.items()} for part in parts if part["examples"][0] == 0]
    joined = {name: np.concatenate([part[name] for part in (*starts, *ends)]) for name in POINT}
    _, first = np.unique(joined["examples"], return_index=True)
    return {name: column[first] for name, column in joined.items()}


def _with_parent_point(study: Study, run: str, measure: str, split: str, align_volume: int, points: Points) -> Points:
    parent = study.ancestry.get(run, "")
    part = study.points.get((parent, measure, split))
    if part is None:
        return points
    aligned = study.stage_of.get(parent) == "align"
    there = np.flatnonzero(part["align_volume"] == align_volume) if aligned else np.arange(len(part["value"]))
    if not len(there):
        return points
    start = {name: part[name][there[-1:]] * (name not in AXES) for name in POINT}
    return {name: np.concatenate([start[name], points[name]]) for name in POINT}


def ambiguities(study: Study) -> list[str]:
    """Conditions with several runs of one seed and budget, which the columns cannot tell apart."""
    rows = study.rows[study.rows.stage == "perturb"]
    notes = []
    for key, part in rows.groupby([*CONDITION, "seed"], sort=True):
        ends = part.groupby("run").examples.max()
        same = sorted(ends[ends.duplicated(keep=False)].index)
        if same:
            notes.append(
                f"{', '.join(same)} share model, methods, alignment volume {key[4]}, seed {key[5]} and "
                "budget; curves show the first of them at each point."
            )
    return notes


def curves(paths: Iterable[Trajectory], level: float = statistics.LEVEL) -> Frame:
    """Mean and interval over seeds at every recorded point.

    Columns: CONDITION, examples, updates, tokens (means over seeds), mean, low, high, n, stderr (mean
    standard error within a seed, over texts or samples), base (mean over the same seeds), reason.
    """
    out = []
    for condition, group in itertools.groupby(paths, key=lambda one: one.condition):
        group = list(group)
        shared = set.intersection(*(set(one.points["examples"].tolist()) for one in group))
        base = statistics.mean_interval(np.array([one.base for one in group])).mean
        for examples in sorted(shared):
            at = [int(np.searchsorted(one.points["examples"], examples)) for one in group]
            here = {name: np.array([one.points[name][i] for one, i in zip(group, at, strict=True)]) for name in POINT}
            estimate = statistics.mean_interval(here["value"], level)
            known = here["stderr"][~np.isnan(here["stderr"])]
            out.append(
                dict(zip(CONDITION, condition, strict=True))
                | {"examples": examples, "updates": here["updates"].mean(), "tokens": here["tokens"].mean()}
                | {"mean": estimate.mean, "low": estimate.low, "high": estimate.high, "n": estimate.n}
                | {
                    "stderr": known.mean() if len(known) else math.nan,
                    "base": base,
                    "reason": estimate.reason,
                }
            )
    names = [*CONDITION, *AXES, "mean", "low", "high", "n", "stderr", "base", "reason"]
    return table.frame(out, names)


def relative_return(score: Float[np.ndarray, " n"], aligned: float, base: float) -> Float[np.ndarray, " n"]:
    """r = (aligned - score) / (aligned - base), the undone fraction of what alignment did; no unit.

    0 at the aligned model, 1 at the base's level, above 1 beyond it, below 0 further aligned. Infinite or NaN
    when alignment did not move the score.

    >>> relative_return(np.array([0.9, 0.7, 0.3]), aligned=0.9, base=0.5).round(2).tolist()
    [0.0, 0.5, 1.5]
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return (aligned - np.asarray(score, np.float64)) / (aligned - base)


def first_reach(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], level: float, sign: float = 1.0) -> Reached:
    """First position at which sign * y >= sign * level, interpolated between recorded points.

    x^ = x0 (x1 / x0)^f with f = (level - y0) / (y1 - y0); x0 + f (x1 - x0) when x0 = 0. Unit of x.

    Args:
      x: positions, ascending, the first may be 0.
      y: the measure at each; NaN points are skipped.
      level: what is to be reached.
      sign: 1 for reaching from below, -1 from above.

    >>> first_reach(np.array([0.0, 4.0, 16.0]), np.array([1.0, 0.75, 0.25]), 0.5, sign=-1).at
    8.0
    """
    keep = np.isfinite(y)
    x, y = np.asarray(x, np.float64)[keep], np.asarray(y, np.float64)[keep]
    if len(x) == 0 or not math.isfinite(level):
        return Reached(math.nan, reason="not measured")
    there = sign * (y - level) >= 0
    if not there.any():
        return Reached(math.nan, bound=float(x[-1]), reason=_CENSORED)
    i = int(np.argmax(there))
    if i == 0:
        return Reached(float(x[0]), reason="already reached at the first recorded point")
    f = (level - y[i - 1]) / (y[i] - y[i - 1])
    x0, x1 = x[i - 1], x[i]
    return Reached(float(x0 * (x1 / x0) ** f if x0 > 0 else x0 + f * (x1 - x0)))


def first_reach_of(
    x: Float[np.ndarray, " n"], y: Float[np.ndarray, "d n"], level: float, sign: float = 1.0
) -> Float[np.ndarray, " d"]:
    """`first_reach(...).at` of many curves over the same positions at once; NaN in a curve makes its position NaN."""
    x = np.asarray(x, np.float64)
    there = sign * (y - level) >= 0
    i = np.argmax(there, axis=1)
    before, row = np.maximum(i - 1, 0), np.arange(len(y))
    y0, y1, x0, x1 = y[row, before], y[row, i], x[before], x[i]
    with np.errstate(divide="ignore", invalid="ignore"):
        f = (level - y0) / (y1 - y0)
        at = np.where(x0 > 0, x0 * (x1 / x0) ** f, x0 + f * (x1 - x0))
    at = np.where(i == 0, x[0], at)
    return np.where(there.any(axis=1) & np.isfinite(y).all(axis=1), at, np.nan)


def moved(path: Trajectory) -> str:
    """Why the rebound of this trajectory has no meaning; "" when it has.

    Alignment counts as having moved the measure when |aligned - base| exceeds twice the standard error of the
    difference; without standard errors, when it is not zero.
    """
    if math.isnan(path.base):
        return "base not measured"
    if math.isnan(path.start):
        return "starting point not measured"
    errors = np.array([path.base_stderr, path.points["stderr"][0]])
    noise = 2 * math.sqrt(float(np.nansum(errors**2)))
    if abs(path.start - path.base) <= noise:
        return "alignment did not move the measure by more than twice its standard error"
    return ""


def return_time(path: Trajectory, fraction: float, axis: str = "examples") -> Reached:
    """Perturbation (examples, updates or tokens) until `fraction` of aligned - base is undone.

    fraction 1/2 is the elastic half-life, 1 the crossing of the baseline. First x with r(x) >= fraction, r
    from `relative_return`; unit of the axis; range (0, end of record], else censored.
    """
    if reason := moved(path):
        return Reached(math.nan, reason=reason)
    return first_reach(path.axis(axis), relative_return(path.value, path.start, path.base), fraction)


def own_half(path: Trajectory, axis: str = "updates") -> Reached:
    """Perturbation until half of the trajectory's own way, from its start to its last point, is done.

    Defined for aligned runs and for the control alike, whatever the base. Unit of the axis.
    """
    if math.isnan(path.start):
        return Reached(math.nan, reason="starting point not measured")
    if path.final == path.start:
        return Reached(math.nan, reason="the measure ends where it started")
    return first_reach(path.axis(axis), (path.value - path.start) / (path.final - path.start), 0.5)


def initial_slope(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], intervals: int = 1) -> float:
    """Least-squares slope of y over the first recorded intervals; unit of y per unit of x. NaN if shorter."""
    if len(x) < intervals + 1 or not np.isfinite(y[: intervals + 1]).all() or x[intervals] == x[0]:
        return math.nan
    return float(np.polyfit(x[: intervals + 1], y[: intervals + 1], 1)[0])


def split_way(start: float, base: float, final: float) -> tuple[float, float]:
    """(rebound, overshoot): the way from start to final, divided at the base's level; both in the measure's
    unit.

    With s = sign(start - base): rebound = s (start - s max(s base, s final)), the part towards the base,
    negative where the model ended further aligned; overshoot = max(0, s (base - final)), the part beyond it.
    Their sum is s (start - final).

    >>> [round(part, 2) for part in split_way(0.9, 0.5, 0.2)]
    [0.4, 0.3]
    """
    s = math.copysign(1.0, start - base)
    return s * start - max(s * base, s * final), max(0.0, s * (base - final))


def elasticity(path: Trajectory, eps: float = EPS, axis: str = "examples") -> Reached:
    """Smallest perturbation |D_b| that brings KL to the base below eps (nats/token), for a KL trajectory.

    Definition 3.6 of arXiv 2406.06144 with rho = KL per token and eps_0 = eps; the ratio |D_b| / |D_a|
    divides by the alignment volume. An aligned model that never left the neighbourhood has no such volume
    (NaN).
    """
    if math.isnan(path.start):
        return Reached(math.nan, reason="starting point not measured")
    if path.start < eps:
        return Reached(math.nan, reason=f"alignment stayed within KL < {eps:g}")
    return first_reach(path.axis(axis), path.value, eps, sign=-1)


def minimum(path: Trajectory, axis: str = "examples") -> tuple[float, Reached]:
    """The smallest recorded value and where; censored at the last recorded point (it may still fall)."""
    if not np.isfinite(path.value).any():
        return math.nan, Reached(math.nan, reason="not measured")
    i = int(np.nanargmin(path.value))
    x = path.axis(axis)
    if i == len(x) - 1 and i > 0:
        return float(path.value[i]), Reached(math.nan, bound=float(x[i]), reason="still falling at the last point")
    return float(path.value[i]), Reached(float(x[i]), reason="" if i else "never below its start")


def against_control(paths: Sequence[Trajectory]) -> Frame:
    """Aligned minus control at every number of updates both recorded, per seed.

    Columns: CONDITION (of the aligned arm), seed, updates, aligned, control, difference. Controls match by
    model, perturb method and seed; empty without them.
    """
    controls = {(p.condition[0], p.condition[2], p.seed): p for p in paths if p.arm == "control"}
    out = []
    for path in paths:
        control = controls.get((path.condition[0], path.condition[2], path.seed))
        if path.arm == "control" or control is None:
            continue
        there = dict(zip(control.points["updates"].tolist(), control.value.tolist(), strict=True))
        for updates, value in zip(path.points["updates"].tolist(), path.value.tolist(), strict=True):
            if updates in there:
                out.append(
                    dict(zip(CONDITION, path.condition, strict=True))
                    | {"seed": path.seed, "updates": updates, "aligned": value, "control": there[updates]}
                    | {"difference": value - there[updates]}
                )
    names = [*CONDITION, "seed", "updates", "aligned", "control", "difference"]
    return table.frame(out, names)


def per_seed(study: Study, *, eps: float = EPS) -> Frame:
    """Every quantity of every trajectory.

    Columns: CONDITION, seed, run, quantity, measure, split, unit, value, bound (end of the record where
    censored, else NaN), reason (why the value is NaN, or a remark on it).
    """
    out: list[dict] = []
    scores = trajectories(study, *_SCORE)
    for path in scores:
        _score_quantities(path, out, _SCORE, "probability")
    for row in against_control(scores).groupby([*CONDITION, "seed"], sort=True).tail(1).to_dict("records"):
        add = _adder(
            out,
            next(p for p in scores if _key(p) == tuple(row[k] for k in CONDITION) + (row["seed"],)),
            _SCORE,
        )
        add("minus_control", "probability", row["difference"], remark=f"at {row['updates']} updates")
    for measure in DIRECTIONS:
        for split in sorted(set(study.rows[study.rows.measure == measure].split)):
            for path in trajectories(study, measure, split):
                text = tokens_of_a_text(study, path.condition[0], split)
                _divergence_quantities(path, out, measure, split, eps, text)
    return table.frame(out, _PER_SEED)


_PER_SEED = (*CONDITION, "seed", "run", "quantity", "measure", "split", "unit", "value", "bound", "reason")


def further_units(study: Study) -> dict[str, str]:
    """The measures of further scorers that the study has, and their units."""
    rows = study.rows[study.rows.measure.str.startswith(FURTHER)]
    return {str(measure): str(part.unit.iloc[0]) for measure, part in rows.groupby("measure", sort=True)}


def further_per_seed(study: Study) -> Frame:
    """The quantities of a score, of every further scorer, in its own unit; columns as of `per_seed`.

    They are kept apart, since what is fitted to or tested on "the score" is about the data's own scorer alone. Half-lives and the
    division into rebound and overshoot need no bounds; log-odds do, and are not among them.
    """
    out: list[dict] = []
    for measure, unit in further_units(study).items():
        for path in trajectories(study, measure, "samples"):
            _score_quantities(path, out, (measure, "samples"), unit)
    return table.frame(out, _PER_SEED)


def tokens_of_a_text(study: Study, model: str = "", split: str = "pretrain") -> float | None:
    """Tokens of a held-out text, by which a KL per token becomes one per text; None where the table does not say.

    The rate per token is the sum over texts divided by their tokens, so that the product is the mean over texts of the divergence
    of a whole text, exactly.

    Args:
      model: the variant, where variants read different data.
    """
    rows = study.rows[study.rows.stage == "data"]
    for name in (f"{model}: {split}-heldout", f"{split}-heldout"):
        counts = rows[rows.split == name].groupby("measure").value.max()
        if {"loss_tokens", "rows"} <= set(counts.index) and counts["rows"]:
            return float(counts["loss_tokens"] / counts["rows"])
    return None


def _key(path: Trajectory) -> tuple:
    return (*path.condition, path.seed)


def _adder(out: list[dict], path: Trajectory, measure: tuple[str, str]):
    fixed = dict(zip(CONDITION, path.condition, strict=True)) | {"seed": path.seed, "run": path.run}

    def add(quantity: str, unit: str, value: "float | Reached", remark: str = "") -> None:
        reached = value if isinstance(value, Reached) else Reached(float(value), reason=remark)
        reason = reached.reason or ("not measured" if math.isnan(reached.at) else "")
        out.append(
            fixed
            | {"quantity": quantity, "measure": measure[0], "split": measure[1], "unit": unit}
            | {"value": reached.at, "bound": reached.bound, "reason": reason}
        )

    return add


def _score_quantities(path: Trajectory, out: list[dict], measure: tuple[str, str], unit: str) -> None:
    add = _adder(out, path, measure)
    add("base", unit, path.base)
    add("start", unit, path.start)
    add("final", unit, path.final)
    add("final_examples", "examples", path.axis("examples")[-1])
    for axis in ("updates", "tokens"):
        add(f"initial_slope_{axis}", f"{unit}/{axis[:-1]}", initial_slope(path.axis(axis), path.value))
    add("own_half_updates", "updates", own_half(path))
    if path.arm == "control":
        return
    why = moved(path)
    for axis in AXES:
        add(f"half_life_{axis}", axis, return_time(path, 0.5, axis))
    for axis in AXES:
        add(f"crossing_{axis}", axis, return_time(path, 1.0, axis))
    relative = relative_return(path.value, path.start, path.base)
    slope = math.nan if why else initial_slope(path.axis("updates"), relative)
    add("initial_return", "1/update", slope, why)
    rebound, overshoot = (math.nan, math.nan) if why else split_way(path.start, path.base, path.final)
    add("rebound", unit, rebound, why)
    add("overshoot", unit, overshoot, why)


def _divergence_quantities(
    path: Trajectory, out: list[dict], measure: str, split: str, eps: float, text: float | None
) -> None:
    add = _adder(out, path, (measure, split))
    unit = "nats/token"
    add("kl_start", unit, path.start)
    add("kl_final", unit, path.final)
    if text:
        add("kl_start_per_text", "nats/text", path.start * text)
        add("kl_final_per_text", "nats/text", path.final * text)
    if path.arm == "control":
        return
    lowest, where = minimum(path)
    add("kl_minimum", unit, lowest)
    if text:
        add("kl_minimum_per_text", "nats/text", lowest * text)
    add("kl_minimum_examples", "examples", where)
    add("kl_rebound", unit, path.start - lowest)
    add("kl_overshoot", unit, path.final - lowest)
    reached = elasticity(path, eps)
    add("elasticity_examples", "examples", reached)
    volume = path.align_volume or math.nan
    add("elasticity_ratio", "ratio", Reached(reached.at / volume, reached.bound / volume, reached.reason))


def aggregate(values: Frame, level: float = statistics.LEVEL) -> Frame:
    """Seeds -> mean and interval, for a table made by `per_seed`.

    Columns: CONDITION, quantity, measure, split, unit, mean, low, high, n, median, censored, bound, reason.
    Where a seed is censored there is no mean; see `statistics.censored_interval`.
    """
    keys = [*CONDITION, "quantity", "measure", "split", "unit"]
    out = []
    for key, part in values.groupby(keys, sort=False):
        part = part.sort_values("seed", kind="stable")
        estimate = statistics.censored_interval(part.value.to_numpy(), part.bound.to_numpy(), level)
        record = dataclasses.asdict(estimate)
        remarks = sorted({reason for reason in part.reason if reason} - {_CENSORED})
        record["reason"] = "; ".join([r for r in (estimate.reason,) if r] + remarks)
        out.append(dict(zip(keys, key, strict=True)) | record)
    return table.frame(out, [*keys, *(f.name for f in dataclasses.fields(statistics.Estimate))])
