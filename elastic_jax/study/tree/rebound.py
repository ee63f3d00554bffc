"""Which runs are aligned, and perturbed from there and from the base?"""

from collections.abc import Sequence
from typing import Any

from elastic_jax.config import Config
from elastic_jax.study.tree.grow import Tree, Trunk
from elastic_jax.study.tree.resistance import slice_updates
from elastic_jax.study.tree.runs import Run
from elastic_jax.train.last_batch import CHOICES, updates_of
from elastic_jax.train.optim import optim_config

_LETTERS = dict(align="v", perturb="p")  # before a volume that has a run of its own, in the run's name


def grow(tree: Tree, root: Run, suffix: str) -> Trunk:
    """The columns of one base, from which the other branches grow."""
    perturbed = {}
    if tree.config.perturb.control:
        perturbed[0] = _column(tree, "perturb", "control", root, root.updates, suffix, 0)
    aligned = _column(tree, "align", "aligned", root, root.updates, suffix, 0)
    for volume, run in aligned:
        at = updates_of(volume, run.batch_size, tree.config.align.last_batch)
        perturbed[volume] = _column(tree, "perturb", "aligned", run, at, f"{suffix}-a{volume}", volume)
    return Trunk(root, suffix, aligned, perturbed)


def _column(
    tree: Tree, stage: str, arm: str, parent: Run, at: int, suffix: str, align_volume: int
) -> list[tuple[int, Run]]:
    """One run for all volumes where they share their beginning, else one each; (volume, run) pairs.

    They do where the schedule is constant, and all batches are whole.
    """
    section = tree.config[stage]
    size, how = section.batch_size, section.last_batch
    where = dict(at=at, align_volume=align_volume)

    def incomplete(those: Sequence[int]) -> dict[str, Any]:
        """Fields of a run some of whose volumes are no whole number of batches."""
        rests = [v % size for v in those if v % size]
        if not rests or how == "drop":
            return dict(nominal=tuple((v, v // size) for v in those if v % size))
        return dict(what_else=dict(last_batch=[how, rests[-1]]), last_batch=how, last_rows=rests[-1])

    volumes = list(section.volumes)
    if not volumes:
        return []
    if _shared(section):
        points = {v // size for v in volumes} | (set(slice_updates(tree.config)) if stage == "align" else set())
        run = tree.add(stage, arm, parent, sorted(points), suffix=suffix, **where, **incomplete(volumes))
        return [(v, run) for v in volumes]
    constant, found = optim_config(section.optim.to_dict()).horizon_free, []
    for v in volumes:
        ends = [updates_of(v, size, how)]
        # Under a constant schedule the way there is that of the longer ones: only the ends differ.
        fields = incomplete([v])
        if constant:
            fields["measures"] = frozenset(ends)
        run = tree.add(stage, arm, parent, ends, suffix=f"{suffix}-{_LETTERS[stage]}{v}", **where, **fields)
        found.append((v, run))
    return found


def notes(config: Config) -> list[str]:
    """What the volumes of each stage share, and which of them train nothing."""
    found = []
    for stage in ("align", "perturb"):
        section = config[stage]
        if not section.volumes:
            found.append(f"{stage}: not run, since {stage}.volumes is empty")
            continue
        constant = optim_config(section.optim.to_dict()).horizon_free
        why = "the last batch may not be whole" if constant else "the schedule depends on its end"
        what = "one run per parent, recorded at" if _shared(section) else f"a run each, since {why}, for"
        found.append(f"{stage} volumes: {what} {', '.join(map(str, section.volumes))} examples")
        found.extend(_incomplete_notes(stage, section))
    if config.perturb.volumes and not config.perturb.control:
        found.append("no control arm: perturb.control is off")
    return found


def _shared(section: Config) -> bool:
    """Whether the volumes of a stage are points of one run."""
    whole = section.last_batch in ("whole", "drop") or not any(v % section.batch_size for v in section.volumes)
    return whole and optim_config(section.optim.to_dict()).horizon_free


def _incomplete_notes(stage: str, section: Config) -> list[str]:
    """What becomes of the examples of this stage that do not fill a batch, and which volumes train nothing."""
    size, how = section.batch_size, section.last_batch
    if how == "whole":
        return []
    made = ", ".join(f"{v} makes {updates_of(v, size, how)}" for v in section.volumes)
    found = [f"{stage}.last_batch={how}, batches of {size}: {CHOICES[how]}. Updates: {made}"]
    none = [str(v) for v in section.volumes if not updates_of(v, size, how)]
    if none:
        found.append(
            f"{stage} volumes {', '.join(none)} make no update at all: what is shown there is the model before {stage}, unchanged"
        )
    return found
