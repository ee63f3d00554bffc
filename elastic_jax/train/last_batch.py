"""What becomes of the examples that do not fill the last batch of a volume?

Frameworks differ, and their users rarely know: a volume of 100 in batches of 64 is one update where the rest is dropped, two where it
is flushed, and two of which the second is small where it is padded. Volumes below one batch are then no update at all, or one.
"""

from typing import Literal

LastBatch = Literal["whole", "drop", "flush", "pad"]
CHOICES: dict[str, str] = {
    "whole": "every volume is a whole number of batches",
    "drop": "the rest is not trained on: floor(volume / batch) updates, which may be none",
    "flush": "one more update on the rest, normalised by its own tokens",
    "pad": "one more update on the rest and rows of no weight, normalised as a full batch",
}


def updates_of(volume: int, batch_size: int, how: LastBatch) -> int:
    """How many updates a volume makes.

    >>> [updates_of(100, 64, how) for how in ("drop", "flush", "pad")]
    [1, 2, 2]
    """
    return volume // batch_size if how in ("whole", "drop") else -(-volume // batch_size)


def examples_after(updates: int, batch_size: int, last: int, last_rows: int) -> int:
    """Examples behind a number of updates.

    Args:
      last: the update whose batch may not be whole.
      last_rows: examples in it; 0 where it is whole.
    """
    missing = batch_size - last_rows if last_rows and updates >= last else 0
    return updates * batch_size - missing
