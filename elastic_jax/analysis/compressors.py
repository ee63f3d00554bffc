"""How small do other compressors make a text that a model has compressed?"""

import bz2
import gzip
import lzma
import sys
from collections.abc import Callable, Mapping
from typing import Any

from elastic_jax.analysis import statistics, table
from elastic_jax.analysis.table import Frame, Study
from elastic_jax.errors import UserError

# Begins the measures of rows about data that say what a general-purpose compressor reaches: compressed_by_gzip and so on.
MEASURE = "compressed_by_"
_POINTS = (("pre-trained", "pretrain", "base"), ("aligned", "align", "aligned"), ("perturbed", "perturb", "aligned"))


def general() -> dict[str, Callable[[bytes], bytes]]:
    """General-purpose compressors at their highest settings."""
    return {
        "gzip -9": lambda data: gzip.compress(data, 9, mtime=0),
        "bzip2 -9": lambda data: bz2.compress(data, 9),
        "xz -9e": lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME),
        "zstd -22": _zstd,
    }


def _zstd(data: bytes) -> bytes:
    if sys.version_info >= (3, 14):
        from compression import zstd

        return zstd.compress(data, 22)
    import zstandard

    return zstandard.ZstdCompressor(level=22).compress(data)


def side_by_side(text: bytes, models: Mapping[str, tuple[int, int]]) -> Frame:
    """Sizes of one text, compressed by models and by general-purpose compressors, smallest first.

    Args:
      models: name -> (bytes of the compressed file, bytes of the model).

    Returns:
      Columns compressor, bytes, bits_per_byte, share (of the original), model_bytes, with_model_bytes. A general-purpose compressor
      knows nothing beforehand; a model was trained on other text and is needed again to read the file. So its size stands apart, and
      `with_model_bytes` is what an honest race over this one text would count.

    Raises:
      UserError: no text.
    """
    if not text:
        raise UserError("side_by_side: there is no text to compress.")
    sizes = {name: (size, model) for name, (size, model) in models.items()}
    sizes |= {name: (len(compress(text)), 0) for name, compress in general().items()}
    rows = [
        dict(
            compressor=name,
            bytes=size,
            bits_per_byte=8 * size / len(text),
            share=size / len(text),
            model_bytes=model,
            with_model_bytes=size + model,
        )
        for name, (size, model) in sizes.items()
    ]
    columns = ["compressor", "bytes", "bits_per_byte", "share", "model_bytes", "with_model_bytes"]
    return table.frame(sorted(rows, key=lambda row: row["bytes"]), columns)


def beside_models(study: Study, level: float = statistics.LEVEL) -> Frame:
    """Bits per byte of held-out pre-training text: models at the ends of their stages, and general-purpose compressors.

    A model's are its measured `bits_per_byte`, which `elastic_jax.compress` reaches within a percent. Aligned and perturbed: of the
    largest volume. Columns model ("" for a general-purpose compressor), compressor, mean, low, high, n (seeds), largest first. Empty
    where the table does not record what other compressors reach.
    """
    rows = study.rows
    general_rows = rows[(rows.stage == "data") & rows.measure.str.startswith(MEASURE)]
    if not len(general_rows):
        return table.frame([], ["model", "compressor", "mean", "low", "high", "n"])
    found: list[dict[str, Any]] = [
        dict(model="", compressor=row["text"], mean=row["value"], low=float("nan"), high=float("nan"), n=0)
        for row in general_rows.to_dict("records")
    ]
    measured = rows[(rows.measure == "bits_per_byte") & (rows.split == "pretrain")]
    for name, stage, arm in _POINTS:
        part = measured[(measured.stage == stage) & (measured.arm == arm)]
        for model, of_model in part.groupby("model", sort=True):
            of_model = of_model[of_model.align_volume == of_model.align_volume.max()]
            ends = of_model.sort_values("updates", kind="stable").groupby("seed", sort=True).value.last()
            estimate = statistics.mean_interval(ends.to_numpy(), level)
            found.append(
                dict(model=model, compressor=f"model, {name}", mean=estimate.mean, low=estimate.low, high=estimate.high)
                | dict(n=estimate.n)
            )
    frame = table.frame(found, ["model", "compressor", "mean", "low", "high", "n"])
    return frame.sort_values("mean", ascending=False, kind="stable", ignore_index=True)
