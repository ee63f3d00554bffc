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


class Pulse:
    """What process 0 sees of the time and of interruptions, at the same update on every process.

    Process 0 tells the others about once a second: a message per update would be too many where updates take a millisecond,
    and one in so many updates too few where they take a minute.

    Args:
      requested: whether this process was asked to end.
      seconds: between messages, at the least one update.
    """

    def __init__(self, requested: Callable[[], Any], seconds: float = 1.0):
        self._requested, self._seconds = requested, seconds
        self._several = jax.process_count() > 1
        self._left = self._every = 1
        self._now, self._end = 0.0, False
        self._sent = time.monotonic()
        self._channel = distributed.Channel("pulse") if self._several else None
        if self._several:
            self._beat()

    def clock(self) -> float:
        """Seconds on the clock of process 0; with several processes it stands still between the messages."""
        return self._now if self._several else time.monotonic()

    def interrupted(self) -> bool:
        """Whether all processes end here; every process has to ask after every update."""
        if not self._several:
            return bool(self._requested())
        self._left -= 1
        if self._left == 0:
            self._beat()
        return self._end

    def _beat(self) -> None:
        assert self._channel is not None

        def look() -> dict[str, Any]:
            now = time.monotonic()
            fitting = int(self._every * self._seconds / max(now - self._sent, 1e-9))
            self._sent = now
            # No more than twice as many: the first updates may be slower than those on which a number was based.
            every = max(1, min(fitting, 2 * self._every))
            return dict(now=now, end=bool(self._requested()), every=every)

        told = json.loads(self._channel.broadcast(json.dumps(look()) if distributed.is_main() else ""))
        self._now, self._end = told["now"], told["end"]
        self._left = self._every = told["every"]
