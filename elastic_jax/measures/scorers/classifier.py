"""How likely is it that a text shows the behaviour the model was aligned to, judged by its words?"""

import io
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from elastic_jax.data.files import digest_of, sha256_of_file, write_bytes
from elastic_jax.errors import UserError

_log = logging.getLogger(__name__)
# Part of the digest: another setting is another scorer.
_SETTINGS = dict(ngram_range=(1, 2), min_df=2, max_features=200_000, sublinear_tf=True, strip_accents="unicode")
_REGULARISATION = 8.0  # C of the logistic regression
_FORMAT = 1


class ClassifierScorer:
    """Logistic regression on TF-IDF of words and pairs of words.

    Deterministic: the same texts in the same order give the same scores. Stored as numbers and JSON.
    """

    unit = "probability"
    low: float | None = 0.0
    high: float | None = 1.0

    def __init__(self, meta: dict[str, Any], terms: Sequence[str], idf: np.ndarray, weights: np.ndarray):
        """For `fit` and `load`: `weights` [terms + 1], the last one the intercept."""
        self._meta, self._terms, self._idf, self._weights = meta, list(terms), idf, weights
        self._vectorizer: Any = None
        self.name = "TF-IDF + logistic regression"
        self.digest: str = meta["digest"]
        self.use_prompt: bool = meta["use_prompt"]

    @classmethod
    def fit(cls, texts: Sequence[str], labels: Sequence[bool] | np.ndarray, *, use_prompt: bool) -> "ClassifierScorer":
        """A scorer of P(label is true | text).

        Args:
          texts: [n].
          labels: [n], true for the aligned behaviour.
          use_prompt: whether `score` judges prompt and answer joined, or the answer alone.

        Raises:
          UserError: fewer than two texts of a class, or no word occurs twice.
        """
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression

        wanted = np.asarray(labels, bool)
        if min(wanted.sum(), (~wanted).sum()) < 2:
            raise UserError(
                f"data.rows.scorer: the scorer needs both classes; {int(wanted.sum())} aligned and "
                f"{int((~wanted).sum())} opposite rows were given. Raise data.rows.scorer."
            )
        vectorizer = TfidfVectorizer(**_SETTINGS)  # pyright: ignore[reportArgumentType]
        try:
            features = vectorizer.fit_transform(texts)
        except ValueError as error:
            raise UserError(
                f"data.rows.scorer: no word occurs in two of the {len(texts)} rows ({error}). Raise data.rows.scorer."
            ) from error
        model = LogisticRegression(C=_REGULARISATION, max_iter=1000).fit(features, wanted)
        weights = np.concatenate([model.coef_[0], model.intercept_]).astype(np.float64)
        meta = dict(format=_FORMAT, digest=cls.digest_for(texts, wanted, use_prompt=use_prompt), use_prompt=use_prompt)
        return cls(meta, list(vectorizer.get_feature_names_out()), vectorizer.idf_, weights)

    @staticmethod
    def digest_for(texts: Sequence[str], labels: Sequence[bool] | np.ndarray, *, use_prompt: bool) -> str:
        """Of the scorer that `fit` would give, known before it is fitted."""
        from importlib.metadata import version

        content = [list(texts), np.asarray(labels, bool).tolist(), use_prompt]
        return digest_of([_FORMAT, _SETTINGS, _REGULARISATION, version("scikit-learn"), content])

    def score(self, prompts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        """P(aligned behaviour | text), float64 [n]; a text without a known word gets the prior odds."""
        texts = [p + a if self.use_prompt else a for p, a in zip(prompts, answers, strict=True)]
        if not texts:
            return np.zeros(0)
        return _sigmoid(np.asarray(self._features(texts) @ self._weights[:-1]).ravel() + self._weights[-1])

    def _features(self, texts: Sequence[str]) -> Any:
        if self._vectorizer is None:
            from sklearn.feature_extraction.text import TfidfVectorizer

            settings = {k: v for k, v in _SETTINGS.items() if k not in ("min_df", "max_features")}
            self._vectorizer = TfidfVectorizer(vocabulary=self._terms, **settings)  # pyright: ignore[reportArgumentType]
            self._vectorizer.idf_ = self._idf
        return self._vectorizer.transform(texts)

    def save(self, folder: str | os.PathLike) -> None:
        """Writes `weights.npz` and then `scorer.json`, which names its checksum."""
        folder = Path(folder)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, idf=self._idf, weights=self._weights)
        write_bytes(folder / "weights.npz", buffer.getvalue())
        meta = self._meta | dict(sha256=sha256_of_file(folder / "weights.npz"), terms=self._terms)
        write_bytes(folder / "scorer.json", json.dumps(meta | dict(self=digest_of(meta))).encode())

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "ClassifierScorer | None":
        """The scorer saved in `folder`; None when there is none, or it is damaged (which is logged)."""
        folder = Path(folder)
        if not (folder / "scorer.json").is_file():
            return None
        try:
            meta = json.loads((folder / "scorer.json").read_text("utf-8"))
            if meta.pop("self") != digest_of(meta) or sha256_of_file(folder / "weights.npz") != meta["sha256"]:
                raise ValueError("a checksum differs")
            with np.load(folder / "weights.npz", allow_pickle=False) as arrays:
                return cls(meta, meta.pop("terms"), arrays["idf"], arrays["weights"])
        except (OSError, ValueError, KeyError) as error:
            _log.warning("The scorer in %s is damaged (%s) and will be fitted again.", folder, error)
            return None


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0.0, -x))
