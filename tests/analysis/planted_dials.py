"""A study of the dials k and l whose rates follow the closed forms."""

import math

import numpy as np
import planted

from elastic_jax.analysis import dials, table

KS, LS, SEEDS = (1.0, 2.0, 4.0, 8.0), (0.0, 0.25), (0, 1, 2)
DATA = dict(
    kind="universe",
    task="sentiment",
    topics=1,
    size="small",
    pretrain=dict(rows=100, review=2 / 3, positive=0.5, harmful=0.5, refuse_harmful=0.1, refuse_benign=0.02),
)
TOKENS = dict(pretrain=15.0, align=12.0, perturb=13.0)  # of a held-out text


def study(noise=1e-6, forces=None, ks=KS, seeds=SEEDS):
    """Joint models that are a constant above the optimum at every (k, l), up to noise in nats per text; sequential ones whose rates
    change by `forces` (role -> nats per text and unit of l) where given."""
    rng, rows, variants = np.random.default_rng(5), [], {}

    def add(variant, stage, seed, role, nats, examples=640, volume=0):
        fact = planted._fact(role, "bits_per_token", "bits/token", nats / TOKENS[role] / math.log(2))
        run = f"{variant}/{stage}-s{seed}-{volume}"
        rows.append(fact | dict(run=run, stage=stage, arm="aligned" if volume else "base", seed=seed, model=variant)
                    | dict(examples=examples, updates=examples // 16, align_volume=volume, n=64))  # fmt: skip

    for k in ks:
        for l in LS:  # noqa: E741
            variant = f"k{k:g}-l{l:g}".replace(".", "_")
            data = DATA | dict(joint=dict(align=1 / k, perturb=l / k))
            variants[variant] = dict(data=data)
            changed = dials.exact(data, k, 0.0, l).change if l else dict.fromkeys(dials.ROLES, 0.0)
            for role in dials.ROLES:
                best = 10.0 + changed[role]
                rows.append(planted._fact(f"{variant}: {role}", "best_rate", "nats/token", best / TOKENS[role]))
                for seed in seeds:
                    level = 10.3 + 0.1 * seed + changed[role] + noise * rng.normal()
                    add(variant, "pretrain", seed, role, level)
    if forces is not None:
        variants["sequential"] = dict(data=DATA | dict(joint=dict(align=0.0, perturb=0.0)))
        for seed in seeds:
            for role in dials.ROLES:
                add("sequential", "pretrain", seed, role, 10.5)
                for k in ks:
                    for l in (*LS, 0.125):  # noqa: E741 (a recorded point that is none of the dials)
                        nats = 10.4 + l * forces[role] + noise * rng.normal()
                        add("sequential", "perturb", seed, role, nats, int(640 * l / k), int(640 / k))
    for role, tokens in TOKENS.items():
        for measure, value in (("rows", 64), ("loss_tokens", 64 * tokens)):
            rows.append(planted._fact(f"{role}-heldout", measure, "count", value))
    info = dict(config=dict(variants=variants), runs=[])
    return table.Study("dials", table.frame(rows, table.COLUMNS), info)
