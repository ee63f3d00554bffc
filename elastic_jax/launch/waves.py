"""Which runs can be done at the same time, and which have to wait for which?

A wave holds the runs whose parents are all in earlier waves: the depth in the tree. Jobs are cut from whole waves, whatever is
done already, so that a job keeps its name and place while the study advances; what is done is left out afterwards.
"""

import dataclasses
from collections.abc import Sequence

from elastic_jax.errors import UserError
from elastic_jax.launch import names


@dataclasses.dataclass(frozen=True)
class Member:
    """What has to be known of a run to place it: its key, its parent's ("" for pre-training), what it is, whether it is done."""

    key: str
    parent: str
    stage: str
    name: str
    done: bool = False
    updates: int = 0
    reached: int = 0


@dataclasses.dataclass(frozen=True)
class Job:
    """One job of the engine.

    Attributes:
      index: place in its wave; the same however many others are done.
      keys: its runs, those that are done among them: the same job always has the same text, so that an engine sees that
        nothing changed. A run that is done is passed over in a second.
    """

    name: str
    index: int
    keys: tuple[str, ...]

    @property
    def only(self) -> str:
        """Value of `--only`."""
        return ",".join(self.keys)


@dataclasses.dataclass(frozen=True)
class Wave:
    """Jobs that wait for none of one another; `number` counts from 0, done ones included."""

    name: str
    number: int
    jobs: tuple[Job, ...]


def depths(members: Sequence[Member]) -> dict[str, int]:
    """Number of the wave of every run; parents have to come before their children."""
    found: dict[str, int] = {}
    for member in members:
        found[member.key] = found[member.parent] + 1 if member.parent else 0
    return found


def cut(
    members: Sequence[Member], *, study: str, workdir: str, prefix: str = "ej", limit: int = 63, runs_per_job: int = 1
) -> list[Wave]:
    """The waves that have something left to do.

    Args:
      members: parents before children.
      workdir: part of every name: the same runs in two folders are two jobs.
      limit: longest name that the engine takes.
      runs_per_job: runs of one wave that share a job; those of one stage first, which are likely to have equal shapes.

    Raises:
      UserError: `runs_per_job` below 1, or a prefix that makes no names.
    """
    if runs_per_job < 1:
        raise UserError(f"--runs_per_job={runs_per_job}: expected 1 or more.")
    depth = depths(members)
    waves = []
    for number in range(max(depth.values(), default=-1) + 1):
        inside = sorted((m for m in members if depth[m.key] == number), key=lambda m: m.stage)
        jobs = []
        for index, start in enumerate(range(0, len(inside), runs_per_job)):
            group = inside[start : start + runs_per_job]
            if not all(member.done for member in group):
                title = group[0].name if len(group) == 1 else f"{group[0].name}-and-{len(group) - 1}"
                name = names.make(prefix, title, [workdir, *(m.key for m in group)], limit)
                jobs.append(Job(name, index, tuple(member.key for member in group)))
        if jobs:
            name = names.make(prefix, f"{study}-wave-{number}", [workdir, *(m.key for m in inside)], limit)
            waves.append(Wave(name, number, tuple(jobs)))
    return waves


def collector(members: Sequence[Member], *, study: str, workdir: str, prefix: str = "ej", limit: int = 63) -> str:
    """Name of the last job, which makes the table and the report."""
    return names.make(prefix, f"{study}-collect", [workdir, *(member.key for member in members)], limit)
