"""Which published checkpoint does a study start from, and what are its numbers?"""

import dataclasses
import json
import os
from functools import cached_property
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from elastic_jax.errors import UserError, first_line
from elastic_jax.hf import hub, identity, load
from elastic_jax.hf.tensors import Tensors
from elastic_jax.models.config import ModelConfig
from elastic_jax.models.families import Family, family_of
from elastic_jax.models.transformer import Decoder, Params

CONFIG = "config.json"
# Tables are rounded up to it, so that they divide over the mesh and fill the tiles of an accelerator.
VOCAB_MULTIPLE = 128


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint in the layout of Hugging Face. Nothing of it is read before it is asked for.

    Attributes:
      folder: where its files lie.
      revision: the commit on the hub; "" for a local folder.
    """

    folder: Path
    revision: str = ""

    @cached_property
    def hf_config(self) -> dict[str, Any]:
        """What config.json says. Raises UserError when it is missing or damaged."""
        return read_config(self.folder)

    @cached_property
    def family(self) -> Family:
        """Raises UserError for an architecture that is not supported, or that is no language model."""
        return family_of(self.hf_config)

    @cached_property
    def digest(self) -> str:
        """Identity of the model and its weights, by content: `hf.identity.digest`."""
        return identity.digest(self.hf_config, self.tensors.files)

    @cached_property
    def tensors(self) -> Tensors:
        """The weights. Raises UserError when they are missing or damaged."""
        return Tensors(self.folder)

    def model_config(self, vocab_size: int, seq_len: int, **execution: Any) -> ModelConfig:
        """The model, with tables that are padded inside.

        Args:
          vocab_size: of the tokenizer. It may be smaller than the tables: rows that no token uses count in the softmax, as they do
            for everyone who uses the checkpoint.
          seq_len: of the rows of the study.
          execution: fields of `models.families.EXECUTION`: dtype, param_dtype, layout, remat, attention, loss_chunk.

        Raises:
          UserError: the tokenizer has more tokens than the tables have rows, rows are longer than a learned table, or config.json
            asks for something that is not supported.
        """
        fields = self.family.fields(self.hf_config)
        rows = self.family.vocabulary(self.hf_config)
        if vocab_size > rows:
            raise UserError(
                f"{self.folder}: the tokenizer has {vocab_size} tokens and the model {rows} rows for them. Give the model's own "
                "tokenizer (data.tokenizer.path), or a checkpoint whose embedding was resized for this one."
            )
        table = -(-rows // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
        used = rows if table > rows else 0
        return ModelConfig(vocab_size=table, used_vocab=used, seq_len=seq_len, **fields, **execution)

    def load_params(self, model: Decoder, mesh: Mesh) -> Params:
        """See `hf.load.load_params`."""
        return load.load_params(model, mesh, self.tensors, self.family)


def open_source(where: str | os.PathLike, revision: str = "", *, weights: bool = True) -> Source:
    """A published checkpoint.

    Args:
      where: a local folder with config.json and *.safetensors, or an id of the Hugging Face hub.
      revision: a branch, tag or commit of the hub.
      weights: False where they will not be asked for: then they are not downloaded.

    Raises:
      UserError: there is no such folder, or the hub does not give it (`hf.hub.download`); config.json is missing, damaged, or of an
        architecture that is not supported.
    """
    source = find_source(where, revision, weights=weights)
    _ = source.family
    return source


def find_source(where: str | os.PathLike, revision: str = "", *, weights: bool = True, asked: str = "") -> Source:
    """As `open_source`, of any architecture: nothing is read yet.

    Args:
      asked: the field by which it was asked for, where that is not `base.hf`.
    """
    text = os.fspath(where)
    field, field_of_revision = asked or f"base.hf={text}", f"{asked}: revision" if asked else "base.revision"
    if "://" in text:
        raise UserError(
            f"{field}: a folder or an id of the hub was expected. Copy the files into a folder and give that."
        )
    folder = Path(text).expanduser()
    if folder.is_dir():
        if revision:
            raise UserError(
                f"{field_of_revision}={revision} has no effect: {text} is a local folder, which has no revisions. Leave it out, or "
                "name the folder of that revision."
            )
        return Source(folder)
    if folder.exists():
        raise UserError(f"{field}: {folder} is a file. Give the folder that holds {CONFIG} and the weights.")
    if hub.is_id(text):
        return Source(*hub.download(text, revision, weights, asked))
    raise UserError(
        f"{field}: no folder {folder} (looked from {os.getcwd()}). Give a folder with {CONFIG} and *.safetensors, or an id of the "
        "Hugging Face hub such as owner/name."
    )


def read_config(folder: Path) -> dict[str, Any]:
    """What a checkpoint's config.json says.

    Raises:
      UserError: there is none, or it is no JSON object.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(f"{folder}: no {CONFIG}, which says what the model is. Give the folder that holds it.")
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}). Get it again.") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} holds {type(config).__name__}, a JSON object was expected. Get it again.")
    return config
