"""Figure 5 of arXiv 2406.06144 on the embedded universe: rebound against model size, with size alone changing.

Four models of 25 to 330 thousand weights (beside the embedding), each with a pre-training of its own on the same
texts in the same order, alignments and perturbations on the same texts, and the same numbers of updates everywhere. The paper compares
published models, whose larger ones were pre-trained on up to twice the tokens, and gives all sizes one learning rate; here each size has
its own, in all stages: Adam's rate falls as 1 / width (the rule for matrices of arXiv 2203.03466), from that of configs/quickstart.py at
width 48. `rates=equal` gives all sizes the same.

    python -m elastic_jax.run --config=configs/model_size.py --workdir=runs/size

7 min on 2 cores, three seeds, commit c388eb4 (benchmarks/results/suite.md). From 34k to 357k parameters nothing grows and nothing falls: after 2,048
positives the score is 0.886 to 0.894, half-lives are 144 to 177 examples, and per doubling of parameters log2 half-life changes by 0.008
[-0.134, 0.149], the first speed by -0.001 [-0.009, 0.007] per update, the score in the end by 0.005 [-0.008, 0.018]: all of Figure 5's
statements are undecided, at a resolution of which the intervals speak. Of 32 places training went further back than noise of the same size in 23
and noise in none. Seeds scatter more than sizes differ, and a span of ten is short beside the paper's.

Beside every perturbation stands noise, random changes of the weights of the same size (`noise.draws`): the report tests whether what grows
with size is more than sensitivity to any change.

Arguments after the colon: `rates=equal`, `task=refusal`, `tiny`, `base=A+B+C` (ids or folders of checkpoints of others, a study each, on
real text with the settings of configs/rebound_published.py, one rate for all; then `task=imdb` or `task=safety`, `world=8`). The report
draws the paper's curves beside, and fits half-life and crossing against parameters.
"""

from elastic_jax import base, config, recipes
from elastic_jax.errors import UserError

WIDTHS = {"25k": 32, "50k": 48, "100k": 64, "300k": 96}
SMALLEST = dict(size="", layers=2, embed=32, heads=4, kv_heads=4, head_dim=8, mlp=88)


def get_config(argument: str = ""):
    chosen = recipes.parse(argument, rates="width")
    if chosen.rates not in ("width", "equal"):
        raise UserError(f"rates={chosen.rates}: expected width or equal.")
    name = "model_size" + ("_equal" if chosen.rates == "equal" else "")
    if chosen.base:
        return _published(chosen)
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


def _published(chosen: config.Config) -> config.Config:
    if chosen.rates != "width":
        raise UserError(f"rates={chosen.rates} has no effect with base: all checkpoints have the released rate.")
    bases = base.named(dict(base.DEFAULTS, hf=tuple(chosen.base.split("+"))))
    c = recipes.checkpoint("model_size", bases[0].where, chosen.task, world=chosen.world, tiny=chosen.tiny)
    c.published = "figure 5"
    c.noise.draws = 1
    for one in bases:
        c.variants[one.slug.replace(".", "_")] = dict(base=dict(hf=one.where))
    return c
