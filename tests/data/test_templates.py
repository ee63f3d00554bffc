import pytest
from hypothesis import given
from hypothesis import strategies as st

from elastic_jax.data.templates import PLAIN, Template
from elastic_jax.errors import UserError


@given(st.text(), st.text())
def test_head_and_body_make_the_whole_text(prompt, answer):
    for text in (
        "{prompt}{answer}",
        "USER: {prompt} ASSISTANT: {answer}</s>",
        "a {{b}} {prompt}\n{answer} c",
    ):
        head, body = Template(text).split(prompt, answer)
        assert head + body == text.format(prompt=prompt, answer=answer)
        assert answer in body


def test_plain_text_has_no_head():
    assert PLAIN.split("", "all of it") == ("", "all of it")
    assert not PLAIN.has_prompt


def test_blank_before_the_answer_goes_with_it():
    assert Template("{prompt} {answer}").split("go", "on") == ("go", " on")
    assert Template("{prompt} {answer}").split("", "on") == ("", " on")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{promt} {answer}", "Closest: prompt"),
        ("{answer} {prompt}", "before it"),
        ("{prompt}", "must hold {answer}"),
        ("{answer}{answer}", "once"),
        ("", "must hold"),
        ("{answer:>10}", "without formatting"),
        ("{answer!r}", "without formatting"),
        ("{answer", "brace"),
        ("{0}{answer}", "no field {0}"),
    ],
)
def test_bad_templates_say_what_is_wrong(text, message):
    with pytest.raises(UserError, match="data.template=") as caught:
        Template(text)
    assert message in str(caught.value)
