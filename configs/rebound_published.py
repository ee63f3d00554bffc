"""Rebound of published models: aligned on positive (or safe) texts, then trained on the opposite (arXiv 2406.06144, Figures 4 and 5).

Nothing is pre-trained: the base is a checkpoint of the hub or a local folder. Full fine-tuning, parameters and moments in float32,
compute in bfloat16. docs/models.md has what each model needs and where it fits; no numbers of a run: none has been made.

    python -m elastic_jax.plan --config=configs/rebound_published.py:model=llama-2-7b --topology=h100:8
    python -m elastic_jax.run  --config=configs/rebound_published.py:model=gemma-2b --workdir=runs/gemma --config.mesh.fsdp=-1 --config.mesh.data=1
    python -m elastic_jax.run  --config=configs/rebound_published.py:task=safety --workdir=runs/safety \\
        --config.base.hf=/models/Llama-2-7b-hf --config.data.train=train.jsonl --config.data.test=test.jsonl

Arguments after the colon: `model=` (llama-2-7b, llama-2-13b, llama-3-8b, gemma-2b, qwen1.5-0.5b, qwen1.5-4b, qwen1.5-7b),
`task=imdb` or `task=safety`, `world=8`, `tiny` (a few updates, to try a checkpoint and data of one's own).

The recipe is that of the authors' released settings: learning rate 1e-5, constant, no warm-up, AdamW with betas 0.9 and 0.95, no weight
decay, gradients clipped at 1, one epoch, rows of 512 tokens (IMDb) or 2,048 (safety), the loss on answers alone. What they leave open:
 - the number of GPUs, `world` here: a global batch is 8 x world rows on IMDb and 32 x world on safety. Volumes are cut to whole batches, so
   with 32 x 8 rows 100 and 200 examples make no update at all and are left out, as they may have been there. `world=1` has both.
 - how answers are sampled, and from which prompts: IMDb continues the first 8 tokens of held-out reviews, near the 2 to 8 of DPO's.

Judges: the paper's sentiment model, or its cost model and a list of refusals, beside the classifier that is fitted to the labels of the data
(docs/scorers.md). They are models to be fetched as well: `--config.measures.scorers=` goes without.

`task=imdb` reads `imdb_reviews` through tensorflow-datasets, or `--config.data.train=FILE --config.data.test=FILE` with the columns `text` and
`label` (1 positive, 0 negative). `task=safety` reads pairs: `prompt`, `chosen` (the safe answer) and `rejected` (the unsafe one), as
PKU-SafeRLHF has them once its two responses are put in that order.
"""

from elastic_jax import config, recipes
from elastic_jax.errors import UserError, closest

MODELS = {
    "llama-2-7b": "meta-llama/Llama-2-7b-hf",
    "llama-2-13b": "meta-llama/Llama-2-13b-hf",
    "llama-3-8b": "meta-llama/Meta-Llama-3-8B",
    "gemma-2b": "google/gemma-2b",
    "qwen1.5-0.5b": "Qwen/Qwen1.5-0.5B",
    "qwen1.5-4b": "Qwen/Qwen1.5-4B",
    "qwen1.5-7b": "Qwen/Qwen1.5-7B",
}


def get_config(argument: str = ""):
    chosen = config.parse_argument(argument, "tiny", model="llama-2-7b", task="imdb", world=recipes.WORLD)
    if chosen.model not in MODELS:
        raise UserError(f"model={chosen.model}: not among these. {closest(chosen.model, MODELS)}")
    name = f"rebound_{chosen.model}"
    return recipes.checkpoint(name, MODELS[chosen.model], chosen.task, world=chosen.world, tiny=chosen.tiny)
