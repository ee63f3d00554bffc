"""Figure 4 of arXiv 2406.06144 on the embedded universe: positive x negative volumes, with the controls that it lacks.

Pre-trains a 68k-parameter transformer, aligns it on 512 to 8,192 positive reviews, and trains each of the four on up to 4,096 negative ones:
the paper's 4 x 6 grid, here in the powers of two that a batch of 16 divides. Beyond the paper: three seeds, everything recorded along the
path (1, 2, 4, ... updates) instead of at volumes chosen beforehand, the same perturbation straight from base (a model that was never
aligned has nothing to rebound from), and on the same path the KL to base and to the perturbing distribution, which tell a return to the base
from learning the new task.

    python -m elastic_jax.run --config=configs/rebound.py --workdir=runs/rebound
    python -m elastic_jax.run --config=configs/rebound.py:reversed --workdir=runs/rebound

Three seeds, commit c388eb4; 76 s on 2 cores where another recipe had trained the base (benchmarks/results/suite.md). Base 0.523 [0.477, 0.569]:

    alignment examples         512      1,024    2,048    8,192    control
    score before               0.784    0.853    0.894    0.904    0.523
    after 4,096 negatives      0.112    0.113    0.112    0.121    0.109
    half-life (examples)       88.5     125      152      165
    base's level crossed       186      264      358      401

The score passes the base's level in every cell, and goes down to where the control goes; the speed falls after the base's level, yet one exponential
describes the way as well as two. The half-life grows with alignment (88.5 [80.2, 96.7] to 165 [141, 189]), against "more alignment, faster
return"; the speeds of the first interval are undecided. KL to base below 0.01 is reached by none.

`reversed` (three seeds, commit b13e9e8) mirrors it: scores of 0.782 to 0.897 fall to 0.098 to 0.103, where the control goes (0.096), by way of half-lives
of 116 [86.8, 146], 165, 183 and 187 [177, 198] examples, which grow with alignment here as well; the base's level (0.477) is crossed after 249
to 466 examples, and KL to base below 0.01 is reached by none.

Arguments after the colon: `reversed` (the paper's appendix: aligned on negative, perturbed with positive reviews; the score is then of
negative texts), `task=refusal` (dialogues), `tiny`, `base=ID_OR_FOLDER` (a checkpoint of others and real text, with the settings of
configs/rebound_published.py; then `task=imdb` or `task=safety`, `world=8`). The report draws the paper's curves beside.
"""

from elastic_jax import recipes


def get_config(argument: str = ""):
    chosen = recipes.parse(argument, "reversed")
    if chosen.reversed and not chosen.base:
        chosen.task += "_reversed"
    c = recipes.begin("rebound", chosen)
    c.published = "figure 4"
    if chosen.base:
        if chosen.reversed:  # judges of `measures.scorers` keep their direction
            c.name += "_reversed"
            swapped, one, other = (
                (c.data.labels, "aligned", "opposite")
                if chosen.task == "imdb"
                else (c.data.columns, "chosen", "rejected")
            )
            swapped.update({one: swapped[other], other: swapped[one]})
        return c
    c.align.volumes = (512, 1024, 2048, 8192)
    c.perturb.volumes = (16, 64, 256, 512, 1024, 4096)
    if chosen.tiny:
        c.align.volumes = (32, 128)
        c.perturb.volumes = (16, 64)
    return c
