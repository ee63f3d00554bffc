"""What a volume means when it does not fill its batches: drop, flush or pad (not in arXiv 2406.06144, and needed to read its figures).

In every curve of the paper the scores after 100 and 200 perturbing examples are equal, and with its released settings for safety, 256 rows to an
update on eight devices, 100 and 200 examples fill no batch: frameworks that drop what is left over then make no update at all. Here the
same volumes in batches of 256 are trained in three ways, from one alignment and from base: `drop` (what is left over is not trained on:
the volumes up to 200 are the model before, and 500, 1,000 and 2,000 are 1, 3 and 7 updates), `flush` (one more update on what is left,
normalised by its own tokens), `pad` (the same update normalised as a full batch; the first update of Adam is the same for both, since it
does not depend on the scale of the gradient). Where `drop` has a flat start that the others do not have, the flat start is the batch's
and not the model's.

    python -m elastic_jax.run --config=configs/batch_semantics.py --workdir=runs/batch

Commit b13e9e8, three seeds; 207 s on 2 busy cores where another recipe had trained the base. Score of the aligned arm, mean of the seeds; base
0.523, aligned 0.894:

    examples      25     50    100    200    500   1000   2000
    drop       0.894  0.894  0.894  0.894  0.671  0.465  0.223
    flush      0.699  0.697  0.706  0.677  0.553  0.398  0.191
    pad        0.699  0.698  0.706  0.677  0.553  0.399  0.187

`drop` alone has the paper's flat start, since it makes no update there. That the others are flat from 25 to 200 is Adam's doing: one update
each, of nearly the same size.

Arguments after the colon: `task=refusal`, `tiny`, `base=ID_OR_FOLDER` (a checkpoint of others and real text, with the settings of
configs/rebound_published.py but the paper's volumes as they are; then `task=imdb` or `task=safety`, `world=8`).
"""

from elastic_jax import recipes


def get_config(argument: str = ""):
    chosen = recipes.parse(argument)
    c = recipes.begin("batch_semantics", chosen)
    for how in ("drop", "flush", "pad"):
        c.variants[how] = dict(perturb=dict(last_batch=how))
    if chosen.base:
        c.align.volumes = c.align.volumes[-1:]
        c.perturb.volumes = (6, 12, 25) if chosen.tiny else recipes.PERTURB
        return c
    c.align.volumes = (2048,)
    c.perturb.batch_size = 256  # of the released settings on eight devices: 8 x 4 rows x 8 parts
    c.perturb.volumes = (25, 50, 100, 200, 500, 1000, 2000)
    c.perturb.optim.lr = 2e-3  # a sixteenth of the updates of the other configs
    if chosen.tiny:
        c.align.volumes = (128,)
        c.perturb.batch_size = 16
        c.perturb.volumes = (6, 12, 25, 50)
    return c
