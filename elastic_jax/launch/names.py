"""What is a job called, so that every engine takes the name and the same job always has the same one?"""

import re
from collections.abc import Sequence

from elastic_jax.data.files import digest_of
from elastic_jax.errors import UserError

DIGITS = 10  # of the hash: 40 bits, so that a thousand jobs share one with probability 5e-7
_VALID = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


def slug(text: str) -> str:
    """Lower-case letters, digits and single hyphens, with a letter or digit at both ends.

    >>> slug("Perturb_s0--a1.5")
    'perturb-s0-a1-5'
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def make(prefix: str, title: str, identity: Sequence[str], limit: int) -> str:
    """`prefix-title-hash`, a DNS label (RFC 1035): the strictest rule among the engines.

    Args:
      title: for people; cut where the name would be too long, since the hash alone tells names apart.
      identity: what makes the job this job.
      limit: characters that the engine allows.

    Raises:
      UserError: the prefix is no label, or leaves no room.

    >>> make("ej", "perturb-s0-a16", ["runs/a", "perturb-s0-a16-0123456789ab"], limit=40)
    'ej-perturb-s0-a16-c1257a98d5'
    """
    longest = limit - DIGITS - 4  # two hyphens, and at least two characters of the title
    if not _VALID.fullmatch(prefix) or len(prefix) > longest:
        raise UserError(
            f"--prefix={prefix}: expected at most {longest} lower-case letters, digits and hyphens, the first a letter and "
            "the last no hyphen: engines take no other names."
        )
    room = limit - DIGITS - len(prefix) - 2
    return f"{prefix}-{slug(title)[:room].strip('-')}-{digest_of(list(identity))[:DIGITS]}"
