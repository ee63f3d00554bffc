"""Which mesh, parts of a batch and recomputation let a study fit a topology, and which of them is fastest?

The global batches are the config's: they are part of what is trained. Everything that only says how is searched: data x fsdp x
tensor, accumulation, remat policy. What the config sets itself is kept.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping

from elastic_jax.errors import UserError
from elastic_jax.models.remat import POLICIES
from elastic_jax.parallel.mesh import divisors, nearest
from elastic_jax.parallel.topology import Topology
from elastic_jax.study.estimate import Estimate, Layout, Roofline, Work, estimate, roofline

# Of the peak, for what is executed (recomputation included). Published runs of JAX on dense models reach 0.54 to 0.72 on TPU v4
# to v5p, 0.45 on v6e, and 0.46 to 0.56 on H100; this project has measured none of them.
ASSUMED_HFU = {"tpu": 0.55, "gpu": 0.50, "cpu": 1.0}
# Of the peak bandwidth, where a step waits for memory or for other devices.
ASSUMED_BANDWIDTH = 0.7
# What is left of it with each doubling of the tensor axis: narrower products, and launches between exchanges. An assumption that
# keeps dense models of these sizes on fsdp alone where that fits, as the published runs are.
ASSUMED_TENSOR = 0.85
# Left to the runtime and to what the estimate does not know: it is tested to be within this share of the compiler.
MARGIN = 0.10
LONGEST_TENSOR = 16
CLOSE = 1.05
# "offload" trades the device's memory for the host's and a narrow link to it, of which nothing is known here: taken only if asked.
SEARCHED = ("none", *(policy for policy in POLICIES if policy != "offload"))


@dataclasses.dataclass(frozen=True)
class Fixed:
    """What the config sets itself; None is searched."""

    mesh: Mapping[str, int] | None = None
    remat: str | None = None


@dataclasses.dataclass(frozen=True)
class Costed:
    """One stage under one layout."""

    layout: Layout
    estimate: Estimate
    roofline: Roofline
    seconds: float | None
    fits: bool


def seconds_of(times: Roofline, layout: Layout, hfu: float) -> float | None:
    """Time of an update: that of the busiest resource at its assumed share of the peak, then the exchanges of activations, which
    nothing can hide since the next product waits for them; None on a CPU."""
    if times.compute is None:
        return None
    share = hfu * ASSUMED_TENSOR ** math.log2(layout.tensor)
    hidden = max(times.compute / share, times.hbm / ASSUMED_BANDWIDTH, times.interconnect / ASSUMED_BANDWIDTH)
    return hidden + times.exposed / ASSUMED_BANDWIDTH


def cost(work: Work, layout: Layout, topology: Topology, hfu: float) -> Costed:
    found = estimate(work, layout)
    times = roofline(found, topology)
    fits = found.total <= topology.memory * (1 - MARGIN)
    return Costed(layout, found, times, seconds_of(times, layout, hfu), fits)


def search(
    works: Mapping[str, tuple[Work, int]], topology: Topology, fixed: Fixed, accumulate: Mapping[str, int], hfu: float
) -> dict[str, Costed]:
    """The fastest layout of every stage. The mesh and the remat policy are one for all stages, as in a config.

    Args:
      works: stage -> (one update of it, number of updates).
      accumulate: what the config sets, by stage; stages that it does not set are searched.

    Returns:
      stage -> what it costs. Where nothing fits, the layout that needs the least memory, with `fits` false.

    Raises:
      UserError: no mesh divides the batches and the model over so many devices.
    """
    candidates: list[dict[str, Costed]] = []
    for mesh in _meshes(works, topology, fixed):
        for remat in [fixed.remat] if fixed.remat else SEARCHED:
            candidates.append(
                {
                    stage: _accumulated(work, mesh, remat, topology, accumulate.get(stage), hfu)
                    for stage, (work, _) in works.items()
                }
            )
    fit = [stages for stages in candidates if all(found.fits for found in stages.values())]
    if not fit:
        return min(candidates, key=lambda stages: max(found.estimate.total for found in stages.values()))
    times = [sum(_ranked(found) * works[stage][1] for stage, found in stages.items()) for stages in fit]
    # Times are estimates: what differs by a few percent is decided by simplicity.
    near = [stages for stages, time in zip(fit, times, strict=True) if time <= CLOSE * min(times)]
    return min(near, key=_complexity)


def _complexity(stages: Mapping[str, Costed]) -> tuple[float, ...]:
    layouts = [found.layout for found in stages.values()]
    executed = sum(found.estimate.executed_flops for found in stages.values())
    exchanged = sum(e.size for found in stages.values() for e in found.estimate.exchanges)
    return (layouts[0].tensor, max(layout.accumulate for layout in layouts), executed, exchanged)


def _ranked(found: Costed) -> float:
    """Seconds of an update, and a quarter of what should be hidden behind them: overlap is never perfect."""
    hidden = (found.roofline.compute or 0.0) + found.roofline.hbm + found.roofline.interconnect + found.roofline.exposed
    return 0.75 * (found.seconds or 0.0) + 0.25 * hidden


def _accumulated(
    work: Work, mesh: Mapping[str, int], remat: str, topology: Topology, given: int | None, hfu: float
) -> Costed:
    """The fewest parts that fit; more of them make smaller matrix products and are only a way out."""
    rows = work.rows // (mesh["data"] * mesh["fsdp"])
    parts = [given] if given else [k for k in range(1, rows + 1) if rows % k == 0]
    smallest: Costed | None = None
    for count in parts:
        for reduce in ("step", "micro") if count > 1 else ("step",):
            found = cost(work, Layout(**mesh, accumulate=count, remat=remat, reduce=reduce), topology, hfu)
            if found.fits:
                return found
            if smallest is None or found.estimate.total < smallest.estimate.total:
                smallest = found
    assert smallest is not None
    return smallest


def _meshes(works: Mapping[str, tuple[Work, int]], topology: Topology, fixed: Fixed) -> Iterator[dict[str, int]]:
    model = next(iter(works.values()))[0].model
    batches = {stage: work.rows for stage, (work, _) in works.items()}
    if fixed.mesh is not None:
        yield _given(fixed.mesh, model, batches, topology)
        return
    found = False
    for tensor in divisors(topology.devices):
        if tensor > min(LONGEST_TENSOR, topology.chip.local) or model.kv_heads % tensor or model.mlp % tensor:
            continue
        if model.vocab_size % tensor:
            continue
        shards = topology.devices // tensor
        if any(rows % shards for rows in batches.values()):
            continue
        for fsdp in divisors(shards):
            if model.embed % fsdp == 0:
                found = True
                yield dict(data=shards // fsdp, fsdp=fsdp, tensor=tensor)
    if not found:
        raise UserError(_no_mesh(batches, model, topology))


def _no_mesh(batches: Mapping[str, int], model: object, topology: Topology) -> str:
    common = math.gcd(*batches.values())
    sizes = ", ".join(f"{stage}.batch_size={rows}" for stage, rows in batches.items())
    kv_heads, mlp, vocab = (getattr(model, name) for name in ("kv_heads", "mlp", "vocab_size"))
    tensor = max(t for t in range(1, LONGEST_TENSOR + 1) if kv_heads % t == 0 and mlp % t == 0 and vocab % t == 0)
    most = common * tensor
    lowest = -(-max(batches.values()) // topology.devices) * topology.devices
    return (
        f"--topology={topology.name}: {topology.devices} devices cannot share {sizes}: every device needs a whole number of rows "
        f"of each, and at most {tensor} devices can share a row (model.kv_heads={kv_heads}, model.mlp={mlp}, "
        f"model.vocab_size={vocab}). Use batch sizes that are multiples of {topology.devices // tensor} (of {topology.devices}, "
        f"for example {lowest}, without tensor parallelism), or a topology of at most {most} devices."
    )


def _given(mesh: Mapping[str, int], model: object, batches: Mapping[str, int], topology: Topology) -> dict[str, int]:
    """The config's mesh, if it can work on this topology."""
    sizes = {axis: mesh.get(axis, 1) for axis in ("data", "fsdp", "tensor")}
    known = math.prod(size for size in sizes.values() if size != -1)
    for axis, size in sizes.items():
        if size == -1:
            sizes[axis] = max(topology.devices // known, 1)
    shown = ", ".join(f"mesh.{axis}={size}" for axis, size in sizes.items())
    if math.prod(sizes.values()) != topology.devices:
        asked = {axis: mesh.get(axis, 1) for axis in sizes}
        near = (
            ", ".join(f"mesh.{axis}={size}" for axis, size in one.items()) for one in nearest(asked, topology.devices)
        )
        raise UserError(
            f"{shown}: multiplies to {math.prod(sizes.values())}, but {topology.name} has {topology.devices} devices. The nearest "
            f"that do: {'; or '.join(near)}. With mesh.data=-1, mesh.fsdp=1, mesh.tensor=1 the plan searches."
        )
    fields = dict(kv_heads="tensor", mlp="tensor", vocab_size="tensor", embed="fsdp")
    for name, axis in fields.items():
        size, parts = getattr(model, name), sizes[axis]
        if size % parts:
            fits = [k for k in divisors(topology.devices) if size % k == 0]
            near = min(fits, key=lambda k: (abs(k - parts), k))
            raise UserError(
                f"mesh.{axis}={parts}: model.{name}={size} does not divide over it. The nearest that works on {topology.name} is "
                f"mesh.{axis}={near}."
            )
    shards = sizes["data"] * sizes["fsdp"]
    for stage, rows in batches.items():
        if rows % shards:
            down, up = rows // shards * shards, -(-rows // shards) * shards
            raise UserError(
                f"{stage}.batch_size={rows} does not divide over mesh.data x mesh.fsdp = {shards}. Use "
                f"{f'{down} or ' if down else ''}{up}, or a smaller mesh.data."
            )
    return sizes
