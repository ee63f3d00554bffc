"""10,000 lines of real text encode and decode as the libraries of each family do."""

import itertools

import numpy as np
import pytest

from elastic_jax.data.tokenizers import WordTokenizer, load_pretrained, tiktoken_ranks, train_bpe
from tests.data import families

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def lines(shared_data):
    return families.lines(shared_data)


def opened(shared_data, tmp_path_factory, name):
    return load_pretrained(families.unpack(shared_data, name, tmp_path_factory.mktemp(name)))


def published(shared_data, folder, name):
    """The encoding of OpenAI's library with the published way to cut texts."""
    tiktoken = pytest.importorskip("tiktoken")
    from tiktoken.load import load_tiktoken_bpe

    layout = tiktoken_ranks.LAYOUTS[name]
    (file,) = folder.iterdir()
    # Written here once more, as their sources have them; ours are put together from parts.
    numbers = {"llama3": r"\p{N}{1,3}", "qwen": r"\p{N}"}.get(name)
    pattern = (
        r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
        if numbers is None
        else r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"""
        + numbers
        + r"""| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
    )
    special = {text: layout.ranks + i for i, text in enumerate(layout.specials)}
    return tiktoken.Encoding(
        name, pat_str=pattern, mergeable_ranks=load_tiktoken_bpe(str(file)), special_tokens=special
    )


def check(tokenizer, lines, encoded, decoded, blank=0, texts=None):
    """Against the reference's numbers and texts; `blank`: bytes that the tokenizer puts before a text."""
    ids = tokenizer.encode(lines)
    differ = [i for i, (ours, theirs) in enumerate(zip(ids, encoded, strict=True)) if ours != theirs]
    assert not differ, [(lines[i], ids[i], encoded[i]) for i in differ[:3]]
    assert tokenizer.decode(ids) == decoded
    texts = lines if texts is None else texts
    assert decoded == texts
    sizes = [tokenizer.token_bytes[row].sum() for row in ids]
    assert sizes == [len(text.encode()) + blank for text in texts]
    flat = np.fromiter(itertools.chain.from_iterable(ids), np.int64)
    assert tokenizer.token_bytes[flat].min() > 0


GEMMA = dict(
    model_type="bpe",
    add_dummy_prefix=False,
    normalization_rule_name="identity",
    remove_extra_whitespaces=False,
    split_digits=True,
    allow_whitespace_only_pieces=True,
    user_defined_symbols=["<start_of_turn>", "\n\n", "▁▁", "▁▁▁"],
    pad_id=0,
    eos_id=1,
    bos_id=2,
    unk_id=3,
)
LLAMA = dict(model_type="bpe", normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True)
PLAIN = dict(model_type="bpe")
UNIGRAM = dict(model_type="unigram")
T5 = dict(model_type="unigram", byte_fallback=False, bos_id=-1, pad_id=0, eos_id=1, unk_id=2)


@pytest.mark.parametrize("settings", [GEMMA, LLAMA, PLAIN, UNIGRAM, T5], ids=["gemma", "llama", "bpe", "unigram", "t5"])
def test_sentencepiece_models_of_other_kinds(shared_data, tmp_path, lines, settings):
    sentencepiece = pytest.importorskip("sentencepiece")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines[:400] + lines[5500:5900]),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=1200,
        minloglevel=2,
        num_threads=1,
        character_coverage=0.999,
        **(dict(byte_fallback=True) | settings),
    )
    theirs = sentencepiece.SentencePieceProcessor(str(tmp_path / "tokenizer.model"))
    ours = load_pretrained(tmp_path)
    # The tables of characters of other models differ from SentencePiece's in marks on letters that never have them.
    some = lines[::4] if settings in (GEMMA, LLAMA) else lines[:9000:4]
    some = [*some, "  two  blanks ", "<s> typed </s>", "<start_of_turn>user\n\n\nx", "", " ", "▁▁a   b"]
    ids, encoded = ours.encode(some), theirs.encode(some)
    differ = [i for i, (a, b) in enumerate(zip(ids, encoded, strict=True)) if a != b]
    assert not differ, [(some[i], theirs.decode(ids[i]), ids[i], encoded[i]) for i in differ[:3]]
    assert (ours.bos_id if ours.bos_id is not None else -1) == theirs.bos_id() and ours.eos_id == theirs.eos_id()
    assert ours.pad_id == (theirs.pad_id() if theirs.pad_id() >= 0 else theirs.eos_id())
    if settings in (GEMMA, LLAMA):
        texts = [text.replace("▁", " ") for text in some]
        assert ours.decode(ids) == theirs.decode(encoded) == texts
        blank = settings is LLAMA
        assert [ours.token_bytes[row].sum() for row in ids] == [len(t.encode()) + bool(blank and t) for t in texts]


@pytest.mark.parametrize("name", ["gpt2-ranks", "llama3", "qwen"])
def test_tiktoken(shared_data, tmp_path_factory, lines, name):
    import unicodedata

    folder = families.unpack(shared_data, name, tmp_path_factory.mktemp(name))
    ours, theirs = load_pretrained(folder), published(shared_data, folder, name.removesuffix("-ranks"))
    # Qwen's own tokenizer composes accents first.
    texts = [unicodedata.normalize("NFC", line) for line in lines] if name == "qwen" else lines
    encoded = theirs.encode_ordinary_batch(texts, num_threads=1)
    check(ours, lines, encoded, theirs.decode_batch(encoded, num_threads=1), texts=texts)
    assert ours.vocab_size == theirs.max_token_value + 1
    assert (
        theirs.encode("<|endoftext|>" if name != "llama3" else "<|eot_id|>", allowed_special="all")[0] in ours.eos_ids
    )


def test_gpt2_files(shared_data, tmp_path_factory, lines):
    transformers = pytest.importorskip("transformers")
    folder = families.unpack(shared_data, "gpt2", tmp_path_factory.mktemp("gpt2"))
    theirs = transformers.GPT2TokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"))
    encoded = theirs(lines)["input_ids"]
    check(load_pretrained(folder), lines, encoded, theirs.batch_decode(encoded, clean_up_tokenization_spaces=False))


def test_tokenizer_json(shared_data, tmp_path_factory, lines):
    transformers = pytest.importorskip("transformers")
    folder = families.unpack(shared_data, "neox", tmp_path_factory.mktemp("neox"))
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    encoded = theirs(lines)["input_ids"]
    decoded = theirs.batch_decode(encoded, clean_up_tokenization_spaces=False)
    ours = load_pretrained(folder)
    ids = ours.encode(lines)
    assert ids == encoded and ours.decode(ids) == decoded
    # Its normalizer is NFC.
    import unicodedata

    texts = [unicodedata.normalize("NFC", line) for line in lines]
    assert decoded == texts
    assert [ours.token_bytes[row].sum() for row in ids] == [len(text.encode()) for text in texts]


def test_sentencepiece(shared_data, tmp_path_factory, lines):
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = families.unpack(shared_data, "llama2", tmp_path_factory.mktemp("llama2"))
    theirs = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))
    ours = load_pretrained(folder)
    encoded = theirs.encode(lines)
    # "▁" stands for a blank and is read as one.
    check(ours, lines, encoded, theirs.decode(encoded), blank=1, texts=[line.replace("▁", " ") for line in lines])
    assert (ours.bos_id, ours.eos_id, ours.vocab_size) == (theirs.bos_id(), theirs.eos_id(), theirs.get_piece_size())


def test_llama2_of_transformers(shared_data, tmp_path_factory, lines):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("sentencepiece")
    folder = families.unpack(shared_data, "llama2", tmp_path_factory.mktemp("llama2"))
    theirs = transformers.LlamaTokenizer(str(folder / "tokenizer.model"), legacy=True)
    ours = load_pretrained(folder)
    some = lines[::10]
    assert [[ours.bos_id, *ids] for ids in ours.encode(some)] == theirs(some)["input_ids"]


@pytest.mark.parametrize("kind", ["bpe", "words"])
def test_our_own_open_in_transformers(tmp_path, kind):
    transformers = pytest.importorskip("transformers")
    if kind == "bpe":
        texts = ["the old film, wasn't it?\n", "naïve  café 👩‍👩‍👧", "", " \t x"]
        ours = train_bpe(texts, 300)
    else:
        texts = ["a bad film", "good", ""]
        ours = WordTokenizer(["a", "good", "bad", "film"])
    ours.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    encoded = theirs(texts)["input_ids"]
    assert encoded == [[ours.bos_id, *ids] for ids in ours.encode(texts)]  # a document begins as ours do
    assert theirs.batch_decode(encoded, skip_special_tokens=True) == texts
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (ours.bos_id, ours.eos_id, ours.pad_id)
    assert len(theirs) == ours.vocab_size


@pytest.mark.parametrize("name", ["llama2", "gpt2", "neox"])
def test_what_is_saved_opens_in_transformers(shared_data, tmp_path, lines, name):
    transformers = pytest.importorskip("transformers")
    ours = load_pretrained(families.unpack(shared_data, name, tmp_path / "model"))
    ours.save(tmp_path / "saved")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    some = lines[::50]
    begin = [] if ours.bos_id is None else [ours.bos_id]
    assert theirs(some)["input_ids"] == [begin + ids for ids in ours.encode(some)]
    assert (theirs.eos_token_id, theirs.bos_token_id if begin else None) == (ours.eos_id, ours.bos_id)
    assert max(theirs.get_vocab().values()) + 1 == ours.vocab_size
