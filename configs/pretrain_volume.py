"""Rebound against the volume of pre-training: one model family's own intermediate checkpoints as bases (arXiv 2406.06144, Figure 6).

Each checkpoint is a base with alignments, perturbations and a control of its own, under one protocol and on the same data; the report
keeps them apart and draws what changes along the axis. The recipe is that of configs/rebound_published.py, which says what the paper
leaves open. No numbers of a run: none has been made.

    python -m elastic_jax.plan --config=configs/pretrain_volume.py:model=pythia-1b --topology=h100:8
    python -m elastic_jax.run  --config=configs/pretrain_volume.py --workdir=runs/volume

Arguments after the colon: `model=tinyllama` (0.1T to 3T tokens, a hub id each, TinyLlama's own names) or a Pythia (`pythia-70m`, `160m`,
`410m`, `1b`, `1.4b`, `2.8b`, `6.9b`, `12b`: revisions of one hub id, of which every thousandth step is there); `steps=1000+8000+143000`
chooses among those of Pythia; `task=`, `world=` and `tiny` as there.

Beside every perturbation stands noise, a random change of the weights of the same size: later checkpoints may simply be more sensitive to any
change (arXiv 2503.19206), and the report tests whether rebound grows by more than that.

An intermediate checkpoint is not what a shorter pre-training would have ended with: it lies in the middle of a learning-rate schedule, a
cosine in both families. A trend along this axis is one of tokens and of that schedule together.
"""

from elastic_jax import config, recipes
from elastic_jax.errors import UserError, closest

TINYLLAMA = {
    "TinyLlama/TinyLlama-1.1B-step-50K-105b": 105_000_000_000,
    "TinyLlama/TinyLlama-1.1B-intermediate-step-240k-503b": 503_000_000_000,
    "TinyLlama/TinyLlama-1.1B-intermediate-step-480k-1T": 1_007_000_000_000,
    "TinyLlama/TinyLlama-1.1B-intermediate-step-715k-1.5T": 1_500_000_000_000,
    "TinyLlama/TinyLlama-1.1B-intermediate-step-955k-token-2T": 2_003_000_000_000,
    "TinyLlama/TinyLlama-1.1B-intermediate-step-1195k-token-2.5T": 2_500_000_000_000,
    "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T": 3_000_000_000_000,
}
PYTHIA = ("70m", "160m", "410m", "1b", "1.4b", "2.8b", "6.9b", "12b")
PYTHIA_TOKENS = 2_097_152  # in each of its 143,000 steps
STEPS = "1000+8000+32000+64000+143000"


def get_config(argument: str = ""):
    chosen = config.parse_argument(argument, "tiny", model="tinyllama", steps=STEPS, task="imdb", world=recipes.WORLD)
    known = {"tinyllama", *(f"pythia-{size}" for size in PYTHIA)}
    if chosen.model not in known:
        raise UserError(f"model={chosen.model}: not among these. {closest(chosen.model, known)}")
    steps = chosen.steps.split("+")
    if not all(step.isdecimal() and int(step) % 1000 == 0 and 1000 <= int(step) <= 143_000 for step in steps):
        raise UserError(f"steps={chosen.steps}: expected thousands from 1000 to 143000, joined by plus signs.")
    if chosen.model == "tinyllama" and chosen.steps != STEPS:
        raise UserError("steps: those of Pythia; TinyLlama's checkpoints are hub ids of their own, in base.hf.")
    c = recipes.checkpoint(f"volume_{chosen.model}", "", chosen.task, world=chosen.world, tiny=chosen.tiny)
    if chosen.model == "tinyllama":
        bases = dict(hf=tuple(TINYLLAMA), tokens=tuple(TINYLLAMA.values()))
    else:
        bases = dict(
            hf=f"EleutherAI/{chosen.model}",
            revision=tuple(f"step{step}" for step in steps),
            tokens=tuple(int(step) * PYTHIA_TOKENS for step in steps),
        )
    with c.base.ignore_type():
        c.base.update(bases)
    c.noise.draws = 1
    return c
