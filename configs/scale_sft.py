"""Full fine-tuning of a 1B to 70B model on packed rows of 4,096 tokens: what it needs, and then the study itself.

The argument names the model (`llama-2-7b` by default; `elastic_jax/models/sizes.py` has the others) and the method: SFT, or DPO with
a cached reference. Float32 parameters and AdamW moments, bfloat16 compute, layers scanned. Nothing of it is small: plan first.
docs/plans.md has the plans of Llama-2-7B and 13B, Llama-3-8B and 70B on TPU v5e and v5p, with the compiler's own numbers beside
them. No numbers of a run: none has been made.

    python -m elastic_jax.plan --config=configs/scale_sft.py:llama-3-8b --topology=v5e:16x16
    python -m elastic_jax.plan --config=configs/scale_sft.py:llama-2-13b,objective=dpo --topology=h200:64
    python -m elastic_jax.run  --config=configs/scale_sft.py:tinyllama-1.1b --workdir=runs/scale --config.data.train=FILE.jsonl

Arguments after the colon: a model's name, `objective=dpo`, `rows=256` (the global batch of every stage).
"""

from elastic_jax import config


def get_config(argument: str = ""):
    parts = argument.split(",")
    model = next((part for part in parts if part and "=" not in part), "llama-2-7b")
    options = ",".join(part for part in parts if part != model)
    chosen = config.parse_argument(options, objective="sft", rows=256)
    c = config.default(config.text_data())
    c.name = f"scale_{chosen.objective}_{model}"
    c.seeds = (0,)
    c.model.update(size=model, dtype="bfloat16", layout="scan")
    c.data.seq_len = 4096
    c.data.tokenizer.vocab_size = 32_000
    c.data.pack.update(
        pretrain="best_fit", align="best_fit" if chosen.objective == "sft" else "none", perturb="best_fit"
    )
    if chosen.objective == "dpo":
        c.data.columns.update(chosen="chosen", rejected="rejected")
    c.pretrain.optim.update(lr=3e-4, warmup=100)
    c.pretrain.tokens = 2000 * chosen.rows * 4096
    c.align.objective.name = chosen.objective
    c.align.volumes = (16 * chosen.rows, 64 * chosen.rows)
    c.perturb.volumes = (4 * chosen.rows, 16 * chosen.rows)
    for stage in (c.pretrain, c.align, c.perturb):
        stage.batch_size = chosen.rows
    for stage in (c.align, c.perturb):
        stage.optim.lr = 1e-5
    c.measures.samples = 64
    return c
