"""What does a study that does not fit need most of, and what would help?"""

from elastic_jax.parallel import topology as topology_lib
from elastic_jax.study import Study, estimate, search
from elastic_jax.study.planning import units, work
from elastic_jax.study.planning.cost import Plan


def cure(found: Plan) -> str:
    """Why a plan does not fit, and what would."""
    if found.topology is None or found.fits:
        return ""
    worst = max((s for s in found.stages if not s.fits), key=lambda s: s.estimate.total)
    needs = worst.compiled.total if worst.compiled else worst.estimate.total
    room = found.topology.memory
    largest = worst.estimate.largest()
    lines = [
        f"{found.study} does not fit {found.topology.name}: {worst.stage} needs {units.size(needs)} of the {units.size(room)} "
        f"of a device ({search.MARGIN:.0%} of which are kept free), with the best that was found: {worst.layout}.",
        "Largest: " + ", ".join(f"{name} {units.size(size)}" for name, size in largest) + ".",
    ]
    cures = []
    if bigger := topology_lib.larger(found.topology, needs / (room * (1 - search.MARGIN))):
        cures.append(f"a larger topology, for example --topology={bigger.name}")
    # What one row holds cannot be cut further by accumulation.
    held = {name for name, _ in largest}
    if {"saved activations", "layer at work"} & held and worst.layout.remat != "full":
        cures.append("--config.model.remat=full")
    if {"saved activations", "layer at work", "logits"} & held:
        cures.append("a shorter data.seq_len")
    if "moments" in held:
        cures.append(f"--config.{worst.stage}.optim.moments=bfloat16")
    if "logits" in held:
        cures.append("a smaller --config.model.loss_chunk")
    if worst.layout.fsdp < worst.layout.devices:
        cures.append("a batch size that more devices can share")
    return "\n".join([*lines, f"Use {', or '.join(cures)}."])


def out_of_memory(study: Study, stage: str) -> str:
    """What a stage that ran out of memory needs most of, for the message."""
    run = work.typical([run for run in study.runs if run.stage == stage])
    layout = work.layout_of(study, run)
    found = estimate.estimate(work.work_of(study.config, study.model.config, run), layout)
    largest = ", ".join(f"{name} {units.size(size)}" for name, size in found.largest())
    return f"{stage} needs about {units.size(found.total)} of a device ({layout}); largest: {largest}."
