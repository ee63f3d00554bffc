"""What does a decoder with a head for scores say of a text?

The head reads the last token of the text. Two kinds of checkpoint have one: safe-rlhf's score models, of which the Beaver cost model
is one (https://github.com/PKU-Alignment/safe-rlhf; Dai et al., arXiv 2310.12773), and transformers' `...ForSequenceClassification`.
"""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from elastic_jax.data.files import digest_of
from elastic_jax.errors import UserError
from elastic_jax.hf import load
from elastic_jax.hf.source import VOCAB_MULTIPLE
from elastic_jax.hf.tensors import Tensors
from elastic_jax.measures.scorers import labels
from elastic_jax.measures.scorers.batched import over_rows
from elastic_jax.models.config import ModelConfig
from elastic_jax.models.families import family_of
from elastic_jax.models.roberta import labels_of
from elastic_jax.models.transformer import Decoder, Params
from elastic_jax.parallel.mesh import put_global, replicated

_log = logging.getLogger(__name__)
_LONGEST = 512  # the paper's truncation
_BEGINNING, _END = "BEGINNING OF CONVERSATION: USER: ", " ASSISTANT:"
_SAFE_RLHF = ("LlamaForScore", "LlamaModelForScore")
_EPSILON = 1e-8  # of safe-rlhf's normalisers
# What becomes of an output under `do_normalize`, by the kind of score.
_NORMALISED = {"reward": "affine", "cost": "scale", "critic": "identity"}


@dataclasses.dataclass(frozen=True)
class Head:
    """The outputs of a checkpoint: their tensors, their names, and what they mean.

    Attributes:
      names: of the tensors that are no part of the decoder.
      labels: of the outputs.
      unit: "cost", "reward" or "logit" of a single output; "probability" where there are several.
      shift, scale: an output y counts as (y - shift) / scale.
    """

    weight: str
    bias: str
    names: tuple[str, ...]
    labels: tuple[str, ...]
    unit: str
    shift: float = 0.0
    scale: float = 1.0


def head_of(config: Mapping[str, Any], tensors: Tensors) -> Head:
    """The head that a config.json describes.

    Raises:
      UserError: it describes none, or the checkpoint has no tensors for it.
    """
    where = tensors.folder
    architecture = (config.get("architectures") or [""])[0]
    if architecture in _SAFE_RLHF:
        head = _safe_rlhf(config, tensors)
    elif architecture.endswith("ForSequenceClassification"):
        names = labels_of(config)
        unit = "logit" if len(names) == 1 else "probability"
        head = Head("score.weight", "score.bias", ("score.weight", "score.bias"), names, unit)
    elif architecture.endswith(("ForCausalLM", "LMHeadModel")):
        raise UserError(
            f"{where} is a causal language model ({architecture}), which has a head for words and none for scores. Give a "
            "score model or a sequence classifier, or use perplexity:."
        )
    else:
        raise UserError(
            f"{where} is {architecture or 'of no named architecture'}; expected {_SAFE_RLHF[0]} or a decoder's "
            "...ForSequenceClassification."
        )
    if head.weight not in tensors.names:
        raise UserError(
            f"{where} has no head: {head.weight} is missing. It is no {architecture}, or was saved without it."
        )
    return head


def _safe_rlhf(config: Mapping[str, Any], tensors: Tensors) -> Head:
    kind = config.get("score_type", "reward")
    outputs = int(config.get("score_dim", 1))
    if kind not in _NORMALISED or outputs != 1:
        raise UserError(
            f"{tensors.folder}/config.json: score_type={kind!r}, score_dim={outputs}; supported: "
            f"{', '.join(_NORMALISED)} of one output."
        )
    shift, scale = 0.0, 1.0
    if config.get("do_normalize", False):

        def statistic(name: str, default: float) -> float:
            if f"normalizer.{name}" in tensors.names:
                return float(tensors.read(f"normalizer.{name}").astype(np.float64).reshape(-1)[0])
            return float(np.reshape(config.get(name) or default, -1)[0])

        if _NORMALISED[kind] == "affine":
            shift = statistic("mean", 0.0)
        if _NORMALISED[kind] in ("affine", "scale"):
            scale = statistic("var", 1.0) ** 0.5 + _EPSILON
    if kind != "cost":
        _log.warning("%s is a %s model: its scores grow with what it likes, not with harm.", tensors.folder, kind)
    own = tuple(name for name in tensors.names if name.startswith(("score_head.", "normalizer.")))
    return Head("score_head.weight", "score_head.bias", own, (kind,), kind, shift, scale)


class CostScorer:
    """The end score of a text: what the head says at its last token.

    Of a cost model a higher score is a less safe answer, and 0 is where its training drew the line; the paper's figures seem to show the
    negative of it. A classifier with several labels gives P(label | text).

    Args:
      source: opened folder or hub id (`elastic_jax.hf.source.Source`).
      label: of a classifier with several labels: the one whose probability is the score.
      template: "paper" puts question and answer into `BEGINNING OF CONVERSATION: USER: ... ASSISTANT:...`, unless the prompt is of
        that form already; "none" judges prompt and answer joined.
      eos: "yes" puts the end of a document after the answer, as the cost model's training did; its model card does not.
      length: tokens at the most, 0: 512; longer texts are cut at the end.
      dtype: in which the weights are held and multiplied.
      called: the model's name for people; "": that of the folder.

    Raises:
      UserError: no head, another architecture, missing tensors, or no such label.
    """

    def __init__(
        self,
        source: Any,
        mesh: Mesh,
        *,
        label: str = "",
        template: str = "paper",
        eos: str = "no",
        length: int = 0,
        dtype: Literal["float32", "bfloat16"] = "float32",
        batch_size: int = 64,
        called: str = "",
    ):
        from elastic_jax.data.tokenizers import load_pretrained

        where = Path(source.folder)
        self._source, self._mesh, self._batch_size, self._dtype = source, mesh, batch_size, dtype
        self._template, self._eos, self._length = template, eos == "yes", length or _LONGEST
        self._tensors = Tensors(where)
        self._head = head_of(source.hf_config, self._tensors)
        self._label = labels.choose(label, self._head.labels)
        self._tokenizer = load_pretrained(where)
        self._family = family_of(source.hf_config, head=False)
        # Tied, so that there is no head for words; scanned, since every width of a batch is compiled.
        fields: dict[str, Any] = {**self._family.fields(source.hf_config), "tie_embeddings": True, "layout": "scan"}
        rows = self._family.vocabulary(source.hf_config)
        table = -(-rows // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
        fields |= dict(vocab_size=table, used_vocab=rows if table > rows else 0, seq_len=self._length)
        config = ModelConfig(**fields, dtype=dtype, param_dtype=dtype)
        wanted = (len(self._head.labels), config.embed)
        if self._tensors.shape(self._head.weight) != wanted:
            found = list(self._tensors.shape(self._head.weight))
            raise UserError(f"{where}: {self._head.weight} has shape {found}, expected {list(wanted)}.")
        self._model = Decoder(config)
        self._model.shardings(mesh)
        names, pieces = self._family.locate(self._tensors.names), self._family.pieces(config, head=False)
        load.check(pieces, names, self._tensors, self._family, head=False, others=self._head.names)
        if self._tokenizer.vocab_size > rows:
            raise UserError(
                f"{where}: the tokenizer has {self._tokenizer.vocab_size} tokens and the model {rows} rows for them. They "
                "belong to different models."
            )
        several = len(self._head.labels) > 1
        self.unit = self._head.unit
        self.low: float | None = 0.0 if several else None
        self.high: float | None = 1.0 if several else None
        named = self._head.labels[self._label]
        self.name = f"{called or where.name}, {f'P({named})' if several else self.unit}"

    @cached_property
    def digest(self) -> str:
        what = ["cost-1", self._source.digest, self._tokenizer.digest, self._label, self._template, self._eos]
        return digest_of([*what, self._length, self._dtype])

    def texts(self, prompts: Sequence[str], answers: Sequence[str]) -> list[str]:
        """What is judged."""
        pairs = zip(prompts, answers, strict=True)
        return [joined(prompt, answer) if self._template == "paper" else prompt + answer for prompt, answer in pairs]

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Token numbers of texts as the model reads them."""
        begin = [] if self._tokenizer.bos_id is None else [self._tokenizer.bos_id]
        end = [self._tokenizer.eos_id] if self._eos else []
        rows = [(begin + ids + end)[: self._length] for ids in self._tokenizer.encode(list(texts))]
        return [row or [self._tokenizer.pad_id] for row in rows]

    def outputs(self, texts: Sequence[str]) -> np.ndarray:
        """What the head gives at the end of each text, normalised as the config says; float64 [n, labels]."""
        if not texts:
            return np.zeros((0, len(self._head.labels)))
        raw = over_rows(
            lambda tokens, facts: self._jitted(self._params, tokens, facts),
            self.tokens(texts),
            pad=self._tokenizer.pad_id,
            longest=self._length,
            size=self._batch_size,
            mesh=self._mesh,
        )
        return (raw - self._head.shift) / self._head.scale

    def score(self, prompts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        """The output at the end of each text, or P(label | text) where there are several; float64 [n]."""
        return labels.chosen(self.outputs(self.texts(prompts, answers)), self._label)

    @cached_property
    def _params(self) -> dict[str, Any]:
        body = load.load_params(
            self._model, self._mesh, self._tensors, self._family, head=False, others=self._head.names
        )

        def whole(name: str) -> jax.Array:
            return put_global(self._tensors.read(name).astype(np.float32), replicated(self._mesh))

        bias = whole(self._head.bias) if self._head.bias in self._tensors.names else jnp.zeros(len(self._head.labels))
        return dict(body=body, weight=whole(self._head.weight), bias=bias)

    @cached_property
    def _jitted(self) -> Any:
        return jax.jit(partial(_outputs, self._model), out_shardings=replicated(self._mesh))


def _outputs(model: Decoder, params: Params, tokens_bt: jax.Array, facts_b1: jax.Array) -> jax.Array:
    """[b, c], float32."""
    with jax.default_matmul_precision("float32"):  # of the float32 products; those of bfloat16 have no other
        hidden_btd, _ = model.hidden(params["body"], tokens_bt)
        last_bd = jnp.take_along_axis(hidden_btd, facts_b1[:, :, None] - 1, axis=1)[:, 0].astype(jnp.float32)
        return last_bd @ params["weight"].T + params["bias"][None]


def joined(prompt: str, answer: str) -> str:
    """Question and answer in the form that the paper's models were taught.

    >>> joined("Hello?", " Hi.") == joined("BEGINNING OF CONVERSATION: USER: Hello? ASSISTANT:", "Hi.")
    True
    """
    if not prompt.startswith(_BEGINNING.rstrip()):
        prompt = f"{_BEGINNING}{prompt.strip()}{_END}"
    return prompt.rstrip() + answer.lstrip()
