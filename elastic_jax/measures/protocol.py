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
from elastic_jax.models.sampler import sample
from elastic_jax.models.transformer import Decoder, Params


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Held-out texts, prompts, scorer and settings, the same at every point of every run.

    Attributes:
      settings: the `measures` section of the config.
    """

    model: Decoder
    data: StudyData
    mesh: Mesh
    settings: dict[str, Any]

    @cached_property
    def digest(self) -> str:
        """Two points are comparable when this is equal."""
        what = {k: v for k, v in self.settings.items() if k not in ("per_octave", "kl_eps", "batch_size")}
        heldout = {split: prepared.digest for split, prepared in self.data.heldout.items()}
        prompts = digest_of(self.data.prompts.tolist())
        return digest_of(
            ["v1", what, heldout, prompts, self.data.scorer.name, self.data.scorer.digest, self.data.tokenizer.digest]
        )[:16]

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
            rows += likelihood.rows_of(sums, split, self.model.config.vocab_size, log_prob)
        prompts = self.data.prompts
        prompts = prompts[np.arange(self.settings["samples"]) % len(prompts)]
        continuations = sample(
            self.model,
            params,
            prompts,
            jax.random.key(np.uint32(seed)),
            self.mesh,
            length=self.sample_tokens,
            temperature=self.settings["temperature"],
            top_p=self.settings["top_p"],
            eos=self.data.tokenizer.eos_id,
            pad=self.data.tokenizer.pad_id,
        )
        rows += behaviour.rows_of(prompts, continuations, self.data.tokenizer, self.data.scorer, self.settings["keep"])
        return rows
