"""How do the variants of one config become one study to look at?

A config with `variants` makes a study for each, named `<config>.<variant>`. Joined they are one: what was the model of a row becomes
the variant's name, which is what conditions, panels and curves are told apart by, and the names of runs get it in front, since
variants share runs.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from elastic_jax.analysis import table
from elastic_jax.analysis.table import Frame, Study

SEPARATOR = "."


def members(name: str, names: Sequence[str]) -> list[str]:
    """The names that are variants of `name`, in their order."""
    return [other for other in names if other.startswith(name + SEPARATOR)]


def common(names: Sequence[str]) -> str:
    """The name that all of `names` are variants of; "" if there is none."""
    heads = {name.partition(SEPARATOR)[0] for name in names if SEPARATOR in name}
    whole = all(SEPARATOR in name for name in names)
    return heads.pop() if whole and len(heads) == 1 else ""


def join(name: str, studies: Mapping[str, Study]) -> Study:
    """One study of several.

    Args:
      name: of the result.
      studies: variant -> its study.

    Facts about data that are the same in every variant are kept once; where they differ each is said of its variant.
    """
    parts, facts = [], {}
    for variant, study in studies.items():
        rows = study.rows
        own = rows[rows.run != ""]
        parts.append(
            own.assign(
                study=name,
                model=variant,
                run=variant + "/" + own.run,
                parent=own.parent.where(own.parent == "", variant + "/" + own.parent),
            )
        )
        facts[variant] = rows[rows.run == ""].assign(study=name, model="")  # of the data, whatever model reads it
    same = _all_equal([_comparable(frame) for frame in facts.values()])
    for variant, frame in facts.items():
        parts.append(frame if same else frame.assign(split=variant + ": " + frame.split))
        if same:
            break
    return Study(name, table.stack(parts), _info(studies))


def _comparable(frame: Frame) -> list[tuple]:
    kept = frame[["measure", "split", "unit", "value", "n"]].sort_values(["measure", "split"], kind="stable")
    return [tuple(str(cell) for cell in row) for row in kept.itertuples(index=False)]


def _all_equal(items: Sequence[Any]) -> bool:
    return all(item == items[0] for item in items)


def _info(studies: Mapping[str, Study]) -> dict[str, Any]:
    """What is known of the parts, as of one: commands, commits and environments of the first, configs side by side."""
    infos = {variant: study.info for variant, study in studies.items()}
    first = next(iter(infos.values()))
    runs = [
        dict(
            run,
            run=f"{variant}/{run['run']}",
            name=f"{variant}: {run['name']}",
            parent=f"{variant}/{run['parent']}" if run.get("parent") else "",
        )
        for variant, study in studies.items()
        for run in study.runs
    ]
    notes: list[str] = []
    for variant, info in infos.items():
        for note in info.get("notes") or []:
            everywhere = all(note in (other.get("notes") or []) for other in infos.values())
            line = note if everywhere else f"{variant}: {note}"
            if line not in notes:
                notes.append(line)
    return dict(
        first,
        config={"variants": {variant: info.get("config") or {} for variant, info in infos.items()}},
        fingerprint="-".join(str(info.get("fingerprint") or "")[:8] for info in infos.values()),
        runs=runs,
        notes=notes,
    )
