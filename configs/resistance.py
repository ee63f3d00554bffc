"""Table 1 of arXiv 2406.06144 with its controls, on the embedded universe."""

from elastic_jax import config


def get_config(argument: str = ""):
    chosen = config.parse_argument(argument, "tiny", task="refusal")
    c = config.default(config.universe_data())
    c.name = "resistance"
    c.seeds = (0, 1, 2)
    c.data.task = chosen.task
    c.data.pretrain.rows = 41_000  # each text is read once: 640 updates of 64
    c.data.align.rows = 4096
    c.data.perturb.rows = 3072  # as many as the last slice ends at, for the pair of two tasks
    c.data.prompts.rows = 768
    c.model.size = "50k"
    c.pretrain.tokens = 640 * 64 * 32
    c.align.volumes = (4096,)
    c.perturb.volumes = ()
    c.resistance.slices = (0.25, 0.5, 0.75)
    c.resistance.queries = 512
    c.resistance.heldout = 128
    c.resistance.orders = ("321",)
    c.resistance.other_task = True
    if chosen.tiny:
        c.name = "resistance_tiny"
        c.seeds = (0, 1)
        c.data.pretrain.rows = 1024
        c.data.align.rows = c.data.perturb.rows = 64
        c.data.heldout.rows = 16
        c.data.prompts.rows = 64
        c.pretrain.tokens = 32 * 32 * 32
        c.pretrain.batch_size = 32
        c.align.volumes = (64,)
        c.resistance.slices = (0.25, 0.75)
        c.resistance.orders = ()
        c.resistance.queries = 32
        c.resistance.heldout = 16
        c.measures.samples = 16
    c.variants = dict(
        paper=dict(resistance=dict(temperature=0.05, top_p=0.95)),
        exact=dict(resistance=dict(temperature=1.0, top_p=1.0)),
        equal=dict(resistance=dict(temperature=1.0, top_p=1.0, equal_tokens=True)),
    )
    if chosen.tiny:
        del c.variants["exact"]
    return c
