"""What would a study cost, and does it fit, before anything is trained?

On the devices of this process every stage is compiled and, where it fits, timed (`here`). For a named topology, which need not be
here, the mesh is searched and the cost is a closed form (`elsewhere`, on `study.estimate` and `study.search`), beside which
`compiled=True` puts what the compiler says (`programs`). `cost` is what comes out, `page` how it is printed, `advice` what would make
it fit.
"""

import tempfile
from collections.abc import Sequence

from elastic_jax.config import Config
from elastic_jax.errors import UserError
from elastic_jax.parallel import topology as topology_lib
from elastic_jax.study import Study
from elastic_jax.study.planning import elsewhere, here
from elastic_jax.study.planning.advice import cure, out_of_memory
from elastic_jax.study.planning.cost import Compiled, Plan, StageCost

__all__ = ["Compiled", "Plan", "StageCost", "cure", "out_of_memory", "plan"]


def plan(
    study: Study | Config,
    timed: bool | None = None,
    *,
    topology: str | None = None,
    compiled: bool = False,
    hfu: float | None = None,
    stages: Sequence[str] | None = None,
) -> Plan:
    """What a study needs; `print` shows it as a table.

    Without a topology: compile each stage's update for the mesh of this process, and time it where it fits.

    Args:
      study: or a config. Its data are prepared, in a folder that is gone afterwards, only when there is no topology.
      timed: run a few updates of each stage and one measurement to estimate the time; by default where state and
        temporaries need less than half of the host's memory.
      topology: a name such as "v5e:16x16" or "h100:8" (`parallel.topology`); nothing of it has to be here.
      compiled: with a topology, also compile each stage's update ahead of time and report the compiler's memory.
      hfu: with a topology, the share of the peak that the times assume; by default `search.ASSUMED_HFU`.
      stages: with a topology, plan these alone; by default all that the config trains.

    Raises:
      UserError: the config cannot work on these devices. That it does not fit is no error here: see `Plan.fits` and `cure`.
    """
    if topology is not None:
        return elsewhere.plan(study, topology_lib.parse(topology), compiled, hfu, stages)
    if compiled or hfu is not None or stages is not None:
        raise UserError(
            "--compile, --hfu and --stage are for a --topology; without one the devices here are compiled for and timed."
        )
    if not isinstance(study, Study):
        with tempfile.TemporaryDirectory() as scratch:
            return plan(Study(study, scratch, weights=False), timed)
    return here.plan(study, timed)
