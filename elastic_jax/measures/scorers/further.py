"""From `measures.scorers` to scorers that can be asked."""

import dataclasses
import importlib
import os
import weakref
from collections.abc import Iterable
from typing import Any

from etils import epath
from jax.sharding import Mesh

from elastic_jax.data.tokenizers import Tokenizer
from elastic_jax.errors import UserError
from elastic_jax.measures.scorers import spec as specs
from elastic_jax.measures.scorers.base import Scorer
from elastic_jax.measures.scorers.judged import Cached
from elastic_jax.measures.scorers.perplexity import BasePerplexity
from elastic_jax.measures.scorers.refusal import RefusalScorer
from elastic_jax.measures.scorers.spec import Spec
from elastic_jax.models.transformer import Decoder, Params


@dataclasses.dataclass(frozen=True)
class Further:
    """One of `measures.scorers`, opened: the measure that it gives, and who is asked."""

    spec: Spec
    scorer: Scorer | BasePerplexity

    @property
    def measure(self) -> str:
        return self.spec.measure

    def describe(self) -> dict[str, str]:
        """Who it is, as JSON."""
        known = dict(name=self.scorer.name, digest=self.scorer.digest)
        return dict(measure=self.measure, asked=self.spec.text) | known

    @property
    def of_base(self) -> bool:
        """Whether it compares with the base model, and so says nothing of runs that have none."""
        return isinstance(self.scorer, BasePerplexity)

    @property
    def asks_question(self) -> bool:
        """Whether it has a template of its own for question and answer."""
        return self.spec.scheme == "cost" and self.spec.options.get("template", "paper") != "none"

    def bound(self, model: Decoder, base: Params, tokenizer: Tokenizer, mesh: Mesh, batch_size: int) -> Scorer:
        """The scorer for runs that descend from `base`."""
        if isinstance(self.scorer, BasePerplexity):
            return self.scorer.of(model, base, tokenizer, mesh, self.spec.number("batch", batch_size))
        return self.scorer


def open_all(
    texts: Iterable[str], mesh: Mesh, *, batch_size: int, cache: epath.Path | None = None
) -> tuple[Further, ...]:
    """The scorers of `measures.scorers`, in their order. Everything about them is checked; weights are read when they are needed.

    Args:
      batch_size: texts at a time through a model, unless a scorer says otherwise.
      cache: folder where what models and plug-ins say of a text is kept; None: it is not.

    Raises:
      UserError: one of them cannot work, naming it.
    """
    return tuple(_opened(spec, mesh, batch_size, cache) for spec in specs.parse_all(list(texts)))


def _opened(spec: Spec, mesh: Mesh, batch_size: int, cache: epath.Path | None) -> Further:
    if spec.scheme == "refusal":
        return Further(spec, RefusalScorer(spec.options.get("where", "start")))
    if spec.scheme == "perplexity" and spec.place == specs.BASE:
        return Further(spec, BasePerplexity())
    scorer = _plugin(spec) if spec.scheme == "plugin" else _of_model(spec, mesh, batch_size)
    return Further(spec, scorer if cache is None else Cached(scorer, cache, together=spec.scheme != "plugin"))


def _plugin(spec: Spec) -> Scorer:
    from elastic_jax.measures.scorers import plugin

    return plugin.load(spec.place, spec.field)


# Imported when they are asked for: they read checkpoints, which a study of its own does without.
_MODELS = {
    "roberta": ("encoder", "RobertaScorer"),
    "cost": ("decoder", "CostScorer"),
    "perplexity": ("perplexity", "PerplexityScorer"),
}


# The studies of one suite share the weights of a judge for as long as one of them has it.
_held: weakref.WeakValueDictionary[tuple, Any] = weakref.WeakValueDictionary()


def _of_model(spec: Spec, mesh: Mesh, batch_size: int) -> Scorer:
    key = (
        spec.scheme,
        os.path.abspath(os.path.expanduser(spec.place)),
        tuple(sorted(spec.options.items())),
        mesh,
        batch_size,
    )
    if key in _held:
        return _held[key]
    from elastic_jax.hf.source import find_source

    module, name = _MODELS[spec.scheme]
    made = getattr(importlib.import_module(f"elastic_jax.measures.scorers.{module}"), name)
    options: dict[str, Any] = {k: v for k, v in spec.options.items() if k not in ("revision", "batch")}
    if "length" in options:
        options["length"] = int(options["length"])
    try:
        source = find_source(spec.place, spec.options.get("revision", ""), asked=spec.field)
        called = spec.place if source.revision else ""
        scorer = made(source, mesh, batch_size=spec.number("batch", batch_size), called=called, **options)
    except UserError as error:
        raise error if str(error).startswith(spec.field) else UserError(f"{spec.field}: {error}") from None
    _held[key] = scorer
    return scorer
