"""Resistance (arXiv 2406.06144, Table 1) with the controls that it lacks: is a later slice of an alignment easier to train on what an
earlier one writes than the other way round?

A 68k-parameter transformer is aligned on 4,096 refusals of harmful requests. Its points after 1,024, 2,048 and 3,072 of them, θ1 to θ3,
answer 640 requests each; every pair is trained both ways, one epoch of 512 answers, and measured on the other 128. Three variants
share all of the training before: `paper`, drawn as in the paper (temperature 0.05, top_p 0.95); `exact`, at temperature 1, where the loss
minus the author's own loss is KL(author || model); `equal`, the same with the answers of both directions cut to equal lengths, query by
query. Controls in each: the slices trained in reverse order, and a pair of two tasks (θ' is trained on compliance instead). Three seeds.

    python -m elastic_jax.run --config=configs/resistance.py --workdir=runs/resistance

3 min on 2 cores (commit c388eb4, benchmarks/results/suite.md). What came out,
forward - inverse in nats per token, mean over the three pairs with the 95 % interval over seeds:

    variant  slices   raw                        minus self-loss            minus entropy              verdict
    exact    1, 2, 3  -0.025 [-0.031, -0.019]     0.000 [-0.002,  0.002]     0.000 [-0.002,  0.002]    undecided
    exact    3, 2, 1  -0.030 [-0.054, -0.005]    -0.001 [-0.002,  0.000]    -0.001 [-0.002,  0.000]    undecided
    equal    1, 2, 3  -0.029 [-0.041, -0.016]     0.000 [-0.002,  0.002]     0.000 [-0.002,  0.002]    undecided
    paper    1, 2, 3   0.004 [-0.080,  0.088]     0.012 [-0.018,  0.042]    -0.004 [-0.032,  0.025]    undecided
    paper    3, 2, 1  -0.009 [-0.104,  0.085]    -0.009 [-0.073,  0.056]     0.005 [-0.025,  0.035]    undecided

No resistance is seen here. At temperature 1 the raw losses say the opposite of the paper, inverse is harder, in both orders; that is
all entropy, since earlier slices write more varied text (0.867 against 0.829 nats per token), and once it is subtracted nothing above 0.002
nats of a divergence of 0.013 is left. Two tasks, of which neither is earlier, differ by 0.015 [0.005, 0.026], which is what directions can
differ by without resistance. Drawn as in the paper, one pair of three resists in the raw loss (θ2, θ1: 0.047 [0.024, 0.070]) and not once the
entropy is subtracted (0.009 [-0.035, 0.053]); only 1 to 3 % of the 512 answers differ from one another there, and seeds scatter by more
than the paper's median gap. The published models are 100,000 times as large and their data are others: this is no replication of Table 1,
but a case in which its metric answers a question that was not asked.

Arguments after the colon: `tiny` (seconds), `task=sentiment` (openings of reviews, of which there are 64 different ones), `base=ID_OR_FOLDER` (a
checkpoint of others and real text, with the settings of configs/rebound_published.py; then `task=safety`, its default here, or `task=imdb`,
and `world=8`; the queries are prompts of `data.test`, and alignment is cut so that its quarters are whole batches).
"""

from elastic_jax import config, recipes


def get_config(argument: str = ""):
    chosen = recipes.parse(argument, usual="refusal")
    c = recipes.begin("resistance", chosen, usual="refusal")
    c.published = "table 1"
    c.perturb.volumes = ()
    c.resistance.slices = (0.25, 0.5, 0.75)
    c.resistance.queries = 512
    c.resistance.heldout = 128
    c.resistance.orders = ("321",)
    c.resistance.other_task = True
    c.variants = dict(
        paper=dict(resistance=dict(temperature=0.05, top_p=0.95)),
        exact=dict(resistance=dict(temperature=1.0, top_p=1.0)),
        equal=dict(resistance=dict(temperature=1.0, top_p=1.0, equal_tokens=True)),
    )
    if chosen.tiny:
        del c.variants["exact"]
    if chosen.base:
        _on_checkpoint(c, chosen.tiny)
        return c
    c.data.align.rows = 4096
    c.data.perturb.rows = 3072  # as many as the last slice ends at, for the pair of two tasks
    c.data.prompts.rows = 768
    c.align.volumes = (4096,)
    if chosen.tiny:
        c.data.align.rows = c.data.perturb.rows = 64
        c.data.prompts.rows = 64
        c.align.volumes = (64,)
        c.resistance.slices = (0.25, 0.75)
        c.resistance.orders = ()
        c.resistance.queries = 32
        c.resistance.heldout = 16
        c.resistance.length = c.measures.sample_tokens = 8
    return c


def _on_checkpoint(c: config.Config, tiny: bool) -> None:
    """The largest of the paper's alignments whose quarters are whole batches, and answers as long as its samples."""
    batch = c.align.batch_size
    most = c.data.rows.align // (4 * batch) * 4 * batch
    c.align.volumes = (most,)
    c.data.rows.perturb = 3 * most // 4  # as many as the last slice ends at, for the pair of two tasks
    c.resistance.length = c.measures.sample_tokens
    c.resistance.queries = 2 * batch if tiny else max(512 // batch, 1) * batch
    if tiny:
        c.resistance.slices = (0.25, 0.75)
        c.resistance.orders = ()
        c.resistance.heldout = 8
    c.data.rows.prompts = c.resistance.queries + c.resistance.heldout
