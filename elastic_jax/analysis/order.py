"""Tasks trained one after the other: what does the last one gain, what of the first is left, and does the order matter beyond that?

Every ordered choice of one, two and three tasks t, u, v is a model; each is measured on held-out texts of all of them. All train equally
many examples, and a task sees the same ones wherever it stands. g is how well a model does on a task: minus the bits per token
of the task's held-out texts, or the score of what the model writes. Of a task t, per seed:
 - recency: mean g of the triples that end in t, minus that of the triples in which t comes earlier;
 - beyond_last: over triples that do not end in t, mean g where t is second minus where it is first, with the same task last;
 - lost: g of t alone minus mean g of the triples that begin with t;
 - kept: mean g of the triples that begin with t, minus g of the base;
 - retention: kept over what t alone gained, g of t alone minus g of the base; 1 where nothing is lost, 0 where all is;
 - transfer: mean g of the triples that end in t, minus g of t alone: what came before helps (above zero) or hinders.

Under the task "" stand their means over the three tasks; of retention the ratio of the sums, which one task that gained next to nothing
cannot blow up; it is not given where that gain is within twice its standard error over texts. Tests are Student t intervals over seeds, "above" or "below" zero where they leave it out, else "undecided"; the exact
sign-flip test stands beside, with the smallest p-value that so many seeds can give. Intervals are not adjusted for their number.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from elastic_jax.analysis import statistics, table
from elastic_jax.analysis.table import Frame, Study
from elastic_jax.data import tasks as roles

# quantity -> (measure, what of it is better: more or less)
QUANTITIES = {"rate": ("bits_per_token", -1), "score": ("score", 1)}
EFFECTS = ("recency", "beyond_last", "lost", "kept", "retention", "transfer")
ARROW = " → "
BASE = ""  # the sequence of the model before any task
_OF_BASE = ("bits_per_token", "kl_base_model")  # measured on pre-training texts


class _Cell(NamedTuple):
    """What a model scores on a task, larger is better, and the standard error over texts."""

    value: float
    stderr: float


_Cells = Mapping[tuple[str, ...], _Cell]  # by sequence, of one task


def has_runs(study: Study) -> bool:
    """Whether the study has the experiment at all."""
    return any(run.get("sequence") for run in study.runs)


def tasks(study: Study) -> list[str]:
    """The tasks in the order of the config."""
    return list(dict.fromkeys(run["sequence"][0] for run in study.runs if len(run.get("sequence", ())) == 1))


def cells(study: Study) -> Frame:
    """What every model is measured at: columns model, seed, sequence (tasks joined by ARROW; BASE), task ("" for texts of pre-training),
    place (of the task in the sequence, from 1; 0 where it is not in it), measure, unit, value, stderr, change (from the base of the seed;
    NaN where that is not measured)."""
    ends = study.rows[(study.rows.stage == "order") & (study.rows.measure != "sample")]
    measured = ends[["run", "model"]].drop_duplicates("run")
    models = dict(zip(measured.run, measured.model, strict=True))
    units = dict(zip(ends.measure, ends.unit, strict=True))
    names, rows, bases = tasks(study), [], set()
    asked = [(roles.role(name), name, measure) for name in names for measure, _ in QUANTITIES.values()]
    asked += [("pretrain", "", measure) for measure in _OF_BASE]
    for run in study.runs:
        if not run.get("sequence") or run["run"] not in models:
            continue
        where = dict(model=models[run["run"]], seed=run["seed"])
        sequence = tuple(run["sequence"])
        for split, name, measure in asked:
            place = sequence.index(name) + 1 if name in sequence else 0
            points = study.points.get((run["run"], measure, split))
            if points is not None and points["updates"][-1] == run["updates"]:
                row = dict(where, sequence=ARROW.join(sequence), task=name, place=place, measure=measure)
                rows.append(row | dict(value=points["value"][-1], stderr=points["stderr"][-1]))
            before = (*where.values(), name, measure)
            if before not in bases:
                bases.add(before)
                value, stderr = study.base_point(run["run"], measure, split)
                if measure == "kl_base_model":
                    value, stderr = 0.0, math.nan  # from itself
                if not math.isnan(value):
                    row = dict(where, sequence=BASE, task=name, place=0, measure=measure)
                    rows.append(row | dict(value=value, stderr=stderr))
    columns = ["model", "seed", "sequence", "task", "place", "measure", "value", "stderr"]
    found = table.frame(rows, columns)
    key = ["model", "seed", "task", "measure"]
    base = found[found.sequence == BASE].set_index(key).value
    before = [base.get(tuple(row), math.nan) for row in found[key].itertuples(index=False)]
    return found.assign(unit=found.measure.map(units), change=found.value - np.array(before, np.float64))


def per_seed(study: Study, found: Frame | None = None) -> Frame:
    """EFFECTS of every seed: columns model, effect, quantity, task ("" over all of them), seed, value, stderr (over texts, as if those of
    every model were others: too large rather than too small), reason (why the value is NaN, else "")."""
    measured = cells(study) if found is None else found
    names, rows = tasks(study), []
    for (model, seed), part in measured[measured.task != ""].groupby(["model", "seed"], sort=True):
        for quantity, (measure, better) in QUANTITIES.items():
            own = part[part.measure == measure]
            if own.empty:
                continue
            of_task = {
                name: {
                    tuple(filter(None, row.sequence.split(ARROW))): _Cell(better * row.value, row.stderr)
                    for row in own[own.task == name].itertuples()
                }
                for name in names
            }
            where = dict(model=model, quantity=quantity, seed=seed)
            rows += [where | row for row in _effects(names, of_task)]
    return table.frame(rows, ["model", "effect", "quantity", "task", "seed", "value", "stderr", "reason"])


def _effects(names: Sequence[str], of_task: Mapping[str, _Cells]) -> Iterator[dict]:
    for effect in EFFECTS:
        parts = {name: list(_terms(effect, name, names)) for name in names}
        if effect == "retention":
            gained = {name: [(1.0, (name,)), (-1.0, ())] for name in names}
            for task in (*names, ""):
                of = names if task == "" else [task]
                above, below = (
                    _sum([(w, of_task[name].get(s)) for name in of for w, s in terms[name]])
                    for terms in (parts, gained)
                )
                row = dict(effect=effect, task=task, stderr=math.nan)
                if above is None or below is None:
                    yield row | dict(value=math.nan, reason="not all orders are measured")
                elif below.value <= 2 * np.nan_to_num(below.stderr):
                    yield row | dict(value=math.nan, reason="what the task gains by itself is within twice its error")
                else:
                    yield row | dict(value=above.value / below.value, reason="")
            continue
        for task in (*names, ""):
            of = names if task == "" else [task]
            total = _sum([(w / len(of), of_task[name].get(s)) for name in of for w, s in parts[name]])
            yield dict(effect=effect, task=task) | (
                dict(value=math.nan, stderr=math.nan, reason="not all orders are measured")
                if total is None
                else dict(value=total.value, stderr=total.stderr, reason="")
            )


def _terms(effect: str, name: str, names: Sequence[str]) -> Iterator[tuple[float, tuple[str, ...]]]:
    """(weight, sequence) of every g of the task in an effect."""
    triples = list(itertools.permutations(names, len(names)))
    place = {k: [s for s in triples if s.index(name) == k] for k in range(len(names))}
    first, last = place[0], place[len(names) - 1]
    others = [s for s in triples if s[-1] != name]
    plus, minus = {
        "recency": (last, others),
        "beyond_last": (place[1], first),  # the task that is last is each of the others once, on both sides
        "lost": ([(name,)], first),
        "kept": (first, [()]),
        "retention": (first, [()]),
        "transfer": (last, [(name,)]),
    }[effect]
    yield from ((1 / len(plus), sequence) for sequence in plus)
    yield from ((-1 / len(minus), sequence) for sequence in minus)


def _sum(terms: Sequence[tuple[float, _Cell | None]]) -> _Cell | None:
    """None where a model is not measured; independent errors."""
    value = variance = 0.0
    for weight, cell in terms:
        if cell is None or math.isnan(cell.value):
            return None
        value, variance = value + weight * cell.value, variance + (weight * cell.stderr) ** 2
    return _Cell(value, math.sqrt(variance))


def compare(values: Frame, level: float = statistics.LEVEL) -> Frame:
    """Effects over seeds, for a table made by `per_seed`.

    Columns: model, effect, quantity, task; mean, low, high, n (seeds), p (sign flip), p_least (the smallest that n seeds can give),
    verdict ("above", "below" or "undecided"; "" for retention, of which zero is one end), reason.
    """
    rows = []
    keys = ["model", "effect", "quantity", "task"]
    for key, part in values.groupby(keys, sort=False):
        found = statistics.mean_interval(part.value.to_numpy(), level)
        p, least = statistics.sign_flip(part.value.dropna().to_numpy()[: statistics.FLIPS])
        said = "above" if found.low > 0 else "below" if found.high < 0 else "undecided"
        if key[1] == "retention":
            said, p, least = "", math.nan, math.nan
        reasons = dict.fromkeys(reason for reason in (found.reason, *part.reason) if reason)
        row = dict(zip(keys, key, strict=True)) | dict(mean=found.mean, low=found.low, high=found.high, n=found.n)
        rows.append(row | dict(p=p, p_least=least, verdict=said, reason="; ".join(reasons)))
    return table.frame(rows, [*keys, "mean", "low", "high", "n", "p", "p_least", "verdict", "reason"])


def grid(found: Frame, level: float = statistics.LEVEL) -> Frame:
    """`cells` over seeds, a row for each model, sequence, task and measure: mean, low, high, n; change, change_low, change_high, of the
    differences from the base within each seed, which leave out what the seeds' bases differ by."""
    rows = []
    keys = ["model", "sequence", "task", "place", "measure", "unit"]
    for key, part in found.groupby(keys, sort=False):
        level_of, change = (
            statistics.mean_interval(np.asarray(part[name], np.float64), level) for name in ("value", "change")
        )
        row = dict(zip(keys, key, strict=True))
        row |= dict(mean=level_of.mean, low=level_of.low, high=level_of.high, n=level_of.n)
        rows.append(row | change.columns("change"))
    return table.frame(rows, [*keys, "mean", "low", "high", "n", *statistics.columns(["change"])])
