"""Sequence classifiers small enough to test on, made by transformers and written as it writes them."""

import json
from types import SimpleNamespace

import numpy as np

LETTERS = "abcdefghijklmnopqrstuvwxyz"
TEXTS = [
    "a fine film",
    "",
    "the plot is thin, the acting wooden; I left.",
    "ünïcode and emoji 🙂 too",
    " leading and  double spaces ",
    "word " * 80,
    "</s> typed by a person",
    "x",
]


def byte_level(folder):
    """vocab.json and merges.txt of a byte-level BPE with RoBERTa's special tokens; returns the vocabulary's size."""
    from tokenizers import ByteLevelBPETokenizer

    made = ByteLevelBPETokenizer()
    made.train_from_iterator(
        [*TEXTS, "the film was fine and the plot thin"] * 3,
        vocab_size=300,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        show_progress=False,
    )
    made.save_model(str(folder))
    return made.get_vocab_size()


def roberta(folder, labels=("NEGATIVE", "POSITIVE"), kind="Roberta", tokenizer_json=True, **config):
    """Writes a tiny random classifier; returns transformers' model and tokenizer."""
    import torch
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    size = byte_level(folder)
    made_config = getattr(transformers, f"{kind}Config")(
        vocab_size=size,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=40,
        max_position_embeddings=66,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
        initializer_range=0.3,
        **config,
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForSequenceClassification")(made_config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # zero biases and unit scales would hide their terms
            if name.endswith("bias") or "LayerNorm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer = transformers.RobertaTokenizerFast.from_pretrained(folder, model_max_length=64)
    if tokenizer_json:
        tokenizer.save_pretrained(folder)
    else:
        (folder / "tokenizer_config.json").write_text(json.dumps(dict(model_max_length=64, add_prefix_space=False)))
    return model, tokenizer


def safetensors(path, tensors):
    """Writes float32 arrays in the format of safetensors."""
    header, blob = {}, b""
    for name, array in tensors.items():
        content = array.astype("<f4").tobytes()
        header[name] = dict(dtype="F32", shape=list(array.shape), data_offsets=[len(blob), len(blob) + len(content)])
        blob += content
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + blob)


def plain_roberta(folder, without=(), **config):
    """Writes a random classifier without torch; returns its config and tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    size, d, f, layers = byte_level(folder), 16, 24, 2
    config = (
        dict(architectures=["RobertaForSequenceClassification"], model_type="roberta", vocab_size=size, hidden_size=d)
        | dict(num_hidden_layers=layers, num_attention_heads=2, intermediate_size=f, max_position_embeddings=34)
        | dict(layer_norm_eps=1e-5, pad_token_id=1, id2label={"0": "NEGATIVE", "1": "POSITIVE"})
        | config
    )
    shapes = {"embeddings.word_embeddings": (size, d), "embeddings.position_embeddings": (34, d)}
    shapes |= {"embeddings.token_type_embeddings": (1, d), "embeddings.LayerNorm": (d,)}
    for i in range(layers):
        of = f"encoder.layer.{i}"
        shapes |= {f"{of}.attention.self.{name}": (d, d) for name in ("query", "key", "value")}
        shapes |= {f"{of}.attention.output.dense": (d, d), f"{of}.attention.output.LayerNorm": (d,)}
        shapes |= {f"{of}.intermediate.dense": (f, d), f"{of}.output.dense": (d, f), f"{of}.output.LayerNorm": (d,)}
    shapes = {f"roberta.{name}": shape for name, shape in shapes.items()}
    shapes |= {"classifier.dense": (d, d), "classifier.out_proj": (len(config["id2label"]), d)}
    rng = np.random.default_rng(0)
    tensors = {f"{name}.weight": 0.3 * rng.standard_normal(shape) for name, shape in shapes.items()}
    biases = {name: shape[0] for name, shape in shapes.items() if "embeddings." not in name or "LayerNorm" in name}
    tensors |= {f"{name}.bias": 0.3 * rng.standard_normal(n) for name, n in biases.items()}
    tensors = {name: array for name, array in tensors.items() if name not in without}
    safetensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(config))
    return config, tensors


def source(folder, digest="weights"):
    """What `elastic_jax.hf.source.open_source` gives, as far as scorers ask."""
    config = json.loads((folder / "config.json").read_text())
    return SimpleNamespace(folder=folder, revision="", digest=digest, hf_config=config)


BIAS, VARIANCE = 0.25, 4.0  # of `as_score_model`


def llama(folder, labels=("cost",), causal=False):
    """Writes a tiny random Llama with a head for scores, or for words; returns transformers' model and tokenizer."""
    import tokenizers as hf
    import torch
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    made = hf.Tokenizer(hf.models.BPE())
    made.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = hf.decoders.ByteLevel()
    trainer = hf.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=sorted(hf.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator([*TEXTS, "BEGINNING OF CONVERSATION: USER: ASSISTANT:"] * 3, trainer)
    made.post_processor = hf.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", made.token_to_id("<s>"))]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.save_pretrained(folder)
    config = transformers.LlamaConfig(
        vocab_size=made.get_vocab_size(),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        tie_word_embeddings=False,
        **({} if causal else dict(id2label=dict(enumerate(labels)), label2id={v: i for i, v in enumerate(labels)})),
    )
    torch.manual_seed(0)
    kind = transformers.LlamaForCausalLM if causal else transformers.LlamaForSequenceClassification
    model = kind(config).eval()
    model.save_pretrained(folder, safe_serialization=True)
    return model, tokenizer


def as_score_model(folder, normalised):
    """Writes the checkpoint of a LlamaForSequenceClassification under the names of safe-rlhf, with a bias and a normaliser."""
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["score_head.weight"] = tensors.pop("score.weight")
    tensors["score_head.bias"] = torch.tensor([BIAS])
    tensors |= {
        "normalizer.mean": torch.tensor([1.5]),
        "normalizer.var": torch.tensor([VARIANCE]),
        "normalizer.count": torch.tensor([7]),
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config |= dict(architectures=["LlamaForScore"], score_type="cost", score_dim=1, bias=True, do_normalize=normalised)
    config |= dict(normalizer_type="RunningMeanStd", mean=[9.0], var=[9.0])  # older than the buffers, which count
    config.pop("id2label"), config.pop("label2id")
    (folder / "config.json").write_text(json.dumps(config))
