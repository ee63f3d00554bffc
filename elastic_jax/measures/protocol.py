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
      row_sums: of `likelihood.make_row_sums`, where several protocols share the program.
    """

    model: Decoder
    data: StudyData
    mesh: Mesh
    settings: dict[str, Any]
    further: tuple[Further, ...] = ()
    frame: Frame = NO_FRAME
    row_sums: likelihood.RowSums | None = None

    @cached_property
    def digest(self) -> str:
        """Two points are comparable when this is equal."""
        what = {k: v for k, v in self.settings.items() if k not in ("per_octave", "kl_eps", "batch_size", "scorers")}
        heldout = {split: prepared.digest for split, prepared in self.data.heldout.items()}
        prompts = digest_of(self.data.prompt_rows())
        scorers = [self.data.scorer.name, self.data.scorer.digest]
        judges = [[one.measure, one.scorer.digest] for one in self.further]
        probes = {role: [probe.prompts.tolist(), probe.scorer.digest] for role, probe in self.data.probes.items()}
        whole = ["v2", what, heldout, prompts, *scorers, self.data.tokenizer.digest]
        return digest_of([*whole, *([judges] if judges else []), *([probes] if probes else [])])[:16]

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
        return self.row_sums or likelihood.make_row_sums(self.model, self.mesh, self.settings["batch_size"])

    def make_ready(self) -> None:
        """Whatever is made once, before several threads measure: otherwise each of them may make its own."""
        _ = self.digest, self._heldout, self._row_sums

    @property
    def sample_tokens(self) -> int:
        return self._sample_tokens(self.data.prompts.shape[1])

    def _sample_tokens(self, prompt_tokens: int) -> int:
        longest = self.model.config.seq_len + 1 - prompt_tokens
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
        prompts, continuations = self._written(params, self.data.prompt_rows(), seed, self.sample_tokens)
        tokenizer, size = self.data.tokenizer, self.settings["batch_size"]
        judges = [
            behaviour.Judge(one.measure, one.bound(self.model, base, tokenizer, self.mesh, size), one.asks_question)
            for one in self.further
        ]
        keep = self.settings["keep"]
        rows += behaviour.rows_of(prompts, continuations, tokenizer, self.data.scorer, keep, judges, self.frame)
        for role, probe in self.data.probes.items():
            asked = probe.prompts.tolist()
            prompts, continuations = self._written(params, asked, seed, self._sample_tokens(probe.prompts.shape[1]))
            of_task = behaviour.rows_of(prompts, continuations, tokenizer, probe.scorer, 0)
            rows += [dict(row, split=role) for row in of_task]
        return rows

    def _written(
        self, params: Params, known: list[list[int]], seed: int, length: int
    ) -> tuple[list[list[int]], list[list[int]]]:
        """As many prompts as there are to be samples, in turn, and what the model writes on each."""
        prompts = [known[i] for i in np.arange(self.settings["samples"]) % len(known)]
        written = sample(
            self.model,
            params,
            prompts,
            jax.random.key(np.uint32(seed)),
            self.mesh,
            length=length,
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
        return prompts, [row[:n] for row, n in zip(written.tokens.tolist(), written.lengths, strict=True)]
