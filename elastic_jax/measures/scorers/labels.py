"""Which output of a classifier is the score?"""

from collections.abc import Sequence

import numpy as np

from elastic_jax.errors import UserError, closest


def choose(label: str, labels: Sequence[str], default: str = "") -> int:
    """The number of a label by its name, in any case where that is clear; of the only one where none is named.

    Args:
      default: taken where `label` is "" and there is such a label.

    Raises:
      UserError: no such label, or none was named and there are several.
    """
    for wanted in filter(None, (label, default if not label else "")):
        fitting = [i for i, name in enumerate(labels) if name.casefold() == wanted.casefold()]
        if wanted in labels:
            return list(labels).index(wanted)
        if len(fitting) == 1:
            return fitting[0]
    if label:
        raise UserError(f"label={label}: the classifier has no such label. {closest(label, labels)}")
    if len(labels) == 1:
        return 0
    raise UserError(
        f"which label? The classifier has {', '.join(labels)}; add ,label=NAME for the one whose probability is the score."
    )


def chosen(outputs: np.ndarray, label: int) -> np.ndarray:
    """P(label) by the softmax of outputs [n, labels]; of a single output its own number. float64 [n]."""
    if outputs.shape[1] == 1:
        return outputs[:, 0]
    shifted = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    return shifted[:, label] / shifted.sum(axis=1)
