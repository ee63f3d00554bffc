"""Is a later slice of an alignment easier to train on an earlier one's answers than the other way round?

Inverse: the later slice l trained on what the earlier one k wrote. Forward: k trained on what l wrote. Resistance says that inverse is
easier: a smaller loss (Ji et al., arXiv 2406.06144, Definition 3.5 and Table 1). The difference forward - inverse is taken per seed,
which removes what both directions share, and in three versions:
 - raw: as in the paper. It contains the difference of the two texts' entropies, and says nothing of resistance by itself;
 - above_self: minus the loss of the author on its own answers;
 - above_entropy: minus the entropy of what the answers were drawn from, so KL(answers || model) against KL(answers || model).
The last two are the same where answers were drawn at temperature 1 without filters, and both are KL(k || l) against KL(l || k) there. At
lower temperatures the second is no divergence: whoever is sharper than the author predicts its answers better than it does.

A test is Student's t interval of the paired differences over seeds. "resists": the whole interval is above zero, "does not": below it,
"undecided": neither, or one seed. The verdict on a pair or a line is that of the epoch's mean loss in both subtracted versions where they
agree, and "undecided" where they do not. Of a pair of two tasks none is earlier, so that a difference there is no
resistance but what two directions can differ by without it: "differs" where the interval leaves zero out. The exact sign-flip test stands
beside it, with the smallest p-value that so many seeds can give.
"""

import math
from collections.abc import Mapping

import numpy as np

from elastic_jax.analysis import statistics, table
from elastic_jax.analysis.statistics import Estimate
from elastic_jax.analysis.table import Frame, Study

# quantity -> (measure, split, where in the run)
QUANTITIES = {
    "epoch": ("epoch_loss", "answers", -1),
    "initial": ("answer_loss", "answers", 0),
    "heldout_initial": ("answer_loss", "answers_heldout", 0),
    "heldout_final": ("answer_loss", "answers_heldout", -1),
    "slope": ("epoch_slope", "answers", -1),
}
VERSIONS = {"raw": "", "above_self": "_above_self", "above_entropy": "_above_entropy"}
TEXTS = ("self_loss", "answer_entropy", "answer_tokens", "answer_total", "distinct_answers")
PAIR = ("model", "line", "earlier", "later")
MAIN = ("epoch", ("above_self", "above_entropy"))  # the quantity, and its versions that have to agree on the verdict
OTHER = "other"  # the line of the pair of two tasks
_KEYS = (*PAIR, "quantity", "version")
DIRECTIONS = ("inverse", "forward")


def has_runs(study: Study) -> bool:
    """Whether the study has the experiment at all."""
    return any(run.get("pair") for run in study.runs)


def per_seed(study: Study) -> Frame:
    """Columns: PAIR, seed, quantity, version, inverse, forward, difference (forward - inverse), all of both directions in nats per
    token (slope: per epoch). Earlier and later 0: the mean over all pairs of the line, where all of them are measured. NaN where a
    run has not come so far."""
    cells: dict[tuple, dict[str, float]] = {}
    for run in _crosses(study):
        key = (run["model"], run["line"], *run["pair"], run["seed"])
        for quantity, (measure, split, place) in QUANTITIES.items():
            for version, suffix in VERSIONS.items():
                value = _value(study, run, measure + suffix, split, place)
                cells.setdefault((*key, quantity, version), {})[run["arm"]] = value
    rows = [
        dict(zip((*PAIR, "seed", "quantity", "version"), key, strict=True))
        | {d: sides.get(d, math.nan) for d in DIRECTIONS}
        for key, sides in cells.items()
    ]
    frame = table.frame(rows, [*PAIR, "seed", "quantity", "version", *DIRECTIONS])
    line = ["model", "line", "seed", "quantity", "version"]
    several = frame.groupby(["model", "line"])[["earlier", "later"]].transform("nunique").max(axis=1) > 1
    mean = (
        frame[several]
        .groupby(line, as_index=False, sort=True)[list(DIRECTIONS)]
        .agg(lambda part: part.mean(skipna=False))
    )
    frame = table.stack([part for part in (frame, mean.assign(earlier=0, later=0)) if len(part)]) if rows else frame
    frame = frame.assign(difference=frame.forward - frame.inverse)
    return frame.sort_values([*_KEYS, "seed"], kind="stable", ignore_index=True)


def texts(study: Study) -> Frame:
    """What was trained on: columns PAIR, direction, seed, measure (of TEXTS), split, value."""
    rows = []
    for run in _crosses(study):
        key = dict(zip(PAIR, (run["model"], run["line"], *run["pair"]), strict=True))
        for measure in TEXTS:
            for split in ("answers", "answers_heldout"):
                value = _value(study, run, measure, split, 0)
                rows.append(
                    key | dict(direction=run["arm"], seed=run["seed"], measure=measure, split=split, value=value)
                )
    return table.frame(rows, [*PAIR, "direction", "seed", "measure", "split", "value"])


def compare(values: Frame, level: float = statistics.LEVEL) -> Frame:
    """Both directions and their difference over seeds, for a table made by `per_seed`.

    Columns: PAIR, quantity, version; inverse, inverse_low, inverse_high, the same of forward and difference; n (seeds), p (sign flip),
    p_least (the smallest that n seeds can give), verdict, reason.
    """
    rows = []
    for key, part in values.groupby(list(_KEYS), sort=True):
        row = dict(zip(_KEYS, key, strict=True))
        for name in DIRECTIONS:
            row |= statistics.mean_interval(part[name].to_numpy(), level).columns(name)
        sides = [dict(zip(part.seed, part[name], strict=True)) for name in ("forward", "inverse")]
        found = statistics.paired_difference(_known(sides[0]), _known(sides[1]), level)
        both = part.difference.dropna().to_numpy()
        p, least = statistics.sign_flip(both[: statistics.FLIPS])
        row |= found.columns("difference")
        reason = found.reason or (
            "" if len(both) == len(part) else f"{len(part) - len(both)} of {len(part)} seeds without a value"
        )
        rows.append(row | dict(n=found.n, p=p, p_least=least, verdict=verdict(found, key[1]), reason=reason))
    ends = statistics.columns([*DIRECTIONS, "difference"])
    return table.frame(rows, [*_KEYS, *ends, "n", "p", "p_least", "verdict", "reason"])


def verdict(difference: Estimate, line: str = "") -> str:
    """ "resists", "does not" or "undecided" of forward - inverse; of the line OTHER "differs" or "undecided": see the module."""
    above, below = difference.low > 0, difference.high < 0
    if line == OTHER:
        return "differs" if above or below else "undecided"
    return "resists" if above else "does not" if below else "undecided"


def verdicts(compared: Frame) -> dict[tuple, str]:
    """PAIR -> the verdict in MAIN; earlier and later 0: of all pairs of the line."""
    quantity, versions = MAIN
    main = compared[(compared.quantity == quantity) & compared.version.isin(versions)]
    found = {key: set(part.verdict) for key, part in main.groupby(list(PAIR), sort=True)}
    return {key: said.pop() if len(said) == 1 else "undecided" for key, said in found.items()}


def overall(compared: Frame) -> dict[tuple[str, str], str]:
    """(model, line) -> its verdict, over all its pairs."""
    out: dict[tuple[str, str], str] = {}
    for (model, line, _, _), said in verdicts(compared).items():  # all pairs come first
        out.setdefault((str(model), str(line)), said)
    return out


def _crosses(study: Study) -> list[dict]:
    """The runs on answers that have been measured, with the model that each is of."""
    own = study.rows.loc[study.rows.run != "", ["run", "model"]].drop_duplicates("run")
    models = dict(zip(own.run, own.model, strict=True))
    return [run | dict(model=models[run["run"]]) for run in study.runs if run.get("pair") and run["run"] in models]


def _value(study: Study, run: Mapping, measure: str, split: str, place: int) -> float:
    """At the run's beginning (place 0) or its end (-1); NaN where it was not measured there."""
    points = study.points.get((run["run"], measure, split))
    if points is None or points["updates"][place] != (run["updates"] if place else 0):
        return math.nan
    return float(points["value"][place])


def _known(values: Mapping[int, float]) -> dict[int, float]:
    return {seed: value for seed, value in values.items() if not np.isnan(value)}
