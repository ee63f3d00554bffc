"""Table 3 of arXiv 2406.06144 on the embedded universe: how far alignment goes from base in KL, and when perturbation has come back.

The paper gives (a) the KL between the model aligned on 1,000 to 10,000 safe examples and the base and (b) the unsafe examples until it is
below eps = 0.01, without direction, prompts or unit, and to three digits where an update takes at least 32 examples. Here the base's texts
are held out, the KL is exact on each of their tokens, in both directions, per token and per text, and recorded at two points for each
doubling of the updates, between which the crossing of eps is interpolated. An eps that the record does not reach is marked as censored,
with the smallest KL on the way beside it: a path may pass the base at a distance.

    python -m elastic_jax.run --config=configs/kl_rebound.py --workdir=runs/kl

Two minutes on 2 cores (commit c388eb4, benchmarks/results/suite.md). KL(base || model) on held-out pre-training text after 512, 1,024, 2,048 and
4,096 examples of alignment, mean of three seeds: 0.066, 0.090, 0.133, 0.253 nats per token (1.8 to 7.0 per text), growing as in Table 3(a). The
smallest on the way back: 0.063, 0.084, 0.128, 0.249. eps is reached in none of the cells, by no seed, against Table 3(b).

Arguments after the colon: `task=refusal`, `tiny`, `base=ID_OR_FOLDER` (a checkpoint of others and real text, with the settings of
configs/rebound_published.py; then `task=imdb` or `task=safety`, `world=8`). The report draws the paper's numbers beside.
"""

from elastic_jax import recipes


def get_config(argument: str = ""):
    chosen = recipes.parse(argument)
    c = recipes.begin("kl_rebound", chosen)
    c.published = "table 3"
    c.measures.per_octave = 2
    c.measures.kl_eps = 0.01
    if chosen.base:
        return c
    c.align.volumes = (512, 1024, 2048, 4096)
    c.perturb.volumes = (1024,)
    # A path that passes the base does so within a few updates at the rate of the other configs, and between two points of the record.
    c.perturb.optim.lr = 1e-4
    if chosen.tiny:
        c.align.volumes = (32, 128)
        c.perturb.volumes = (64,)
    return c
