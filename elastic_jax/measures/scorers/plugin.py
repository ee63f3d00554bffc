"""How does somebody bring a scorer of their own?"""

import functools
import hashlib
import importlib
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from elastic_jax.data.files import digest_of
from elastic_jax.errors import UserError, closest, first_line
from elastic_jax.measures.scorers.base import Scorer, asked

_WANTED = "Scorer (name, digest, unit, low, high, score) or a function (prompts, answers) -> scores"


class FunctionScorer:
    """A function (prompts, answers) -> scores as a scorer.

    `unit`, `low` and `high` are attributes of the function, where it has them; by default "score" and no bounds. Its digest is that of
    the file it is written in, or its attribute `digest`.
    """

    def __init__(self, function: Callable[[list[str], list[str]], Any], name: str):
        self._function = function
        self.name = name
        self.unit: str = getattr(function, "unit", "score")
        self.low: float | None = getattr(function, "low", None)
        self.high: float | None = getattr(function, "high", None)
        self.digest: str = getattr(function, "digest", "") or digest_of(["function", name, _source_digest(function)])

    def score(self, prompts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        """What the function gives, float64."""
        return np.asarray(self._function(list(prompts), list(answers)), np.float64)


def _source_digest(function: Any) -> str:
    """Of the file that defines a function, so that another version of it is another judge."""
    while isinstance(function, functools.partial):
        function = function.func
    try:
        file = inspect.getsourcefile(inspect.unwrap(function))
    except TypeError:
        file = inspect.getsourcefile(type(function))
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file and Path(file).is_file() else ""


def load(place: str, field: str) -> Scorer:
    """The scorer `module:attribute`: a Scorer, a class of which an instance is one, or a function.

    It is asked about one text, so that what cannot work fails before anything is trained.

    Raises:
      UserError: there is no such module or attribute, it is nothing of these, or it fails on a text.
    """
    module_name, _, attribute = place.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and (error.name or "") in module_name:
            cure = "It has to be importable: install it, or set PYTHONPATH to its folder."
            raise UserError(f"{field}: there is no module {module_name}. {cure}") from error
        raise UserError(
            f"{field}: importing {module_name} failed: {type(error).__name__}: {first_line(error)}"
        ) from error
    if not hasattr(module, attribute):
        public = [name for name in vars(module) if not name.startswith("_")]
        raise UserError(f"{field}: {module_name} has no {attribute!r}. {closest(attribute, public)}")
    found = getattr(module, attribute)
    if inspect.isclass(found):
        try:
            found = found()
        except Exception as error:
            raise UserError(
                f"{field}: {attribute}() failed: {type(error).__name__}: {first_line(error)}. A class is called without arguments."
            ) from error
    if isinstance(found, Scorer):
        scorer: Scorer = found
    elif callable(found) and not hasattr(found, "score"):
        scorer = FunctionScorer(found, attribute)
    else:
        missing = [name for name in ("name", "digest", "unit", "low", "high", "score") if not hasattr(found, name)]
        raise UserError(
            f"{field}: {attribute} is {type(found).__name__} without {', '.join(missing)}; expected a {_WANTED}."
        )
    if not isinstance(scorer.digest, str) or not scorer.digest:
        raise UserError(f"{field}: {attribute}.digest is {scorer.digest!r}; expected a text that names its version.")
    asked(scorer, ["How was the film?"], [" It was fine."], field)
    return scorer
