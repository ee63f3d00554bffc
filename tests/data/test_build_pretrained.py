"""A study's data with somebody else's tokenizer, with conversations, and with prompts of any length."""

import json
import shutil

import numpy as np
import pytest

from elastic_jax.data.build import build
from elastic_jax.data.tokenizers import PretrainedTokenizer, load_pretrained
from elastic_jax.errors import UserError
from tests.data import chats, families

TEXT = dict(align="text", perturb="text")
COLUMNS = dict(prompt="prompt", chosen="good", rejected="bad")
ROWS = dict(pretrain=30, align=20, perturb=20, scorer=20, heldout=10, prompts=8)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    for name, count in (("train", 120), ("test", 60)):
        rows = [
            dict(
                prompt="tell me about " + " ".join(rng.choice(["film", "plot", "scene"], 1 + i % 4)) + f" {name}{i}",
                good=f"it was nice {name} {i}",
                bad=f"it was awful {name} {i}",
                label=1,
            )
            for i in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    families.byte_level(folder / "model", bos_token="<s>", add_bos_token=True, chat_template=chats.TAGGED)
    return folder


def made(source, folder, objectives=TEXT, pretrain=True, **changes):
    config = dict(
        kind="text",
        train=str(source / "train.jsonl"),
        test=str(source / "test.jsonl"),
        columns=COLUMNS,
        rows=ROWS,
        seq_len=160,
        template="paper",
        tokenizer=dict(path=str(source / "model")),
    )
    return build(config | changes, folder, objectives=objectives, pretrain=pretrain)


def answers(data, name, side=""):
    arrays = data.train[name].arrays()
    tokens, masks = arrays[f"{side}tokens"], arrays[f"{side}mask"]
    return data.tokenizer.decode([row[1:][mask == 1] for row, mask in zip(tokens, masks, strict=True)])


def heads(data, name, side=""):
    arrays = data.train[name].arrays()
    tokens, masks = arrays[f"{side}tokens"], arrays[f"{side}mask"]
    return [row[: 1 + mask.argmax()].tolist() for row, mask in zip(tokens, masks, strict=True)]


@pytest.mark.parametrize("template", ["paper", "chat"])
@pytest.mark.parametrize("objectives", [TEXT, dict(align="pair", perturb="pair")], ids=["text", "pair"])
def test_answers_are_learned_and_prompts_are_given(source, tmp_path, template, objectives):
    data = made(source, tmp_path, objectives, template=template)
    assert isinstance(data.tokenizer, PretrainedTokenizer)
    for name, word in (("align", "nice"), ("perturb", "awful")):
        for side in ("chosen_",) if objectives["align"] == "pair" else ("",):
            assert all(answer.startswith(f"it was {word} train") for answer in answers(data, name, side))
            wanted = "ASSISTANT:" if template == "paper" else "assistant\n"
            assert all(text.endswith(wanted) for text in data.tokenizer.decode(heads(data, name, side)))
    # Prompts of any length, exactly as training gives them.
    rows = data.prompt_rows()
    assert len(set(map(len, rows))) > 1 and data.prompts.shape == (8, max(map(len, rows)))
    known = {row["prompt"] for row in map(json.loads, (source / "test.jsonl").read_text().splitlines())}
    before = "BEGINNING OF CONVERSATION: USER: {} ASSISTANT:" if template == "paper" else "user\n{}\nassistant\n"
    whole = {before.format(prompt) for prompt in known}
    texts = data.tokenizer.decode(rows)
    assert set(texts) <= whole and data.tokenizer.decode(data.prompts) == texts
    assert all(row[0] == (data.tokenizer.bos_id if template == "paper" else 2) for row in rows)
    assert data.tokenizer.never == ()


def test_pre_training_sees_conversations_whole(source, tmp_path):
    data = made(source, tmp_path, template="chat", pack=dict(pretrain="none"))
    arrays = data.train["pretrain"].arrays()
    for row, mask in zip(arrays["tokens"], arrays["mask"], strict=True):
        (text,) = data.tokenizer.decode([row])
        assert text.startswith("user\ntell me about") and "assistant\nit was" in text
        used = int(mask.sum())
        assert mask[:used].all() and used > 20 and not mask[used:].any()


def test_prompts_may_be_conversations(source, tmp_path):
    for name in ("train", "test"):
        rows = [json.loads(line) for line in (source / f"{name}.jsonl").read_text().splitlines()]
        for row in rows[::2]:
            turns = [("user", f"earlier {row['prompt']}"), ("assistant", "of course"), ("user", row["prompt"])]
            row["prompt"] = [dict(role=role, content=text) for role, text in turns]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = dict(train=str(tmp_path / "train.jsonl"), test=str(tmp_path / "test.jsonl"))
    data = made(source, tmp_path / "data", template="chat", **changes)
    arrays = data.train["align"].arrays()
    texts = data.tokenizer.decode(arrays["tokens"])
    longer = [text.count("assistant\n") == 2 for text in texts]
    assert 0 < sum(longer) < len(longer)
    for text, answer, several in zip(texts, answers(data, "align"), longer, strict=True):
        assert answer.startswith("of courseit was nice" if several else "it was nice") and text.startswith("user\n")
    assert {text.count("assistant\n") for text in data.tokenizer.decode(data.prompt_rows())} == {1, 2}
    with pytest.raises(UserError, match="text was expected"):
        made(source, tmp_path / "data", template="paper", **changes)
    (tmp_path / "test.jsonl").write_text('{"prompt": [{"text": "x"}], "good": "a", "bad": "b"}\n')
    with pytest.raises(UserError, match=r"test\.jsonl:1: column 'prompt'.*\"role\" and \"content\""):
        made(source, tmp_path / "data", template="chat", **changes)


def test_opened_again_and_wherever_it_lies(source, tmp_path):
    first = made(source, tmp_path / "a", template="chat")
    again = made(source, tmp_path / "a", template="chat")
    assert again.digest == first.digest and again.prompt_rows() == first.prompt_rows()
    assert type(again.tokenizer) is PretrainedTokenizer and again.tokenizer.digest == first.tokenizer.digest
    moved = tmp_path / "moved"
    shutil.copytree(source / "model", moved)
    (index,) = (tmp_path / "a").glob("study-*.json")
    before = index.stat().st_mtime_ns
    other = made(source, tmp_path / "a", template="chat", tokenizer=dict(path=str(moved)))
    assert other.digest == first.digest and index.stat().st_mtime_ns == before
    assert [*(tmp_path / "a").glob("study-*.json")] == [index]
    # Another template makes other rows, and another end of text other tokens.
    config = json.loads((moved / "tokenizer_config.json").read_text())
    (moved / "tokenizer_config.json").write_text(json.dumps(config | dict(chat_template=chats.ZEPHYR)))
    changed = made(source, tmp_path / "a", template="chat", tokenizer=dict(path=str(moved)))
    assert changed.train["align"].digest != first.train["align"].digest
    (saved,) = (tmp_path / "a").glob("tokenizer-*")
    assert changed.tokenizer.digest == first.tokenizer.digest
    assert load_pretrained(saved).templates == dict(default=chats.ZEPHYR)
    assert made(source, tmp_path / "a", template="paper", tokenizer=dict(path=str(moved))).digest != changed.digest


def test_damaged_copy_of_the_tokenizer_is_repaired(source, tmp_path, caplog):
    first = made(source, tmp_path)
    (file,) = tmp_path.glob("tokenizer-*/tokenizer.json")
    file.write_text(file.read_text()[:-20])
    assert made(source, tmp_path).digest == first.digest
    assert "damaged" in caplog.text and load_pretrained(file.parent).digest == first.tokenizer.digest


def test_nothing_is_pre_trained(source, tmp_path):
    data = made(source, tmp_path, pretrain=False, rows=ROWS | dict(pretrain=0))
    assert set(data.train) == {"align", "perturb"} and data.heldout["pretrain"].rows == 10


def test_beginnings_of_texts_are_prompts_where_there_are_no_others(source, tmp_path):
    changes = dict(columns=dict(chosen="good", rejected="bad"), template="{answer}", prompt_tokens=3)
    data = made(source, tmp_path, **changes)
    assert data.prompts.shape == (8, 4) and (data.prompts[:, 0] == data.tokenizer.bos_id).all()
    assert data.prompt_lengths is None and data.prompt_rows() == data.prompts.tolist()
    families.byte_level(tmp_path / "bare")
    bare = dict(changes, tokenizer=dict(path=str(tmp_path / "bare")))
    assert made(source, tmp_path, **bare).prompts.shape == (8, 3)
    with pytest.raises(UserError, match=r"data\.prompt_tokens=0.*given nothing"):
        made(source, tmp_path, **dict(bare, prompt_tokens=0))


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        (dict(tokenizer=dict(path="MODEL", vocab_size=400)), ["data.tokenizer.vocab_size=400", "data.tokenizer.path="]),
        (dict(tokenizer=dict(path="MODEL", rows=5)), ["data.tokenizer.rows=5"]),
        (dict(tokenizer=dict(layout="llama3")), ["data.tokenizer.layout='llama3'", "which is empty"]),
        (dict(tokenizer=dict(path="nowhere")), ["data.tokenizer.path='nowhere'", "no such"]),
        (dict(template="chat", tokenizer=dict()), ["data.template='chat'", "data.tokenizer.path is empty", '"paper"']),
        (dict(template="chat:tools"), ['data.template="chat:tools"', "Closest: default"]),
        (dict(template="chat", columns=dict(chosen="good", rejected="bad")), ["data.columns.prompt is empty"]),
        (dict(template="paper", columns=dict(chosen="good", rejected="bad")), ["data.columns.prompt is empty"]),
        (dict(seq_len=20), ["data.seq_len"]),
        (
            dict(template="<|im_start|>{prompt}: {answer}"),
            ["'<|im_start|>' is a special token", 'data.template="chat"'],
        ),
    ],
)
def test_mistakes_name_their_field(source, tmp_path, changes, parts):
    if changes.get("tokenizer", {}).get("path") == "MODEL":
        changes = dict(changes, tokenizer=changes["tokenizer"] | dict(path=str(source / "model")))
    with pytest.raises(UserError) as caught:
        made(source, tmp_path, **changes)
    for part in parts:
        assert part in str(caught.value), str(caught.value)


def test_row_on_which_a_template_fails_is_named(source, tmp_path):
    template = "{% for m in messages %}{% if 'train' in m.content %}{{ raise_exception('no 7') }}{% endif %}{{ m.content }}{% endfor %}"
    families.byte_level(tmp_path / "model", chat_template=template)
    with pytest.raises(UserError, match=r"row train\.jsonl:\d+.*message 1 of \d \(user: 'tell me about.*no 7"):
        made(source, tmp_path / "data", template="chat", tokenizer=dict(path=str(tmp_path / "model")))
