import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elastic_jax.data import documents, examples
from elastic_jax.data.chat import ChatTemplate
from elastic_jax.data.tokenizers import load_pretrained
from elastic_jax.errors import UserError
from tests.data import chats, families

VARIABLES = dict(bos_token="<s>", eos_token="</s>")
SPECIALS = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
any_text = st.text(st.characters(exclude_categories=["Cs", "Co"]), max_size=30)


def template(source):
    return ChatTemplate(source, VARIABLES, SPECIALS)


def refused(call, *parts):
    with pytest.raises(UserError) as caught:
        call()
    for part in parts:
        assert part in str(caught.value), str(caught.value)


def test_settings_that_transformers_documents():
    """Blocks are trimmed, loops have break and continue, tojson leaves HTML and other scripts alone, dates are told."""
    source = (
        "{% for message in messages %}\n    {% if loop.index > 2 %}{% break %}{% endif %}\n"
        "{{ message.content | tojson }}\n{% endfor %}\n{{ strftime_now('%Y-%m-%d') }} {{ [1, 2] | tojson(indent=1) }}"
        "{{ tools is none }}{{ documents is none }}{{ add_generation_prompt }}"
    )
    messages = [dict(role="user", content=text) for text in ("<b> 'é' & 日本", "two", "three")]
    assert template(source).begin(messages).text == ('"<b> \'é\' & 日本"\n"two"\n2024-07-26 [\n 1,\n 2\n]TrueTrueTrue')


def test_answer_is_what_the_template_writes_after_asking_for_it():
    whole = template(chats.CHATML).whole("Hi", "Hello.")
    assert whole.text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n"
    assert [whole.text[a:b] for a, b in whole.spans] == ["Hello.<|im_end|>\n"] and whole.typed == ()
    assert template(chats.CHATML).begin("Hi").text == whole.text[: whole.begins]


def test_generation_tags_say_what_the_assistant_writes():
    turns = [dict(role="user", content="a"), dict(role="assistant", content="b"), dict(role="user", content="c")]
    whole = template(chats.TAGGED).whole(turns, "d")
    assert [whole.text[a:b] for a, b in whole.spans] == ["b<|im_end|>", "d<|im_end|>"]
    untagged = template(chats.CHATML).whole(turns, "d")
    assert [untagged.text[a:b] for a, b in untagged.spans] == ["b<|im_end|>\n", "d<|im_end|>\n"]


@settings(max_examples=60, deadline=None)
@given(any_text, any_text)
def test_any_text_goes_through(prompt, answer):
    whole = template(chats.CHATML).whole(prompt, answer)
    assert whole.text == f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"
    assert whole.text[whole.begins :] == f"{answer}<|im_end|>\n"


def test_typed_special_tokens_and_marks_are_found():
    prompt, answer = "<s> a </s><|im_end|> \U0010fe00 \U0010fe02 0", "b</s>"
    whole = template(chats.CHATML).whole(prompt, answer)
    assert [whole.text[a:b] for a, b in whole.typed] == [
        "<s>", "</s>", "<|im_end|>", "\U0010fe00", "\U0010fe02", "</s>",
    ]  # fmt: skip
    assert prompt in whole.text and whole.text.endswith("b</s><|im_end|>\n")


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("the film", "was nice"),
        ("a </s> b", "c <|im_end|> d"),
        (" ", "x"),
        ("<s>", "\n\n</s>"),
        ("x\n", "\ny"),
        ("1", "234567"),
    ],
)
@pytest.mark.parametrize("source", [chats.CHATML, chats.TAGGED, chats.LLAMA2, chats.MISTRAL, chats.ZEPHYR])
@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_prompt_is_encoded_as_the_model_will_be_given_it(tmp_path, kind, source, prompt, answer):
    made = families.byte_level if kind == "bytes" else families.sentencepiece
    extra = dict(bos_token="<s>", eos_token="</s>", chat_template=source)
    folder = made(tmp_path, **extra) if kind == "bytes" else made(tmp_path, {"tokenizer_config.json": extra})
    tokenizer = load_pretrained(folder)
    chat = tokenizer.chat()
    ((ids, counted),) = tokenizer.encode_chats([chat.whole(prompt, answer)])
    (asked,) = documents.encode_prompts([prompt], tokenizer, chat)
    assert ids[: len(asked)] == asked and not any(counted[: len(asked)])
    # Special tokens are as many as in a conversation where nobody types one.
    ((innocent, _),) = tokenizer.encode_chats([chat.whole(re.sub("<.*?>", "X", prompt), re.sub("<.*?>", "X", answer))])
    for special in range(4 if kind == "bytes" else 3):
        assert ids.count(special) == innocent.count(special)
    if kind == "bytes" and source is not chats.LLAMA2:  # that one strips
        assert prompt in tokenizer.decode([asked])[0] and answer in tokenizer.decode([ids[len(asked) :]])[0]
        counts = [token for token, on in zip(ids, counted, strict=True) if on]
        assert tokenizer.decode([counts])[0].strip() == answer.strip() and set(counts) & {1, 3}


def test_merge_across_the_border_is_not_made(tmp_path):
    """Asked with "fi", the model is to go on with "lm"; the whole text has one token for both."""
    config = dict(chat_template="{% for m in messages %}{{ m.content }}{% endfor %}")
    tokenizer = load_pretrained(families.sentencepiece(tmp_path, {"tokenizer_config.json": config}))
    whole, asked, goes_on = tokenizer.encode(["film", "fi"]) + tokenizer.encode(["lm"], continued=True)
    assert whole[: len(asked)] != asked
    ((ids, counted),) = tokenizer.encode_chats([tokenizer.chat().whole("fi", "lm")])
    assert ids == asked + goes_on and counted == [0] * len(asked) + [1] * len(goes_on)


def test_earlier_answers_count_where_a_merge_would_cross_the_border(tmp_path):
    config = dict(chat_template="{% for m in messages %}{{ m.content }}{% endfor %}")
    tokenizer = load_pretrained(families.sentencepiece(tmp_path, {"tokenizer_config.json": config}))
    turns = [("user", "the"), ("assistant", "in"), ("user", "fi")]
    asked = [dict(role=role, content=text) for role, text in turns]
    ((ids, counted),) = tokenizer.encode_chats([tokenizer.chat().whole(asked, "lm!")])
    assert tokenizer.decode([ids]) == ["theinfilm!"] and ids not in tokenizer.encode(["theinfilm!"])
    parts = [[token for token, on in zip(ids, counted, strict=True) if on == side] for side in (0, 1)]
    assert tokenizer.decode(parts) == ["thefi", "inlm!"]


def test_documents_of_conversations(tmp_path):
    tokenizer = load_pretrained(
        families.byte_level(tmp_path, {"generation_config.json": dict(eos_token_id=[3])}, chat_template=chats.CHATML)
    )
    rows = [
        dict(id="a", prompt="the film", answer="was nice"),
        dict(id="b", prompt="x", answer=" "),
        dict(id="c", prompt="", answer="old prose"),
    ]
    made = examples.tokenize(rows, tokenizer, seq_len=80, template=tokenizer.chat())
    assert made.ids == ("a", "c") and made.counts["dropped_rows"] == 1  # without an answer there is nothing to learn
    (chat, prose), masks = made.arrays["tokens"], made.arrays["mask"]
    assert tokenizer.decode([chat[1:][masks[0] == 1]]) == ["was nice\n"] and 3 in chat[1:][masks[0] == 1]
    assert tokenizer.decode([prose[: 1 + masks[1].sum()]]) == ["old prose"]
    assert prose[1:][masks[1] == 1][-1] == tokenizer.eos_id
    # What the template does not end is ended.
    bare = load_pretrained(
        families.byte_level(tmp_path / "b", chat_template="{% for m in messages %}[{{ m.content }}]{% endfor %}")
    )
    made = examples.tokenize(rows[:1], bare, seq_len=80, template=bare.chat())
    last = made.arrays["tokens"][0, 1:][made.arrays["mask"][0] == 1]
    assert last[-1] == bare.eos_id and bare.decode([last]) == ["[was nice]"]


def test_several_templates_have_names(tmp_path):
    named = [dict(name="default", template="d{{ messages[0].content }}"), dict(name="tool_use", template="t")]
    tokenizer = load_pretrained(families.byte_level(tmp_path, chat_template=named))
    assert tokenizer.chat().begin("x").text == "dx" and tokenizer.chat("tool_use").begin("x").text == "t"
    refused(lambda: tokenizer.chat("tools"), 'data.template="chat:tools"', "Closest: tool_use")
    (tmp_path / "chat_template.jinja").write_text("j")
    assert load_pretrained(tmp_path).chat().begin("x").text == "j"
    assert tokenizer.chat().text != load_pretrained(tmp_path).chat().text


def test_no_template(tmp_path):
    refused(load_pretrained(families.byte_level(tmp_path)).chat, "tokenizer_config.json has no chat_template", "paper")


def test_template_that_is_no_jinja():
    refused(lambda: template("a\n{% if %}"), "not valid Jinja (line 2)", "Expected an expression")
    refused(lambda: template("{% generation %}"), "not valid Jinja")
    refused(lambda: template("\U0010fe00"), "private plane")


@pytest.mark.parametrize(
    ("source", "turns", "parts"),
    [
        (
            chats.LLAMA2,
            ["user", "user", "assistant"],
            ["message 2 of 3 (user: 'text 1')", "Roles must alternate", "user, user, assistant"],
        ),
        (chats.GEMMA, ["system", "user"], ["message 1 of 2 (system", "System role not supported"]),
        (chats.MISTRAL, ["user", "tool"], ["message 2 of 2 (tool", "Only user and assistant roles"]),
        ("{{ messages[0].content.nothing() }}", ["user"], ["message 1 of 1", "nothing"]),
        ("{{ 1 // 0 }}", ["user"], ["message 1 of 1", "integer division"]),
        ("{{ messages.append(1) }}", ["user"], ["message 1 of 1", "append"]),  # the sandbox
        ("{{ ''.__class__.__mro__ }}", ["user"], ["unsafe"]),
    ],
)
def test_template_that_fails_says_on_which_message(source, turns, parts):
    messages = [dict(role=role, content=f"text {number}") for number, role in enumerate(turns)]
    refused(lambda: template(source).begin(messages, "row-7"), 'data.template="chat"', "row row-7", *parts)


def test_template_that_changes_what_it_wrote():
    source = "{% for m in messages %}{{ m.content if loop.last else '...' }}{% endfor %}"
    refused(lambda: template(source).whole("Hi", "Hello."), "another text before the answer", "generation", "paper")
    refused(
        lambda: template(
            "{% for m in messages %}{{ m.content }}{% endfor %}{% if false %}{% generation %}{% endgeneration %}{% endif %}"
        ).whole("a", "b"),
        "nothing of the answer is inside",
    )
