"""How many texts a second does a classifier judge, beside transformers?

usage: python benchmarks/scorers.py [--out=FOLDER] [--quick]

A RoBERTa of random weights in the shape of roberta-base, and texts with the lengths of IMDb reviews, cut at 512 tokens. transformers
gets the same texts padded batch by batch in the order in which they come, as its pipeline makes batches, and one at a time. Compiling is not
counted. Needs torch and transformers.
"""

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import common
import jax
import numpy as np

from elastic_jax.measures.scorers.encoder import RobertaScorer
from elastic_jax.parallel.mesh import make_mesh

COLUMNS = {"who": "who", "texts_s": "texts/s", "tokens_s": "tokens/s, padding not counted", "times": "times ours"}


def classifier(folder: Path, quick: bool) -> Any:
    """Written as transformers writes it; its own model."""
    import tokenizers
    import transformers

    made = tokenizers.ByteLevelBPETokenizer()
    words = [f"w{i}" for i in range(900)]
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    made.train_from_iterator([" ".join(words)] * 2, vocab_size=2000, special_tokens=special, show_progress=False)
    made.save_model(str(folder))
    shape: Any = (
        dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128)
        if quick
        else dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072)
    )
    config = transformers.RobertaConfig(
        vocab_size=made.get_vocab_size(),
        max_position_embeddings=514,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        id2label={0: "NEGATIVE", 1: "POSITIVE"},
        label2id={"NEGATIVE": 0, "POSITIVE": 1},
        **shape,
    )
    model = transformers.RobertaForSequenceClassification(config).eval()
    model.save_pretrained(folder)
    return model, transformers.RobertaTokenizerFast.from_pretrained(folder, model_max_length=512)


def seconds(run: Callable[[], Any], repeats: int) -> float:
    """The median of a few, after one that is not counted."""
    run()
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        taken.append(time.perf_counter() - began)
    return float(np.median(taken))


def main() -> None:
    import torch

    args = common.parser(__doc__).parse_args()
    count, batch, repeats = (8, 4, 1) if args.quick else (16, 8, 3)
    rng = np.random.default_rng(0)
    lengths = np.minimum(rng.lognormal(5.2, 0.65, count), 700).astype(int)  # words of a review: median 181
    texts = [" ".join(f"w{i}" for i in rng.integers(0, 900, n)) for n in lengths]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model, tokenizer = classifier(folder, args.quick)
        config = json.loads((folder / "config.json").read_text())
        source = SimpleNamespace(folder=folder, digest="", hf_config=config)
        ours = RobertaScorer(source, make_mesh(devices=jax.devices()[:1]), batch_size=batch)
        tokens = sum(map(len, ours.tokens(texts)))

        def theirs(size: int) -> np.ndarray:
            out = []
            with torch.inference_mode():
                for i in range(0, count, size):
                    part = tokenizer(texts[i : i + size], padding=True, truncation=True, return_tensors="pt")
                    out.append(model(**part).logits.numpy())
            return np.concatenate(out)

        np.testing.assert_allclose(ours.logits(texts), theirs(batch), atol=1e-4)
        taken = {
            "elastic_jax": seconds(lambda: ours.logits(texts), repeats),
            f"transformers, batches of {batch}": seconds(lambda: theirs(batch), repeats),
            "transformers, one at a time": seconds(lambda: theirs(1), repeats),
        }
    first = taken["elastic_jax"]
    rows = [
        dict(who=who, texts_s=count / took, tokens_s=tokens / took, times=took / first) for who, took in taken.items()
    ]
    notes = [
        f"{count} texts, {tokens:,} tokens; float32; logits equal to 1e-4; {torch.get_num_threads()} threads of torch."
    ]
    common.report("scorers", "Texts a second through a RoBERTa classifier", COLUMNS, rows, notes=notes, out=args.out)


if __name__ == "__main__":
    main()
