"""Three tasks one after the other, in every order: a design that the paper does not print, though commit 22f62fe of its authors'
repository evaluates such models (safe, truthful and empathic answers, each on three test sets).

Three tasks of the embedded universe, refuse (harmful requests), help (with benign ones) and praise (positive reviews), each 2,048 examples:
alone, every ordered pair and every ordered triple, 15 models that share their beginnings, so 15 runs of 128 updates from one base. Each is
measured on held-out texts and by samples of all three tasks, and on pre-training texts. What the design lets one ask: by how much is the
last task ahead, what is left of the first, and does the order matter beyond which task came last? The volumes are matched, and a task
sees the same examples in the same order wherever it stands.

    python -m elastic_jax.run --config=configs/order.py --workdir=runs/order

48 runs in 132 s on 2 cores where another recipe had trained the base (commit c388eb4, benchmarks/results/suite.md). Bits per token of held-out texts (and the
score) after some of the orders, means over three seeds:

    trained on               refuse         help           praise         pre-training   KL(base || model)
    nothing                  1.465 (0.14)   1.284 (0.86)   1.482 (0.51)   1.409          0
    the task alone           1.157 (0.90)   1.276 (0.92)   1.399 (0.87)
    refuse, help, praise     1.540 (0.17)   1.351 (0.84)   1.411 (0.87)   1.600          0.128
    help, refuse, praise     1.207 (0.90)   1.738 (0.10)   1.411 (0.87)   1.701          0.196
    praise, refuse, help     1.576 (0.09)   1.283 (0.91)   1.607 (0.81)   1.663          0.171
    praise, help, refuse     1.160 (0.90)   1.644 (0.10)   1.617 (0.80)   1.762          0.238

A task that comes last is ahead of the same task earlier by 0.253 [0.248, 0.258] bits per token and 0.422 [0.409, 0.435] of score. The
order matters beyond the last task: of the two before it the second is ahead of the first by 0.168 [0.162, 0.173] bits and 0.254 [0.238,
0.270] of score. Of the first of three nothing is left in bits, -0.211 [-0.238, -0.184] against the base, while its score depends on the
task: praise keeps 0.80 [0.74, 0.85] of what it gained, refusal is back at the base (-0.01 [-0.09, 0.07]) and help far below it (-0.76
[-0.84, -0.67]): refusing and helping take the place of one another, although their requests differ. The last task comes out as if it had
been trained alone, within 0.007 [0.005, 0.010] bits. Three seeds, 95 % Student t intervals; no sign-flip test of three pairs can give less
than p = 0.25.

Arguments after the colon: `opposed` (praise, pan and refuse: two of the tasks contradict each other), `tiny`, `base=ID_OR_FOLDER` (a
checkpoint of others, with the settings of configs/rebound_published.py; then `task=imdb` or `task=safety`, which says what else is measured,
and `world=8`). The tasks are then safe, truthful and empathic, of which no data come along: `files=A+B+C` names a file for each, with the
columns of `data.train`, and `--config.data.tasks.names=` other names. Such tasks have no score.
"""

from elastic_jax import config, recipes
from elastic_jax.errors import UserError

TASKS = dict(compatible=("refuse", "help", "praise"), opposed=("praise", "pan", "refuse"))


def get_config(argument: str = ""):
    chosen = recipes.parse(argument, "opposed", files="")
    c = recipes.begin("order_opposed" if chosen.opposed else "order", chosen)
    c.data.tasks.names = TASKS["opposed" if chosen.opposed else "compatible"]
    c.align.volumes = c.perturb.volumes = ()
    c.order.volume = 2048
    if chosen.base:
        _on_files(c, chosen)
        return c
    if chosen.files:
        raise UserError(f"files={chosen.files} has no effect without base=ID_OR_FOLDER: the universe draws its tasks.")
    c.data.align.rows = c.data.perturb.rows = 64  # not trained on
    if chosen.tiny:
        c.data.tasks.rows = 64
        c.order.volume = 64
    return c


def _on_files(c: config.Config, chosen: config.Config) -> None:
    """Tasks whose texts somebody has to bring."""
    files = tuple(filter(None, chosen.files.split("+")))
    if len(files) != 3 or chosen.opposed:
        raise UserError(
            f"base={chosen.base} with {'opposed' if chosen.opposed else f'files={chosen.files!r}'}: refuse, help, praise and pan are tasks of "
            "the embedded universe, which a published model does not speak, and no text data of three tasks come along. Give "
            "files=safe.jsonl+truthful.jsonl+empathic.jsonl, a file for each task, without opposed."
        )
    c.data.tasks.names, c.data.tasks.files = ("safe", "truthful", "empathic"), files
    c.data.rows.align = c.data.rows.perturb = 64  # not trained on
    if chosen.tiny:
        c.data.tasks.rows = c.order.volume = 32
