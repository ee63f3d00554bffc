"""Does a stop string end a row, wherever its tokens begin and end?"""

import jax
import numpy as np
import pytest
import tiny

from elastic_jax.data.tokenizers import WordTokenizer
from elastic_jax.errors import UserError
from elastic_jax.models.sampler import sample
from elastic_jax.models.stops import Stops

# Every piece is one token; nothing is between them.
PIECES = ["", "", "ab", "c", "d e", "\n", "\nQ", ":", " x", "\xff"]


class Pieces:
    """A tokenizer whose tokens are pieces of text; byte 9 is half of a character, and two of them make one."""

    vocab_size, pad_id, eos_id = len(PIECES), 0, 1

    def decode(self, ids):
        return ["".join(PIECES[i] for i in row).replace("\xff\xff", "é").replace("\xff", "\ufffd") for row in ids]


def cut(row, *strings, known=0):
    return Stops(strings, Pieces()).find([row], [known])[0]


@pytest.mark.parametrize(
    ("row", "strings", "tokens", "text"),
    [
        ([2, 5, 6, 7, 8], ["\nQ:"], 2, "ab\n"),  # over two tokens
        ([2, 5, 5, 3], ["\n\n"], 1, "ab"),
        ([2, 4, 3], [" e"], 1, "abd"),  # inside of a token: a part of its text remains
        ([2, 3, 4], ["cd"], 1, "ab"),
        ([2, 3], ["ab"], 0, ""),
        ([3, 2, 7, 5], ["\n", ":"], 2, "cab"),  # the first of several
        ([9, 9, 2, 7], [":"], 3, "éab"),  # a half character before it
        ([2, 9, 9, 3], ["é"], 1, "ab"),
        ([3, 4], ["cd e", "d"], 0, ""),  # both end in one token; the earliest begins at the front
    ],
)
def test_the_text_is_cut_before_the_string(row, strings, tokens, text):
    got = cut(row, *strings)
    assert (got.tokens, got.text) == (tokens, text)


def test_no_string_no_cut():
    assert cut([2, 5, 6, 8], "\nQ:", "x:") is None
    assert Stops(("c",), Pieces()).find([[2], [3], [2, 2]], [0, 0, 0])[1].tokens == 0
    assert Stops(("c",), Pieces()).find([], []) == []


def test_known_tokens_are_not_looked_at_again():
    assert cut([2, 5, 6, 7, 8], "\nQ:", known=3).tokens == 2


def test_an_empty_string_is_refused():
    with pytest.raises(UserError, match="at least one character"):
        Stops(("a", ""), Pieces())


def test_a_row_ends_at_its_stop_string():
    model = tiny.decoder()
    params, words = tiny.random_params(model), WordTokenizer([f"w{i}" for i in range(tiny.VOCAB - 2)])
    prompts = [[5, 6], [7], [8, 9, 10], [11], [12, 13], [14], [15]]
    settings = dict(length=45, context=48, temperature=1.0, eos=(1,), never=(0,), tokenizer=words)

    def write(**more):
        return sample(model, params, prompts, jax.random.key(3), tiny.mesh(), **{**settings, **more})

    free = write(eos=())
    assert free.texts == words.decode(free.tokens.tolist()) and set(free.ended) == {"length"}
    # Over two tokens, in the second call of the device; and in the first.
    late, early = " ".join(free.texts[0].split()[36:38]), " ".join(free.texts[1].split()[5:7])
    got = write(eos=(), stop=(late, early))
    for text, whole, row, count, why in zip(got.texts, free.texts, got.tokens, got.lengths, got.ended, strict=True):
        places = [place for place in (whole.find(late), whole.find(early)) if place >= 0]
        assert text == (whole[: min(places)] if places else whole)
        assert why == ("stop" if places else "length")
        assert words.decode([row[:count].tolist()])[0] == text.strip() and (row[count:] == 0).all()
    assert got.ended[:2] == ("stop", "stop")

    # An eos before the string, and one after it.
    eos = int(free.tokens[0, 20])
    got = write(eos=(eos,), stop=(late,))
    assert got.ended[0] == "eos" and got.tokens[0, got.lengths[0] - 1] == eos
    assert got.texts[0] == words.decode([free.tokens[0, : got.lengths[0] - 1].tolist()])[0]
    second = int(free.tokens[1, 8])
    got = write(eos=(second,), stop=(early,))
    assert got.ended[1] == ("stop" if second not in free.tokens[1, :7] else "eos")
    assert np.isin(got.ended, ["eos", "stop", "length"]).all()
