"""Figure 6 of arXiv 2406.06144 on the embedded universe: rebound against the volume of pre-training, each with a schedule of its own.

One model of 68k parameters pre-trained on 0.16, 0.33, 0.66 and 1.3 million tokens of one stream of texts, none of which is read twice.
The paper's volumes are intermediate checkpoints of one run, which lie at different points of one decaying schedule: their learning rate
differs as well as their tokens. Here every volume has a cosine of its own that has decayed at its end. `intermediate` leaves the rate of
pre-training constant after its warm-up, so that the volumes are points of one undecayed run, and adds the largest with a decayed one:
what differs between the two forms is the schedule's doing.

    python -m elastic_jax.run --config=configs/pretrain_tokens.py --workdir=runs/tokens
    python -m elastic_jax.run --config=configs/pretrain_tokens.py:intermediate --workdir=runs/tokens

Three minutes on 2 cores where other recipes had trained base and alignment, commit 0df6831, three seeds:

    tokens of pre-training       0.16M    0.33M    0.66M    1.31M
    score of the base            0.497    0.503    0.484    0.523
    after 2,048 positives        0.627    0.778    0.857    0.894
    then after 1,024 negatives   0.477    0.460    0.327    0.261
    1,024 negatives from base    0.415    0.278    0.182    0.148
    half-life (examples)         418      324      222      152

As in Figure 6 the way back emerges with tokens: per doubling log2 half-life falls by 0.46 [0.23, 0.69], the final score by 0.085 [0.083, 0.088], and
the way back grows by 0.071 [0.067, 0.076]; the speed of the first update is undecided. Noise of the same size does none of that (-0.000 [-0.003,
0.003] per doubling; training beyond noise 0.062 [0.051, 0.072]), so sensitivity to any change is not the reason here. But the control, which has no
alignment to come back from, falls further with tokens as well: by 0.096 [0.083, 0.109] per doubling, where the aligned models fall by 0.156 [0.151,
0.161]. The difference, 0.060 [0.052, 0.069], is more than none, and as large as what alignment gains with tokens, 0.065 [0.056, 0.074]; the speeds
beside the control's are undecided (log2 of updates to half of the own way 0.31 [-0.17, 0.79], the first speed -0.006 [-0.033, 0.020] per update).
So that the return grows by more than a model that has read more gains in learning any task is undecided here. The
volumes of alignment were raised from 512 and 2,048 after a first run, in which 512 did not move the model of 0.16M tokens beyond the error
of its score, so that no trend could be tested; the trends at 2,048 were seen then.

With `intermediate` (commit b13e9e8, 244 s on 2 busy cores) the points of one undecayed run say the same more faintly: half-life after 2,048
positives 271, 206, 198 and 161 examples, log2 per doubling -0.23 [-0.59, 0.12] where own schedules give -0.46; way back 0.052 [0.032, 0.072] per doubling,
noise -0.001 [-0.003, 0.002]. At equal tokens the decayed model keeps more: 0.261 [0.231, 0.292] after 1,024 negatives against 0.193 [0.134, 0.251],
with half-lives of 152 and 161. So some of the trend that intermediate checkpoints show at their end is the schedule's.

Beside every perturbation stands noise, random changes of the weights of the same size (`noise.draws`): the report tests whether what grows
with tokens is more than sensitivity to any change, the rival explanation of arXiv 2503.19206.

Arguments after the colon: `intermediate`, `task=refusal`, `tiny`. The report draws the paper's curves beside, and fits half-life and
crossing against tokens. configs/pretrain_volume.py does the same on published checkpoints.
"""

from elastic_jax import recipes

UPDATES = (80, 160, 320, recipes.UPDATES)


def get_config(argument: str = ""):
    chosen = recipes.parse(argument, "intermediate")
    recipes.needs_own_pretraining(
        chosen,
        "every volume here is a pre-training of its own. configs/pretrain_volume.py takes published checkpoints.",
    )
    name = "pretrain_tokens" + ("_intermediate" if chosen.intermediate else "")
    c = recipes.universe(name, chosen.task, tiny=chosen.tiny)
    c.published = "figure 6"
    # Fewer hardly move the model of the smallest volume: there is nothing to come back from.
    c.align.volumes = (2048, 4096)
    c.perturb.volumes = (16, 64, 256, 1024)
    c.noise.draws = 1 if chosen.tiny else 2
    volumes = UPDATES
    if chosen.tiny:
        c.align.volumes = (32, 128)
        c.perturb.volumes = (16, 64)
        volumes = (25, 50)
    per_update = c.pretrain.batch_size * c.data.seq_len
    for updates in volumes:  # names in the order of their volumes: a constant run is then extended by the next one
        fields = dict(tokens=updates * per_update)
        if chosen.intermediate:
            fields["optim"] = dict(schedule="constant", final=0.0)
        c.variants[f"{updates * per_update // 1000:04d}k"] = dict(pretrain=fields)
    if chosen.intermediate:
        c.variants[f"{volumes[-1] * per_update // 1000:04d}k-decayed"] = dict(
            pretrain=dict(tokens=volumes[-1] * per_update)
        )
    return c
