"""How does a person read a plan?"""

from typing import TYPE_CHECKING

from elastic_jax.study import estimate, search
from elastic_jax.study.planning import units
from elastic_jax.train.progress import format_duration

if TYPE_CHECKING:
    from elastic_jax.study.planning.cost import Plan, StageCost
    from elastic_jax.study.tree import Run


def text(found: "Plan") -> str:
    """The table of stages, bytes by category, time, notes and the tree of runs."""
    return "\n".join(
        [*_head(found), *_stages(found), *_memory(found), *_time(found), *_notes(found), "", *_runs(found)]
    )


def _head(found: "Plan") -> list[str]:
    mesh = ", ".join(f"{axis}={size}" for axis, size in found.mesh.items() if axis != "run" or size > 1)
    lines = [f"plan of {found.study}: {found.params:,} parameters, mesh {mesh}"]
    if found.topology is not None:
        chip = found.topology.chip
        lines.append(
            f"for {found.topology.name}: {found.topology.devices} devices of {units.size(found.topology.memory)} "
            f"({chip.source})"
        )
    return [*lines, ""]


def _stages(found: "Plan") -> list[str]:
    """One line for each stage."""
    lines = [
        f"{'stage':10} {'runs':>5} {'updates':>9} {'tokens':>9} {'state':>10} {'temporary':>10} {'s/update':>9}"
        + (f" {'device-h':>9}" if found.topology else "")
    ]
    for s in found.stages:
        per_update = f"{s.seconds:.{4 if s.seconds > 1e-3 else 7}f}" if s.seconds is not None else "-"
        hours = ""
        if found.topology:
            hours = f" {units.number(s.hours * s.layout.devices) if s.hours is not None else '-':>9}"
        lines.append(
            f"{s.stage:10} {s.runs:5} {s.updates:9,} {units.count(s.tokens):>9} {units.size(s.state_bytes):>10} "
            f"{units.size(s.temporary_bytes):>10} {per_update:>9}{hours}"
        )
    by_compiler = all(stage.compiled for stage in found.stages)
    source = "from the compiler's own analysis" if by_compiler else "estimated without a compiler"
    return [*lines, f"state and temporary: per device, {source}"]


def _memory(found: "Plan") -> list[str]:
    """Bytes per device by category, one column for each stage."""
    lines = ["", f"{'estimated, per device':22}" + "".join(f" {s.stage:>10}" for s in found.stages)]
    for name in estimate.CATEGORIES:
        sizes = [s.estimate.memory[name] for s in found.stages]
        if any(sizes):
            lines.append(f"  {name:20}" + "".join(f" {units.size(size):>10}" for size in sizes))
    lines.append(f"  {'together':20}" + "".join(f" {units.size(s.estimate.total):>10}" for s in found.stages))
    lines.append(f"  {'largest during':20}" + "".join(f" {s.estimate.peak:>10}" for s in found.stages))
    if any(s.compiled for s in found.stages):
        totals = [units.size(s.compiled.total) if s.compiled else "-" for s in found.stages]
        lines.append(f"  {'by the compiler':20}" + "".join(f" {total:>10}" for total in totals))
        shares = [f"{s.difference:+.1%}" if s.difference is not None else "-" for s in found.stages]
        lines.append(f"  {'difference':20}" + "".join(f" {share:>10}" for share in shares))
    return [*lines, ""]


def _time(found: "Plan") -> list[str]:
    """What it takes, and what that is based on."""
    if found.topology is not None:
        lines = [line for stage in found.stages for line in _work(stage)]
        settings = " ".join(f"--config.{name}={value}" for name, value in found.settings.items())
        return [*lines, *_time_elsewhere(found), *_at_once(found), f"to run it so: {settings}"]
    if found.seconds is None:
        nothing = "estimated time: not timed, since an update does not fit half of this host's memory"
        return [nothing, *_at_once(found)]
    return [
        f"estimated time: {format_duration(found.seconds)} for everything, without compilation "
        f"(timed here; {found.measured_points} measured points at {found.seconds_per_point:.2f} s)",
        *_at_once(found),
    ]


def _at_once(found: "Plan") -> list[str]:
    """Runs side by side, and whether the times know of them."""
    if found.at_once in (None, 1):
        return []
    how = f"  {found.at_once} runs at a time, each in a thread (at_once)"
    if found.seconds is None:
        return [f"{how}; what that gains is not assumed"]
    return [f"{how}, and timed so; where one has to wait for another it takes longer"]


def _work(cost: "StageCost") -> list[str]:
    """How an update of a stage is spread over a topology, and what bounds it."""
    found, times = cost.estimate, cost.roofline
    exchanged = ", ".join(f"{e.kind} of {e.what} over {e.axis} {units.size(e.size)}" for e in found.exchanges)
    lines = [
        f"{cost.stage}: {cost.layout}",
        f"  {units.count(found.model_flops)}FLOP per update and device, {units.count(found.executed_flops)}FLOP with "
        f"recomputation; exchanges: {exchanged or 'none'}",
    ]
    if times is not None and times.compute is not None:
        lines.append(
            f"  at the peaks: compute {times.compute:.3g} s, memory {times.hbm:.3g} s, interconnect "
            f"{times.interconnect + times.exposed:.3g} s; bound by {times.bound}"
        )
    return lines


def _time_elsewhere(found: "Plan") -> list[str]:
    assert found.topology is not None and found.hfu is not None
    peak = found.topology.chip.flops
    hours = [s.hours for s in found.stages]
    if not peak or any(hour is None for hour in hours):
        return ["estimated time: none, since a CPU has no peak to go by; plan without --topology to have it timed here"]
    total = sum(hour or 0.0 for hour in hours)
    seconds = sum(s.updates * (s.seconds or 0.0) for s in found.stages)
    done = sum(s.updates * s.estimate.model_flops for s in found.stages)
    return [
        f"estimated time: {format_duration(total * 3600)} of {found.topology.devices} devices, "
        f"{units.number(total * found.topology.devices)} device-hours for training, without compilation, measures and "
        "checkpoints",
        f"  assumed: {found.hfu:.0%} of the peak for what is executed, {search.ASSUMED_BANDWIDTH:.0%} of the bandwidths; that "
        f"is {done / (seconds * peak):.0%} MFU (causal). Not measured here.",
    ]


def _notes(found: "Plan") -> list[str]:
    return [f"  {note}" for note in found.notes]


def _runs(found: "Plan") -> list[str]:
    """The tree, a line for each run."""
    lines, depth = [], {"": -1}
    for run, done in found.runs:
        # A plan of one stage does not list what it descends from.
        level = depth[run.key] = depth.get(run.parent.key if run.parent else "", -1) + 1
        name = run.name if found.topology is not None and not done else run.key
        lines.append(f"{'  ' * level}{name}  {_what(run)}{'  [done]' if done else ''}")
    return lines


def _what(run: "Run") -> str:
    """What is done in a run, and where it is kept or measured."""
    if run.draw:
        sizes = ", ".join(f"{run.examples_at(point):,}" for point in sorted(run.measures))
        return f"random change {run.draw} of the weights, as large as that of its parent at {sizes} examples"
    if run.base is not None:
        revision = f" at {run.base.revision}" if run.base.revision else ""
        return f"measured as it is, read from {run.base.where}{revision}"
    points = ", ".join(f"{run.examples_at(point):,}" for point in sorted(run.checkpoints))
    return f"{run.updates:,} updates of {run.batch_size}, kept at {points} examples"
