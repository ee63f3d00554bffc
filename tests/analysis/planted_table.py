"""A study whose model is a table of counts, so that its elastic response is known in closed form.

Texts are one of M leaves, each of one token; every second leaf is a positive one. The model is the table p = counts / N: pre-training has
left N0 draws of D_p in it, alignment adds n_a draws of D_a (positive leaves mostly), perturbation n_t of D_t (negative ones). That is the
joint compression of arXiv 2406.06144, section 3, and here training one set after another is the same as training on the union. With a, t
the probabilities that D_a and D_t give to positive texts, and b that of D_p,

    score            s(n_t) = (N0 b + n_a a + n_t t) / (N0 + n_a + n_t)
    undone           the share f of s(0) - b at the n_t that `returned` solves s(n_t) for; all of it, f = 1, at n_a (a - b) / (b - t)
    KL               between the tables of expected counts: a sum over M leaves

Each seed draws which of its alignment and perturbation texts are positive, and its score from `SAMPLES` texts of its table, so that seeds scatter as those of a study do.
"""

import dataclasses

import numpy as np
import planted

M, SAMPLES, HELDOUT, BATCH = 16, 16384, 2048, 16
A, T = 0.9, 0.1  # what alignment and perturbation data give to positive texts


def _half(positive):
    """A distribution over the leaves, of which so much is on positive ones, skewed within each half."""
    skew = 1.0 / np.arange(1, M // 2 + 1)
    skew /= skew.sum()
    p = np.empty(M)
    p[::2], p[1::2] = positive * skew, (1 - positive) * skew[::-1]
    return p


@dataclasses.dataclass(frozen=True)
class Table:
    """One base: the draws of pre-training that its table holds."""

    name: str
    tokens: int

    @property
    def base(self):
        return _half(0.5)

    def expected(self, aligned, perturbed=0.0):
        return (self.tokens * self.base + aligned * _half(A) + perturbed * _half(T)) / (
            self.tokens + aligned + perturbed
        )

    def score(self, aligned, perturbed=0.0):
        return float(self.expected(aligned, perturbed)[::2].sum())

    def returned(self, aligned, fraction):
        """Examples of perturbation that undo `fraction` of what alignment did to the score."""
        level = self.score(aligned) - fraction * (self.score(aligned) - 0.5)
        held = self.tokens * 0.5 + aligned * A
        return (held - level * (self.tokens + aligned)) / (level - T)

    def kl(self, aligned, perturbed=0.0):
        """KL(base || model), nats per token."""
        return float(np.sum(self.base * np.log(self.base / self.expected(aligned, perturbed))))


VOLUMES = (512, 1024, 2048, 4096)
POINTS = tuple(16 * 2**i for i in range(10))  # 16 to 8,192: twice the largest alignment


def table(bases, seeds=tuple(range(6)), volumes=VOLUMES, points=POINTS, relabel=None):
    """Rows and metadata, one variant for each base as a suite writes them.

    Args:
      relabel: (seed, base index) -> base index whose name the model carries; None: its own.
    """
    rows, studies = [], {}
    runs = {one.name: [] for one in bases}
    for seed in seeds:
        for index, one in enumerate(bases):
            named = bases[relabel(seed, index)] if relabel else one
            own, metadata = _seed(one, named, seed, 1000 * seed + index, volumes, points)
            rows += own
            runs[named.name] += metadata
    for one in bases:
        study = f"tables.{one.name}"
        rows += [dict(planted._fact(*fact), study=study) for fact in _facts()]
        studies[study] = dict(config=dict(data=dict(task="table"), published="figure 6"), runs=runs[one.name])
    frame = planted.pd.DataFrame(rows)
    return frame, {"studies": studies}


def _facts():
    return [("pretrain-heldout", "rows", "count", HELDOUT), ("pretrain-heldout", "loss_tokens", "count", HELDOUT)]


def _seed(one, named, seed, stream, volumes, points):
    rng = np.random.default_rng([7, stream])
    # Positive texts among the first n of each set; within a half the leaves have their shares.
    aligning, perturbing = (np.cumsum(rng.random(n) < p) for n, p in ((max(volumes), A), (max(points), T)))
    pretrain = one.tokens * one.base
    rows, runs = [], []

    def drawn_from(positives, examples):
        return examples * _half(positives[examples - 1] / examples) if examples else np.zeros(M)

    def add(run, stage, arm, volume, examples, counts, parent=""):
        p = counts / counts.sum()
        drawn = rng.binomial(SAMPLES, p[::2].sum()) / SAMPLES
        error = float(np.sqrt(drawn * (1 - drawn) / SAMPLES))
        texts = rng.multinomial(HELDOUT, one.base) / HELDOUT
        kl = float(np.sum(one.base * np.log(one.base / p)))
        for measure, split, unit, value, stderr in (
            ("score", "samples", "probability", drawn, error),
            ("bits_per_token", "pretrain", "bits/token", float(-texts @ np.log2(p)), 0.01),
            ("kl_base_model", "pretrain", "nats/token", kl, kl / 100),
        ):
            rows.append(
                planted._fact(split, measure, unit, value)
                | dict(
                    study=f"tables.{named.name}", run=run, parent=parent, stage=stage, arm=arm, model="table", params=M
                )
                | dict(method="likelihood" if stage == "pretrain" else "sft", seed=seed, stderr=stderr, n=SAMPLES)
                | dict(align_volume=volume, perturb_volume=examples if stage == "perturb" else 0, examples=examples)
                | dict(updates=examples // BATCH, tokens=examples, pretrain_tokens=named.tokens)
            )

    def run_of(name, parent, stage, arm, volume, ends):
        run = f"{name}-{planted.hash_text(f'{name}{named.name}{seed}'):08x}"
        runs.append(
            dict(run=run, name=name, id=run.rpartition("-")[2], parent=parent, stage=stage, arm=arm, seed=seed)
            | dict(method="likelihood" if stage == "pretrain" else "sft", align_volume=volume, examples=max(ends))
            | dict(updates=max(ends) // BATCH, points=list(ends), parent_examples=volume or one.tokens)
        )
        return run

    first = run_of("pretrain", "", "pretrain", "base", 0, (one.tokens,))
    add(first, "pretrain", "base", 0, one.tokens, pretrain)
    align = run_of("align", first, "align", "aligned", max(volumes), volumes)
    for volume in volumes:
        add(align, "align", "aligned", volume, volume, pretrain + drawn_from(aligning, volume), first)
    for volume in (*volumes, 0):
        arm, parent = ("aligned", align) if volume else ("control", first)
        run = run_of(f"perturb-{volume}", parent, "perturb", arm, volume, points)
        before = pretrain + drawn_from(aligning, volume)
        for examples in (0, *points):
            add(run, "perturb", arm, volume, examples, before + drawn_from(perturbing, examples), parent)
    return rows, runs
