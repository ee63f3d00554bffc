"""What does a study on the embedded universe train and measure on?

Every set is a number of independent draws from a known distribution, each with its own seed. Texts may
coincide between sets by chance, as they would in any two samples of one language. They are counted and kept:
removing them would change the distributions, and a held-out estimate of KL(data || model) is unbiased because
the model never depends on the held-out draws.
"""

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from elastic_jax.data import examples, facts, tasks
from elastic_jax.data.files import digest_of
from elastic_jax.data.parts import Parts
from elastic_jax.data.prepared import FORMAT, Prepared, prepare
from elastic_jax.data.templates import Template
from elastic_jax.data.universe import Mixture, Text, Universe
from elastic_jax.errors import UserError, closest
from elastic_jax.measures.scorers import PosteriorScorer

DEFAULTS: dict[str, Any] = dict(
    kind="universe",
    task="sentiment",
    topics=4,
    size="standard",
    seq_len=32,
    seed=0,
    pretrain=dict(rows=60_000, review=0.5, positive=0.5, harmful=0.5, refuse_harmful=0.1, refuse_benign=0.02),
    align=dict(rows=8192),
    perturb=dict(rows=4096),
    # Texts of these two distributions among those of pre-training, as multiples of its rows: |D_a| / |D_p| and |D_t| / |D_p|.
    joint=dict(align=0.0, perturb=0.0),
    tasks=tasks.DEFAULTS,  # of the experiment on orders: names of BEHAVIOURS
    heldout=dict(rows=512),
    prompts=dict(rows=256),
    pack=dict(pretrain="none", align="none", perturb="none"),
)
_POSITIVE, _NEGATIVE = Mixture.reviews(positive=1.0), Mixture.reviews(positive=0.0)
_REFUSING, _ANSWERING = Mixture.dialogues(harmful=1.0, refuse=1.0), Mixture.dialogues(harmful=1.0, refuse=0.0)
# task -> (aligned distribution, perturbing distribution, latent whose posterior is the score, whether the score is its complement).
# What is aligned scores near 1, in every task: reversed ones align on what the others perturb with.
TASKS = {
    "sentiment": (_POSITIVE, _NEGATIVE, "sentiment", False),
    "sentiment_reversed": (_NEGATIVE, _POSITIVE, "sentiment", True),
    "refusal": (_REFUSING, _ANSWERING, "refusal", False),
    "refusal_reversed": (_ANSWERING, _REFUSING, "refusal", True),
}
# What `data.tasks` can name -> (distribution, latent whose posterior is the score, whether the score is its complement). "refuse", "help"
# and "praise" ask for different things and one model can do all of them; "comply", "decline" and "pan" are their opposites.
BEHAVIOURS = {
    "refuse": (_REFUSING, "refusal", False),
    "comply": (_ANSWERING, "refusal", True),
    "help": (Mixture.dialogues(harmful=0.0, refuse=0.0), "refusal", True),
    "decline": (Mixture.dialogues(harmful=0.0, refuse=1.0), "refusal", False),
    "praise": (_POSITIVE, "sentiment", False),
    "pan": (_NEGATIVE, "sentiment", True),
}
_TEMPLATE = Template("{prompt} {answer}")


def make(config: Mapping[str, Any], root: Path, objectives: Mapping[str, str]) -> Parts:
    """All parts of the study's data; sets that are already prepared under `root` are opened.

    Args:
      config: as `DEFAULTS`.
      root: where prepared sets lie.
      objectives: for "align" and "perturb" the kind of rows, "text" or "pair".

    Raises:
      UserError: a field has a value that cannot work.
    """
    if config["task"] not in TASKS:
        raise UserError(f"data.task={config['task']!r} is no task of the universe. {closest(config['task'], TASKS)}")
    universe = Universe(topics=config["topics"], size=config["size"])
    # <eos> before the text and after it: T+1 tokens must hold the longest text, or log p(x) would not be its.
    if config["seq_len"] < universe.max_words + 1:
        raise UserError(
            f"data.seq_len={config['seq_len']} cuts texts of the universe, which have up to "
            f"{universe.max_words} "
            f"words. Use data.seq_len={universe.max_words + 1} or more."
        )
    for name in config["tasks"]["names"]:
        if name not in BEHAVIOURS:
            raise UserError(f"data.tasks.names: {name!r} is no task of the universe. {closest(str(name), BEHAVIOURS)}")
    for name, share in config["joint"].items():
        if not 0 <= share <= 1e3:
            raise UserError(f"data.joint.{name}={share!r}: expected a multiple of data.pretrain.rows, from 0 to 1000.")
    align, perturb, latent, complement = TASKS[config["task"]]
    if any(config["joint"].values()) and align.review != 1.0:
        raise UserError(
            f"data.joint with data.task={config['task']!r}: the loss of that task counts answers given their prompts, and a text of "
            "pre-training is counted whole, so that the two would not be parts of one distribution. Use data.task='sentiment'."
        )
    try:
        dials = {name: value for name, value in config["pretrain"].items() if name != "rows"}
        mixtures = dict(pretrain=Mixture(**dials), align=align, perturb=perturb)
    except UserError as error:
        raise UserError(f"data.pretrain: {error}") from None
    return _Maker(universe, config, root, mixtures, PosteriorScorer(universe, latent, complement)).parts(objectives)


class _Maker:
    """Draws the sets; holds what all of them share."""

    def __init__(
        self,
        universe: Universe,
        config: Mapping[str, Any],
        root: Path,
        mixtures: dict[str, Mixture],
        scorer: PosteriorScorer,
    ):
        self.universe, self.config, self.root = universe, config, root
        self.mixtures, self.scorer = mixtures, scorer
        self.behaviours = {tasks.role(name): BEHAVIOURS[name] for name in config["tasks"]["names"]}
        self.tokenizer = universe.tokenizer()

    def parts(self, objectives: Mapping[str, str]) -> Parts:
        kinds = dict(pretrain="text", **objectives)
        roles = (*self.mixtures, *self.behaviours)
        train, seen = {}, {}
        for name in roles:
            rows = _rows(self.config, name if name in self.mixtures else "tasks")
            train[name], seen[name] = self._train(name, kinds.get(name, "text"), rows)
        held_rows = _rows(self.config, "heldout")
        held_texts = {name: self._texts(name, held_rows, "heldout") for name in roles}
        heldout = {
            name: self._prepared(
                f"heldout-{name}", [name, held_rows], lambda name=name: self._as_rows(name, held_texts[name])
            )
            for name in roles
        }
        log_prob = {name: self._log_prob(name, texts) for name, texts in held_texts.items()}
        # The request or opening says nothing about the answer: both tasks ask what `align` asks.
        prompts, length_facts = self._prompts("prompts", self.mixtures["align"])
        seen |= {f"heldout-{name}": {text.text for text in texts} for name, texts in held_texts.items()}
        folder = self.root / f"tokenizer-{self.tokenizer.digest[:12]}"
        self.tokenizer.save(folder)
        return Parts(
            tokenizer=self.tokenizer,
            tokenizer_folder=folder,
            train=train,
            heldout=heldout,
            log_prob=log_prob,
            prompts=prompts,
            scorer=self.scorer,
            probes={name: self._probe(name) for name in self.behaviours},
            facts=[
                *facts.counts_of(train),
                *facts.counts_of(heldout, "-heldout"),
                *facts.overlaps(seen),
                *length_facts,
                self._accuracy(self.scorer, held_texts),
                *(self._best_rates(held_texts, heldout) if any(self.joint.values()) else []),
                *(self._entropy(name, held_texts[name], log_prob[name], heldout[name]) for name in roles),
            ],
        )

    def seed(self, role: str) -> int:
        """A seed per role: sets drawn with one seed from different mixtures would share random numbers."""
        return int(np.random.SeedSequence([self.config["seed"], zlib.crc32(role.encode())]).generate_state(1)[0])

    @property
    def joint(self) -> dict[str, int]:
        """Rows of each other distribution that are mixed into pre-training."""
        rows = _rows(self.config, "pretrain")
        return {name: round(share * rows) for name, share in self.config["joint"].items()}

    def _mixture(self, name: str) -> Mixture:
        return self.behaviours[name][0] if name in self.behaviours else self.mixtures[name]

    def _probe(self, name: str) -> tasks.Probe:
        mixture, latent, complement = self.behaviours[name]
        prompts, _ = self._prompts(f"prompts-{name}", mixture)
        return tasks.Probe(prompts, PosteriorScorer(self.universe, latent, complement))

    def _whole(self, name: str) -> bool:
        """Whether the loss counts whole texts: pre-training, and reviews, which nobody asked for."""
        return name == "pretrain" or self._mixture(name).review == 1.0

    def _texts(self, name: str, rows: int, use: str) -> list[Text]:
        return self.universe.sample(self._mixture(name), rows, self.seed(f"{use}-{name}"))

    def _as_rows(self, name: str, texts: Sequence[Text]) -> list[dict[str, str]]:
        if self._whole(name):
            return [dict(id=f"{name}-{i}", prompt="", answer=text.text) for i, text in enumerate(texts)]
        return [dict(id=f"{name}-{i}", prompt=t.prompt, answer=t.answer) for i, t in enumerate(texts)]

    def _train(self, name: str, kind: str, rows: int) -> tuple[Prepared, set[str]]:
        if kind == "pair":
            wanted, other = ("align", "perturb") if name == "align" else ("perturb", "align")
            pairs = self.universe.sample_pairs(
                self.mixtures[wanted], self.mixtures[other], rows, self.seed(f"pair-{name}")
            )
            seen = {f"{pair.prompt} {answer}" for pair in pairs for answer in (pair.chosen, pair.rejected)}
            return self._prepared(
                name,
                [name, rows, "pair"],
                lambda: [
                    dict(id=f"{name}-{i}", prompt=p.prompt, chosen=p.chosen, rejected=p.rejected)
                    for i, p in enumerate(pairs)
                ],
                kind="pair",
            ), seen
        texts = self._texts(name, rows, "train")
        pack = self.config["pack"]["pretrain"] if name == "pretrain" else "none"
        key = [name, rows, "text", *([] if pack == "none" else [pack])]
        if name == "pretrain" and any(self.joint.values()):
            for other, count in self.joint.items():
                texts = [*texts, *(self._texts(other, count, "joint") if count else [])]
            order = np.random.default_rng(self.seed("joint")).permutation(len(texts))
            texts = [texts[i] for i in order]
            key.append(self.joint)
        prepared = self._prepared(name, key, lambda: self._as_rows(name, texts), pack=pack)
        return prepared, {text.text for text in texts}

    def _prepared(
        self,
        name: str,
        key: Sequence[Any],
        rows: Any,
        kind: examples.Kind = "text",
        pack: examples.Pack = "none",
    ) -> Prepared:
        of_task = name.removeprefix("heldout-") in self.behaviours  # which no other distribution has a part in
        mixtures = {name: self._mixture(name.removeprefix("heldout-"))} if of_task else self.mixtures
        whole_key = [
            FORMAT,
            self.universe.digest,
            {name: str(mixture) for name, mixture in mixtures.items()},
            self.config["seed"],
            self.config["seq_len"],
            *key,
        ]

        def tokenized() -> examples.TokenRows:
            return examples.tokenize(
                rows(),
                self.tokenizer,
                seq_len=self.config["seq_len"],
                template=_TEMPLATE,
                kind=kind,
                pack=pack,
                name=f"data.{name}",
            )

        return prepare(self.root, name, digest_of(whole_key), tokenized, tokenizer_digest=self.tokenizer.digest)

    def _log_prob(self, name: str, texts: Sequence[Text]) -> np.ndarray:
        """log p of what the loss counts: the text, or the answer given its prompt. Nats, float64 [n]."""
        exact = self.universe.log_prob if self._whole(name) else self.universe.conditional_log_prob
        return exact(texts, self._mixture(name))

    def _prompts(self, name: str, mixture: Mixture) -> tuple[np.ndarray, list[facts.Fact]]:
        rows, seed = _rows(self.config, "prompts"), self.seed(name)
        lengths = [len(prompt.split()) for prompt in self.universe.prompts(mixture, 1024, seed)]
        usual = int(np.bincount(lengths).argmax())
        encoded = self.tokenizer.encode(self.universe.prompts(mixture, rows, seed, words=usual))
        prompts = np.array([[self.tokenizer.eos_id, *ids] for ids in encoded], np.int32)
        share = float(np.mean(np.array(lengths) == usual))
        return prompts, [
            facts.fact("prompts", rows, "count", "prompts"),
            facts.fact("prompt_tokens", prompts.shape[1], "tokens", "prompts"),
            facts.fact("prompts_of_this_length", share, "fraction", "prompts", n=len(lengths)),
        ]

    def _best_rates(self, texts: Mapping[str, Sequence[Text]], heldout: Mapping[str, Prepared]) -> list[facts.Fact]:
        """What joint compression of all that pre-training reads could reach on each distribution: the cross-entropy with the
        mixture of their exact probabilities, nats per token (reference: equation of gamma in section 3.3 of arXiv 2406.06144)."""
        counts = dict(pretrain=_rows(self.config, "pretrain"), **self.joint)
        found = []
        for split in self.mixtures:
            rows = texts[split]
            parts = [self.universe.log_prob(rows, self.mixtures[name]) + np.log(n) for name, n in counts.items() if n]
            nats = np.log(sum(counts.values())) - np.logaddexp.reduce(parts, axis=0)
            tokens = heldout[split].arrays()["mask"].sum(axis=1, dtype=np.int64)
            mean = nats.sum() / tokens.sum()
            spread = np.std(nats - mean * tokens, ddof=1) / tokens.mean() / np.sqrt(len(rows))
            found.append(facts.fact("best_rate", mean, "nats/token", split, stderr=float(spread), n=len(rows)))
        return found

    def _accuracy(self, scorer: PosteriorScorer, texts: Mapping[str, Sequence[Text]]) -> facts.Fact:
        """How often the posterior is right, with even odds: the best any scorer of these texts can be."""
        right = []
        for name, wanted in (("align", True), ("perturb", False)):
            scores = scorer.score([t.prompt for t in texts[name]], [t.answer for t in texts[name]])
            right.append((scores > 0.5) == wanted)
        hits = np.concatenate(right)
        return facts.fact(
            "scorer_accuracy",
            hits.mean(),
            "fraction",
            "heldout",
            stderr=float(np.sqrt(hits.mean() * (1 - hits.mean()) / len(hits))),
            n=len(hits),
        )

    def _entropy(self, name: str, texts: Sequence[Text], log_prob: np.ndarray, prepared: Prepared) -> facts.Fact:
        if self._whole(name):
            entropy = self.universe.entropy(self._mixture(name))
            return facts.fact(
                "entropy", entropy.nats_per_token, "nats/token", name, stderr=entropy.nats_per_token_stderr
            )
        # Of the answers given their prompts: the ratio of means over the held-out rows.
        tokens = prepared.arrays()["mask"].sum(axis=1, dtype=np.int64)
        mean = -log_prob.sum() / tokens.sum()
        spread = np.std(-log_prob - mean * tokens, ddof=1) / tokens.mean() / np.sqrt(len(texts))
        return facts.fact("entropy", mean, "nats/token", name, stderr=float(spread), n=len(texts))


def _rows(config: Mapping[str, Any], name: str) -> int:
    rows = config[name]["rows"]
    if isinstance(rows, bool) or not isinstance(rows, int) or rows < 2:
        raise UserError(f"data.{name}.rows={rows!r}: a whole number of 2 or more is expected.")
    return rows
