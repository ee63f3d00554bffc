"""How do the runs of a study become jobs of the cluster's own engine?

The tree of the study is cut into waves, parents before children. Every wave becomes jobs of Kubernetes, Slurm, SkyPilot or Google
Cloud, and the engine queues, places, restarts and orders them. Nothing here schedules: what is rendered are the engine's own
manifests and a short script that submits them, which a dry run prints as they are.
"""

from elastic_jax.launch.backends import BACKENDS
from elastic_jax.launch.manifests import Manifest, render
from elastic_jax.launch.options import Options
from elastic_jax.launch.waves import Job, Member, Wave, cut

__all__ = ["BACKENDS", "Job", "Manifest", "Member", "Options", "Wave", "cut", "render"]
