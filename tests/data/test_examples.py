import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elastic_jax.data import examples
from elastic_jax.data.templates import Template
from elastic_jax.data.tokenizers import WordTokenizer
from elastic_jax.errors import UserError

WORDS = WordTokenizer("abcdefgh")
PAIRED = Template("{prompt} {answer}")
text = st.lists(st.sampled_from("abcdefgh"), max_size=9).map(" ".join)
rows_of_text = st.lists(st.tuples(text, text), min_size=1, max_size=8)


def as_rows(pairs):
    return [dict(id=f"r{i}", prompt=prompt, answer=answer) for i, (prompt, answer) in enumerate(pairs)]


def whole(row, answer="answer"):
    head, body = WORDS.encode([row["prompt"], row[answer]])
    return [1, *head, *body, 1], len(head), len(body)


@settings(max_examples=200, deadline=None)
@given(rows_of_text, st.integers(2, 12))
def test_rows_against_a_row_by_row_account(pairs, seq_len):
    rows = as_rows(pairs)
    expected, counts, ids = [], dict.fromkeys(examples.COUNTS, 0), []
    for row in rows:
        sequence, head, body = whole(row)
        if not body or head >= seq_len:
            counts["dropped_rows"] += 1
            counts["dropped_tokens"] += len(sequence)
            continue
        kept = sequence[: seq_len + 1]
        mask = [int(t >= head) for t in range(len(kept) - 1)]
        expected.append((kept + [0] * (seq_len + 1 - len(kept)), mask + [0] * (seq_len - len(mask))))
        ids.append(row["id"])
        counts["rows"] += 1
        counts["tokens"] += len(kept)
        counts["loss_tokens"] += sum(mask)
        counts["truncated_rows"] += len(kept) < len(sequence)
        counts["truncated_tokens"] += len(sequence) - len(kept)
    if not expected:
        with pytest.raises(UserError, match=f"none of {len(rows)} rows is left"):
            examples.tokenize(rows, WORDS, seq_len=seq_len, template=PAIRED)
        return
    made = examples.tokenize(rows, WORDS, seq_len=seq_len, template=PAIRED)
    assert made.arrays["tokens"].tolist() == [tokens for tokens, _ in expected]
    assert made.arrays["mask"].tolist() == [mask for _, mask in expected]
    assert made.counts == counts
    assert list(made.ids) == ids
    tokens_in = sum(len(whole(row)[0]) for row in rows)
    assert counts["tokens"] + counts["truncated_tokens"] + counts["dropped_tokens"] == tokens_in
    assert made.arrays["tokens"].dtype == np.int32 and made.arrays["mask"].dtype == np.uint8


@settings(max_examples=200, deadline=None)
@given(rows_of_text, st.integers(2, 12))
def test_concat_predicts_every_token_exactly_once(pairs, seq_len):
    rows = as_rows(pairs)
    stream, counted = [1], []
    for row in rows:
        sequence, head, body = whole(row)
        stream += sequence[1:]
        counted += [0] * head + [1] * (body + 1)
    count = (len(stream) - 1) // seq_len
    if not count:
        with pytest.raises(UserError, match=r"do not fill one row of data\.seq_len"):
            examples.tokenize(rows, WORDS, seq_len=seq_len, template=PAIRED, pack="concat")
        return
    made = examples.tokenize(rows, WORDS, seq_len=seq_len, template=PAIRED, pack="concat")
    tokens, mask = made.arrays["tokens"], made.arrays["mask"]
    assert tokens[:, 1:].ravel().tolist() == stream[1 : 1 + count * seq_len]  # targets: the stream, once each
    assert (tokens[1:, 0] == tokens[:-1, -1]).all()
    assert mask.ravel().tolist() == counted[: count * seq_len]
    assert made.counts["tokens"] + made.counts["dropped_tokens"] == len(stream)
    assert made.counts["dropped_tokens"] < seq_len
    assert made.counts["rows"] == count and made.counts["loss_tokens"] == mask.sum()
    assert made.counts["dropped_rows"] == made.counts["truncated_rows"] == 0


def test_long_document_is_split_and_never_dropped():
    document = [dict(id="novel", prompt="", answer=" ".join("abcdefgh" * 500))]
    made = examples.tokenize(document, WORDS, seq_len=16, pack="concat")
    assert made.counts["rows"] == 250 and made.counts["dropped_tokens"] <= 16
    assert made.ids == ("novel",)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(text, text, text), min_size=1, max_size=6), st.integers(2, 12))
def test_pairs_are_two_texts_that_stay_together(triples, seq_len):
    rows = [dict(id=str(i), prompt=p, chosen=c, rejected=r) for i, (p, c, r) in enumerate(triples)]
    alone = {}
    for side in ("chosen", "rejected"):
        for row in rows:
            one = dict(id=row["id"], prompt=row["prompt"], answer=row[side])
            try:
                alone[side, row["id"]] = examples.tokenize([one], WORDS, seq_len=seq_len, template=PAIRED)
            except UserError:
                alone[side, row["id"]] = None
    ids = [row["id"] for row in rows if alone["chosen", row["id"]] and alone["rejected", row["id"]]]
    if not ids:
        with pytest.raises(UserError, match="is left"):
            examples.tokenize(rows, WORDS, seq_len=seq_len, template=PAIRED, kind="pair")
        return
    made = examples.tokenize(rows, WORDS, seq_len=seq_len, template=PAIRED, kind="pair")
    assert list(made.ids) == ids
    for side in ("chosen", "rejected"):
        for name in ("tokens", "mask"):
            single = np.concatenate([alone[side, i].arrays[name] for i in ids])
            np.testing.assert_array_equal(made.arrays[f"{side}_{name}"], single)
    tokens_in = sum(len(whole(row, side)[0]) for row in rows for side in ("chosen", "rejected"))
    assert sum(made.counts[name] for name in ("tokens", "truncated_tokens", "dropped_tokens")) == tokens_in


def test_prompt_that_fills_the_row_is_dropped_and_counted():
    rows = as_rows([("a b c d", "e"), ("a", "e")])
    made = examples.tokenize(rows, WORDS, seq_len=4, template=PAIRED)
    assert made.ids == ("r1",)
    assert made.counts["dropped_rows"] == 1 and made.counts["dropped_tokens"] == 7
    assert made.arrays["mask"].tolist() == [[0, 1, 1, 0]]


def test_all_prompts_too_long_is_an_error_with_the_cure():
    with pytest.raises(UserError, match=r"data\.align: none of 1 rows.*\n?.*Raise data\.seq_len"):
        examples.tokenize(as_rows([("a b c d", "e")]), WORDS, seq_len=4, template=PAIRED, name="data.align")


def test_settings_that_cannot_work():
    with pytest.raises(UserError, match=r"data\.seq_len=1"):
        examples.tokenize(as_rows([("a", "b")]), WORDS, seq_len=1)
    with pytest.raises(UserError, match="packed"):
        examples.tokenize([], WORDS, seq_len=4, kind="pair", pack="concat")
