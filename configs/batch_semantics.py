"""What a volume means when it does not fill its batches: drop, flush or pad (not in arXiv 2406.06144, and needed to read its figures).

In every curve of the paper the scores after 100 and 200 perturbing examples are equal, and with its released settings for safety 100
and 200 examples fill no batch: frameworks that drop what is left over then make no update at all. Here the same volumes, 25 to 2,000, in
batches of 64 are trained in three ways, from one alignment and from base: `drop` (what is left over is not trained on; 25 and 50 are the
model before, and 100 is 64), `flush` (one more update on what is left, normalised by its own tokens), `pad` (the same update normalised as
a full batch; the first update of Adam is the same for both, since it does not depend on the scale of the gradient). Where `drop` has a
flat start that the others do not have, the flat start is the batch's and not the model's.

    python -m elastic_jax.run --config=configs/batch_semantics.py --workdir=runs/batch

83 s on 2 cores where another recipe had trained the base (commit c388eb4, benchmarks/results/suite.md). Score of the aligned arm, mean of three
seeds; base 0.523, aligned 0.894:

    examples   25     50    100    200    500   1000   2000
    drop    0.894  0.894  0.828  0.639  0.425  0.216  0.114
    flush   0.829  0.823  0.729  0.582  0.389  0.203  0.108
    pad     0.829  0.823  0.727  0.569  0.387  0.204  0.111

`drop` alone is flat, where it makes no update. The paper's flat start lies at 100 and 200, which its larger batches would leave without one.

Arguments after the colon: `task=refusal`, `tiny`.
"""

from elastic_jax import config, recipes


def get_config(argument: str = ""):
    chosen = config.parse_argument(argument, "tiny", task="sentiment")
    c = recipes.universe("batch_semantics", chosen.task, tiny=chosen.tiny)
    c.align.volumes = (2048,)
    c.perturb.batch_size = 256  # that of the paper: 32 rows in 8 parts
    c.perturb.volumes = (25, 50, 100, 200, 500, 1000, 2000)
    c.perturb.optim.lr = 2e-3  # a sixteenth of the updates of the other configs
    if chosen.tiny:
        c.align.volumes = (128,)
        c.perturb.batch_size = 16
        c.perturb.volumes = (6, 12, 25, 50)
    for how in ("drop", "flush", "pad"):
        c.variants[how] = dict(perturb=dict(last_batch=how))
    return c
