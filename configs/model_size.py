"""Figure 5 of arXiv 2406.06144 on the embedded universe: rebound against model size, with size alone changing.

Four models of 25 to 330 thousand weights (beside the embedding), each with a pre-training of its own on the same
texts in the same order, alignments and perturbations on the same texts, and the same numbers of updates everywhere. The paper compares
published models, whose larger ones were pre-trained on up to twice the tokens, and gives all sizes one learning rate; here each size has
its own, in all stages: Adam's rate falls as 1 / width (the rule for matrices of arXiv 2203.03466), from that of configs/quickstart.py at
width 48. `rates=equal` gives all sizes the same.

    python -m elastic_jax.run --config=configs/model_size.py --workdir=runs/size

Beside every perturbation stands noise, random changes of the weights of the same size (`noise.draws`): the report tests whether what grows
with size is more than sensitivity to any change.

Arguments after the colon: `rates=equal`, `task=refusal`, `tiny`. The report draws the paper's curves beside, and fits half-life and
crossing against parameters.
"""

from elastic_jax import config, recipes
from elastic_jax.errors import UserError

WIDTHS = {"25k": 32, "50k": 48, "100k": 64, "300k": 96}
SMALLEST = dict(size="", layers=2, embed=32, heads=4, kv_heads=4, head_dim=8, mlp=88)


def get_config(argument: str = ""):
    chosen = config.parse_argument(argument, "tiny", rates="width", task="sentiment")
    if chosen.rates not in ("width", "equal"):
        raise UserError(f"rates={chosen.rates}: expected width or equal.")
    name = "model_size" + ("_equal" if chosen.rates == "equal" else "")
    c = recipes.universe(name, chosen.task, tiny=chosen.tiny)
    c.published = "figure 5"
    c.align.volumes = (512, 2048)
    c.perturb.volumes = (16, 64, 256, 1024)
    c.noise.draws = 1 if chosen.tiny else 2
    sizes = WIDTHS
    if chosen.tiny:
        c.align.volumes = (32, 128)
        c.perturb.volumes = (16, 64)
        sizes = {"25k": 32, "50k": 48}
    for name, width in sizes.items():
        scale = 1.0 if chosen.rates == "equal" else 48 / width
        rates = {stage: dict(optim=dict(lr=c[stage].optim.lr * scale)) for stage in ("pretrain", "align", "perturb")}
        c.variants[name] = dict(model=SMALLEST if name == "25k" else dict(size=name), **rates)
    return c
