"""What do devices exchange in a compiled program, and how often?"""

import dataclasses
import math
import re

KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
_OPERATION = re.compile(rf"= (?P<shape>\(.*?\)|\S+) (?P<kind>{KINDS})(-start)?\(")


@dataclasses.dataclass(frozen=True)
class Collective:
    """`sizes`: elements of each array that comes out; `looped`: whether it is inside the body of a loop."""

    kind: str
    sizes: tuple[int, ...]
    looped: bool


def collectives(text: str) -> list[Collective]:
    """Those of an optimised HLO module (`compiled.as_text()`)."""
    bodies, name = {}, ""
    for line in text.splitlines():
        if head := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            name = head[1]
            bodies[name] = []
        elif name:
            bodies[name].append(line)
    waiting = re.findall(r"body=%?([\w.\-]+)", text)
    looped: set[str] = set()
    while waiting:
        looped.add(inner := waiting.pop())
        called = re.findall(r"(?:calls|to_apply|body)=%?([\w.\-]+)", "\n".join(bodies[inner]))
        waiting += set(called) & bodies.keys() - looped
    found = []
    for name, lines in bodies.items():
        for match in filter(None, map(_OPERATION.search, lines)):
            dims = re.findall(r"\w+\[([\d,]*)\]", match["shape"])
            sizes = tuple(math.prod(int(d) for d in dim.split(",") if d) for dim in dims)
            found.append(Collective(match["kind"], sizes, name in looped))
    return found
