"""Which checkpoints of others does a study start from?

`base.hf` names one, `base.revision` several of one hub id, a tuple in `base.hf` several folders or ids. Each is a base of its own,
with alignments and perturbations of its own: the axis of pre-training volume, where `base.tokens` says how much is behind each.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from elastic_jax.data.files import digest_of
from elastic_jax.errors import UserError

# Of `base.hf`, `base.revision` and `base.tokens` None says nothing, a value goes for all, a tuple has one for each base.
DEFAULTS: dict[str, Any] = dict(hf=None, revision=None, dtype="", tokens=None)
DTYPES = ("float32", "bfloat16")
# Fields of `model` that say how an architecture is computed; the others come with the checkpoint.
SETTABLE = ("dtype", "param_dtype", "layout", "remat", "attention", "loss_chunk")

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


@dataclasses.dataclass(frozen=True)
class Base:
    """One checkpoint as the config names it; nothing has been read.

    Attributes:
      where: a folder, or a hub id.
      revision: of the hub id; "" takes its main branch.
      tokens: of pre-training behind it, 0 where nobody said.
      label: what tables and figures call it.
      slug: what it is called in the names of runs.
    """

    where: str
    revision: str
    tokens: int
    label: str
    slug: str

    @property
    def field(self) -> str:
        """How a message names it."""
        return f"base.hf={self.where}" + (f", base.revision={self.revision}" if self.revision else "")


def named(section: Mapping[str, Any]) -> tuple[Base, ...]:
    """The bases of a config's section `base`; () where the study pre-trains.

    Raises:
      UserError: revisions, tokens or a dtype that do not go with `base.hf`, or with one another.
    """
    places = _texts("hf", section["hf"])
    revisions, tokens = _texts("revision", section["revision"]), _counts(section["tokens"])
    if section["dtype"] not in ("", *DTYPES):
        raise UserError(
            f"base.dtype={section['dtype']!r}: expected one of {', '.join(DTYPES)}, or none for model.param_dtype."
        )
    if not places:
        for name, default in DEFAULTS.items():
            if section[name] and section[name] != default:
                raise UserError(
                    f"base.{name}={section[name]!r} has no effect without base.hf. Name a folder or a hub id there."
                )
        return ()
    if len(places) > 1 and len(revisions) not in (0, len(places)):
        raise UserError(
            f"base.revision has {len(revisions)} values for the {len(places)} of base.hf. Give one for each, or none; or one "
            "base.hf with several revisions."
        )
    count = max(len(places), len(revisions), 1)
    if len(tokens) not in (0, count):
        raise UserError(f"base.tokens has {len(tokens)} values for {count} checkpoints. Give one for each, or none.")
    places = places * count if len(places) == 1 else places
    revisions = revisions or ("",) * count
    pairs = list(zip(places, revisions, strict=True))
    for pair in pairs:
        if pairs.count(pair) > 1:
            raise UserError(f"base.hf={pair[0]}: named twice{f' with revision {pair[1]}' if pair[1] else ''}.")
    labels = _distinct([_label(*pair) for pair in pairs], [f"{place}@{rev}" if rev else place for place, rev in pairs])
    slugs = _slugs(pairs)
    tokens = tokens or (0,) * count
    return tuple(Base(*pair, *rest) for pair, rest in zip(pairs, zip(tokens, labels, slugs, strict=True), strict=True))


def is_folder(where: str) -> bool:
    """Whether `where` is meant as a folder rather than as a hub id."""
    return Path(where).expanduser().exists() or not _HUB_ID.fullmatch(where) or where.startswith((".", "~"))


def _texts(name: str, value: Any) -> tuple[str, ...]:
    if value is None or value == "":
        return ()
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, Iterable) or isinstance(parts, Mapping):
        raise UserError(f"base.{name}={value!r}: expected a text, or several separated by commas.")
    found = tuple(part.strip() if isinstance(part, str) else part for part in parts)
    if not all(isinstance(part, str) and part for part in found):
        raise UserError(f"base.{name}={value!r}: expected texts, none of them empty.")
    return found


def _counts(value: Any) -> tuple[int, ...]:
    if value is None or value == 0:
        return ()
    parts = tuple(value) if isinstance(value, list | tuple) else (value,)
    for part in parts:
        whole = isinstance(part, int | float) and not isinstance(part, bool) and float(part).is_integer()
        if not whole or part < 1:
            raise UserError(f"base.tokens={value!r}: expected whole numbers of tokens, 1 or more for each checkpoint.")
    return tuple(int(part) for part in parts)


def _label(where: str, revision: str) -> str:
    name = Path(where).expanduser().absolute().name if is_folder(where) else where
    return f"{name}@{revision}" if revision else name


def _distinct(short: list[str], long: list[str]) -> list[str]:
    """The short names where no two are equal."""
    return short if len(set(short)) == len(short) else long


def _slugs(pairs: list[tuple[str, str]]) -> list[str]:
    """Letters that a folder's name may have. They do not depend on how many bases there are: a study with more takes over the runs
    of one with fewer."""
    names = [
        Path(where).expanduser().absolute().name + (f"-{revision}" if revision else "") for where, revision in pairs
    ]
    slugs = [re.sub(r"[^\w.]+", "-", name).strip("-.")[:48] or "base" for name in names]
    return _distinct(slugs, [f"{slug}-{digest_of(pair)[:6]}" for slug, pair in zip(slugs, pairs, strict=True)])
