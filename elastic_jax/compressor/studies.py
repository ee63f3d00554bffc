"""Which compressor is a point of a study, and how does it compare with others on text that the study holds out?"""

from elastic_jax.analysis import compressors
from elastic_jax.analysis.table import Frame
from elastic_jax.compressor.codec import Codec
from elastic_jax.data import heldout
from elastic_jax.parallel.mesh import without_lanes
from elastic_jax.study.points import Point


def codec_of(point: Point) -> Codec:
    """The model at a point, with the tokenizer of its study."""
    study = point.study
    params = point.params()
    return Codec(study.model, params, study.data.tokenizer, without_lanes(study.mesh), point.run.key, point.updates)


def compare(point: Point, role: str = "pretrain") -> Frame:
    """`compressors.side_by_side` for the held-out texts of a study and the model at one of its points."""
    codec = codec_of(point)
    text = heldout.text(point.study.data, role)
    name = f"{codec.run}, update {codec.updates}"
    return compressors.side_by_side(text, {name: (len(codec.compress(text).data), codec.weights_bytes)})
