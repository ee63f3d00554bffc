"""The study that tests run: every stage, both arms and two volumes of each kind, in a few updates of a model of one layer."""

from elastic_jax import config


def get_config(argument: str = ""):
    chosen = config.parse_argument(argument, "decay", seeds=1)
    c = config.default()
    c.name = "small"
    c.seeds = tuple(range(chosen.seeds))
    c.model.update(dict(size="", layers=1, embed=16, heads=2, kv_heads=2, head_dim=8, mlp=32))
    c.data.pretrain.rows = 256
    c.data.align.rows = 64
    c.data.perturb.rows = 64
    c.data.heldout.rows = 16
    c.data.prompts.rows = 8
    for stage in (c.pretrain, c.align, c.perturb):
        stage.batch_size = 8
        stage.optim.lr = 0.02
    c.pretrain.tokens = 8 * 8 * c.data.seq_len
    c.align.volumes = (16, 32)
    c.perturb.volumes = (8, 24)
    if chosen.decay:
        c.align.optim.schedule = "linear"
        c.perturb.optim.schedule = "cosine"
    c.measures.samples = 8
    c.measures.batch_size = 16
    c.measures.keep = 2
    c.measures.sample_tokens = 6
    c.log.tensorboard = False
    return c
