"""Where does the prompt of a row end and the answer begin?"""

import dataclasses
import functools
import string

from elastic_jax.errors import UserError, closest


@dataclasses.dataclass(frozen=True)
class Template:
    """A text with the fields `{answer}` and, before it, perhaps `{prompt}`.

    All before `{answer}` is given to the model and never in the loss; the answer and what follows it are.
    One blank before `{answer}` goes with the answer, because tokenizers trained on running text
    write a word together with the blank before it.

    >>> Template("USER: {prompt} ASSISTANT: {answer}").split("Hi", "Hello.")
    ('USER: Hi ASSISTANT:', ' Hello.')
    """

    text: str
    field: str = "data.template"

    def __post_init__(self):
        try:
            fields = [name for _, name, _, _ in string.Formatter().parse(self.text) if name is not None]
            plain = all(
                not spec and not conversion
                for _, name, spec, conversion in string.Formatter().parse(self.text)
                if name is not None
            )
        except ValueError as error:
            raise UserError(
                f"{self.field}={self.text!r}: {error}. A brace that stands for itself is written twice."
            ) from error
        for name in fields:
            if name not in ("prompt", "answer"):
                raise UserError(
                    f"{self.field}={self.text!r}: no field {{{name}}}. {closest(name, ('prompt', 'answer'))}"
                )
        if not plain or fields not in (["answer"], ["prompt", "answer"]):
            raise UserError(
                f"{self.field}={self.text!r} must hold {{answer}} once and, before it, {{prompt}} at "
                "most once, "
                'without formatting.\nExamples: "{answer}", "USER: {prompt} ASSISTANT: {answer}".'
            )

    @property
    def has_prompt(self) -> bool:
        """Whether the template has a place for a prompt."""
        return len(self._literals) == 3

    @functools.cached_property
    def _literals(self) -> tuple[str, ...]:
        """The text before, between and after the fields."""
        literals = [""]
        for literal, field, _, _ in string.Formatter().parse(self.text):
            literals[-1] += literal  # an escaped brace also ends a part, one without a field
            if field is not None:
                literals.append("")
        return tuple(literals)

    def split(self, prompt: str, answer: str) -> tuple[str, str]:
        """What is given to the model and what it is to write; joined, they are the whole text."""
        *before, between, after = self._literals
        head = before[0] + prompt + between if before else between
        if head.endswith(" "):
            return head[:-1], " " + answer + after
        return head, answer + after


PLAIN = Template("{answer}")
# Of the conversations that the paper aligns on; the answer follows the colon without a blank.
PAPER = Template("BEGINNING OF CONVERSATION: USER: {prompt} ASSISTANT:{answer}")


def is_chat(text: str) -> bool:
    """Whether `data.template` asks for a chat template of the tokenizer: "chat", or "chat:NAME" where it has several."""
    return text == "chat" or text.startswith("chat:")


def text_template(text: str) -> Template:
    """The template that `data.template` names ("paper") or is.

    Raises:
      UserError: it is neither.
    """
    return PAPER if text == "paper" else Template(text)
