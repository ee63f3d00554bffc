"""What does a person see when something they gave us cannot work?"""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in the input, not in the code: shown as its message alone, without a traceback.

    The message says what was given, what was expected and what to do, and names the field.
    """


def first_line(error: BaseException, most: int = 300) -> str:
    """The first line of what an error of a library says, `most` characters of it; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:most]


def closest(name: str, known: Iterable[str], count: int = 3) -> str:
    """The known names nearest to `name`, for the end of a message: `Closest: optim.lr, optim.b1.`"""
    known = sorted(known)
    matches = difflib.get_close_matches(name, known, n=count, cutoff=0.5) or known[:12]
    return f"Closest: {', '.join(matches)}." if matches else "Nothing is defined there."
