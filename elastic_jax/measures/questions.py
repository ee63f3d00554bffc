"""What was asked, without the words that the study's template puts around it?

Models read prompts in their template; a judge that has a template of its own needs the question alone.
"""

import dataclasses

from elastic_jax.data.documents import encode_prompts
from elastic_jax.data.templates import is_chat, text_template
from elastic_jax.data.tokenizers import PretrainedTokenizer, Tokenizer

_STAND_IN = "Zzyxqv"  # a question that no template holds


@dataclasses.dataclass(frozen=True)
class Frame:
    """What stands before and after the question in a prompt, as the tokenizer decodes it."""

    before: str = ""
    after: str = ""

    def question(self, prompt: str) -> str:
        """The question in a decoded prompt; the prompt itself where it is of another form.

        >>> Frame("USER: ", " ASSISTANT:").question("USER: How are you? ASSISTANT:")
        'How are you?'
        """
        framed = prompt.startswith(self.before) and prompt.endswith(self.after)
        if not framed or len(prompt) < len(self.before) + len(self.after):
            return prompt
        return prompt[len(self.before) : len(prompt) - len(self.after)].strip()


NO_FRAME = Frame()


def frame_of(template: str, tokenizer: Tokenizer) -> Frame:
    """The frame of `data.template`: a format, "paper", or the tokenizer's chat template; empty where it has no place for a prompt."""
    if is_chat(template) and isinstance(tokenizer, PretrainedTokenizer):
        made = tokenizer.chat(template.partition(":")[2])
    else:
        made = text_template(template)
    if not made.has_prompt:
        return NO_FRAME
    [decoded] = tokenizer.decode(encode_prompts([_STAND_IN], tokenizer, made))
    before, found, after = decoded.partition(_STAND_IN)
    return Frame(before, after) if found else NO_FRAME
