"""The elasticity theorem as stated and as practised: k = |D_p| / |D_a| and l = |D_t| / |D_a| swept (Theorem 4.2 of arXiv 2406.06144)."""

from elastic_jax import config

KS = (1.0, 2.0, 4.0, 8.0)
L = 0.25


def get_config(argument: str = ""):
    chosen = config.parse_argument(argument, "tiny", size="small", updates=640)
    ks, batch, updates = ((1.0, 2.0), 16, 16) if chosen.tiny else (KS, 64, chosen.updates)
    c = config.default(config.universe_data())
    c.name = "dials_tiny" if chosen.tiny else "dials"
    c.seeds = (0, 1) if chosen.tiny else (0, 1, 2)
    c.model.size = "50k"
    rows = updates * batch
    c.data.update(size=chosen.size, topics=1 if chosen.tiny else 4, seq_len=23 if chosen.size == "small" else 32)
    c.data.pretrain.update(rows=rows, review=2 / 3)  # dialogues, positive and negative reviews in equal parts
    c.data.align.rows, c.data.perturb.rows = round(rows / min(ks)), round(L * rows / min(ks))
    c.data.heldout.rows = 64 if chosen.tiny else 512
    c.data.prompts.rows = 16 if chosen.tiny else 64
    c.pretrain.update(batch_size=batch, tokens=rows * c.data.seq_len)
    c.pretrain.optim.final = 0.0
    c.align.update(batch_size=batch, volumes=tuple(round(rows / k) for k in reversed(ks)))
    c.perturb.update(batch_size=batch, volumes=tuple(round(L * rows / k) for k in reversed(ks)), control=False)
    c.align.optim.lr = c.perturb.optim.lr = 1e-3
    c.measures.samples = 16 if chosen.tiny else 64
    variants = {}
    for k in ks:
        for l in (0.0, L):  # noqa: E741 (the paper's letter)
            variants[f"k{k:g}-l{l:g}".replace(".", "_")] = dict(
                # As many updates for every k and l: what differs is the mixture alone.
                data=dict(pretrain=dict(rows=round(rows * k / (k + 1 + l))), joint=dict(align=1 / k, perturb=l / k)),
                align=dict(volumes=()),
                perturb=dict(volumes=()),
            )
    variants["sequential"] = dict(data=dict(joint=dict(align=0.0, perturb=0.0)))
    c.variants = variants
    return c
