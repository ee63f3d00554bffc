"""Which runs does the resistance experiment add: whose answers is a point of an alignment trained on?

`resistance.slices` names points of an alignment. Of every two of them the later is trained on what the earlier writes ("inverse") and
the earlier on what the later writes ("forward"). What a checkpoint writes follows from it, the queries and how is sampled, so that
these runs too are known before anything is trained.
"""

import itertools
from collections.abc import Sequence

from elastic_jax.config import Config
from elastic_jax.data.files import digest_of
from elastic_jax.study.tree.grow import Tree, Trunk
from elastic_jax.study.tree.runs import FORMAT, Answers, Cross, Run


def slice_updates(config: Config) -> list[int]:
    """Updates of alignment after which `resistance.slices` end; [] without them."""
    volumes, batch = config.align.volumes, config.align.batch_size
    return [round(share * max(volumes) / batch) for share in config.resistance.slices] if volumes else []


def grow(tree: Tree, trunk: Trunk) -> None:
    """The pairs of slices of the alignment and of its controls, each trained on what the other writes."""
    slices = slice_updates(tree.config)
    if not slices or not trunk.aligned:
        return
    section, (_, aligned) = tree.config.resistance, trunk.aligned[-1]
    natural = _natural(slices)
    _pairs(tree, trunk, natural, [(aligned, at) for at in slices])
    ranges = list(zip([0, *slices], slices, strict=False))
    for order in map(str, section.orders):
        parts = tuple(ranges[int(number) - 1] for number in order)
        points = list(itertools.accumulate(end - begin for begin, end in parts))
        run = _line(tree, trunk, order, "reordered", "align", parts, points)
        _pairs(tree, trunk, order, [(run, at) for at in points])
    if section.other_task:
        last = slices[-1]
        other = _line(tree, trunk, "other", "other", "perturb", ((0, last),), [last])
        _pairs(tree, trunk, "other", [(aligned, last), (other, last)])


def _natural(slices: Sequence[int]) -> str:
    """Name of the line of the alignment itself."""
    return "".join(str(i + 1) for i in range(len(slices)))


def _line(
    tree: Tree, trunk: Trunk, name: str, arm: str, role: str, parts: tuple[tuple[int, int], ...], points: list[int]
) -> Run:
    """An alignment on the slices in another order, or on the other task."""
    return tree.add(
        "resistance",
        arm,
        trunk.root,
        points,
        section="align",
        at=trunk.root.updates,
        suffix=f"{trunk.suffix}-order{name}" if arm == "reordered" else trunk.suffix,
        what_else=dict(role=role, data=tree.digests[role], line=parts),
        line=name,
        parts=parts,
        role=role,
        measures=frozenset(points),
    )


def _pairs(tree: Tree, trunk: Trunk, name: str, ends: list[tuple[Run, int]]) -> None:
    """Both directions of every pair of the points `ends`, which are in the order of the line."""
    section = tree.config.resistance
    written = [_answers(tree, run, at) for run, at in ends]
    natural = _natural(slice_updates(tree.config))
    tail = "" if name == natural else f"-order{name}" if name != "other" else "-other"
    for earlier, later in itertools.combinations(range(len(ends)), 2):
        for arm, start, author in (("inverse", later, earlier), ("forward", earlier, later)):
            run, at = ends[start]
            cross = Cross(
                line=name,
                earlier=earlier + 1,
                later=later + 1,
                answers=written[author],
                opposite=written[start],
                queries=section.queries,
                cut=section.equal_tokens,
            )
            what = dict(data=cross.answers.identity, queries=cross.queries)
            what |= dict(cut_to=cross.opposite.identity) if cross.cut else {}
            tree.add(
                "resistance",
                arm,
                run,
                [cross.queries // section.batch_size],
                at=at,
                suffix=f"{trunk.suffix}{tail}-{start + 1}to{author + 1}",
                align_volume=at * run.batch_size,
                what_else=what,
                role="answers",
                checkpoints=frozenset(),  # nothing starts from it
                cross=cross,
            )


def _answers(tree: Tree, author: Run, updates: int) -> Answers:
    section = tree.config.resistance
    how = {name: section[name] for name in ("temperature", "top_k", "top_p", "length")}
    queries = tree.digests["resistance"]
    return Answers(author, updates, digest_of(["answers", FORMAT, author.identity, updates, queries, how]))


def notes(config: Config) -> list[str]:
    """What is trained on what."""
    slices, section = slice_updates(config), config.resistance
    if not slices:
        return []
    ends = ", ".join(f"{at * config.align.batch_size:,}" for at in slices)
    return [
        f"resistance: slices end at {ends} examples of alignment; each writes {section.queries + section.heldout} answers, of which "
        f"{section.queries} are trained on" + (", cut to equal lengths" if section.equal_tokens else "")
    ]
