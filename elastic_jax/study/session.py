"""What do the studies of one process have in common?

Programs that were compiled, and the account of where the time went: nothing that changes a number. The variants of a config share one,
and whoever runs several configs one after the other can hand it from one to the next.
"""

import threading
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from elastic_jax.train.account import Account

T = TypeVar("T")


class Session:
    """
    Attributes:
      account: seconds of all of its studies.
    """

    def __init__(self) -> None:
        self.account = Account()
        self._made: dict[Hashable, Any] = {}
        self._lock = threading.RLock()

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` gave when it was first asked for under this key, in any thread; what it depends on has to be in the key."""
        with self._lock:
            if key not in self._made:
                self._made[key] = make()
            return self._made[key]
