"""What do the recipes for the paper's experiments have in common?

On the embedded universe the base, above all: whatever is done to it later, a recipe that leaves `seeds`, `model`, `pretrain` and
`data.pretrain` as `universe` made them has the same base runs, bit for bit, and with the same `data.task`, held-out texts, prompts and
`measures` they are measured by the same protocol. Recipes in one working directory then train and measure them once.

On a checkpoint of others (`base=ID_OR_FOLDER` after the colon) data, batches and rates: `checkpoint`, the authors' released settings.
"""

from typing import Any

from elastic_jax import base, config
from elastic_jax.config import Config
from elastic_jax.errors import UserError, closest

UPDATES = 640  # of pre-training
ROWS = 41_000  # texts of pre-training: 640 updates of 64 read each of them once

# Of the paper, which its volumes of alignment and perturbation are cut from.
ALIGN = (1000, 2000, 5000, 10_000)
PERTURB = (100, 200, 500, 1000, 2000)
# Of the universe -> on real text.
TASKS = dict(sentiment="imdb", refusal="safety")
WORLD = 8  # GPUs of the released settings, on which they leave open how many there were
# The paper's own, beside the classifier that is fitted to the labels of the data.
JUDGES = dict(
    imdb=("roberta:siebert/sentiment-roberta-large-english",),
    safety=("cost:PKU-Alignment/beaver-7b-v1.0-cost,dtype=bfloat16", "refusal"),
)


def parse(argument: str, *flags: str, usual: str = "sentiment", **options: Any) -> Config:
    """The part after the colon of a recipe that runs on both: `tiny`, `task`, `base` and `world`, and what is its own.

    Args:
      usual: the task of the universe that the recipe has unless told, and with a base what stands for it in `TASKS`.

    Raises:
      UserError: an unknown argument; a task of the universe with a base, or the other way round; `world` without a base.
    """
    chosen = config.parse_argument(argument, "tiny", *flags, base="", task="", world=WORLD, **options)
    if chosen.base:
        chosen.task = chosen.task or TASKS[usual]
        _check_task(chosen.task)
        return chosen
    chosen.task = chosen.task or usual
    if chosen.task in TASKS.values():
        raise UserError(f"task={chosen.task} is real text, for a checkpoint: give base=ID_OR_FOLDER as well.")
    if chosen.world != WORLD:
        raise UserError(
            f"world={chosen.world} has no effect without base=ID_OR_FOLDER: batches of the universe are the recipe's."
        )
    return chosen


def begin(name: str, chosen: Config, usual: str = "sentiment") -> Config:
    """What `parse` found, as a study: on the universe, or with a base on real text."""
    if not chosen.base:
        return universe(name, chosen.task, tiny=chosen.tiny, usual=usual)
    slug = base.named(dict(base.DEFAULTS, hf=chosen.base))[0].slug
    return checkpoint(f"{name}_{slug}", chosen.base, chosen.task, world=chosen.world, tiny=chosen.tiny)


def needs_own_pretraining(chosen: Config, why: str) -> None:
    """Refuses `base=` in a recipe that no checkpoint of others can serve.

    Raises:
      UserError: saying why, and which recipe would do.
    """
    if chosen.base:
        raise UserError(f"base={chosen.base}: {why}")


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


def checkpoint(name: str, hf: str, task: str = "imdb", *, world: int = WORLD, tiny: bool = False) -> Config:
    """A study of a checkpoint of others on real text, with the authors' released settings (configs/rebound_published.py has them).

    Args:
      name: of the study, which `task` and "tiny" are appended to.
      hf: as `base.hf`.
      task: "imdb" or "safety".
      world: GPUs; a batch is 8 rows on each for IMDb, and 32 for safety. Volumes are cut to whole batches.
      tiny: one seed and a few updates of 8 rows, to try a checkpoint and data; what follows the base has rows for volumes up to 32.

    Raises:
      UserError: another task, or no GPU.
    """
    _check_task(task)
    if world < 1:
        raise UserError(f"world={world}: expected the number of GPUs, 1 or more.")
    imdb = task == "imdb"
    batch = 8 if tiny else (8 if imdb else 32) * world
    c = config.default(config.text_data())
    c.name = f"{name}_{task}" + ("_tiny" if tiny else "")
    c.seeds = (0, 1, 2)
    c.base.hf = hf
    c.model.update(dtype="bfloat16", layout="scan", remat="full")
    c.data.seq_len = 512 if imdb else 2048
    c.data.rows.update(align=10_000, perturb=2000, scorer=4000, heldout=256, prompts=256)
    if imdb:
        c.data.prompt_tokens = 8
    else:
        c.data.train, c.data.test = "pku_safe_rlhf_train.jsonl", "pku_safe_rlhf_test.jsonl"
        c.data.columns.update(prompt="prompt", chosen="chosen", rejected="rejected")
        c.data.template = "paper"
    for stage in (c.align, c.perturb, c.resistance, c.order):
        stage.batch_size = batch
        stage.optim.update(lr=1e-5, b1=0.9, b2=0.95, weight_decay=0.0, clip=1.0, schedule="constant", warmup=0)
    for stage, volumes in ((c.align, ALIGN), (c.perturb, PERTURB)):
        stage.volumes = tuple(volume // batch * batch for volume in volumes if volume >= batch)
    c.measures.update(samples=256, sample_tokens=64 if imdb else 256, batch_size=16, scorers=JUDGES[task])
    if tiny:
        c.seeds = (0,)
        c.model.update(dtype="float32", remat="none")
        c.data.seq_len = 32 if imdb else 128
        c.data.rows.update(align=32, perturb=32, scorer=64, heldout=16, prompts=8)
        c.align.volumes, c.perturb.volumes = (16, 32), (8, 32)
        c.measures.update(samples=8, sample_tokens=6, scorers=())
    return c


def _check_task(task: str) -> None:
    if task not in TASKS.values():
        raise UserError(f"task={task}: expected imdb or safety. {closest(task, TASKS.values())}")
