"""What does a study cost on devices that are not here?

Nothing of them is needed: the mesh is searched, the cost is a closed form, and the data are not read where they are not prepared.
"""

import dataclasses
from collections.abc import Sequence

from elastic_jax import config as config_lib
from elastic_jax.config import Config
from elastic_jax.data.tokenizers import load_pretrained
from elastic_jax.errors import UserError
from elastic_jax.models import flops
from elastic_jax.models.config import ModelConfig, model_config
from elastic_jax.parallel import ahead
from elastic_jax.parallel.topology import Topology
from elastic_jax.study import Study, search, tree
from elastic_jax.study.planning import programs, several, work
from elastic_jax.study.planning.cost import Plan
from elastic_jax.study.tree import STAGES, Run

# What the field that says whether a stage is run says where it is not; of others "volumes" is empty.
_OFF = dict(resistance="slices is empty", order="volume is 0")


def plan(
    study: Study | Config, topology: Topology, compiled: bool, hfu: float | None, stages: Sequence[str] | None
) -> Plan:
    """The plan for the topology; see `planning.plan`."""
    config = study.config if isinstance(study, Study) else study
    config_lib.validate(config)
    if hfu is not None and not 0 < hfu <= 1:
        raise UserError(f"--hfu={hfu}: expected a share of the peak, above 0 and up to 1.")
    wanted = config_lib.stages(config) if stages is None else stages
    _check_stages(config, wanted)
    if compiled:
        ahead.devices(topology)  # before anything is computed, if it cannot work
    notes: list[str] = []
    model, everything = _model_and_runs(study, topology, notes)
    runs = everything if stages is None else [run for run in everything if run.stage in wanted]
    first = {stage: work.typical([run for run in runs if run.stage == stage]) for stage in wanted}
    works = {
        stage: (work.work_of(config, model, first[stage]), sum(run.updates for run in runs if run.stage == stage))
        for stage in wanted
    }
    fixed = search.Fixed(_given_mesh(config, notes), config.model.remat)
    accumulate = {stage: config[stage].accumulate for stage in wanted if config[stage].accumulate > 1}
    for stage, parts in accumulate.items():
        notes.append(f"{stage}.accumulate={parts} is the config's; 1 lets the plan choose")
    assumed = hfu or search.ASSUMED_HFU[topology.chip.platform]
    found = search.search(works, topology, fixed, accumulate, assumed)
    costs = []
    for stage in wanted:
        cost = found[stage]
        of_stage = [run for run in runs if run.stage == stage]
        exact, fits = None, cost.fits
        if compiled and cost.fits:
            exact = programs.compile_ahead(model, first[stage], works[stage][0], cost.layout, topology)
            fits = exact.total + cost.estimate.memory["base model"] <= topology.memory
        costs.append(
            work.cost_of(
                config,
                stage,
                of_stage,
                cost.seconds,
                cost.layout,
                cost.estimate,
                exact,
                roofline=cost.roofline,
                fits=fits,
            )
        )
    status = study.status() if isinstance(study, Study) else []
    done = {s.run.key for s in status if s.done}
    return Plan(
        study=config.name,
        params=flops.parameters(model),
        mesh=costs[0].layout.mesh,
        stages=tuple(costs),
        runs=tuple((run, run.key in done) for run in runs),
        notes=tuple(notes),
        measured_points=sum(len(run.measures) for run in runs),
        seconds_per_point=None,
        topology=topology,
        hfu=assumed,
        at_once=several.at_once_elsewhere(config, topology, flops.parameters(model), len(everything)),
    )


def _check_stages(config: Config, wanted: Sequence[str]) -> None:
    """Raises UserError for a stage that there is not, or that the config does not run."""
    for stage in wanted:
        if stage not in STAGES:
            raise UserError(f"--stage={stage}: expected one of {', '.join(STAGES)}.")
        if stage not in config_lib.stages(config):
            raise UserError(
                f"--stage={stage}: "
                + (
                    f"nothing is pre-trained with base.hf={config.base.hf}."
                    if stage == "pretrain"
                    else "it measures random changes of weights and trains nothing, so that there is nothing to plan."
                    if stage == "noise"
                    else f"{stage}.{_OFF.get(stage, 'volumes is empty')}, so that it is not run."
                )
                + f" Plan {' or '.join(config_lib.stages(config))}."
            )


def _model_and_runs(study: Study | Config, topology: Topology, notes: list[str]) -> tuple[ModelConfig, list[Run]]:
    """The model and the tree, from the data where they are prepared, else from what the config says of them."""
    if isinstance(study, Study):
        model, runs = study.model.config, study.runs
        notes.extend(study.notes)
    elif study.base.hf:
        from elastic_jax.study import sources

        opened = sources.opened(study, weights=False)
        model = sources.model_config(opened, study)
        bases = [(base, "not read") for base in opened]
        runs, more = tree.build(study, model, dict.fromkeys(STAGES, "not prepared"), bases)
        notes.append("assumed, since data and weights were not read: enough rows for every volume")
        notes.extend(more)
    else:
        config = study
        entries = vocabulary(config)
        model = model_config(config_lib.model_section(config), entries, config.data.seq_len)
        runs, more = tree.build(config, model, dict.fromkeys(STAGES, "not prepared"))
        what = f"vocabulary of {model.vocab_size:,}, " + (
            "that of the model" if model.vocab_size != entries else "by the config"
        )
        notes.append(f"assumed, since the data were not read: {what}; enough rows for every volume")
        notes.extend(more)
    if model.layout == "unroll" and model.layers > 16 and topology.chip.platform != "cpu":
        notes.append(f"layout: planned with model.layout=scan; {model.layers} unrolled layers take minutes to compile")
        model = dataclasses.replace(model, layout="scan")
    return model, runs


def vocabulary(config: Config) -> int:
    """Entries of the vocabulary that the config's data will have."""
    if config.data.kind == "text":
        named = config.data.tokenizer
        return load_pretrained(named.path, named.layout).vocab_size if named.path else named.vocab_size
    from elastic_jax.data.universe import Universe

    return Universe(topics=config.data.topics, size=config.data.size).tokenizer().vocab_size


def _given_mesh(config: Config, notes: list[str]) -> dict[str, int] | None:
    """The config's mesh, or None where it is the default: then it is searched."""
    default = dict(data=-1, fsdp=1, tensor=1)
    given = {axis: config.mesh[axis] for axis in default}
    if given == default:
        return None
    notes.append("the mesh is the config's; data=-1, fsdp=1, tensor=1 lets the plan choose")
    return given
