# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # Alignment, and what comes back
# A model is pre-trained, aligned on positive reviews and perturbed with negative ones, all on the embedded universe.

# %%
import tempfile

import jax

import elastic_jax as ej

print(f"{len(jax.devices())} x {jax.devices()[0].device_kind}")

# %% [markdown]
# The smallest study takes about a minute. `configs/quickstart.py` without `:tiny` is the real one.

# %%
config = ej.load("configs/quickstart.py:tiny")
workdir = tempfile.mkdtemp()
report = ej.run(config, workdir)
print(report)

# %% [markdown]
# Everything that was measured is one long table.

# %%
table = ej.measures(f"{workdir}/measures.parquet").rows
scores = table[(table.measure == "score") & (table.stage == "perturb")]
print(scores.groupby(["arm", "align_volume", "perturb_volume"]).value.mean().unstack())
