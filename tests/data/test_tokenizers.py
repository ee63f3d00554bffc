import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elastic_jax.data import tokenizers
from elastic_jax.errors import UserError

TEXTS = [
    f"the {a} {b} was {c}, wasn't it?\n"
    for a in ["red", "old", "wet"]
    for b in ("café", "film")
    for c in ("nice", "été")
]
BPE = tokenizers.train_bpe(TEXTS, 300)
WORDS = tokenizers.WordTokenizer(["good", "bad", "café"])
any_text = st.text(st.characters(exclude_categories=["Cs"]))


@settings(max_examples=150, deadline=None)
@given(st.lists(any_text, max_size=5))
def test_bpe_gives_every_string_back_and_counts_its_bytes(texts):
    ids = BPE.encode(texts)
    assert BPE.decode(ids) == texts
    for text, row in zip(texts, ids, strict=True):
        assert BPE.token_bytes[row].sum() == len(text.encode())


@pytest.mark.parametrize(
    "text",
    ["naïve café", "日本語 テキスト", "👩‍👩‍👧 family 🏳️‍🌈", "a <eos> b <pad>", "  two\r\n\tlines ", "\x00"],
)
def test_bpe_round_trips_awkward_strings(text):
    (ids,) = BPE.encode([text])
    assert BPE.decode([ids]) == [text]
    assert BPE.token_bytes[ids].sum() == len(text.encode())
    assert min(ids) > 1  # nothing a person types becomes a special token


def test_special_tokens_are_zero_bytes_and_dropped_by_decode():
    (ids,) = BPE.encode(["the old film"])
    assert BPE.decode([[BPE.eos_id, *ids, BPE.eos_id, BPE.pad_id]]) == ["the old film"]
    assert BPE.token_bytes[:2].tolist() == [0, 0]
    assert BPE.token_bytes.dtype == np.int32
    assert BPE.token_bytes.shape == (BPE.vocab_size,)


def test_merges_shorten_text():
    assert len(BPE.encode([TEXTS[0]])[0]) < len(TEXTS[0].encode())


def test_same_texts_give_the_same_tokenizer_in_another_process():
    program = f"import sys; from elastic_jax.data import tokenizers;print(tokenizers.train_bpe({TEXTS!r}, 300).digest)"
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(p for p in ["."] + sys.path if p)},
        ).stdout.strip()
        for seed in "12"
    }
    assert digests == {BPE.digest}


def test_other_texts_or_sizes_give_another_digest():
    assert tokenizers.train_bpe(TEXTS, 290).digest != BPE.digest
    assert tokenizers.train_bpe(["something else entirely"], 300).digest != BPE.digest


def test_many_texts_are_encoded_in_order():
    texts = [f"film {i}" for i in range(10_000)]
    assert BPE.decode(BPE.encode(texts)) == texts


@pytest.mark.parametrize("vocab_size", [0, 257])
def test_vocabulary_without_room_for_bytes_is_refused(vocab_size):
    with pytest.raises(UserError, match=r"data\.tokenizer\.vocab_size=.*258"):
        tokenizers.train_bpe(TEXTS, vocab_size)


def test_no_text_is_refused():
    with pytest.raises(UserError, match="no text"):
        tokenizers.train_bpe([], 300)


@pytest.mark.parametrize("tokenizer", [BPE, WORDS], ids=["bpe", "word"])
def test_saved_is_loaded(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "t")
    again = tokenizers.load(tmp_path / "t")
    assert type(again) is type(tokenizer)
    assert again.digest == tokenizer.digest
    assert again.encode(["good café", "bad"]) == tokenizer.encode(["good café", "bad"])
    assert again.token_bytes.tolist() == tokenizer.token_bytes.tolist()
    assert isinstance(again, tokenizers.Tokenizer)


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(UserError, match="no tokenizer here"):
        tokenizers.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"cut')
    with pytest.raises(UserError, match="damaged"):
        tokenizers.load(tmp_path)


def test_words():
    assert WORDS.encode(["good bad", "", "café"]) == [[2, 3], [], [4]]
    assert WORDS.decode([[1, 2, 3, 1, 0], [0]]) == ["good bad", ""]
    assert WORDS.token_bytes.tolist() == [0, 0, 5, 4, 6]
    assert (WORDS.vocab_size, WORDS.pad_id, WORDS.eos_id) == (5, 0, 1)


def test_unknown_word_names_the_nearest():
    with pytest.raises(UserError, match=r"'gooe'.*Closest: good"):
        WORDS.encode(["good gooe"])
    with pytest.raises(UserError, match="<eos>"):
        WORDS.encode(["<eos>"])


@pytest.mark.parametrize("words", [["a", "a"], ["a b"], [""], ["<eos>"]])
def test_bad_words_are_refused(words):
    with pytest.raises(UserError, match="distinct"):
        tokenizers.WordTokenizer(words)
