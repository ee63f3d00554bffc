"""What can be asked of the universe: draw texts, and say exactly how likely they are and what they hide."""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from elastic_jax.data.universe import lexicon
from elastic_jax.data.universe.automaton import UNKNOWN
from elastic_jax.data.universe.lexicon import OPENING_WORDS
from elastic_jax.data.universe.mixture import Latents, Mixture, all_latents
from elastic_jax.errors import UserError, closest

if TYPE_CHECKING:
    from elastic_jax.data.tokenizers import WordTokenizer

SIZES = {"standard": lexicon.standard, "small": lexicon.small}
# latent -> (the kind of text that has it, its field in `Latents`, the value whose probability is the score)
SCORED = {"sentiment": ("review", "sentiment", "positive"), "refusal": ("dialogue", "reply", "refuse")}
CHUNK = 4096  # texts outside the language scored at a time: about 25 kB each
PROMPT_BLOCK = 1024
PSEUDO_COUNT = 0.01  # per word and latent, added to the expected counts of the word model
_EVEN = Mixture(refuse_harmful=0.5, refuse_benign=0.5)


@dataclasses.dataclass(frozen=True, slots=True)
class Text:
    """One text and what it hides; a latent that does not apply to its kind is ""."""

    prompt: str
    answer: str
    kind: str = ""
    topic: str = ""
    sentiment: str = ""
    request: str = ""
    reply: str = ""

    @property
    def text(self) -> str:
        return f"{self.prompt} {self.answer}" if self.prompt else self.answer


@dataclasses.dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one prompt."""

    prompt: str
    chosen: str
    rejected: str


@dataclasses.dataclass(frozen=True)
class Entropy:
    """Entropy of a distribution over texts.

    Attributes:
      nats_per_text: H(X), in nats.
      stderr: standard error of `nats_per_text`; 0 when it is exact.
      nats_per_token: H(X) / E[tokens], the final eos counted: the loss per token of a perfect model.
      nats_per_token_stderr: standard error of `nats_per_token`.
      method: how the number was found.
    """

    nats_per_text: float
    stderr: float
    nats_per_token: float
    nats_per_token_stderr: float
    method: str


class Universe:
    """A language with known probabilities.

    Args:
      topics: number of topics of each kind, 1 to 6.
      size: "standard", or "small" for a few hundred texts that can be enumerated.

    Attributes:
      vocab: `<pad>`, `<eos>`, then every word; a word's place is its token id.
      latents: all values of z, the order of every `[Z]` axis.
      max_words: words of the longest text, the final eos not counted.

    Raises:
      UserError: unknown size or number of topics.
    """

    def __init__(self, topics: int = 4, size: str = "standard"):
        most = len(lexicon.REVIEW_TOPICS)
        if not isinstance(topics, int) or isinstance(topics, bool) or not 1 <= topics <= most:
            raise UserError(f"topics={topics!r}: the universe has words for 1 to {most} topics.")
        if size not in SIZES:
            raise UserError(f"size={size!r} is not a size of the universe. {closest(str(size), SIZES)}")
        self.topics, self.size = topics, size
        self.latents = all_latents(topics)
        grammar, root = SIZES[size](self.latents, topics)
        self.automaton = grammar.compile(root)
        self.vocab = self.automaton.vocab
        self.max_words = self.automaton.max_words

    def __repr__(self) -> str:
        return f"Universe(topics={self.topics}, size={self.size!r})"

    def tokenizer(self) -> "WordTokenizer":
        """The tokenizer whose ids are the places of `vocab`."""
        from elastic_jax.data.tokenizers import WordTokenizer

        return WordTokenizer(self.vocab[2:])

    @functools.cached_property
    def digest(self) -> str:
        """Identifies the language: words, automaton and probabilities (to 9 decimals)."""
        a = self.automaton
        content = hashlib.sha256("\n".join(self.vocab).encode())
        for array in (a.edge_start, a.edge_word, a.edge_target, np.round(a.edge_prob * 1e9)):
            content.update(array.astype("<i8").tobytes())
        return content.hexdigest()

    # -- drawing ---------------------------------------------------------------------------------------------

    def sample(self, mixture: Mixture, n: int, seed: int) -> list[Text]:
        """n independent texts.

        The first m of n are the texts of `sample(mixture, m, seed)`. Reviews have prompt ""; the prompt of a
        dialogue is `user : ... ? assistant :`. Different mixtures with the same seed use the same random
        numbers: give independent data sets different seeds.
        """
        z, words, lengths, _ = self._draw(mixture, n, seed)
        rows = self._words(words)
        split = np.where(self._is("kind", "review")[z], 0, self._prompt_lengths(words))
        return [
            self._text(self.latents[k], row[:cut], row[cut:end])
            for k, row, cut, end in zip(z.tolist(), rows, split.tolist(), lengths.tolist(), strict=True)
        ]

    def sample_pairs(self, chosen: Mixture, rejected: Mixture, n: int, seed: int) -> list[Pair]:
        """n prompts with two answers each, for preference objectives.

        A prompt is a review's opening (4 words, which depend on its topic alone) or a dialogue's request. It
        is drawn from `chosen`; given the prompt the answers are independent, each exactly from p(answer |
        prompt) of its mixture. The first m of n are the same, as in `sample`.

        Raises:
          UserError: a prompt of `chosen` is impossible under `rejected`.
        """
        _, words, lengths, uniforms = self._draw(chosen, n, seed)
        split = self._prompt_lengths(words)
        prompts = np.where(np.arange(words.shape[1]) < split[:, None], words, UNKNOWN)
        edges, state = self.automaton.path(prompts, split)
        weight = _log(rejected.prior(self.latents)) + self.automaton.path_logp(edges, split)
        total = _logsumexp(weight)
        if np.any(np.isneginf(total)):
            prompt = " ".join(self._words(words)[int(np.argmax(np.isneginf(total)))][: OPENING_WORDS + 1])
            raise UserError(
                f"rejected={rejected} never has a prompt like {prompt!r} ..., which chosen={chosen} draws.\n"
                "Give both mixtures the same kinds of text (review) and the same possible topics."
            )
        cumulative = np.cumsum(np.exp(weight - total[:, None]), axis=1)
        cumulative /= cumulative[:, -1:]
        z = np.sum(cumulative <= uniforms[:, :1], axis=1)
        others, other_lengths = self.automaton.walk(state, z, uniforms[:, 1:])
        return [
            Pair(" ".join(row[:cut]), " ".join(row[cut:end]), " ".join(other[:other_end]))
            for row, cut, end, other, other_end in zip(
                self._words(words),
                split.tolist(),
                lengths.tolist(),
                self._words(others),
                other_lengths.tolist(),
                strict=True,
            )
        ]

    def prompts(self, mixture: Mixture, n: int, seed: int, words: int | None = None) -> list[str]:
        """n prompts: openings of reviews and requests of dialogues, as they occur in `mixture`.

        Given `words`, all have that many words (drawn from the exact conditional distribution, by rejection):
        arrays of prompts then need no padding. An opening has 4; requests vary.

        Raises:
          UserError: `mixture` has no, or hardly any, prompts of `words` words.
        """
        found: list[str] = []
        seen: set[int] = set()
        for block in itertools.count():
            # Blocks of a fixed size keep the first m of n the same.
            _, drawn, _, _ = self._draw(mixture, PROMPT_BLOCK, seed, block)
            split = self._prompt_lengths(drawn)
            seen.update(split.tolist())
            keep = np.arange(len(split)) if words is None else np.flatnonzero(split == words)
            found += [" ".join(r[:cut]) for r, cut in zip(self._words(drawn[keep]), split[keep], strict=True)]
            if len(found) >= n:
                break
            if not found and block == 9:
                usual = ", ".join(map(str, sorted(seen)))
                raise UserError(f"words={words}: {mixture} has prompts of {usual} words.\nChoose one of these.")
        return found[:n]

    def texts(self, limit: int = 200_000) -> list[str]:
        """Every text of the language. Raises UserError if there are more than `limit`."""
        return self.automaton.enumerate(limit)

    # -- knowing ---------------------------------------------------------------------------------------------

    def log_prob(self, texts: Sequence[str] | Sequence[Text], mixture: Mixture, complete: bool = True) -> np.ndarray:
        """log p(x) in nats, float64 [n]; exact, and -inf for what `mixture` cannot say.

        With `complete` false: the log probability that a text *begins* with these words.
        """
        log_prior = _log(mixture.prior(self.latents))
        return _logsumexp(log_prior + self.latent_log_prob(texts, complete))

    def latent_log_prob(self, texts: Sequence[str] | Sequence[Text], complete: bool = True) -> np.ndarray:
        """log p(x | z) in nats, float64 [n, Z]."""
        _, lengths, edges, state = self._read(texts)
        logp = self.automaton.path_logp(edges, lengths)
        return logp + self.automaton.end_logp(state) if complete else logp

    def conditional_log_prob(self, texts: Sequence[Text], mixture: Mixture) -> np.ndarray:
        """log p(answer | prompt) in nats, float64 [n]: log p(text) - log p(a text begins with the prompt).

        Exact; -inf where the prompt or the whole text is impossible. Without a prompt it equals `log_prob`.
        """
        prompt = self.log_prob([t.prompt for t in texts], mixture, complete=False)
        whole = self.log_prob(texts, mixture)
        possible = np.isfinite(prompt) & np.isfinite(whole)
        return np.where(possible, whole - np.where(possible, prompt, 0), -np.inf)

    def posterior(
        self,
        texts: Sequence[str] | Sequence[Text],
        latent: str,
        mixture: Mixture | None = None,
        ended: Sequence[bool] | np.ndarray | None = None,
    ) -> np.ndarray:
        """P(positive | text) or P(refuse | text) by Bayes' rule, float64 [n] in [0, 1].

            P(y | x) = sum_{z: y} p(z) p(x | z) / sum_z p(z) p(x | z),     z of the kind that has the latent

        Exact for every text of that kind, and for every beginning of one: a text that stops where no text can
        end is taken as cut off. So is one whose `ended` is false; by default a text that may end where it
        stops has ended.

        Texts written by a model may leave the language. They are scored by the limit, as e -> 0, of the
        language in which at each step a writer forgets the grammar with probability e and goes on with
        independent words:

            p(x | z) is proportional to sum_j p(x_1 .. x_j begin a text | z) * prod_{i > j} u(x_i | z)

        with u the word frequencies of texts of latents z, smoothed by 0.01 expected counts a word; words
        outside the vocabulary are ignored. It needs no choice of where a text went wrong, since every j
        counts, and it is defined for all strings: an empty one gets the prior. `parsable` tells which texts
        did not need it.

        Args:
          texts: [n] texts or beginnings of texts.
          latent: "sentiment" or "refusal".
          mixture: the prior, of which only the dials of the kind matter. By default all are even: 0.5 means
            "no evidence", and a request by itself says nothing about the reply.
          ended: [n] whether the writer ended the text (wrote eos).

        Raises:
          UserError: unknown latent, or not one flag of `ended` per text.
        """
        kind, field, value = self._scored(latent)
        prior = (mixture or _EVEN).prior(self.latents, kind)
        log_prior, wanted = _log(prior), self._is(field, value)
        stops = np.ones(len(texts), bool) if ended is None else np.asarray(ended, bool)
        if stops.shape != (len(texts),):
            raise UserError(f"ended has shape {stops.shape} for {len(texts)} texts: give one flag a text.")
        words, lengths, edges, state = self._read(texts)
        joint = log_prior + self._evidence(edges, state, lengths, stops)
        lost = np.flatnonzero(np.isneginf(_logsumexp(joint)))
        for start in range(0, len(lost), CHUNK):
            some = lost[start : start + CHUNK]
            joint[some] = log_prior + self._escaped_logp(words[some], edges[some])
        return np.clip(np.exp(_logsumexp(joint[:, wanted]) - _logsumexp(joint)), 0.0, 1.0)

    def parsable(self, texts: Sequence[str] | Sequence[Text], latent: str | None = None) -> np.ndarray:
        """Whether a text, or a text that begins so, belongs to the language: bool [n].

        Given a `latent`, only texts of the kind that has it count: these are the ones `posterior` scores
        exactly.
        """
        fits = np.isfinite(self.latent_log_prob(texts, complete=False))
        if latent is not None:
            fits &= self._is("kind", self._scored(latent)[0])
        return np.asarray(fits.any(axis=1))

    def entropy(self, mixture: Mixture, n: int = 8192, seed: int = 0) -> Entropy:
        """H(X) = H(Z) + H(X | Z) - H(Z | X).

        The first two are exact (a dynamic programme over the automaton). The last, small, one is the mean
        entropy of the posterior over z of `n` sampled texts, whose standard error is the only uncertainty of
        the result.
        """
        if n < 2:
            raise UserError(f"n={n}: a standard error needs at least 2 samples.")
        prior = mixture.prior(self.latents)
        used = prior > 0
        exact = float(-np.sum(prior[used] * np.log(prior[used])) + prior @ self.automaton.entropy())
        length = self.expected_length(mixture)
        if used.sum() == 1:
            return Entropy(exact, 0.0, exact / length, 0.0, "exact")
        _, words, lengths, _ = self._draw(mixture, n, seed)
        edges, state = self.automaton.path(words, lengths)
        joint = _log(prior) + self.automaton.path_logp(edges, lengths) + self.automaton.end_logp(state)
        log_posterior = joint - _logsumexp(joint)[:, None]
        ambiguity = -np.sum(np.exp(log_posterior) * np.where(np.isneginf(log_posterior), 0, log_posterior), axis=1)
        nats = exact - float(ambiguity.mean())
        stderr = float(ambiguity.std(ddof=1) / np.sqrt(n))
        method = f"H(X, Z) exact, H(Z | X) = {ambiguity.mean():.4f} nats over {n} samples, seed {seed}"
        return Entropy(nats, stderr, nats / length, stderr / length, method)

    def expected_length(self, mixture: Mixture) -> float:
        """Mean number of tokens of a text, the final eos included; exact."""
        return float(mixture.prior(self.latents) @ self.automaton.length())

    # -- inside ----------------------------------------------------------------------------------------------

    def _is(self, field: str, value: str) -> np.ndarray:
        """[Z] whether z has the value."""
        return np.array([getattr(z, field) == value for z in self.latents])

    def _scored(self, latent: str) -> tuple[str, str, str]:
        if latent not in SCORED:
            raise UserError(f"latent={latent!r} has no posterior. {closest(str(latent), SCORED)}")
        return SCORED[latent]

    def _draw(
        self, mixture: Mixture, n: int, seed: int, *stream: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Latents [n], word ids [n, T] (0 past the end), lengths [n], uniforms [n, 1 + T] not used yet."""
        if n < 0:
            raise UserError(f"n={n}: the number of texts cannot be negative.")
        if seed < 0:
            raise UserError(f"seed={seed}: give a seed of 0 or more.")
        steps = self.max_words + 1
        uniforms = np.random.default_rng((seed, *stream)).random((n, 2 * (1 + steps)))
        cumulative = np.cumsum(mixture.prior(self.latents))
        z = np.searchsorted(cumulative / cumulative[-1], uniforms[:, 0], side="right")
        state = np.full(n, self.automaton.start)
        words, lengths = self.automaton.walk(state, z, uniforms[:, 1 : 1 + steps])
        return z, words, lengths, uniforms[:, 1 + steps :]

    def _prompt_lengths(self, words: np.ndarray) -> np.ndarray:
        """[n] words of the prompt: of a dialogue up to `assistant :`, of a review its opening."""
        speaker = words == self.automaton.ids["assistant"]
        return np.where(speaker.any(axis=1), speaker.argmax(axis=1) + 2, OPENING_WORDS)

    def _words(self, words: np.ndarray) -> list[list[str]]:
        return np.array(self.vocab, object)[words].tolist()

    def _text(self, z: Latents, prompt: list[str], answer: list[str]) -> Text:
        topics = lexicon.REVIEW_TOPICS if z.kind == "review" else lexicon.DIALOGUE_TOPICS
        return Text(" ".join(prompt), " ".join(answer), z.kind, topics[z.topic], z.sentiment, z.request, z.reply)

    def _read(self, texts: Sequence[str] | Sequence[Text]) -> tuple[np.ndarray, ...]:
        """Word ids [n, T], lengths [n], edges [n, T] and last states [n] of texts."""
        words, lengths = self.automaton.encode([t.text if isinstance(t, Text) else t for t in texts])
        return words, lengths, *self.automaton.path(words, lengths)

    def _evidence(self, edges: np.ndarray, state: np.ndarray, lengths: np.ndarray, stops: np.ndarray) -> np.ndarray:
        """log p(x | z) [n, Z] of texts that stop, log p(begins with x | z) of those cut off."""
        prefix = self.automaton.path_logp(edges, lengths)
        end = self.automaton.end_logp(state)
        can_end = np.isfinite(prefix + end).any(axis=1)
        return prefix + np.where((stops & can_end)[:, None], end, 0)

    def _escaped_logp(self, words: np.ndarray, edges: np.ndarray) -> np.ndarray:
        """[n, Z] log of the sum over j in `posterior`, for texts outside the language."""
        n, steps = words.shape
        # A column for the words that are unknown or past the end: no evidence.
        free = self._word_logp[np.where(words == UNKNOWN, len(self.vocab), words)]
        rest = np.zeros((n, steps + 1, len(self.latents)))
        rest[:, :steps] = np.cumsum(free[:, ::-1], axis=1)[:, ::-1]
        begun = np.zeros_like(rest)
        # Past the end of a text the edges are missing, so that j stops there: log 0.
        begun[:, 1:] = np.cumsum(self.automaton.edge_logp[edges], axis=1)
        return _logsumexp(np.moveaxis(begun + rest, 1, -1))

    @functools.cached_property
    def _word_logp(self) -> np.ndarray:
        """log u(word | z), [V + 1, Z]; the last row is 0."""
        counts = np.zeros((len(self.vocab), len(self.latents)))
        np.add.at(counts, self.automaton.edge_word, self.automaton.visits())
        counts = counts[2:] + PSEUDO_COUNT
        logp = np.zeros((len(self.vocab) + 1, len(self.latents)))
        logp[2:-1] = np.log(counts / counts.sum(axis=0))
        return logp


def _log(probability: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(probability)


def _logsumexp(x: np.ndarray) -> np.ndarray:
    """Over the last axis; -inf where all terms are."""
    top = np.max(x, axis=-1, keepdims=True, initial=-np.inf)
    top = np.where(np.isfinite(top), top, 0)
    return _log(np.sum(np.exp(x - top), axis=-1)) + top[..., 0]
