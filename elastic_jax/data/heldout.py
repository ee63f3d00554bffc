"""What do the held-out rows say, as text, and how small do general-purpose compressors make it?"""

import numpy as np

from elastic_jax.analysis import compressors
from elastic_jax.data.build import StudyData
from elastic_jax.data.facts import Fact, fact
from elastic_jax.errors import UserError, closest

_MOST_BYTES = 4 << 20  # xz -9e reads about a megabyte in a second


def text(data: StudyData, role: str = "pretrain") -> bytes:
    """Texts that no run was trained on, a line each: those of "pretrain", "align" or "perturb", with their prompts.

    A text that is longer than a row was cut when it was prepared; a line break within one stays.
    """
    if role not in data.heldout:
        raise UserError(f"held-out texts of {role!r}: there are none. {closest(role, data.heldout)}")
    prepared = data.heldout[role]
    tokens = np.asarray(prepared.arrays()["tokens"])
    # Up to the last target that the loss counts; what begins and ends a row is no text and decoded as none.
    rows = [row[: size + 1].tolist() for row, size in zip(tokens, prepared.sizes, strict=True)]
    return "".join(f"{line}\n" for line in data.tokenizer.decode(rows)).encode()


def compressed(data: StudyData) -> list[Fact]:
    """Bits per byte of held-out pre-training text (of so much of it as takes seconds) in each of `compressors.general`, for the table of
    measures; [] where there is none.

    Those of alignment and perturbation are left out: there a model is measured on answers whose prompts it was given.
    """
    whole = text(data)[:_MOST_BYTES] if "pretrain" in data.heldout else b""
    sizes = {name: len(compress(whole)) for name, compress in compressors.general().items()} if whole else {}
    return [
        fact(
            compressors.MEASURE + name.partition(" ")[0],
            8 * size / len(whole),
            "bits/byte",
            "pretrain-heldout",
            n=len(whole),
            text=name,
        )
        for name, size in sizes.items()
    ]
