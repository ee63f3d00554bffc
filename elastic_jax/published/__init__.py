"""Which numbers did the elasticity paper print?

Ji et al., "Language Models Resist Alignment: Evidence From Data Compression", arXiv 2406.06144, ACL 2025 long 1141. Facts only, to be
drawn beside one's own. Table 1 and Table 3 are printed numbers. Figures 4 to 6 were read off the pictures: `error` is how far a reading
may be off, and where `covered` is "yes" the marker lies behind another and the reading may be off by more.

Two versions of the figures exist, the anonymous submission of May 2024 and the ACL paper. Where they agree a row says "2024-05 and ACL",
where they differ each has a row: the safety scores of the pre-trained models differ by 3 (Figure 4), and on Gemma-2B the curves of 2,000
and 10,000 safe examples carry each other's labels. No version gives seeds or intervals.
"""

import functools
import io
from importlib import resources
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    Frame = Any
else:
    Frame = pd.DataFrame

VERSIONS = ("2024-05", "ACL")


def resistance() -> Frame:
    """Table 1: mean training loss (nats per token) of fine-tuning on answers that another slice of the same fine-tuning wrote.

    Columns: item, version, data, model, later and earlier (the slices k < l), inverse (the later one trained on the earlier one's
    answers), forward (the other way). The loss of each direction is on a text of its own: their difference holds the difference
    of the texts' entropies too.
    """
    return _read("resistance.csv")


def rebound(version: str = "ACL") -> Frame:
    """Figures 4, 5 and 6: score after alignment and after perturbation, as one version of the paper has them.

    Columns: item, version, data, model, align_volume (examples; "mean": over the four volumes; "0": the pre-trained model),
    perturb_volume, score (IMDb: mean probability of a positive text; BeaverTails: "average safe score", higher is safer), error,
    covered.

    Raises:
      ValueError: no such version.
    """
    if version not in VERSIONS:
        raise ValueError(f"version={version!r}: expected one of {', '.join(VERSIONS)}.")
    rows = _read("rebound.csv")
    return rows[rows.version.str.split(" and ").map(lambda names: version in names)].reset_index(drop=True)


def kl_rebound() -> Frame:
    """Table 3: KL between the model aligned on `align_volume` safe examples and the pre-trained one (nats; direction, prompts and
    whether per token are not said), and the unsafe examples after which the KL to the pre-trained model is below 0.01."""
    return _read("kl_rebound.csv")


@functools.cache
def _text(name: str) -> str:
    return resources.files(__name__).joinpath(name).read_text("utf-8")


def _read(name: str) -> Frame:
    return pd.read_csv(io.StringIO(_text(name)), dtype={"align_volume": str} if name == "rebound.csv" else None)
