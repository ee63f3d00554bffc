"""How does a chat template write a conversation, and which of its characters did the assistant write?

Templates are Jinja, as `tokenizer_config.json` and `chat_template.jinja` ship them. They are rendered as transformers documents
(https://huggingface.co/docs/transformers/chat_templating_writing): an immutable sandbox, blocks trimmed, `loopcontrols`, the tag
`generation`, `raise_exception`, `strftime_now` and a `tojson` that leaves HTML alone.
"""

import dataclasses
import datetime
import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from elastic_jax.errors import UserError, first_line

# Characters that no text is meant to hold. What they mark is told apart after rendering, whatever the template does around it.
_OPEN, _CLOSE, _TYPED = "\U0010fe00", "\U0010fe01", "\U0010fe02"
_MARKS = re.compile(f"{_OPEN}|{_CLOSE}|{_TYPED}([0-9]+){_TYPED}")
# What `strftime_now` tells: prepared data must not depend on the day it is made. It is the day that Llama 3.1's own template takes
# when it is not told another.
DATE = datetime.datetime(2024, 7, 26)
_SHOWN = 60  # characters of a message in an error


@dataclasses.dataclass(frozen=True)
class Rendered:
    """A conversation as text.

    Attributes:
      text: all of it.
      begins: where the answer begins in it.
      spans: (begin, end) of the characters that the loss counts.
      typed: (begin, end) of what looks like a special token but was typed by somebody.
    """

    text: str
    begins: int
    spans: tuple[tuple[int, int], ...] = ()
    typed: tuple[tuple[int, int], ...] = ()


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A conversation in the form that a model was taught.

    Attributes:
      source: the Jinja text.
      variables: what the template may ask for besides the messages: `bos_token`, `eos_token` and their kin.
      specials: texts of special tokens; in a message they are text.
      where: the file, for errors.
      date: what `strftime_now` tells.
      everything: whether the loss counts whole conversations, and not the assistant's part alone.
    """

    source: str
    variables: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    specials: tuple[str, ...] = ()
    where: str = "chat template"
    date: datetime.datetime = DATE
    everything: bool = False

    has_prompt = True

    def __post_init__(self):
        _ = self._compiled  # an error in the template is found where it is read

    @functools.cached_property
    def text(self) -> str:
        """Equal for templates that give equal texts."""
        known = dict(self.variables)
        parts = [self.source, known, self.date.isoformat(), *([True] if self.everything else [])]
        return json.dumps(parts, sort_keys=True)

    @functools.cached_property
    def _compiled(self) -> jinja2.Template:
        if any(mark in self.source for mark in (_OPEN, _CLOSE, _TYPED)):
            raise UserError(f"{self.where}: the chat template holds characters of a private plane (U+10FE00).")
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = self.date.strftime
        try:
            return environment.from_string(self.source)
        except jinja2.TemplateError as error:
            line = f" (line {error.lineno})" if isinstance(error, jinja2.TemplateSyntaxError) else ""
            raise UserError(f"{self.where}: the chat template is not valid Jinja{line}: {first_line(error)}") from None

    @functools.cached_property
    def _special(self) -> re.Pattern[str]:
        longest_first = sorted(self.specials, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, [*longest_first, _OPEN, _CLOSE, _TYPED])))

    @functools.cached_property
    def tags(self) -> bool:
        """Whether the template itself says what the assistant writes, by `{% generation %}`."""
        return re.search(r"\{%-?\s*generation\s*-?%\}", self.source) is not None

    def begin(self, prompt: str | Sequence[Mapping[str, Any]], name: str = "") -> Rendered:
        """What the model is given to answer `prompt`: a text, or messages `{"role", "content"}` of which the last is not the model's.

        Raises:
          UserError: the template fails.
        """
        return self._render(_messages(prompt), name, asked=True)

    def whole(self, prompt: str | Sequence[Mapping[str, Any]], answer: str, name: str = "") -> Rendered:
        """The conversation with its answer. It begins with the text of `begin`.

        The loss counts what the template marks by `{% generation %}`; without such marks, of every message of the assistant what
        the template writes after asking for it.

        Args:
          name: of the row, for errors.

        Raises:
          UserError: the template fails, or changes what stands before an answer when the answer comes.
        """
        asked = _messages(prompt)
        messages = [*asked, dict(role="assistant", content=answer)]
        whole = self._render(messages, name)
        begins = len(self._before(whole, asked, messages, name))
        spans = whole.spans
        if self.everything:
            bos = str(self.variables.get("bos_token") or "")
            spans = ((len(bos) if bos and whole.text.startswith(bos) else 0, len(whole.text)),)
        elif not self.tags:
            spans = []
            for number, message in enumerate(asked):
                if message["role"] == "assistant":
                    before = self._before(whole, asked[:number], messages, name)
                    until = self._render(asked[: number + 1], name).text
                    if not whole.text.startswith(until):
                        raise self._changed(name)
                    spans.append((len(before), len(until)))
            spans = (*spans, (begins, len(whole.text)))
        if not spans:
            raise UserError(f"{self._what(name)}: nothing of the answer is inside {{% generation %}}.")
        return dataclasses.replace(whole, begins=begins, spans=spans)

    def _before(self, whole: Rendered, asked: list, messages: list, name: str) -> str:
        text = self._render(asked, name, asked=True).text
        if not whole.text.startswith(text):
            raise self._changed(name)
        return text

    def _changed(self, name: str) -> UserError:
        return UserError(
            f"{self._what(name)}: with the answer the template writes another text before the answer than the one it asks with "
            "(add_generation_prompt=True), so the loss cannot tell them apart. Mark what the assistant writes by "
            '{% generation %}, shorten conversations to one turn, or use another data.template such as "paper".'
        )

    def _what(self, name: str) -> str:
        return f'data.template="chat": {self.where}' + (f", row {name}" if name else "")

    def _render(self, messages: list[dict[str, Any]], name: str, asked: bool = False) -> Rendered:
        literals: list[str] = []
        safe = [self._escaped(message, literals) for message in messages]
        try:
            return _unmarked(self._text(safe, asked), literals)
        except Exception as error:  # a template is somebody's program: it may raise anything
            raise UserError(self._failure(safe, literals, name, asked, error)) from None

    def _text(self, messages: list[dict[str, Any]], asked: bool) -> str:
        return self._compiled.render(
            messages=messages, tools=None, documents=None, add_generation_prompt=asked, **self.variables
        )

    def _failure(self, messages: list, literals: list[str], name: str, asked: bool, error: Exception) -> str:
        """Which message the template failed on: the last of the shortest beginning of the conversation that fails alike."""
        at = len(messages)
        for count in range(1, len(messages)):
            try:
                self._text(messages[:count], asked)
            except Exception as shorter:
                if first_line(shorter) == first_line(error):
                    at = count
                    break
        message = messages[at - 1] if messages else dict(role="", content="")
        text = str(message.get("content", ""))
        text = _unmarked(text, literals).text
        roles = ", ".join(str(message.get("role")) for message in messages)
        return (
            f"{self._what(name)}: the chat template fails at message {at} of {len(messages)} ({message.get('role')}: "
            f"{text[:_SHOWN]!r}): {first_line(error)}\nThe roles are {roles}. Change the messages to what the template takes, or use "
            'another data.template such as "paper".'
        )

    def _escaped(self, value: Any, literals: list[str], key: str = "") -> Any:
        """Messages in which what looks like a special token is a mark that stands for it."""
        if isinstance(value, str):
            return value if key == "role" else self._special.sub(functools.partial(_stand_in, literals), value)
        if isinstance(value, Mapping):
            return {name: self._escaped(item, literals, str(name)) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._escaped(item, literals) for item in value]
        return value


def _messages(prompt: str | Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    if isinstance(prompt, str):
        return [dict(role="user", content=prompt)]
    return [dict(message) for message in prompt]


def _stand_in(literals: list[str], found: re.Match[str]) -> str:
    literals.append(found[0])
    return f"{_TYPED}{len(literals) - 1}{_TYPED}"


def _unmarked(text: str, literals: Sequence[str]) -> Rendered:
    """The text without marks, and where they were."""
    parts: list[str] = []
    spans: list[tuple[int, int]] = []
    typed: list[tuple[int, int]] = []
    place = begin = opened = 0
    for mark in _MARKS.finditer(text):
        parts.append(text[begin : mark.start()])
        place += mark.start() - begin
        begin = mark.end()
        if mark[0] == _OPEN:
            opened = place
        elif mark[0] == _CLOSE:
            spans.append((opened, place))
        else:
            literal = literals[int(mark[1])]
            parts.append(literal)
            typed.append((place, place + len(literal)))
            place += len(literal)
    return Rendered("".join([*parts, text[begin:]]), 0, tuple(spans), tuple(typed))


class _Generation(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}`: what the assistant writes."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Any) -> str:
        return f"{_OPEN}{caller()}{_CLOSE}"


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
