"""Which hidden facts does a text have, and how often does a distribution ask for each?"""

import dataclasses
import math
import numbers
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from elastic_jax.errors import UserError


class Latents(NamedTuple):
    """The hidden facts z of one text; a field that does not apply to its kind is ""."""

    kind: str  # "review" | "dialogue"
    topic: int
    sentiment: str = ""  # "positive" | "negative", reviews only
    request: str = ""  # "benign" | "harmful", dialogues only
    reply: str = ""  # "comply" | "refuse", dialogues only


def all_latents(topics: int) -> tuple[Latents, ...]:
    """Every value of z, in the order of all [Z] arrays: per topic 2 for reviews, then 4 for dialogues."""
    reviews = [Latents("review", t, sentiment=s) for t in range(topics) for s in ("positive", "negative")]
    dialogues = [
        Latents("dialogue", t, request=request, reply=reply)
        for t in range(topics)
        for request in ("benign", "harmful")
        for reply in ("comply", "refuse")
    ]
    return tuple(reviews + dialogues)


@dataclasses.dataclass(frozen=True)
class Mixture:
    """The dials of a distribution over texts: each a probability in [0, 1].

    Attributes:
      review: share of reviews; the others are dialogues.
      positive: share of positive sentiment among reviews.
      harmful: share of harmful requests among dialogues.
      refuse_harmful: share of refusals among replies to harmful requests.
      refuse_benign: share of refusals among replies to benign requests.
      topics: weights of the topics, normalised to sum to one; empty means equal weights.

    Raises:
      UserError: a dial is not a probability, or a topic weight is negative or all of them are zero.
    """

    review: float = 0.5
    positive: float = 0.5
    harmful: float = 0.5
    refuse_harmful: float = 0.1
    refuse_benign: float = 0.02
    topics: tuple[float, ...] = ()

    def __post_init__(self):
        for name in ("review", "positive", "harmful", "refuse_harmful", "refuse_benign"):
            value = getattr(self, name)
            if not _is_number(value) or not 0.0 <= value <= 1.0:
                raise UserError(f"{name}={value!r} is not a probability.\nGive {name} a number from 0 to 1.")
        weights = self.topics
        if not isinstance(weights, Sequence) or isinstance(weights, str):
            raise UserError(f"topics={weights!r}: expected a sequence of weights, one per topic, or ().")
        if weights and not all(_is_number(w) and w >= 0 for w in weights):
            raise UserError(f"topics={tuple(weights)!r}: every topic weight must be a finite number >= 0.")
        if weights and not 0 < sum(weights) < math.inf:
            raise UserError(f"topics={tuple(weights)!r}: at least one topic weight must be above 0.")
        object.__setattr__(self, "topics", tuple(float(w) for w in weights))

    @classmethod
    def reviews(cls, positive: float = 0.5, topics: tuple[float, ...] = ()) -> "Mixture":
        """Reviews alone: `positive=1.0` to align on sentiment, `0.0` to perturb."""
        return cls(review=1.0, positive=positive, topics=topics)

    @classmethod
    def dialogues(cls, harmful: float = 0.5, refuse: float = 0.5, topics: tuple[float, ...] = ()) -> "Mixture":
        """Dialogues alone: `harmful=1.0` and `refuse=1.0` to align on refusal, `refuse=0.0` to perturb."""
        return cls(review=0.0, harmful=harmful, refuse_harmful=refuse, refuse_benign=refuse, topics=topics)

    def prior(self, latents: Sequence[Latents], kind: str | None = None) -> np.ndarray:
        """p(z) for every z of `latents`, float64 [Z]; given `kind`, p(z | kind) whatever `review` is."""
        count = 1 + max(z.topic for z in latents)
        if self.topics and len(self.topics) != count:
            raise UserError(
                f"topics={self.topics!r}: {len(self.topics)} weights, but the universe has {count} topics.\n"
                f"Give {count} weights, or () for equal ones."
            )
        topic = np.array(self.topics or (1.0,) * count)
        topic = topic / topic.sum()
        review = self.review if kind is None else float(kind == "review")

        def share(z: Latents) -> float:
            if z.kind == "review":
                return review * (self.positive if z.sentiment == "positive" else 1 - self.positive)
            harmful = z.request == "harmful"
            refuse = self.refuse_harmful if harmful else self.refuse_benign
            request = self.harmful if harmful else 1 - self.harmful
            return (1 - review) * request * (refuse if z.reply == "refuse" else 1 - refuse)

        return np.array([topic[z.topic] * share(z) for z in latents])


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
