import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elastic_jax.data import documents, examples, pipeline, prepared, tokenizers
from elastic_jax.data.templates import PAPER, PLAIN, Template
from elastic_jax.data.tokenizers import load_pretrained, tiktoken_ranks
from elastic_jax.errors import UserError
from tests.data import families

any_text = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.fixture(scope="module")
def bytes_(tmp_path_factory):
    return load_pretrained(families.byte_level(tmp_path_factory.mktemp("bytes"), bos_token="<s>", add_bos_token=True))


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    return load_pretrained(families.sentencepiece(tmp_path_factory.mktemp("pieces")))


@settings(max_examples=60, deadline=None)
@given(st.lists(any_text, max_size=4))
def test_every_text_comes_back_and_its_bytes_are_counted(bytes_, pieces, texts):
    ids = bytes_.encode(texts)
    assert bytes_.decode(ids) == texts
    assert [bytes_.token_bytes[row].sum() for row in ids] == [len(text.encode()) for text in texts]
    texts = [text.replace("\u2581", "") for text in texts]  # which is how such a model writes a blank
    ids = pieces.encode(texts)
    assert pieces.decode(ids) == texts
    assert [pieces.token_bytes[row].sum() for row in ids] == [len(t.encode()) + bool(t) for t in texts]


@pytest.mark.parametrize("text", ["<s>", "a</s>b", "<|im_start|>user", "<unk>", "<0x41>", "</s></s>"])
def test_what_somebody_types_is_text(bytes_, pieces, text):
    for tokenizer in (bytes_, pieces):
        (ids,) = tokenizer.encode([text])
        assert tokenizer.decode([ids]) == [text]
        assert tokenizer.token_bytes[ids].min() > 0  # no special token, which has none


def test_what_somebody_types_is_text_in_a_unigram_vocabulary(tmp_path):
    """Its special tokens are pieces among others there, and their scores the best of all."""
    import tokenizers as hf

    words = ["\u2581", "\u2581the", "film", *"<>/stheflmi"]
    model = hf.models.Unigram(
        [("<unk>", 0.0), ("</s>", 0.0), *((word, -float(i + 1)) for i, word in enumerate(words))], 0
    )
    made = hf.Tokenizer(model)
    made.normalizer = hf.normalizers.Replace(" ", "\u2581")
    made.decoder = hf.decoders.Metaspace(prepend_scheme="never")
    made.add_special_tokens(["</s>"])
    made.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_pretrained(tmp_path)
    texts = ["the </s>film</s></s>", "</s>", "the film"]
    ids = tokenizer.encode(texts)
    assert tokenizer.decode(ids) == texts and tokenizer.eos_id == 1
    assert not any(1 in row for row in ids)


def test_special_tokens(bytes_, pieces):
    assert (bytes_.bos_id, bytes_.eos_id, bytes_.eos_ids, bytes_.pad_id, bytes_.never) == (0, 1, (1,), 1, ())
    assert (pieces.bos_id, pieces.eos_id, pieces.eos_ids, pieces.pad_id) == (1, 2, (2,), 2)
    assert isinstance(bytes_, tokenizers.Tokenizer)
    assert bytes_.token_bytes.shape == (bytes_.vocab_size,) and bytes_.token_bytes.dtype == np.int32
    # Numbers beyond the vocabulary, which a padded embedding has, are nothing.
    assert bytes_.decode([[0, *bytes_.encode(["the film"])[0], 1, 1, bytes_.vocab_size + 3]]) == ["the film"]


@pytest.mark.parametrize(
    ("config", "files", "expected"),
    [
        (dict(), {}, dict(bos_id=None, eos_ids=(1,), pad_id=1)),
        (dict(bos_token="<s>"), {}, dict(bos_id=None)),
        (dict(bos_token="<s>", add_bos_token=True), {}, dict(bos_id=0)),
        (dict(bos_token="<s>", tokenizer_class="LlamaTokenizerFast"), {}, dict(bos_id=0)),
        (dict(bos_token="<s>", tokenizer_class="LlamaTokenizer", add_bos_token=False), {}, dict(bos_id=None)),
        (dict(pad_token="<|im_start|>"), {}, dict(pad_id=2)),
        (dict(pad_token="[PAD]"), {}, dict(pad_id=1)),  # no such token: the end of a text pads
        (dict(), {"generation_config.json": dict(eos_token_id=[3, 1])}, dict(eos_id=1, eos_ids=(1, 3))),
        (dict(eos_token=None), {"generation_config.json": dict(eos_token_id=3)}, dict(eos_id=3, eos_ids=(3,))),
        (dict(), {"special_tokens_map.json": dict(eos_token=dict(content="<|im_end|>"))}, dict(eos_id=3)),
        (dict(added_tokens_decoder={"328": dict(content="<new>", special=True)}), {}, dict(vocab_size=329)),
    ],
)
def test_files_beside_it_say_what_tokens_mean(tmp_path, config, files, expected):
    tokenizer = load_pretrained(families.byte_level(tmp_path, files, **config))
    assert {name: getattr(tokenizer, name) for name in expected} == expected


def test_config_says_which_added_tokens_are_special(tmp_path):
    """It counts more than tokenizer.json, as in transformers: what is not special is found in any text."""
    decoder = {"2": dict(content="<|im_start|>", special=False)}
    tokenizer = load_pretrained(families.byte_level(tmp_path, added_tokens_decoder=decoder))
    (ids,) = tokenizer.encode(["a<|im_start|>b<|im_end|>"])
    assert 2 in ids and 3 not in ids and tokenizer.decode([ids]) == ["a<|im_start|>b<|im_end|>"]
    assert tokenizer.token_bytes[2] == len("<|im_start|>") and tokenizer.token_bytes[3] == 0


def test_post_processor_says_what_begins_a_text(tmp_path):
    import tokenizers as hf

    folder = families.byte_level(tmp_path)
    made = hf.Tokenizer.from_file(str(folder / "tokenizer.json"))
    made.post_processor = hf.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    made.enable_truncation(4)
    made.save(str(folder / "tokenizer.json"))
    tokenizer = load_pretrained(folder)
    assert tokenizer.bos_id == 0
    assert (
        len(tokenizer.encode(["one two three four five six"])[0]) > 4
    )  # what the file says of truncation is for others
    (folder / "tokenizer_config.json").write_text(json.dumps(dict(eos_token="</s>", add_bos_token=False)))
    assert load_pretrained(folder).bos_id is None


def test_config_says_whether_a_blank_is_put_before_a_text(tmp_path):
    (text,) = texts = ["the film"]
    for said, blank in ((None, True), (True, True), (False, False)):
        for legacy in (None, True, False):
            config = {"tokenizer_config.json": dict(add_prefix_space=said, legacy=legacy)}
            tokenizer = load_pretrained(families.sentencepiece(tmp_path / f"{said}-{legacy}", config))
            ids = tokenizer.encode(texts)
            assert tokenizer.decode(ids) == texts and tokenizer.token_bytes[ids[0]].sum() == len(text) + blank
    folder = families.byte_level(tmp_path / "bytes", add_prefix_space=True)
    assert load_pretrained(folder).encode(texts) == load_pretrained(families.byte_level(tmp_path / "b")).encode(
        [" the film"]
    )
    assert load_pretrained(folder).encode(texts, continued=True) != load_pretrained(folder).encode(texts)


def test_what_goes_on_has_no_blank_before_it(pieces):
    whole = "the film: nice"
    (ids,) = pieces.encode([whole])
    for cut in range(1, len(whole)):
        (begun,), (goes_on,) = pieces.encode([whole[:cut]]), pieces.encode([whole[cut:]], continued=True)
        assert pieces.decode([begun + goes_on]) == [whole]
        if ids[: len(begun)] == begun:  # no merge crosses the cut
            assert begun + goes_on == ids


def test_what_goes_on_keeps_its_blank(tmp_path):
    """Such a model takes blanks from both ends of a text."""
    tokenizer = load_pretrained(families.sentencepiece(tmp_path, remove_extra_whitespaces=True))
    begun, alone = tokenizer.encode(["the", " film"])
    (goes_on,) = tokenizer.encode(["  film"], continued=True)
    assert tokenizer.decode([begun + goes_on, alone]) == ["the film", "film"]


def test_digest_is_of_the_numbers_and_not_of_the_place(tmp_path):
    one = load_pretrained(families.byte_level(tmp_path / "a"))
    assert load_pretrained(families.byte_level(tmp_path / "b", model_max_length=7)).digest == one.digest
    assert load_pretrained(families.byte_level(tmp_path / "c", pad_token="<s>")).digest != one.digest
    assert load_pretrained(tmp_path / "a" / "tokenizer.json").digest == one.digest


@pytest.mark.parametrize("kind", ["bytes", "pieces", "ranks", "gpt2"])
def test_saved_is_loaded(tmp_path, monkeypatch, kind):
    template = "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}"
    config = {
        "tokenizer_config.json": dict(chat_template=template),
        "generation_config.json": dict(eos_token_id=[2, 3]),
    }
    if kind == "bytes":
        folder = families.byte_level(
            tmp_path / "a", {"chat_template.jinja": template}, bos_token="<s>", add_bos_token=True
        )
    elif kind == "pieces":
        folder = families.sentencepiece(tmp_path / "a", config)
    elif kind == "ranks":
        folder = families.ranks(tmp_path / "a" / "small.tiktoken", ["film", " the"]).parent
        small = tiktoken_ranks.LAYOUTS["llama3"].__class__(**vars(tiktoken_ranks.LAYOUTS["llama3"]) | dict(ranks=262))
        monkeypatch.setitem(tiktoken_ranks.LAYOUTS, "small", small)
        (folder / "chat_template.jinja").write_text(template)
    else:
        folder = tmp_path / "a"
        folder.mkdir()
        names = json.loads((families.byte_level(tmp_path / "b") / "tokenizer.json").read_text())["model"]
        vocabulary = {token: number for token, number in names["vocab"].items() if number > 3} | {"<|endoftext|>": 0}
        (folder / "vocab.json").write_text(json.dumps(vocabulary))
        merges = "".join(f"{left} {right}\n" for left, right in names["merges"])
        (folder / "merges.txt").write_text("#version: 0.2\n" + merges)
        (folder / "chat_template.jinja").write_text(template)
    tokenizer = load_pretrained(folder, "small" if kind == "ranks" else "")
    tokenizer.save(tmp_path / "saved")
    again = tokenizers.load(tmp_path / "saved")
    assert type(again) is tokenizers.PretrainedTokenizer
    names = ("digest", "bos_id", "eos_id", "eos_ids", "pad_id", "vocab_size")
    assert [getattr(again, name) for name in names] == [getattr(tokenizer, name) for name in names]
    texts = ["the film", " <s> naïve 👩‍👩‍👧", ""]
    for continued in (False, True):
        assert again.encode(texts, continued=continued) == tokenizer.encode(texts, continued=continued)
    assert again.decode(tokenizer.encode(texts)) == texts
    np.testing.assert_array_equal(again.token_bytes, tokenizer.token_bytes)
    assert again.chat().begin("hi").text == tokenizer.chat().begin("hi").text
    again.save(tmp_path / "twice")
    assert tokenizers.load(tmp_path / "twice").digest == tokenizer.digest


# -- documents -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", [PAPER, PLAIN, Template("{prompt} {answer}")])
@pytest.mark.parametrize("begins", [True, False])
def test_documents_begin_and_end_as_the_tokenizer_says(tmp_path, template, begins):
    tokenizer = load_pretrained(families.byte_level(tmp_path, bos_token="<s>", add_bos_token=begins))
    prompt = "the film" if template.has_prompt else ""
    rows = [dict(id="a", prompt=prompt, answer="was nice"), dict(id="b", prompt=prompt, answer="\n\n1234!")]
    made = documents.encode_documents(rows, "answer", tokenizer, template)
    for row, begin, length in zip(rows, made.begins, made.lengths, strict=True):
        ids, counted = made.tokens[begin : begin + length].tolist(), made.counted[begin : begin + length]
        (asked,) = documents.encode_prompts([prompt], tokenizer, template)
        assert ids[: len(asked)] == asked and ids[-1] == tokenizer.eos_id
        assert counted.tolist() == [0] * len(asked) + [1] * (length - len(asked))
        assert asked[:1] == [tokenizer.bos_id] if begins else 0 not in ids
        assert tokenizer.decode([ids]) == ["".join(template.split(prompt, row["answer"]))]
    if template is PAPER:
        begun = tokenizer.decode(documents.encode_prompts(["x"], tokenizer, PAPER))
        assert begun == ["BEGINNING OF CONVERSATION: USER: x ASSISTANT:"]


class Letters:
    """A tokenizer of letters: `a` is 3, and so on."""

    vocab_size, eos_id, eos_ids, pad_id, never, digest = 29, 1, (1,), 2, (), "letters"
    token_bytes = np.ones(29, np.int32)

    def __init__(self, bos_id):
        self.bos_id = bos_id

    def encode(self, texts, *, continued=False):
        return [[ord(letter) - 94 for letter in text] for text in texts]

    def decode(self, ids):
        return ["".join(chr(i + 94) for i in row if i > 2) for row in ids]

    def save(self, folder):
        raise NotImplementedError


words = st.lists(st.text("abcdef", max_size=14), min_size=1, max_size=10)


@settings(max_examples=80, deadline=None)
@given(words, st.integers(2, 12), st.sampled_from([0, 1, None]))
def test_packed_documents_keep_their_own_beginnings_and_ends(texts, seq_len, bos):
    """Whatever begins a document: an end that is also a beginning, a token of its own, or nothing."""
    tokenizer = Letters(bos)
    lead = [] if bos is None else [bos]
    rows = [dict(id=str(i), prompt="", answer=text) for i, text in enumerate(texts)]
    if not any(len(text) + 1 - len(lead) > -1 and text for text in texts):
        return
    wholes = [[*lead, *tokenizer.encode([text])[0], 1] for text in texts if text]
    made = examples.tokenize(rows, tokenizer, seq_len=seq_len, pack="best_fit")
    found = []
    for row in range(made.counts["rows"]):
        segments, tokens = made.arrays["segments"][row], made.arrays["tokens"][row]
        mask, positions = made.arrays["mask"][row], made.arrays["positions"][row]
        for number in range(1, segments.max() + 1):
            (where,) = np.nonzero(segments == number)
            assert positions[where].tolist() == list(range(len(where)))
            counted = [int(tokens[place + 1]) for place in where if mask[place]]
            inputs = tokens[where].tolist()
            assert inputs[: len(lead)] == lead
            found.append((inputs, counted))
    targets = sorted(token for _, counted in found for token in counted)
    # Without a beginning, the first token of a document is given and nobody predicts it.
    assert targets == sorted(token for whole in wholes for token in whole[1:])
    short = [whole for whole in wholes if len(whole) <= seq_len]
    for whole in short:
        assert (whole[: len(whole) - (bos == 1)], whole[1:]) in found
    assert made.counts["loss_tokens"] == len(targets) and made.joined == (bos == 1)


@settings(max_examples=60, deadline=None)
@given(words, st.integers(2, 12), st.sampled_from([0, 1, None]))
def test_joined_documents_are_all_there(texts, seq_len, bos):
    tokenizer = Letters(bos)
    rows = [dict(id=str(i), prompt="", answer=text) for i, text in enumerate(texts)]
    stream = [1] if bos == 1 else []
    for text in texts:
        stream += [*([0] if bos == 0 else []), *tokenizer.encode([text])[0], 1]
    count = (len(stream) - 1) // seq_len
    if not count:
        with pytest.raises(UserError, match="do not fill one row"):
            examples.tokenize(rows, tokenizer, seq_len=seq_len, pack="concat")
        return
    made = examples.tokenize(rows, tokenizer, seq_len=seq_len, pack="concat")
    assert made.arrays["tokens"][:, 1:].ravel().tolist() == stream[1 : 1 + count * seq_len]
    expected = [int(token != 0) for token in stream[1 : 1 + count * seq_len]]  # what begins a document is given
    assert made.arrays["mask"].ravel().tolist() == expected


@pytest.mark.parametrize("bos", [0, None])
def test_batches_packed_as_they_are_read_keep_beginnings_and_ends(tmp_path, bos):
    tokenizer = Letters(bos)
    rng = np.random.default_rng(0)
    rows = [
        dict(id=str(i), prompt="", answer="abcdef"[: rng.integers(1, 7)] * int(rng.integers(1, 4))) for i in range(40)
    ]
    tokens = examples.tokenize(rows, tokenizer, seq_len=12)
    data = prepared.prepare(tmp_path, "x", "k" * 12, lambda: tokens, tokenizer_digest="")
    count = pipeline.rows_needed(data, batch_size=10, seed=0, stop=3)
    packed = next(pipeline.batches(data, batch_size=10, seed=0, rows=count))
    plain = next(pipeline.batches(data, batch_size=10, seed=0))
    assert count < 10
    expected = sorted(
        (row[: mask.nonzero()[0][-1] + 1].tolist(), row[1:][mask == 1].tolist())
        for row, mask in zip(plain["tokens"], plain["mask"], strict=True)
    )
    found = []
    for row in range(count):
        for number in range(1, packed["segments"][row].max() + 1):
            (where,) = np.nonzero(packed["segments"][row] == number)
            targets = [int(packed["tokens"][row, place + 1]) for place in where if packed["mask"][row, place]]
            found.append((packed["tokens"][row, where[: len(targets) + (bos is None) * 0]].tolist(), targets))
    assert sorted(found) == expected


# -- mistakes ------------------------------------------------------------------------------------------------


def refused(path, *parts, layout=""):
    with pytest.raises(UserError) as caught:
        load_pretrained(path, layout)
    for part in parts:
        assert part in str(caught.value), str(caught.value)


def test_nothing_there(tmp_path):
    refused(tmp_path / "nowhere", "data.tokenizer.path=", "no such folder or file", "base.hf")
    refused(tmp_path, "no tokenizer here", "tokenizer.json", "*.model")
    families.ranks(tmp_path / "a.tiktoken"), families.ranks(tmp_path / "b.tiktoken")
    refused(tmp_path, "several *.tiktoken files", "name one")


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"model": 3}', '{"model": {"type": "Magic"}, "added_tokens": []}']
)
def test_damaged_tokenizer_json(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    refused(tmp_path, "tokenizer.json", "Copy the file again" if "Magic" in content else "Copy it again")


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", b"\x0a\x05\x0a\x03"])
def test_damaged_sentencepiece_model(tmp_path, content):
    (tmp_path / "tokenizer.model").write_bytes(content)
    refused(tmp_path, "tokenizer.model", "not a SentencePiece model")


def test_sentencepiece_of_another_kind(tmp_path):
    refused(families.sentencepiece(tmp_path, escape_whitespaces=False), "blanks at the ends of words")


def test_ranks_whose_layout_nobody_knows(tmp_path):
    file = families.ranks(tmp_path / "x.tiktoken", ["film"])
    refused(file, "259 ranks", "gpt2 (50256)", "data.tokenizer.layout")
    refused(file, "259 ranks", "has 128000", layout="llama3")
    refused(file, "'lama3' is unknown", "Closest: llama3", layout="lama3")
    file.write_bytes(file.read_bytes() + b"AAAA x\n")
    refused(file, "x.tiktoken:260:", "its rank")
    file.write_bytes(b"IQ== 0\n")
    refused(file, "a single byte each")
    refused(families.byte_level(tmp_path / "b"), "data.tokenizer.layout='gpt2'", "Leave it empty", layout="gpt2")


def test_damaged_files_beside_it(tmp_path):
    folder = families.byte_level(tmp_path)
    config = folder / "tokenizer_config.json"
    for content, *parts in (
        ("{", "tokenizer_config.json", "not a whole JSON file"),
        ("[]", "a JSON object was expected"),
        ('{"eos_token": 3}', "eos_token=3"),
        ('{"eos_token": "<nowhere>"}', "eos_token='<nowhere>' is not in the vocabulary"),
        ('{"eos_token": "</s>", "bos_token": "<x>", "add_bos_token": true}', "bos_token='<x>'"),
        ('{"eos_token": "</s>", "add_bos_token": "yes"}', "add_bos_token='yes'", "bool"),
        ('{"eos_token": "</s>", "add_prefix_space": 1}', "add_prefix_space=1"),
        ('{"eos_token": "</s>", "chat_template": [3]}', "chat_template must be a text"),
        ('{"eos_token": "</s>", "added_tokens_decoder": {"x": 3}}', "added_tokens_decoder: 'x'"),
        ('{"eos_token": "</s>", "added_tokens_decoder": {"400": {"content": "<new>"}}}', "'<new>' has number 400"),
    ):
        config.write_text(content)
        refused(folder, *parts)
    config.write_text('{"eos_token": "</s>"}')
    for name, content, *parts in (
        ("generation_config.json", b'{"eos_token_id": ["x"]}', "generation_config.json", "eos_token_id=['x']"),
        ("chat_template.jinja", b"\xff", "chat_template.jinja", "UTF-8"),
    ):
        (folder / name).write_bytes(content)
        refused(folder, *parts)
        (folder / name).unlink()
    config.unlink()
    assert load_pretrained(folder).eos_id == 1  # its name says it
    names = (folder / "tokenizer.json").read_text().replace("</s>", "<end>")
    (folder / "tokenizer.json").write_text(names)
    refused(folder, "nothing says which token ends a text", '{"eos_token": "..."}')


def test_vocab_json_of_an_unknown_class(tmp_path):
    config = dict(tokenizer_class="DebertaTokenizer")
    for name, content in (("vocab.json", {}), ("tokenizer_config.json", config)):
        (tmp_path / name).write_text(json.dumps(content))
    refused(tmp_path, "tokenizer_class='DebertaTokenizer'", "GPT2Tokenizer", "tokenizer.json")
    (tmp_path / "tokenizer_config.json").unlink()
    refused(tmp_path, "merges.txt")
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b c\n")
    refused(tmp_path, "merges.txt:2:", "two tokens")
