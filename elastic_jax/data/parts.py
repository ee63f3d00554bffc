"""Of what is a study's data made, before it has a name?"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from elastic_jax.data.prepared import Prepared
from elastic_jax.data.tasks import Probe
from elastic_jax.data.tokenizers import Tokenizer
from elastic_jax.measures.scorers import Scorer


@dataclasses.dataclass(frozen=True)
class Parts:
    """See `elastic_jax.data.build.StudyData`, which is this and a digest."""

    tokenizer: Tokenizer
    tokenizer_folder: Path  # where it is saved
    train: dict[str, Prepared]
    heldout: dict[str, Prepared]
    log_prob: dict[str, np.ndarray]
    prompts: np.ndarray
    scorer: Scorer
    facts: list[dict[str, Any]]
    prompt_lengths: np.ndarray | None = None
    probes: dict[str, Probe] = dataclasses.field(default_factory=dict)
