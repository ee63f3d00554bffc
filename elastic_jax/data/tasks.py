"""Which further tasks does a study have, beside what it aligns to and perturbs with?

`data.tasks.names` lists them; the experiment on orders (`config.order`) trains them one after the other. Each is a data role of its own,
"task-<name>", with rows to train on, held-out rows, and a `Probe`: what a model is given to write on, and who judges that.
"""

import dataclasses
from typing import Any

import numpy as np

from elastic_jax.measures.scorers import Scorer

DEFAULTS: dict[str, Any] = dict(names=(), rows=2048)
_PREFIX = "task-"


def role(task: str) -> str:
    """The data role of a task; also the split of what is measured of it."""
    return _PREFIX + task


def task_of(role: str) -> str:
    """The task that a role is of; "" for other roles."""
    return role.removeprefix(_PREFIX) if role.startswith(_PREFIX) else ""


@dataclasses.dataclass(frozen=True)
class Probe:
    """How the behaviour that a task teaches is measured.

    Attributes:
      prompts: [n, P] int32, as `data.build.StudyData.prompts`; all of one length.
      scorer: P(the task's behaviour | text).
    """

    prompts: np.ndarray
    scorer: Scorer
