"""With which tokenizer and which template does a study on text files read its rows?"""

import logging
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from elastic_jax.data.chat import ChatTemplate
from elastic_jax.data.files import digest_of
from elastic_jax.data.prepared import FORMAT
from elastic_jax.data.templates import Template, is_chat, text_template
from elastic_jax.data.tokenizers import BpeTokenizer, PretrainedTokenizer, Tokenizer, load, load_pretrained, train_bpe
from elastic_jax.errors import UserError

# path="": trained on the texts of pre-training, all of them with rows=0. layout: of tiktoken ranks, which do not say it.
DEFAULTS: dict[str, Any] = dict(vocab_size=2048, rows=0, path="", layout="")
_log = logging.getLogger(__name__)


def check(settings: Mapping[str, Any], template: str) -> None:
    """Nothing, when the section `data.tokenizer` can work with `data.template`.

    Raises:
      UserError: a field that has no effect, or a chat template of a tokenizer that is trained here.
    """
    if settings["path"]:
        for name in ("vocab_size", "rows"):
            if settings[name] != DEFAULTS[name]:
                raise UserError(
                    f"data.tokenizer.{name}={settings[name]} is for a tokenizer that is trained here, but data.tokenizer.path="
                    f"{settings['path']!r} names one. Set one of them."
                )
        return
    if settings["layout"]:
        raise UserError(
            f"data.tokenizer.layout={settings['layout']!r} is for the file in data.tokenizer.path, which is empty."
        )
    if is_chat(template):
        raise UserError(
            f"data.template={template!r} is the chat template of a pretrained tokenizer, but data.tokenizer.path is empty, so a "
            'tokenizer is trained here. Name one, or use a template such as "paper" or "USER: {prompt} ASSISTANT: {answer}".'
        )


def choose(
    config: Mapping[str, Any], root: Path, texts: Callable[[Template], Sequence[Mapping[str, str]]]
) -> tuple[Tokenizer, Template | ChatTemplate, Path]:
    """The tokenizer, how prompt and answer are joined, and where under `root` the tokenizer is saved.

    Args:
      config: section `data`.
      texts: gives the rows of pre-training, which a tokenizer is trained on, in a template.

    Raises:
      UserError: no such tokenizer, it has no such chat template, or a special token of it is in a template that is text.
    """
    settings, name = config["tokenizer"], config["template"]
    if not settings["path"]:
        template = text_template(name)
        tokenizer, folder = _trained(texts(template), config, root)
        return tokenizer, template, folder
    pretrained = load_pretrained(settings["path"], settings["layout"])
    template = pretrained.chat(name.partition(":")[2]) if is_chat(name) else text_template(name)
    if typed := [] if is_chat(name) else pretrained.special_tokens_in("".join(text_template(name).split("", ""))):
        raise UserError(
            f"data.template={name!r}: {typed[0]!r} is a special token of the tokenizer, but text in a template like this one. What begins "
            'and ends a text is added anyway; for others use data.template="chat".'
        )
    folder = root / f"tokenizer-{pretrained.digest[:12]}"
    if not _is_saved(pretrained, folder):
        pretrained.save(folder)
    return pretrained, template, folder


def _is_saved(tokenizer: PretrainedTokenizer, folder: Path) -> bool:
    if not folder.is_dir():
        return False
    try:
        saved = load(folder)
        # Templates are not part of the digest, since they change no number, but an export takes them along.
        same = isinstance(saved, PretrainedTokenizer) and saved.templates == tokenizer.templates
        return same and saved.digest == tokenizer.digest
    except UserError as error:
        _log.warning("The tokenizer is damaged and will be saved again: %s", error)
        return False


def _trained(rows: Sequence[Mapping[str, str]], config: Mapping[str, Any], root: Path) -> tuple[BpeTokenizer, Path]:
    """Trained on rows of pre-training alone; the one that is saved, when it was trained on the same rows."""
    settings = config["tokenizer"]
    texts = [row["answer"] for row in rows[: settings["rows"] or None]]
    key = digest_of([FORMAT, metadata.version("tokenizers"), settings["vocab_size"], texts])
    folder = root / f"tokenizer-{key[:12]}"
    if folder.exists():
        try:
            tokenizer = load(folder)
            if isinstance(tokenizer, BpeTokenizer):
                return tokenizer, folder
        except UserError as error:
            _log.warning("The tokenizer is damaged and will be trained again: %s", error)
    tokenizer = train_bpe(texts, settings["vocab_size"])
    tokenizer.save(folder)
    return tokenizer, folder
