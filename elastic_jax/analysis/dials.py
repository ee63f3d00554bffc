"""How do the compression rates respond to the dials k = |D_p| / |D_a| and l = |D_t| / |D_a|, and is it as the elasticity theorem says?

The theorem (`theory.elasticity`) is about a model of the *union* of pre-training, alignment and perturbation data, converged: more
perturbation data worsens the alignment data k (and some) times as much as it improves the pre-training data, and the changes, weighted
by size, cancel. A suite of dials has one variant for each such union (`data.joint`), and beside them the practice, about which
nothing is proved: the same data in the same proportions one after the other.

Rates are in nats per text, sizes in texts: for these the statements are exact. They are measured on the same held-out texts at every
l and differenced in l within a seed. On the universe the optimum is known on those very texts (the facts `best_rate`) and over all
texts (`exact`), so that what the choice of held-out texts does to the optimum is taken off the joint measurements: a control variate.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import special

from elastic_jax.analysis import statistics, table
from elastic_jax.analysis.statistics import Estimate
from elastic_jax.analysis.table import Frame, Study
from elastic_jax.theory import elasticity

ROLES: tuple[str, ...] = ("pretrain", "align", "perturb")
JOINT, SEQUENTIAL = "joint", "sequential"
DRAWS = 8192  # reviews of each sentiment that the exact expectations are taken over
CELL = ["protocol", "k", "l_from", "l_to"]
FOUND = (*ROLES, "residual", "share")  # in every cell, measured and of the optimum
LEFT = 0.5  # share of the forces that may be left over where they are called balanced
SLOPES = np.linspace(-4, 6, 1001)  # that are told apart


@dataclasses.dataclass(frozen=True)
class Union:
    """The variant of one (k, l), trained on everything at once; `data` is its section of the config."""

    variant: str
    k: float
    l: float  # noqa: E741 (the paper's letter)
    data: Mapping[str, Any]


def unions(study: Study) -> list[Union]:
    """The variants with joint data; [] where the study has none, or not both dials of the theorem."""
    found = []
    for variant, config in _variants(study).items():
        data = config.get("data") or {}
        joint = data.get("joint") or {}
        if data.get("kind") == "universe" and joint.get("align"):
            found.append(Union(variant, 1 / joint["align"], joint["perturb"] / joint["align"], data))
    return sorted(found, key=lambda one: (one.k, one.l))


def has_dials(study: Study) -> bool:
    """Whether some k has two or more values of l."""
    ks = [_key(one.k) for one in unions(study)]
    return len(set(ks)) < len(ks)


def _variants(study: Study) -> dict[str, Mapping[str, Any]]:
    return dict((study.info.get("config") or {}).get("variants") or {})


def _key(value: float) -> float:
    """Dials as they are compared: they come out of quotients."""
    return float(f"{value:.6g}")


# -- what was measured ---------------------------------------------------------------------------------------


def rates(study: Study) -> Frame:
    """Every measured rate. Columns: protocol, k, l, seed, role, gamma (nats/token), per_text (nats/text), best (nats/token: what the
    optimum reaches on the same texts; NaN for sequential training)."""
    names = ["protocol", "k", "l", "seed", "role", "gamma", "per_text", "best"]
    if not has_dials(study):
        return table.frame([], names)
    rows, joint = [], unions(study)
    measured = study.rows[(study.rows.measure == "bits_per_token") & study.rows.split.isin(ROLES)]

    def add(protocol: str, k: float, l: float, variant: str, points: Frame) -> None:  # noqa: E741
        for point in points.to_dict("records"):
            gamma, role = point["value"] * math.log(2), point["split"]
            best = _fact(study, variant, "best_rate", role) if protocol == JOINT else math.nan
            length = _fact(study, variant, "loss_tokens", f"{role}-heldout") / _fact(
                study, variant, "rows", f"{role}-heldout"
            )
            rows.append(
                dict(
                    zip(
                        names,
                        (protocol, _key(k), _key(l), point["seed"], role, gamma, gamma * length, best),
                        strict=True,
                    )
                )
            )

    for one in joint:
        mine = measured[(measured.model == one.variant) & (measured.stage == "pretrain")]
        add(JOINT, one.k, one.l, one.variant, mine[mine.examples == mine.examples.max()])
    wanted = {_key(one.l) for one in joint}
    for variant in set(_variants(study)) - {one.variant for one in joint}:
        mine = measured[measured.model == variant]
        whole = mine[mine.stage == "pretrain"].examples.max()
        moved = mine[(mine.stage == "perturb") & (mine.arm == "aligned")]
        for (volume, examples), points in moved.groupby(["align_volume", "examples"]):
            k, l = whole / volume, examples / volume  # noqa: E741
            if _key(l) in wanted:
                add(SEQUENTIAL, k, l, variant, points)
    return table.frame(rows, names)


def _fact(study: Study, variant: str, measure: str, split: str) -> float:
    """A fact of the data, which `join` says of a variant where variants differ."""
    facts = study.rows[(study.rows.run == "") & (study.rows.measure == measure)]
    for name in (f"{variant}: {split}", split):
        if len(values := facts[facts.split == name].value):
            return float(values.iloc[0])
    return math.nan


# -- what is exact -------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Exact:
    """What the best model of the union does between two l.

    Attributes:
      change: role -> change of its rate, nats per text.
      derivative: the closed form of the theorem half way.
    """

    change: Mapping[str, float]
    derivative: elasticity.Elasticity

    @property
    def ratio(self) -> float:
        return self.change["align"] / self.change["pretrain"]


def exact(data: Mapping[str, Any], k: float, l_from: float, l_to: float) -> Exact:
    """The response of the exact mixture, from the exact probabilities of the universe.

    Args:
      data: the section of the config.
    """
    p = _leaves(json.dumps({name: data[name] for name in ("topics", "size", "pretrain")}, sort_keys=True))
    before, after = (elasticity.rates(p, [k, 1.0, l]) for l in (l_from, l_to))  # noqa: E741
    change: dict[str, float] = dict(zip(ROLES, (after - before).tolist(), strict=True))
    return Exact(change, elasticity.elasticity(p[0], p[1], p[2], k, (l_from + l_to) / 2))


@functools.lru_cache(maxsize=8)
def _leaves(data: str) -> np.ndarray:
    """Masses of pre-training, alignment and perturbation over 2 DRAWS reviews, and over all dialogues as one leaf, [3, m].

    Reviews are drawn from both sentiments alike and weighted by their exact probabilities, each weight a sum to one. So they are
    distributions like any others, of which the closed forms hold to the last digit, and what is drawn decides only how often each
    ratio of probabilities occurs. All dialogues have the same ratios, and no review is one.
    """
    from elastic_jax.data.universe import Mixture, Universe

    section = json.loads(data)
    universe = Universe(section["topics"], section["size"])
    pretrain = Mixture(**{name: value for name, value in section["pretrain"].items() if name != "rows"})
    sentiments = [Mixture.reviews(positive=1.0), Mixture.reviews(positive=0.0)]
    texts = [text for seed, mixture in enumerate(sentiments) for text in universe.sample(mixture, DRAWS, seed)]
    log_p = np.stack([universe.log_prob(texts, mixture) for mixture in sentiments])
    weight = np.exp(log_p - np.logaddexp.reduce(log_p, axis=0))
    aligned, perturbing = np.pad(weight / weight.sum(axis=1, keepdims=True), ((0, 0), (0, 1)))
    reviews = pretrain.positive * aligned + (1 - pretrain.positive) * perturbing
    mixed = pretrain.review * reviews
    mixed[-1] = 1 - pretrain.review
    return np.stack([mixed, aligned, perturbing])


# -- differences in l ----------------------------------------------------------------------------------------


def differences(study: Study) -> Frame:
    """Differences in l at fixed k between neighbouring l, of each seed, divided by the step.

    Columns: CELL, seed, pretrain, align, perturb (nats per text and unit of l), residual (sum |D_i| dgamma_i, |D_t| half way), share
    (that over sum of |D_i| |dgamma_i|: 0 where forces balance, +-1 where all rates move the same way), and exact_pretrain,
    exact_align, exact_perturb, exact_residual, exact_share: the same of the optimum, closed_form: its ratio by the closed form half way.
    """
    found = rates(study)
    roles = [f"exact_{name}" for name in FOUND]
    names = [*CELL, "seed", *FOUND, *roles, "closed_form"]
    data = next((one.data for one in unions(study)), {})
    length = (found.per_text / found.gamma).where(found.gamma != 0)
    found = found.assign(best_text=found.best * length)
    rows = []
    for (protocol, k), part in found.groupby(["protocol", "k"]):
        ls = sorted(set(part.l))
        for l_from, l_to in zip(ls, ls[1:], strict=False):
            step, middle = l_to - l_from, (l_from + l_to) / 2
            known = exact(data, k, l_from, l_to)
            truth = {role: known.change[role] / step for role in ROLES}
            ends = [part[part.l == l].set_index(["seed", "role"]) for l in (l_from, l_to)]  # noqa: E741
            for seed in sorted(set(ends[0].index.get_level_values(0)) & set(ends[1].index.get_level_values(0))):
                change = {}
                for role in ROLES:
                    before, after = (end.loc[(seed, role)] for end in ends)
                    change[role] = (after.per_text - before.per_text) / step
                    if protocol == JOINT:
                        change[role] += truth[role] - (after.best_text - before.best_text) / step
                rows.append(
                    dict(zip(CELL, (protocol, k, l_from, l_to), strict=True))
                    | dict(seed=seed, closed_form=known.derivative.ratio, **change)
                    | dict(zip(("residual", "share"), _balance(change, k, middle), strict=True))
                    | {f"exact_{role}": truth[role] for role in ROLES}
                    | dict(zip(("exact_residual", "exact_share"), _balance(truth, k, middle), strict=True))
                )
    return table.frame(rows, names)


def _balance(change: Mapping[str, float], k: float, l: float) -> tuple[float, float]:  # noqa: E741
    forces = np.array([k * change["pretrain"], change["align"], l * change["perturb"]])
    return float(forces.sum()), float(forces.sum() / np.abs(forces).sum()) if forces.any() else math.nan


def compare(values: Frame, level: float = statistics.LEVEL) -> Frame:
    """Over seeds: `values` of `differences`.

    Columns: CELL, n, and for x in pretrain, align, perturb, residual, share: x, x_low, x_high; ratio, ratio_low, ratio_high (align over
    pretrain; NaN ends where the interval of the latter has zero in it); exact_* and exact_ratio; closed_form; verdict: "unbalanced"
    where what is due (the optimum's residual and share; 0 of sequential training) is outside an interval; "balanced" where it is inside
    and the interval of the share within +-LEFT; "undecided" where that is wider, or neither rate is known to have moved.
    """
    rows = []
    for cell, part in values.groupby(CELL, sort=True):
        row = dict(zip(CELL, cell, strict=True)) | dict(n=len(part), closed_form=part.closed_form.iloc[0])
        found = {name: statistics.mean_interval(part[name].to_numpy(), level) for name in FOUND}
        for name, one in found.items():
            row |= one.columns(name)
        row |= {name: part[name].iloc[0] for name in part if str(name).startswith("exact_")}
        row["exact_ratio"] = row["exact_align"] / row["exact_pretrain"] if row["exact_pretrain"] else math.nan
        row |= dict(zip(statistics.columns(["ratio"]), _ratio(part, level), strict=True))
        moved = any(found[name].low > 0 or found[name].high < 0 for name in ("pretrain", "align"))
        due = {name: row[f"exact_{name}"] if row["protocol"] == JOINT else 0.0 for name in ("residual", "share")}
        inside = all(found[name].low <= due[name] <= found[name].high for name in due)
        narrow = found["share"].low > -LEFT and found["share"].high < LEFT
        row["verdict"] = "undecided"
        if len(part) > 1 and moved:
            row["verdict"] = "unbalanced" if not inside else "balanced" if narrow else "undecided"
        rows.append(row)
    ends = statistics.columns([*FOUND, "ratio"])
    truths = [f"exact_{name}" for name in (*FOUND, "ratio")]
    return table.frame(rows, [*CELL, "n", *ends, *truths, "closed_form", "verdict"])


def _ratio(part: Frame, level: float) -> tuple[float, float, float]:
    """Ratio of means with Fieller's interval over seeds (Journal of the Royal Statistical Society B 16, 1954)."""
    y, x = part["align"].to_numpy(), part["pretrain"].to_numpy()
    n, mean_x, mean_y = len(x), x.mean(), y.mean()
    ratio = mean_y / mean_x if mean_x else math.nan
    if n < 2:
        return ratio, math.nan, math.nan
    t2 = float(special.stdtrit(n - 1, (1 + level) / 2)) ** 2 / n
    cov = np.cov(x, y)
    a, b, c = mean_x**2 - t2 * cov[0, 0], mean_x * mean_y - t2 * cov[0, 1], mean_y**2 - t2 * cov[1, 1]
    if a <= 0:
        return ratio, math.nan, math.nan
    half = math.sqrt(max(b * b - a * c, 0.0)) / a
    return ratio, b / a - half, b / a + half


# -- the law in k --------------------------------------------------------------------------------------------


def slopes(values: Frame, level: float = statistics.LEVEL) -> Frame:
    """The exponent of k in dgamma_a / dgamma_p, where 1 is predicted, for each protocol and step of l.

    Columns: protocol, l_from, l_to, what, mean, low, high, n (values of k), predicted, reason. `what`: "ratio" as measured, whose
    prediction is what the same fit gives of the optimum's own changes (sequential: of either sign, whichever the changes have); "corrected": the ratio divided by what it is beside -k at
    finite l, 1 / (1 + l (1 - B) / (1 - A)), so that exactly 1 is predicted. Of sequential training nothing is.
    """
    rows = []
    for (protocol, l_from, l_to), part in values.groupby(["protocol", "l_from", "l_to"], sort=True):
        first = part.groupby("k").first()
        truth = (first.exact_align / first.exact_pretrain).to_numpy()
        beside = -truth / first.index.to_numpy()
        for what in ("ratio", "corrected"):
            if what == "corrected" and (protocol != JOINT or not (beside > 0).all()):
                continue
            factor = beside if what == "corrected" else np.ones(len(first))
            opposite = protocol == JOINT or (part["align"] * part["pretrain"]).sum() < 0
            found = slope(part, dict(zip(first.index, factor, strict=True)), level, -1 if opposite else 1)
            predicted = 1.0 if what == "corrected" else math.nan
            if protocol == JOINT and what == "ratio" and len(first) > 1 and (beside > 0).all():
                predicted = slope(_as_optimum(part), dict.fromkeys(first.index, 1.0), level).mean
            rows.append(
                dict(
                    protocol=protocol,
                    l_from=l_from,
                    l_to=l_to,
                    what=what,
                    mean=found.mean,
                    low=found.low,
                    high=found.high,
                )
                | dict(n=found.n, predicted=predicted, reason=found.reason)
            )
    return table.frame(rows, ["protocol", "l_from", "l_to", "what", "mean", "low", "high", "n", "predicted", "reason"])


def _as_optimum(values: Frame) -> Frame:
    """The same seeds scattered as they are, about the changes of the optimum."""
    means = values.groupby("k")[list(ROLES)].transform("mean")
    return values.assign(**{role: values[role] - means[role] + values[f"exact_{role}"] for role in ROLES})


def slope(values: Frame, factor: Mapping[float, float], level: float = statistics.LEVEL, sign: int = -1) -> Estimate:
    """b of dgamma_a = sign c k^b f_k dgamma_p, c > 0, by least squares with errors in both changes.

    Without logarithms: a change of pre-training that is small beside its noise may have either sign, and leaving it out would bend the
    law. Each k counts by the noise of the left side less the right, from the covariance of the forces dgamma_a and k dgamma_p within k,
    pooled (of the rates it would not be one: a model that gives to one data set takes from the other k times less); the interval
    is the set of b whose best sum of squares exceeds the least one by no more than the quantile of F_{1, freedom}. It is infinite
    where no b is excluded, which is what noise gives.
    """
    groups = {k: part for k, part in values.groupby("k")}
    ks = np.array(sorted(groups))
    freedom = sum(len(part) - 1 for part in groups.values())
    if len(ks) < 2 or not freedom:
        reason = "one k: no slope" if len(ks) < 2 else "one seed: no interval, and no weights"
        return Estimate(math.nan, n=len(ks), reason=reason)
    pairs = [groups[k][["align", "pretrain"]].to_numpy() * [1.0, k] for k in ks]
    means, n = np.array([pair.mean(axis=0) for pair in pairs]), np.array([len(pair) for pair in pairs])
    about = np.concatenate([pair - pair.mean(axis=0) for pair in pairs])
    s = about.T @ about / freedom + np.diag((1e-9 * np.abs(means).max(axis=0)) ** 2 + 1e-300)
    f = np.array([factor[k] for k in ks])
    scale = np.median(np.abs(means[:, 0]) / np.maximum(np.abs(means[:, 1]) * f, 1e-300))
    log_c = np.log(max(scale, 1e-300)) + np.linspace(-8, 8, 1601)

    def squares(b: float | np.ndarray, log_c: float | np.ndarray) -> np.ndarray:
        g = np.exp(np.asarray(log_c)[..., None] + (np.asarray(b)[..., None] - 1) * np.log(ks)) * f
        g = sign * g
        noise = (s[0, 0] - 2 * g * s[0, 1] + g * g * s[1, 1]) / n
        return np.sum((means[:, 0] - g * means[:, 1]) ** 2 / noise, axis=-1)

    profile = np.array([squares(np.full_like(log_c, b), log_c).min() for b in SLOPES])
    allowed = float(special.stdtrit(freedom, (1 + level) / 2)) ** 2
    inside = SLOPES[profile <= profile.min() + allowed]
    step = SLOPES[1] - SLOPES[0]
    low, high = inside[0] - step, inside[-1] + step
    low, high = (-math.inf if low < SLOPES[0] else low), (math.inf if high > SLOPES[-1] else high)
    best = float(SLOPES[int(np.argmin(profile))])
    if math.isinf(low) and math.isinf(high) or best in SLOPES[[0, -1]]:
        return Estimate(
            math.nan, -math.inf, math.inf, len(ks), reason="no slope is excluded: the changes are within their noise"
        )
    return Estimate(best, float(low), float(high), len(ks), median=best)


def cells(found: Frame, level: float = statistics.LEVEL) -> Frame:
    """How far each model is from the optimum. Columns: protocol, k, l, role, gamma, low, high, best, excess (all nats/token), n."""
    rows = []
    for (protocol, k, l, role), part in found.groupby(["protocol", "k", "l", "role"], sort=True):  # noqa: E741
        one, best = statistics.mean_interval(part.gamma.to_numpy(), level), part.best.iloc[0]
        rows.append(
            dict(protocol=protocol, k=k, l=l, role=role, gamma=one.mean, low=one.low, high=one.high, best=best)
            | dict(excess=one.mean - best, n=one.n)
        )
    return table.frame(rows, ["protocol", "k", "l", "role", "gamma", "low", "high", "best", "excess", "n"])
