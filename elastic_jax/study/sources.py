"""What do the checkpoints that a study starts from say of it before their weights are read?

Their `config.json` gives the model, their tokenizer the data's; both have to be the same for all bases of a study, which share
its data, its compiled programs and its measures.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from elastic_jax import base as base_lib
from elastic_jax.base import Base
from elastic_jax.config import Config
from elastic_jax.data import tokenizers
from elastic_jax.errors import UserError
from elastic_jax.hf.source import Source, open_source
from elastic_jax.models.config import ModelConfig

Sources = Mapping[Base, Source]


def opened(config: Config, weights: bool = True) -> Sources:
    """The source of every base that the config names, in its order.

    Args:
      weights: False where they will not be read: those of a hub id are not downloaded.

    Raises:
      UserError: there is no such folder or hub id, or it is of no family that is known here.
    """
    return {base: open_source(base.where, base.revision, weights=weights) for base in base_lib.named(config.base)}


def model_config(sources: Sources, config: Config, vocab_size: int = 0) -> ModelConfig:
    """The model that all of them are.

    Args:
      vocab_size: of the tokenizer; 0, where there is none yet: the rows of their tables.

    Raises:
      UserError: their architectures differ, or their tables have no row for some tokens.
    """
    settings: dict[str, Any] = {
        name: config.model[name] for name in base_lib.SETTABLE if config.model[name] is not None
    }
    if config.base.dtype:
        settings["param_dtype"] = config.base.dtype
    made = {base: source.model_config(vocab_size, config.data.seq_len, **settings) for base, source in sources.items()}
    (first, wanted), *others = made.items()
    for base, other in others:
        if other != wanted:
            fields = [field.name for field in dataclasses.fields(wanted)]
            pairs = [(name, getattr(wanted, name), getattr(other, name)) for name in fields]
            differ = [f"{name} {one} and {two}" for name, one, two in pairs if one != two]
            raise UserError(
                f"base.hf: {first.label} and {base.label} are different models ({', '.join(differ)}). The bases of one study differ "
                "in their pre-training alone; make a study of each in one --workdir."
            )
    return wanted


def data_section(sources: Sources, config: Config) -> dict[str, Any]:
    """The section `data` with the tokenizer of the bases, unless it names another.

    Raises:
      UserError: bases with different tokenizers, or one with more tokens than its tables have rows.
    """
    section, first, digest = config.data.to_dict(), None, ""
    settings = section["tokenizer"]
    if not settings["path"]:
        settings["path"] = str(next(iter(sources.values())).folder)
        for base, source in sources.items():
            found = tokenizers.load_pretrained(source.folder, settings["layout"]).digest
            if first is not None and found != digest:
                raise UserError(
                    f"base.hf: the tokenizers of {first.label} and {base.label} differ, and the bases of one study share their data. "
                    "Make a study of each, or name one tokenizer in data.tokenizer.path."
                )
            first, digest = base, found
    model_config(sources, config, tokenizers.load_pretrained(settings["path"], settings["layout"]).vocab_size)
    return section
