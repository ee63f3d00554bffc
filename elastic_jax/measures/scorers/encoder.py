"""How likely is a label of a text, by an encoder of RoBERTa's kind?"""

import json
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from jax.sharding import Mesh

from elastic_jax.data.files import digest_of
from elastic_jax.errors import UserError, first_line
from elastic_jax.hf.tensors import Tensors
from elastic_jax.measures.scorers import labels
from elastic_jax.measures.scorers.batched import over_rows
from elastic_jax.models import roberta
from elastic_jax.parallel.mesh import replicated

POSITIVE = "POSITIVE"  # the label taken where none is named
_LONGEST = 512


class RobertaScorer:
    """P(label | text) of a sequence classifier: softmax over its labels.

    A classifier with one label gives a number instead, its logit. Texts are cut at the end, after `length` tokens.

    Args:
      source: opened folder or hub id (`elastic_jax.hf.source.Source`).
      label: a name of its config's id2label, in any case; "" takes POSITIVE where there is one.
      text: "whole" judges prompt and answer joined, "answer" the answer alone.
      length: tokens at the most, `<s>` and `</s>` included; 0: what the model has, 512 as a rule.
      dtype: "float32", or "bfloat16", in which the products are computed.
      batch_size: texts at a time.
      called: the model's name for people; "": that of the folder.

    Raises:
      UserError: another architecture, missing tensors, no tokenizer, or no such label.
    """

    def __init__(
        self,
        source: Any,
        mesh: Mesh,
        *,
        label: str = "",
        text: str = "whole",
        length: int = 0,
        dtype: Literal["float32", "bfloat16"] = "float32",
        batch_size: int = 64,
        called: str = "",
    ):
        where = Path(source.folder)
        architecture = (source.hf_config.get("architectures") or [""])[0]
        if architecture not in roberta.ARCHITECTURES:
            raise UserError(_other(where, architecture))
        self._config = roberta.RobertaConfig.from_hf(source.hf_config, str(where / "config.json"))
        self._tensors = Tensors(where)
        roberta.check(self._config, self._tensors)
        self._source, self._mesh, self._text, self._dtype, self._batch_size = source, mesh, text, dtype, batch_size
        self._label = labels.choose(label, self._config.labels, POSITIVE)
        self._tokenizer, default = load_tokenizer(where, self._config.longest)
        self._length = length or default
        if self._length > self._config.longest:
            raise UserError(f"length={length}: the model has positions for {self._config.longest} tokens.")
        self._tokenizer.enable_truncation(self._length)
        top = max(self._tokenizer.get_vocab(with_added_tokens=True).values())
        if top >= self._config.vocab_size:
            raise UserError(
                f"{where}: the tokenizer numbers tokens up to {top}, and the model's table has "
                f"{self._config.vocab_size} rows. They belong to different models."
            )
        single, name = len(self._config.labels) == 1, self._config.labels[self._label]
        self.name = f"{called or where.name}, {name if single else f'P({name})'}"
        self.unit = "logit" if single else "probability"
        self.low: float | None = None if single else 0.0
        self.high: float | None = None if single else 1.0

    @cached_property
    def digest(self) -> str:
        what = ["roberta-1", self._source.digest, self._tokenizer.to_str(), self._label, self._text, self._length]
        return digest_of([*what, self._dtype])

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Token numbers of texts as the model reads them, `<s>` and `</s>` included."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts), add_special_tokens=True)]

    def logits(self, texts: Sequence[str]) -> np.ndarray:
        """Of every label, float64 [n, labels]."""
        if not texts:
            return np.zeros((0, len(self._config.labels)))
        c = self._config
        return over_rows(
            self._forward,
            self.tokens(texts),
            pad=c.pad_id,
            longest=self._length,
            size=self._batch_size,
            mesh=self._mesh,
        )

    def score(self, prompts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        """P(label | text), or the logit of the only label; float64 [n]."""
        pairs = zip(prompts, answers, strict=True)
        texts = [prompt + answer if self._text == "whole" else answer for prompt, answer in pairs]
        return labels.chosen(self.logits(texts), self._label)

    @cached_property
    def _params(self) -> roberta.Params:
        return roberta.load(self._config, self._tensors, self._mesh, self._dtype)

    def _forward(self, tokens_bt: jax.Array, facts_b1: jax.Array) -> jax.Array:
        return self._jitted(self._params, tokens_bt, facts_b1)

    @cached_property
    def _jitted(self) -> Any:
        return jax.jit(partial(_logits, self._config), out_shardings=replicated(self._mesh))


def _logits(c: roberta.RobertaConfig, params: Any, tokens_bt: jax.Array, facts_b1: jax.Array) -> jax.Array:
    mask_bt = jnp.arange(tokens_bt.shape[1])[None] < facts_b1
    with jax.default_matmul_precision("float32"):  # of the float32 products; those of bfloat16 have no other
        return roberta.logits(c, params, tokens_bt, mask_bt)


def load_tokenizer(folder: Path, longest: int) -> tuple[tokenizers.Tokenizer, int]:
    """The tokenizer of a classifier, which puts `<s>` and `</s>` around a text, and the length at which it cuts texts.

    Reads `tokenizer.json`, or `vocab.json` and `merges.txt` of RoBERTa's first releases.

    Raises:
      UserError: there is neither, they are damaged, or they put nothing around a text.
    """
    settings = _settings(folder)
    try:
        if (folder / "tokenizer.json").is_file():
            made = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            made = _byte_level(folder, bool(settings.get("add_prefix_space", False)))
        else:
            raise UserError(f"{folder}: no tokenizer. Expected tokenizer.json, or vocab.json and merges.txt.")
    except UserError:
        raise
    except Exception as error:  # the Rust parsers raise plain Exception
        raise UserError(f"{folder}: its tokenizer cannot be read ({first_line(error)}).") from error
    made.no_padding()
    made.no_truncation()
    if len(made.encode("")) != 2:
        raise UserError(
            f"{folder}/tokenizer.json puts {len(made.encode(''))} tokens around a text; <s> and </s> were expected."
        )
    asked = settings.get("model_max_length")
    usual = asked if isinstance(asked, int) and asked > 0 else _LONGEST
    return made, min(usual, longest)


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}).") from error


def _byte_level(folder: Path, prefix: bool) -> tokenizers.Tokenizer:
    """RoBERTa's tokenizer from the files of GPT-2's format."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

    made = tokenizers.Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)  # pyright: ignore[reportAttributeAccessIssue]
    made.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    special = [AddedToken(text, normalized=False, special=True) for text in ("<s>", "<pad>", "</s>", "<unk>")]
    made.add_special_tokens([*special, AddedToken("<mask>", lstrip=True, normalized=False, special=True)])
    begin, end = made.token_to_id("<s>"), made.token_to_id("</s>")
    made.post_processor = processors.RobertaProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        ("</s>", end),
        ("<s>", begin),
        add_prefix_space=prefix,  # by place: tokenizers 0.23 has another name for the second
    )
    return made


def _other(where: Path, architecture: str) -> str:
    if architecture.endswith(("ForCausalLM", "LMHeadModel")):
        return (
            f"{where} is a causal language model ({architecture}), which writes texts and classifies none. Give a sequence "
            "classifier, or use perplexity:."
        )
    if architecture in ("LlamaForScore", "LlamaModelForScore", "LlamaForSequenceClassification"):
        return f"{where} is a decoder with a head for scores ({architecture}). Write cost:{where}."
    named = architecture or "of no named architecture"
    return f"{where} is {named}; expected {' or '.join(roberta.ARCHITECTURES)}."
