"""Which further scorers did the user ask for?

A scorer is named by a string, `scheme:place,option=value,...`: `roberta:siebert/sentiment-roberta-large-english,label=POSITIVE`.
docs/scorers.md describes all of them. Reading one opens no file.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence

from elastic_jax.errors import UserError, closest

FIELD = "measures.scorers"
BASE = "base"  # the place of a perplexity: the study's own base model
MEASURE = "score_"  # what the measures of further scorers begin with

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_OPTION = re.compile(r",(?=\w+=)")


@dataclasses.dataclass(frozen=True)
class Scheme:
    """A kind of scorer: what stands for its place in a message, and its options with the values that they take.

    Options map to the values allowed, to `int` for a positive whole number, or to `str` for any text.
    """

    place: str
    options: Mapping[str, tuple[str, ...] | type]
    place_default: str | None = None

    @property
    def example(self) -> str:
        return f":{self.place}" if self.place else ""


_DTYPES = ("float32", "bfloat16")
_MODEL = dict(revision=str, dtype=_DTYPES, length=int, batch=int)

SCHEMES: Mapping[str, Scheme] = {
    "roberta": Scheme("PATH_OR_ID", dict(label=str, text=("whole", "answer"), **_MODEL)),
    "cost": Scheme("PATH_OR_ID", dict(label=str, template=("paper", "none"), eos=("no", "yes"), **_MODEL)),
    "perplexity": Scheme("PATH_OR_ID", _MODEL, place_default=BASE),
    "refusal": Scheme("", dict(where=("start", "anywhere")), place_default=""),
    "plugin": Scheme("module:attribute", {}),
}


@dataclasses.dataclass(frozen=True)
class Spec:
    """One scorer asked for.

    Attributes:
      text: as it was written.
      place: a folder, a hub id or `module:attribute`.
      name: what its measure is called after `score_`.
    """

    text: str
    scheme: str
    place: str
    name: str
    options: Mapping[str, str]

    @property
    def measure(self) -> str:
        return MEASURE + self.name

    @property
    def field(self) -> str:
        """What messages begin with."""
        return f"{FIELD}={self.text!r}"

    def number(self, option: str, default: int) -> int:
        return int(self.options.get(option, default))


def parse(text: str) -> Spec:
    """One string.

    Raises:
      UserError: an unknown scheme or option, a place that is missing or not wanted, or a value that an option does not take.
    """
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{FIELD}: {text!r}: expected a string such as {_examples()}.")
    head, *rest = _OPTION.split(text.strip())
    name, _, place = head.partition(":")
    if "," in name:
        raise UserError(
            f"{FIELD}={text!r}: several scorers are written as {tuple(part.strip() for part in head.split(','))}."
        )
    if name not in SCHEMES:
        raise UserError(f"{FIELD}={text!r}: no scorer {name!r}. {closest(name, SCHEMES)} Written {_examples()}.")
    scheme = SCHEMES[name]
    if not place and scheme.place_default is not None:
        place = scheme.place_default
    elif not place:
        raise UserError(f"{FIELD}={text!r}: of what? Write {name}{scheme.example}.")
    elif not scheme.place:
        raise UserError(f"{FIELD}={text!r}: {name} takes no place after a colon. Write {name}.")
    if name == "plugin" and (place.count(":") != 1 or place.startswith(":") or place.endswith(":")):
        raise UserError(f"{FIELD}={text!r}: expected plugin:module:attribute, such as plugin:my_scorers:politeness.")
    options = dict(part.split("=", 1) for part in rest)
    if len(options) < len(rest):
        raise UserError(f"{FIELD}={text!r}: an option is given twice.")
    called = options.pop("name", place.rpartition(":")[2] if name == "plugin" else name)
    if not _NAME.fullmatch(called):
        raise UserError(f"{FIELD}={text!r}: name={called!r}: expected letters, digits, '-', '_' or '.'.")
    for option, value in options.items():
        _check_option(text, name, scheme, option, value)
    if name == "perplexity" and place == BASE and {"revision", "dtype", "length"} & set(options):
        raise UserError(
            f"{FIELD}={text!r}: the base model is the study's own; revision, dtype and length are of another model. Leave "
            "them out."
        )
    return Spec(text, name, place, called, options)


def _check_option(text: str, name: str, scheme: Scheme, option: str, value: str) -> None:
    if option not in scheme.options:
        known = [*scheme.options, "name"]
        raise UserError(f"{FIELD}={text!r}: {name} has no option {option!r}. {closest(option, known)}")
    allowed = scheme.options[option]
    if isinstance(allowed, tuple) and value not in allowed:
        raise UserError(f"{FIELD}={text!r}: {option}={value}: expected {' or '.join(allowed)}.")
    if allowed is int and not (value.isdecimal() and int(value) > 0):
        raise UserError(f"{FIELD}={text!r}: {option}={value}: expected a positive whole number.")
    if not value:
        raise UserError(f"{FIELD}={text!r}: {option} is empty.")


def parse_all(texts: Iterable[str]) -> list[Spec]:
    """All of `measures.scorers`.

    Raises:
      UserError: as `parse`; or two of them have one name.
    """
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise UserError(f'{FIELD}={texts!r}: expected several strings, such as ("refusal",).')
    specs = [parse(text) for text in texts]
    for number, spec in enumerate(specs):
        for other in specs[:number]:
            if spec.name == other.name:
                raise UserError(
                    f"{FIELD}: {other.text!r} and {spec.text!r} would both be the measure {spec.measure}. Name one of them: "
                    f"{spec.text},name=..."
                )
    return specs


def _examples() -> str:
    return ", ".join(name + scheme.example for name, scheme in SCHEMES.items())
