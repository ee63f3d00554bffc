"""Which row serves which purpose, so that no text serves two?

Rows are the same when their normalised texts are: case, Unicode form and white space do not count. Rows that
share a text (two pairs with one rejected answer) form a group, and a group serves one role.
"""

import dataclasses
import functools
import hashlib
import unicodedata
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from elastic_jax.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """A row of text data.

    Attributes:
      id: where it comes from.
      prompt: what is given; "" for plain text.
      answers: the text, or the chosen and the rejected one.
      label: "aligned", "opposite", or "" for pairs and prose.
      messages: the turns before the answer, where the data has them; `prompt` is then their texts, one after the other.
    """

    id: str
    prompt: str
    answers: tuple[str, ...]
    label: str = ""
    messages: tuple[Mapping[str, Any], ...] = ()

    @property
    def asked(self) -> str | list[Mapping[str, Any]]:
        """What a chat template is given before the answer."""
        return list(self.messages) or self.prompt

    @functools.cached_property
    def keys(self) -> tuple[bytes, ...]:
        """What identifies the content: one key per trained text."""
        return tuple(text_key(self.prompt, answer) for answer in self.answers)


def text_key(prompt: str, answer: str) -> bytes:
    """16 bytes that two texts share when they differ in case, Unicode form or white space only."""
    words = unicodedata.normalize("NFKC", f"{prompt} {answer}").casefold().split()
    return hashlib.blake2b(" ".join(words).encode(), digest_size=16).digest()


def deduplicate(rows: Iterable[Row], known: frozenset[bytes] = frozenset()) -> tuple[list[list[Row]], int, int]:
    """Groups of rows that share a text, in the order of their first rows.

    Args:
      rows: in their order; of equal rows the first one stays.
      known: keys of texts that must not occur at all.

    Returns:
      The groups, how many rows were removed as repetitions, and how many because a text of theirs is known.
    """
    whole: set[tuple[bytes, ...]] = set()
    group_of: dict[bytes, int] = {}
    groups: list[list[Row]] = []
    repeated = foreign = 0
    for row in rows:
        keys = row.keys
        if keys in whole:
            repeated += 1
            continue
        if not known.isdisjoint(keys):
            foreign += 1
            continue
        whole.add(keys)
        joined = sorted({group_of[key] for key in keys if key in group_of})
        place = joined[0] if joined else len(groups)
        if not joined:
            groups.append([])
        groups[place].append(row)
        for other in joined[1:]:
            for moved in groups[other]:
                group_of.update(dict.fromkeys(moved.keys, place))
            groups[place].extend(groups[other])
            groups[other] = []
        group_of.update(dict.fromkeys(keys, place))
    return [group for group in groups if group], repeated, foreign


class Pool:
    """Groups of rows in a random order, from which roles take what they need.

    A role gets the first rows that fit, so a larger role starts with the rows of the smaller one.
    """

    def __init__(self, groups: Sequence[Sequence[Row]], seed: int, field: str):
        """`field`: the config field the rows come from, which also separates the orders of several pools."""
        order = np.random.default_rng([seed, zlib.crc32(field.encode())]).permutation(len(groups))
        self._groups = [groups[i] for i in order]
        self._field = field
        self._taken: dict[str, int] = {}

    def __len__(self) -> int:
        return sum(len(group) for group in self._groups)

    def rows(self) -> list[Row]:
        """Rows that no role has taken, in the pool's order."""
        return [row for group in self._groups for row in group]

    def split_off(self, share: float, field: str) -> "Pool":
        """A pool of the last `share` of the groups, which leave this one."""
        count = int(len(self._groups) * share)
        other = Pool([], 0, field)
        border = len(self._groups) - count
        self._groups, other._groups = self._groups[:border], self._groups[border:]
        return other

    def take(self, role: str, field: str, quotas: Mapping[str, int]) -> list[Row]:
        """Rows for a role, in the pool's order.

        Args:
          role: for errors.
          field: the config field that asks for so many rows.
          quotas: label -> how many rows.

        Raises:
          UserError: there are not so many.
        """
        open_quotas = dict(quotas)
        rows: list[Row] = []
        rest: list[Sequence[Row]] = []
        for group in self._groups:
            wanted = open_quotas.get(group[0].label, 0)
            if wanted:
                rows.extend(group[:wanted])
                open_quotas[group[0].label] = wanted - min(wanted, len(group))
            else:
                rest.append(group)
        for label, missing in open_quotas.items():
            if missing:
                used = ", ".join(f"{name} {count}" for name, count in self._taken.items()) or "none"
                what = f"rows with label {label}" if label else "rows"
                raise UserError(
                    f"{field}: {quotas[label]} {what} are needed for {role}, but {self._field} has only "
                    f"{quotas[label] - missing} left (taken before: {used}).\n"
                    f"Lower {field} or another of data.rows, or give more data in {self._field}."
                )
        self._groups = rest
        self._taken[role] = len(rows)
        return rows


def halves(count: int, labels: Sequence[str]) -> dict[str, int]:
    """`count` rows spread evenly over labels."""
    return {label: count // len(labels) + (i < count % len(labels)) for i, label in enumerate(labels)}


def check_disjoint(roles: Mapping[str, Iterable[bytes]]) -> None:
    """Nothing, when no two roles share a text.

    Raises:
      UserError: two roles do, with their names and the number of texts.
    """
    sets = {name: frozenset(keys) for name, keys in roles.items()}
    names = list(sets)
    for place, first in enumerate(names):
        for second in names[place + 1 :]:
            shared = len(sets[first] & sets[second])
            if shared:
                raise UserError(
                    f"The data roles {first} and {second} overlap in {shared} texts; they must have "
                    "none in common.\n"
                    "Give different files, or delete data prepared by another version."
                )
