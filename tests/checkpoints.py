"""Which checkpoint of somebody else's is small enough to study in a test?

A random Llama of one layer with a tokenizer of its own, in the files that people download, and reviews to train it on.
"""

import json
import random
from pathlib import Path

import numpy as np
import tokenizers

WORDS = {
    1: ("good", "great", "fine", "warm", "bright", "loved"),
    0: ("bad", "dull", "poor", "cold", "weak", "hated"),
}
FILLER = ("the", "film", "was", "and", "plot", "actors", "scene", "story", "it", "very")
VOCAB = 300


def reviews(path: Path, rows: int = 160, seed: int = 0, pairs: bool = False) -> Path:
    """Labelled lines, or prompts with an answer of each kind; no two are equal."""
    rng = random.Random(seed)

    def text(label: int) -> str:
        return " ".join(rng.choice(WORDS[label] if rng.random() < 0.5 else FILLER) for _ in range(12))

    def row(number: int) -> dict:
        if pairs:
            return dict(prompt=f"say {rng.choice(FILLER)} {number}", chosen=text(1), rejected=text(0))
        return dict(text=f"{text(number % 2)} {number}", label=number % 2)

    path.write_text("".join(json.dumps(row(number)) + "\n" for number in range(rows)))
    return path


def tokenizer(folder: Path, vocab: int = VOCAB, lines: int = 64) -> None:
    """A byte-level tokenizer with <s> and </s>, as `tokenizer.json` and `tokenizer_config.json`."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = [word for kind in WORDS.values() for word in kind] + list(FILLER)
    made.train_from_iterator([" ".join(words)] * lines, trainer)
    made.save(str(folder / "tokenizer.json"))
    config = dict(tokenizer_class="PreTrainedTokenizerFast", bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def safetensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """The format itself, which needs no package: the length of a JSON header, the header, the numbers."""
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, values in tensors.items():
        header[name] = dict(dtype="F32", shape=values.shape, data_offsets=[at, at + values.nbytes])
        at += values.nbytes
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(values.tobytes() for values in tensors.values()))


def llama(folder: Path, seed: int = 0, rows: int = 304, layers: int = 1, std: float = 0.05, **config) -> Path:
    """A folder as `transformers` writes it; the table has a few rows that no token uses, as many published ones do.

    Args:
      rows: of the embedding table.
      config: further fields of `config.json`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    width, heads, mlp = 16, 2, 32
    fields = dict(
        architectures=["LlamaForCausalLM"], model_type="llama", hidden_act="silu", hidden_size=width, intermediate_size=mlp,
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads, head_dim=width // heads,
        max_position_embeddings=128, rms_norm_eps=1e-5, rope_theta=10_000.0, vocab_size=rows, tie_word_embeddings=False,
        attention_bias=False, mlp_bias=False, bos_token_id=1, eos_token_id=2, torch_dtype="float32",
    )  # fmt: skip
    (folder / "config.json").write_text(json.dumps({**fields, **config}))
    rng = np.random.default_rng(seed)
    shapes = {
        "model.embed_tokens.weight": (rows, width),
        "lm_head.weight": (rows, width),
        "model.norm.weight": (width,),
    }
    for i in range(layers):
        at = f"model.layers.{i}."
        shapes |= {f"{at}self_attn.{name}_proj.weight": (width, width) for name in "qkvo"}
        shapes |= {f"{at}mlp.{name}_proj.weight": (mlp, width) for name in ("gate", "up")}
        shapes[f"{at}mlp.down_proj.weight"] = (width, mlp)
        shapes |= {f"{at}{name}_layernorm.weight": (width,) for name in ("input", "post_attention")}
    tensors = {
        name: ((len(shape) == 1) + std * rng.standard_normal(shape)).astype(np.float32)
        for name, shape in shapes.items()
    }
    safetensors(folder / "model.safetensors", tensors)
    tokenizer(folder)
    return folder
