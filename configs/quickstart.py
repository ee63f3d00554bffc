"""The whole phenomenon in minutes on two cores, on the embedded universe: no download, no account.

Pre-trains a 68k-parameter transformer on reviews and dialogues, aligns it on positive reviews, perturbs it with negative ones from
three volumes of alignment and, as the control, straight from base; three seeds. 2 min 34 s of CPU time from a cold start (commit
7dce25289f1f). Expect a score of 0.52 for base, 0.71, 0.85 and 0.90 after 256, 1,024 and 4,096 positives, 0.17, 0.22 and 0.28
after 1,024 negatives, 0.15 for the control; README.md has the intervals.

    python -m elastic_jax.run --config=configs/quickstart.py --workdir=runs/quickstart

Arguments after the colon: `tiny` (half a minute, two seeds), `task=refusal` (dialogues: refusing or answering harmful requests),
`objective=dpo` (alignment from preferences instead of demonstrations).
"""

from elastic_jax import config, recipes


def get_config(argument: str = ""):
    chosen = config.parse_argument(argument, "tiny", task="sentiment", objective="sft")
    c = recipes.universe("quickstart", chosen.task, tiny=chosen.tiny)
    c.align.objective.name = chosen.objective
    c.align.volumes = (256, 1024, 4096)
    c.perturb.volumes = (16, 64, 256, 1024)
    if chosen.tiny:  # enough of everything for a picture, unlike the tiny variants of the others, which are for tests
        c.data.pretrain.rows = 4000
        c.data.heldout.rows = 64
        c.data.prompts.rows = 32
        c.pretrain.tokens = 120 * 32 * 32
        c.align.volumes = (32, 128)
        c.perturb.volumes = (16, 64)
        c.measures.samples = 32
    return c
