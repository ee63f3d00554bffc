"""Exactly how are the checkpoints of a study measured?"""

import dataclasses
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from elastic_jax.data.build import StudyData
from elastic_jax.data.files import digest_of
from elastic_jax.measures import behaviour, likelihood
from elastic_jax.measures.questions import NO_FRAME, Frame
from elastic_jax.measures.scorers.further import Further
from elastic_jax.models.sampler import LogProgress, sample
from elastic_jax.models.transformer import Decoder, Params


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Held-out texts, prompts, scorer and settings, the same at every point of every run.

    Attributes:
      settings: the `measures` section of the config.
      further: the scorers of `measures.scorers`, opened.
      frame: what the template puts around a question.
    """

    model: Decoder
    data: StudyData
    mesh: Mesh
    settings: dict[str, Any]
    further: tuple[Further, ...] = ()
    frame: Frame = NO_FRAME

    @cached_property
    def digest(self) -> str:
        """Two points are comparable when this is equal."""
        what = {k: v for k, v in self.settings.items() if k not in ("per_octave", "kl_eps", "batch_size", "scorers")}
        heldout = {split: prepared.digest for split, prepared in self.data.heldout.items()}
        prompts = digest_of(self.data.prompt_rows())
        scorers = [self.data.scorer.name, self.data.scorer.digest]
        judges = [[one.measure, one.scorer.digest] for one in self.further]
        whole = ["v2", what, heldout, prompts, *scorers, self.data.tokenizer.digest]
        return digest_of([*whole, *([judges] if judges else [])])[:16]

    @property
    def of_base(self) -> frozenset[str]:
        """Measures that compare with the base model: before there is one they mean nothing."""
        return frozenset(("kl_base_model", "kl_model_base", *(one.measure for one in self.further if one.of_base)))

    @property
    def _vocabulary(self) -> int:
        """Tokens that the softmax is over; rows that only pad the tables are none."""
        return self.model.config.used_vocab or self.model.config.vocab_size

    @cached_property
    def _heldout(self) -> dict[str, dict[str, np.ndarray]]:
        return {split: prepared.arrays() for split, prepared in self.data.heldout.items()}

    @cached_property
    def _row_sums(self) -> Any:
        return likelihood.make_row_sums(self.model, self.mesh, self.settings["batch_size"])

    @property
    def sample_tokens(self) -> int:
        longest = self.model.config.seq_len + 1 - self.data.prompts.shape[1]
        return min(self.settings["sample_tokens"] or longest, longest)

    def measure(self, params: Params, base: Params, seed: int) -> list[dict[str, Any]]:
        """All rows of one checkpoint.

        The sampling key depends on the seed alone: points of one run share their random numbers, so that their differences are
        less noisy than their levels.
        """
        rows: list[dict[str, Any]] = []
        for split, arrays in self._heldout.items():
            sums = self._row_sums(params, base, arrays, self.data.tokenizer.token_bytes)
            log_prob = self.data.log_prob.get(split)
            rows += likelihood.rows_of(sums, split, self._vocabulary, log_prob)
        chosen = np.arange(self.settings["samples"]) % len(self.data.prompts)
        known = self.data.prompt_rows()
        prompts = [known[i] for i in chosen]
        written = sample(
            self.model,
            params,
            prompts,
            jax.random.key(np.uint32(seed)),
            self.mesh,
            length=self.sample_tokens,
            temperature=self.settings["temperature"],
            top_k=self.settings["top_k"],
            top_p=self.settings["top_p"],
            eos=self.data.tokenizer.eos_ids,
            never=self.data.tokenizer.never,
            pad=self.data.tokenizer.pad_id,
            stop=self.settings["stop"],
            tokenizer=self.data.tokenizer if self.settings["stop"] else None,
            progress=LogProgress(),
        )
        continuations = [row[:n] for row, n in zip(written.tokens.tolist(), written.lengths, strict=True)]
        tokenizer, size = self.data.tokenizer, self.settings["batch_size"]
        judges = [
            behaviour.Judge(one.measure, one.bound(self.model, base, tokenizer, self.mesh, size), one.asks_question)
            for one in self.further
        ]
        keep = self.settings["keep"]
        rows += behaviour.rows_of(prompts, continuations, tokenizer, self.data.scorer, keep, judges, self.frame)
        return rows
