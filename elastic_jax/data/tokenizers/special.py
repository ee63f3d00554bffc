"""What do the files beside a tokenizer say about its special tokens?

They are `tokenizer_config.json`, `special_tokens_map.json`, `generation_config.json` and `chat_template.jinja`, as transformers
writes them.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elastic_jax.data.tokenizers.protocol import CONFIG_FILE
from elastic_jax.errors import UserError, closest, first_line

MAP_FILE, GENERATION_FILE, JINJA_FILE = "special_tokens_map.json", "generation_config.json", "chat_template.jinja"
NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclasses.dataclass(frozen=True)
class Special:
    """What the files say; "" and None where they say nothing.

    Attributes:
      tokens: the text of each of `NAMES` that is given.
      additional: further special tokens.
      added: number and description of added tokens (`added_tokens_decoder`).
      add_bos: whether a text begins with `bos_token`.
      eos_ids: numbers that end an answer (`generation_config.json`).
      templates: chat templates by their names; a single one is "default".
      settings: `tokenizer_config.json`.
      where: the file to correct.
    """

    tokens: Mapping[str, str] = dataclasses.field(default_factory=dict)
    additional: tuple[str, ...] = ()
    added: Mapping[int, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    add_bos: bool | None = None
    eos_ids: tuple[int, ...] = ()
    templates: Mapping[str, str] = dataclasses.field(default_factory=dict)
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    where: str = CONFIG_FILE

    def flag(self, name: str, default: bool) -> bool:
        """A setting that is true or false, or `default` where nothing is said.

        Raises:
          UserError: it is something else.
        """
        return _field(self.settings, name, bool, default, self.where)

    def template(self, name: str = "") -> str:
        """The chat template of this name.

        Raises:
          UserError: there is none.
        """
        if not self.templates:
            raise UserError(
                f'data.template="chat": {self.where} has no chat_template, and no {JINJA_FILE} lies beside it. Take the tokenizer of '
                'an instruction-tuned model, put a template there, or use another data.template such as "paper".'
            )
        wanted = name or "default"
        if wanted not in self.templates:
            raise UserError(
                f'data.template="chat{":" * bool(name)}{name}": {self.where} has no chat template called {wanted!r}. '
                f'{closest(wanted, self.templates)} Write data.template="chat:NAME".'
            )
        return self.templates[wanted]


def read_special(folder: Path) -> Special:
    """What the files in `folder` say.

    Raises:
      UserError: a file is damaged, or holds another type of value than transformers writes.
    """
    config = read_json(folder / CONFIG_FILE)
    older = read_json(folder / MAP_FILE)
    generation = read_json(folder / GENERATION_FILE)
    where = str(folder / CONFIG_FILE)
    added = _field(config, "added_tokens_decoder", dict, {}, where)
    # As transformers: the older file counts where the newer one does not describe the added tokens itself.
    merged = {**older, **config} if added else {**config, **older}
    tokens = {name: _text(merged[name], name, where) for name in NAMES if merged.get(name) is not None}
    additional = _field(merged, "additional_special_tokens", list, [], where)
    return Special(
        tokens=tokens,
        additional=tuple(_text(token, "additional_special_tokens", where) for token in additional),
        added=_added(added, where),
        add_bos=_field(config, "add_bos_token", bool, None, where),
        eos_ids=_numbers(generation.get("eos_token_id"), str(folder / GENERATION_FILE)),
        templates=_templates(folder, config, where),
        settings=config,
        where=where,
    )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} where there is no file.

    Raises:
      UserError: it is damaged or holds something else.
    """
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a whole JSON file ({first_line(error)}). Copy it again.") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: a JSON object was expected, not a {type(value).__name__}.")
    return value


def _field(values: Mapping[str, Any], name: str, kind: type, default: Any, where: str) -> Any:
    value = values.get(name)
    if value is None:
        return default
    if not isinstance(value, kind):
        raise UserError(f"{where}: {name}={value!r}: a value of type {kind.__name__} was expected.")
    return value


def _text(token: Any, name: str, where: str) -> str:
    """A token is given as its text, or as an object that has it."""
    text = token.get("content") if isinstance(token, Mapping) else token
    if not isinstance(text, str):
        raise UserError(f"{where}: {name}={token!r}: the text of a token was expected.")
    return text


def _added(added: Mapping[str, Any], where: str) -> dict[int, Mapping[str, Any]]:
    for number, token in added.items():
        if not number.isdecimal() or not isinstance(token, Mapping) or not isinstance(token.get("content"), str):
            raise UserError(
                f"{where}: added_tokens_decoder: {number!r}: {token!r}: a number and an object with content were expected."
            )
    return {int(number): token for number, token in added.items()}


def _numbers(value: Any, where: str) -> tuple[int, ...]:
    numbers = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(number, int) and not isinstance(number, bool) and number >= 0 for number in numbers):
        raise UserError(f"{where}: eos_token_id={value!r}: the number of a token was expected, or a list of them.")
    return tuple(numbers)


def _templates(folder: Path, config: Mapping[str, Any], where: str) -> dict[str, str]:
    given = config.get("chat_template")
    if given is None:
        found = {}
    elif isinstance(given, str):
        found = dict(default=given)
    else:
        try:
            found = {str(one["name"]): str(one["template"]) for one in given}
        except (TypeError, KeyError, ValueError):
            raise UserError(
                f"{where}: chat_template must be a text, or a list of objects with name and template."
            ) from None
    if (folder / JINJA_FILE).is_file():
        try:
            found["default"] = (folder / JINJA_FILE).read_text("utf-8")
        except ValueError as error:
            raise UserError(
                f"{folder / JINJA_FILE}: not a text in UTF-8 ({first_line(error)}). Copy it again."
            ) from None
    return found
