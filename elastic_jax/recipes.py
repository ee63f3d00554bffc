"""What do the recipes for the paper's experiments on the embedded universe have in common?

The base, above all: whatever is done to it later, a recipe that leaves `seeds`, `model`, `pretrain` and `data.pretrain` as `universe`
made them has the same base runs, bit for bit, and with the same `data.task`, held-out texts, prompts and `measures` they are measured
by the same protocol. Recipes in one working directory then train and measure them once.
"""

from elastic_jax import config
from elastic_jax.config import Config

UPDATES = 640  # of pre-training
ROWS = 41_000  # texts of pre-training: 640 updates of 64 read each of them once


def universe(name: str, task: str = "sentiment", *, tiny: bool = False, usual: str = "sentiment") -> Config:
    """A study of three seeds whose base is a 68k-parameter transformer after 640 updates of 64 texts.

    Args:
      name: of the recipe; the study's is followed by how `task` differs from the `usual` one, and by "tiny".
      task: of `data.study_universe.TASKS`.
      tiny: two seeds and 50 updates of 32 texts, for tests; what follows the base has rows for volumes up to 128.
    """
    c = config.default(config.universe_data())
    unusual = [task.removeprefix(usual).strip("_"), "tiny" if tiny else ""]
    c.name = "_".join([name, *filter(None, unusual)])
    c.seeds = (0, 1, 2)
    c.data.task = task
    c.data.pretrain.rows = ROWS
    c.model.size = "50k"
    c.at_once = "auto"
    updates = UPDATES
    if tiny:
        c.seeds = (0, 1)
        c.data.pretrain.rows = 1600
        c.data.heldout.rows = 32
        c.data.prompts.rows = 16
        c.data.align.rows = c.data.perturb.rows = 128
        c.pretrain.batch_size = 32
        c.measures.samples = 16
        updates = 50
    c.pretrain.tokens = updates * c.pretrain.batch_size * c.data.seq_len
    return c
