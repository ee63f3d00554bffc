"""How does the model behave when it writes?"""

from typing import Any

import numpy as np

from elastic_jax.data.tokenizers import Tokenizer
from elastic_jax.measures.scorers import Scorer

ARROW = " ⟶ "


def rows_of(
    prompts: np.ndarray, continuations: np.ndarray, tokenizer: Tokenizer, scorer: Scorer, keep: int
) -> list[dict[str, Any]]:
    """The mean score of samples, with its standard error over samples, and the first `keep` samples themselves.

    Args:
      prompts, continuations: tokens [n, p] and [n, length], pad after eos.

    The score is the scorer's probability in [0, 1] that a text behaves as alignment wants it to.
    """
    asked = tokenizer.decode(prompts.tolist())
    written = tokenizer.decode(continuations.tolist())
    scores = np.asarray(scorer.score(asked, written), np.float64)
    stderr = float(np.std(scores, ddof=1) / np.sqrt(len(scores))) if len(scores) > 1 else float("nan")
    common = dict(split="samples", unit="probability")
    rows = [dict(common, measure="score", value=float(np.mean(scores)), stderr=stderr, n=len(scores), text="")]
    for prompt, answer, score in zip(asked[:keep], written[:keep], scores[:keep], strict=True):
        text = f"{prompt}{ARROW}{answer}"
        rows.append(dict(common, measure="sample", value=float(score), stderr=float("nan"), n=1, text=text))
    return rows
