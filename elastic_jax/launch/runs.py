"""Which runs does a study have, and how far are they?

Asked on the machine that launches, which need not be able to hold the model: the identities of runs depend on the config and the
data, and on no device.
"""

import dataclasses

from elastic_jax.config import Config
from elastic_jax.errors import UserError
from elastic_jax.launch.waves import Member
from elastic_jax.study import Study


@dataclasses.dataclass(frozen=True)
class Found:
    """The runs of a study, parents first, and whether table and report show all of them."""

    members: tuple[Member, ...]
    collected: bool

    @property
    def done(self) -> int:
        return sum(member.done for member in self.members)


def find(config: Config, workdir: str) -> Found:
    """The runs as the working directory has them; the data of the study are prepared there if they are not yet.

    Raises:
      UserError: what would stop the jobs before their first update.
    """
    if config.variants:
        raise UserError(
            f"{config.name} has variants ({', '.join(config.variants)}); a launch is of one study. Run all of them in one job with "
            "python -m elastic_jax.run, or make a config of each variant."
        )
    here = config.copy_and_resolve_references()
    for axis in here.mesh:  # that of the jobs needs their devices
        here.mesh[axis] = -1 if axis == "data" else 1
    study = Study(here, workdir)
    study.check()
    members = tuple(
        Member(
            status.run.key,
            status.run.parent.key if status.run.parent else "",
            status.run.stage,
            status.run.name,
            status.done,
            status.run.updates,
            status.updates,
        )
        for status in study.status()
    )
    return Found(members, all(member.done for member in members) and _is_collected(study, members))


def _is_collected(study: Study, members: tuple[Member, ...]) -> bool:
    """Whether the report is no older than the table, and that than any run."""
    files = study.workdir.table, study.workdir.report / "index.html"
    if not all(path.exists() for path in files):
        return False
    table, page = (path.stat().mtime for path in files)
    return page >= table >= max((study.workdir.run(member.key) / "DONE").stat().mtime for member in members)
