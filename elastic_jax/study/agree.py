"""How do all processes of a job take the same decision?

What is done, what is missing and how late it is are read from a disk and a clock, and two processes may read differently. A
process that trains a run which another skips would wait for it for ever. So process 0 looks, and the others are told.
"""

import json
import time
from collections.abc import Callable
from typing import Any

import jax

from elastic_jax.errors import UserError
from elastic_jax.parallel import distributed

CLOCK_EVERY = 8  # readings for each time that process 0 sends; one message per update would be too many


def from_main(make: Callable[[], Any], timeout: float = distributed.TIMEOUT) -> Any:
    """What `make` gives on process 0, as JSON types, on every process; it is called nowhere else.

    Args:
      timeout: seconds that the others wait.

    Raises:
      UserError: that of process 0, on every process; or it took longer than `timeout`.
    """
    if jax.process_count() == 1:
        return make()
    sent = ""
    if distributed.is_main():
        try:
            sent = json.dumps(dict(value=make()))
        except UserError as error:
            sent = json.dumps(dict(error=str(error)))
    received = json.loads(distributed.broadcast_text(sent, timeout))
    if "error" in received:
        raise UserError(received["error"])
    return received["value"]


def clock() -> Callable[[], float]:
    """Seconds on the clock of process 0, for decisions that all have to take at the same update.

    With several processes it stands still between the messages, and every process has to read it equally often.
    """
    if jax.process_count() == 1:
        return time.monotonic
    readings, last = 0, 0.0

    def read() -> float:
        nonlocal readings, last
        if readings % CLOCK_EVERY == 0:
            last = from_main(time.monotonic)
        readings += 1
        return last

    return read
