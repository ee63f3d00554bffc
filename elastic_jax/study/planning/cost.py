"""What is known of a study before it is run: its stages, each with bytes, FLOPs and seconds, and its runs?"""

import dataclasses
import math
from typing import Any

from elastic_jax.parallel.topology import Topology
from elastic_jax.study.estimate import Estimate, Layout, Roofline
from elastic_jax.study.planning import page
from elastic_jax.study.tree import Run


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of one update: bytes per device, and how long it took to say it.

    Attributes:
      arguments: of state and batch.
      temporary: of everything else.
      total: both, and results that are in place of no argument.
    """

    arguments: int
    temporary: int
    total: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class StageCost:
    """One stage of the plan; bytes are per device, seconds are of one update (None where they are not known).

    Attributes:
      seconds: timed here, or estimated for the topology; of the study's time, which updates of runs side by side share.
      layout: how an update is spread.
      estimate: without the compiler.
      compiled: by the compiler; None where it was not asked.
      roofline: None without a topology.
      fits: whether the estimate, or what the compiler says, is within the device's memory.
    """

    stage: str
    runs: int
    updates: int
    tokens: int
    seconds: float | None
    layout: Layout
    estimate: Estimate
    compiled: Compiled | None = None
    roofline: Roofline | None = None
    fits: bool = True

    @property
    def state_bytes(self) -> int:
        return self.compiled.arguments if self.compiled else self.estimate.arguments

    @property
    def temporary_bytes(self) -> int:
        return self.compiled.temporary if self.compiled else self.estimate.of_update - self.estimate.arguments

    @property
    def hours(self) -> float | None:
        """Of all updates of the stage."""
        return None if self.seconds is None else self.updates * self.seconds / 3600

    @property
    def difference(self) -> float | None:
        """Estimated over compiled bytes of an update, minus one."""
        return self.estimate.of_update / self.compiled.total - 1 if self.compiled else None

    def as_json(self, topology: Topology | None) -> dict[str, Any]:
        """Plain types."""
        found = self.estimate
        mfu = None
        if self.seconds and topology is not None and topology.chip.flops:
            mfu = found.model_flops / (self.seconds * topology.chip.flops)
        return dict(
            stage=self.stage,
            runs=self.runs,
            updates=self.updates,
            tokens=self.tokens,
            layout=dataclasses.asdict(self.layout),
            fits=self.fits,
            bytes=dict(found.memory),
            total_bytes=found.total,
            peak=found.peak,
            compiled=dataclasses.asdict(self.compiled) if self.compiled else None,
            difference=self.difference,
            model_flops=found.model_flops,
            executed_flops=found.executed_flops,
            collectives=[dataclasses.asdict(exchange) for exchange in found.exchanges],
            roofline=dataclasses.asdict(self.roofline) if self.roofline else None,
            seconds=self.seconds,
            mfu=mfu,
            device_hours=self.hours * self.layout.devices if self.hours is not None else None,
        )


@dataclasses.dataclass(frozen=True)
class Plan:
    """Prints as a table; `as_json` is the same for programs.

    Attributes:
      runs: and whether each is done.
      hfu: that the times for a topology assume.
      at_once: runs that are trained at the same time, each in a thread; timed seconds are those with so many. None on devices of a
        topology of which that is not known.
    """

    study: str
    params: int
    mesh: dict[str, int]
    stages: tuple[StageCost, ...]
    runs: tuple[tuple[Run, bool], ...]
    notes: tuple[str, ...]
    measured_points: int
    seconds_per_point: float | None
    topology: Topology | None = None
    hfu: float | None = None
    at_once: int | None = 1

    def __str__(self) -> str:
        return page.text(self)

    @property
    def seconds(self) -> float | None:
        """Training and measuring of everything, with none of it done; compilation comes on top."""
        if any(stage.seconds is None for stage in self.stages) or self.seconds_per_point is None:
            return None
        return sum(s.updates * (s.seconds or 0) for s in self.stages) + self.measured_points * self.seconds_per_point

    @property
    def fits(self) -> bool:
        return all(stage.fits for stage in self.stages)

    @property
    def settings(self) -> dict[str, Any]:
        """The overrides of the config that make it run as planned."""
        found: dict[str, Any] = {f"mesh.{axis}": size for axis, size in self.mesh.items() if axis != "run"}
        found["model.remat"] = self.stages[0].layout.remat
        for cost in self.stages:
            found[f"{cost.stage}.accumulate"] = cost.layout.accumulate
            if cost.layout.accumulate > 1:
                found[f"{cost.stage}.reduce"] = cost.layout.reduce
        return found

    def as_json(self) -> dict[str, Any]:
        """Plain types: everything that is printed, and the bytes by category."""
        return dict(
            study=self.study,
            params=self.params,
            topology=self.topology.name if self.topology else None,
            devices=math.prod(self.mesh.values()),
            memory=self.topology.memory if self.topology else None,
            mesh=self.mesh,
            settings=self.settings,
            fits=self.fits,
            assumed_hfu=self.hfu,
            at_once=self.at_once,
            runs=len(self.runs),
            measured_points=self.measured_points,
            notes=list(self.notes),
            stages=[cost.as_json(self.topology) for cost in self.stages],
        )
