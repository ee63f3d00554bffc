"""Is the question what was asked, under every template?"""

import pytest

from elastic_jax.data.documents import encode_prompts
from elastic_jax.data.templates import text_template
from elastic_jax.data.tokenizers import load_pretrained, train_bpe
from elastic_jax.measures.questions import Frame, frame_of

QUESTIONS = ["How are you?", "USER: a trap ASSISTANT:", "Where is the film, and why?"]
CHAT = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


@pytest.mark.parametrize(
    "template", ["paper", "USER: {prompt} ASSISTANT: {answer}", "{prompt}{answer}", "Q: {prompt}\n{answer}"]
)
def test_of_a_format(template):
    tokenizer = train_bpe(["USER: how are you ASSISTANT: fine"] * 3, 300)
    frame = frame_of(template, tokenizer)
    prompts = tokenizer.decode(encode_prompts(QUESTIONS, tokenizer, text_template(template)))
    assert [frame.question(prompt) for prompt in prompts] == QUESTIONS


def test_of_a_chat_template_whose_special_tokens_are_not_decoded(tmp_path):
    import json

    train_bpe(["how are you"] * 3, 300).save(tmp_path)
    spec = json.loads((tmp_path / "tokenizer.json").read_text())
    size = len(spec["model"]["vocab"])
    for i, text in enumerate(("<|im_start|>", "<|im_end|>")):
        added = dict(id=size + i, content=text, special=True)
        spec["added_tokens"].append(added | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False))
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(dict(eos_token="<eos>", chat_template=CHAT)))
    tokenizer = load_pretrained(tmp_path)
    frame = frame_of("chat", tokenizer)
    prompts = tokenizer.decode(encode_prompts(QUESTIONS, tokenizer, tokenizer.chat()))
    assert "im_start" not in prompts[0] and prompts[0].startswith("user")
    assert [frame.question(prompt) for prompt in prompts] == QUESTIONS


def test_without_a_place_for_a_prompt_there_is_no_frame():
    tokenizer = train_bpe(["how are you"] * 3, 300)
    assert frame_of("{answer}", tokenizer) == Frame()
    assert Frame("USER: ", " ASSISTANT:").question("something else") == "something else"
    assert Frame("aba", "ba").question("aba") == "aba"
