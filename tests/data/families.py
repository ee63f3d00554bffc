"""Tokenizers of the kinds that people have: the shared ones, unpacked, and small ones that are made here."""

import base64
import gzip
import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path

import tokenizers as hf

from elastic_jax.data.tokenizers import sentencepiece_model

FILES = {
    "gpt2": {"gpt2_vocab.json.gz": "vocab.json", "gpt2_merges.txt.gz": "merges.txt"},
    "gpt2-ranks": {"gpt2.tiktoken.gz": "gpt2.tiktoken"},
    "llama2": {"llama2_tokenizer.model": "tokenizer.model"},
    "llama3": {"llama3.tiktoken.gz": "tokenizer.model"},
    "qwen": {"qwen.tiktoken.gz": "qwen.tiktoken"},
    "neox": {"gpt_neox_20B_tokenizer.json.gz": "tokenizer.json"},
}


def unpack(shared: Path, name: str, folder: Path) -> Path:
    """The folder of a model with the files of its tokenizer, under the names that models have them."""
    folder.mkdir(parents=True, exist_ok=True)
    for packed, target in FILES[name].items():
        content = (shared / "tokenizers" / packed).read_bytes()
        (folder / target).write_bytes(gzip.decompress(content) if packed.endswith(".gz") else content)
    return folder


def lines(shared: Path) -> list[str]:
    """10,000 lines and texts: news, novels, encyclopedia, instructions with answers, code, and any characters at all."""

    def rows(name, count):
        with gzip.open(shared / name, "rt", encoding="utf-8") as file:
            return [json.loads(line) for line in itertools.islice(file, count)]

    def lines_of(name, count):
        return [line for row in rows(name, count) for line in row["text"].splitlines() if line.strip()]

    code = [line for line in lines_of("python_peps/peps.jsonl.gz", 40) if line.startswith("    ")]
    instructions = [
        f"{row['instruction']}\n\n{row['output']}" for row in rows("alpaca/alpaca_uniform_13k.jsonl.gz", 2500)
    ]
    found = (
        lines_of("wikinews_en/wikinews_en.jsonl.gz", 600)[:2500]
        + lines_of("novels_19c/novels_19c.jsonl.gz", 2)[:2500]
        + lines_of("wikipedia_en_sample/wikipedia_en.jsonl.gz", 30)[:500]
        + instructions
        + code[:1000]
        + any_characters(1000)
    )
    assert len(found) == 10_000
    return found


def any_characters(count: int) -> list[str]:
    """Scripts, emoji, accents apart from their letters, blanks of all kinds and control characters, in any order."""
    rng = random.Random(0)
    ranges = ((0x20, 0x7F), (0xA0, 0x24F), (0x300, 0x36F), (0x370, 0x5FF), (0x900, 0x97F), (0x2000, 0x206F))
    ranges += ((0x3040, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0x1F300, 0x1FAFF), (0x20000, 0x20FFF), (1, 0x1F))
    known = [
        " ",
        "  ",
        "\n",
        "\n\n",
        "\t",
        "\r\n",
        "the",
        "'s",
        "'S",
        "1234567",
        "e\u0301",
        "👩‍👩‍👧",
        "\u3000",
        "ſ",
        "▁",
        "<0x41>",
    ]

    def piece():
        return rng.choice(known) if rng.random() < 0.4 else chr(rng.randint(*rng.choice(ranges)))

    return ["".join(piece() for _ in range(rng.randint(1, 40))) for _ in range(count)]


SPECIALS = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
_TEXT = [
    "the old film was nice, wasn't it?",
    "user assistant system",
    "BEGINNING OF CONVERSATION: USER: ASSISTANT:",
] * 3


def byte_level(folder: Path, files: dict | None = None, **config) -> Path:
    """A small byte-level tokenizer as models have it, with `config` in its tokenizer_config.json."""
    made = hf.Tokenizer(hf.models.BPE())
    made.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = hf.decoders.ByteLevel()
    trainer = hf.trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(hf.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator(_TEXT, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(dict(eos_token="</s>") | config))
    for name, content in (files or {}).items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def sentencepiece(folder: Path, files: dict | None = None, **normalizer) -> Path:
    """A small SentencePiece BPE model of bytes, letters and a few words; the latter have the higher scores."""
    model = sentencepiece_model._message()()
    for name, kind in (("<unk>", 2), ("<s>", 3), ("</s>", 3), *((f"<0x{byte:02X}>", 6) for byte in range(256))):
        model.pieces.add(piece=name, type=kind)
    words = ["\u2581t", "he", "\u2581the", "in", "\u2581film", "fi", "lm", "film", "\u2581\u2581"]
    for number, piece in enumerate([*words, *"\u2581abcdefghilmnorst:.!"]):
        model.pieces.add(piece=piece, score=-number, type=1)
    model.trainer.model_type, model.trainer.byte_fallback = 2, True
    for name, value in (dict(remove_extra_whitespaces=False) | normalizer).items():
        setattr(model.normalizer, name, value)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    for name, content in (files or {}).items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def ranks(path: Path, words: Sequence[str] = (), count: int = 0) -> Path:
    """Tiktoken ranks of all bytes and of `words`, each with all of its beginnings, and others up to `count`."""
    tokens = [bytes([byte]) for byte in range(256)]
    for word in words:
        tokens += [word.encode()[:size] for size in range(2, len(word.encode()) + 1)]
    tokens = list(dict.fromkeys(tokens))
    tokens += [b"\xff" + number.to_bytes(3, "big") for number in range(count - len(tokens))]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens)))
    return path
