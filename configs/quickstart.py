"""The whole phenomenon in minutes on two cores, on the embedded universe."""

from elastic_jax import config


def get_config(argument: str = ""):
    chosen = config.parse_argument(argument, "tiny", task="sentiment", objective="sft")
    c = config.default()
    c.name = "quickstart"
    c.data.task = chosen.task
    c.align.objective.name = chosen.objective
    if chosen.tiny:
        c.seeds = (0, 1)
        c.model.size = "50k"
        c.data.pretrain.rows = 2000
        c.data.heldout.rows = 64
        c.data.prompts.rows = 32
        c.pretrain.tokens = 60 * 16 * 32
        c.pretrain.batch_size = 16
        c.align.volumes = (32, 128)
        c.perturb.volumes = (16, 64)
        c.measures.samples = 32
    return c
