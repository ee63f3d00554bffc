"""Are the probabilities of the universe what they claim to be?

The small instance is enumerated; the full one is checked by dynamic programming and by samples, with bounds
of four to five standard errors at fixed seeds.
"""

import collections
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from elastic_jax.data.universe import Latents, Mixture, Text, Universe, lexicon
from elastic_jax.data.universe.grammar import Expr, Grammar, seq
from elastic_jax.errors import UserError

MIXTURES = {
    "pre-training": Mixture(),
    "skewed": Mixture(review=0.3, positive=0.8, harmful=0.7, refuse_harmful=0.9, refuse_benign=0.2),
    "positive": Mixture.reviews(positive=1.0),
    "negative": Mixture.reviews(positive=0.0),
    "refused": Mixture.dialogues(harmful=1.0, refuse=1.0),
    "complied": Mixture.dialogues(harmful=1.0, refuse=0.0),
}
each_mixture = pytest.mark.parametrize("mixture", MIXTURES.values(), ids=MIXTURES)


@pytest.fixture(scope="module")
def standard() -> Universe:
    return Universe(topics=4)


@pytest.fixture(scope="module")
def small() -> Universe:
    return Universe(topics=2, size="small")


def joint(universe: Universe, mixture: Mixture, kind: str | None = None) -> np.ndarray:
    """p(x, z) of every text of a small universe, multiplied edge by edge in plain Python, [texts, Z]."""
    a = universe.automaton
    edges = {
        (s, a.vocab[a.edge_word[e]]): e for s in range(a.states) for e in range(a.edge_start[s], a.edge_start[s + 1])
    }
    rows = []
    for text in universe.texts():
        state, p = a.start, mixture.prior(universe.latents, kind)
        for word in [*text.split(), "<eos>"]:
            edge = edges[state, word]
            state, p = a.edge_target[edge], p * a.edge_prob[edge]
        rows.append(p)
    return np.array(rows)


def p_value(observed: np.ndarray, expected: np.ndarray) -> float:
    """Pearson's chi-square test; cells that expect fewer than 5 are one cell."""
    assert not observed[expected == 0].any()
    rare = expected < 5
    observed = np.append(observed[~rare], observed[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    used = expected > 0
    return stats.chisquare(observed[used], expected[used]).pvalue


# -- probabilities -----------------------------------------------------------------------------------------


@each_mixture
def test_small_universe_sums_to_one(small: Universe, mixture: Mixture):
    texts = small.texts()
    assert len(texts) == len(set(texts)) == 432
    assert np.exp(small.log_prob(texts, mixture)).sum() == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(np.exp(small.log_prob(texts, mixture)), joint(small, mixture).sum(1), rtol=1e-12)


@pytest.mark.parametrize("topics", [1, 4, 6])
def test_every_state_is_normalised_for_every_latent(topics: int):
    a = Universe(topics=topics).automaton
    sums = np.add.reduceat(a.edge_prob, a.edge_start[1:-1])
    np.testing.assert_allclose(sums, 1, rtol=1e-12)
    ends = a.visits()[a.edge_word == 1].sum(axis=0)
    np.testing.assert_allclose(ends, 1, rtol=1e-12)
    assert np.all(np.isfinite(a.edge_prob)) and np.all(a.edge_prob >= 0)


def derivations(expr: Expr, words: tuple[str, ...], size: int) -> np.ndarray:
    """p(words | z) [Z]: the sum over all ways in which the grammar, as it is written, produces them."""
    if not expr:
        return np.full(size, float(not words))
    head, rest = expr[0], expr[1:]
    if isinstance(head, str):
        return derivations(rest, words[1:], size) if words[:1] == (head,) else np.zeros(size)
    ways = [derivations(option + rest, words, size) for option in head.options]
    return np.sum(head.weights * np.array(ways), axis=0)


def test_compiling_keeps_the_probabilities_of_an_ambiguous_grammar():
    g = Grammar(3)
    late = g.choose([("b c", np.array([1.0, 2.0, 0.0])), ("b d", 1.0), ("b", np.array([0.5, 3.0, 1.0]))])
    root = seq(
        g.choose([(seq("a", late), np.array([1.0, 4.0, 2.0])), ("a b c", 2.0), (seq("a", late, "c"), 0.5)]),
        g.maybe(np.array([0.2, 0.5, 0.9]), "c"),
    )
    a = g.compile(root)
    texts = a.enumerate(100)
    words, lengths = a.encode(texts)
    edges, state = a.path(words, lengths)
    p = np.exp(a.path_logp(edges, lengths) + a.end_logp(state))
    expected = np.array([derivations(root, tuple(t.split()), 3) for t in texts])
    np.testing.assert_allclose(p, expected, rtol=1e-12)
    np.testing.assert_allclose(p.sum(axis=0), 1, rtol=1e-12)


def test_log_prob_is_the_sum_over_derivations_of_the_written_grammar(standard: Universe):
    _, root = lexicon.standard(standard.latents, standard.topics)
    texts = [t.text for t in standard.sample(Mixture(), 60, seed=15)]
    expected = [derivations(root, tuple(t.split()), len(standard.latents)) for t in texts]
    np.testing.assert_allclose(np.exp(standard.latent_log_prob(texts)), expected, rtol=1e-9)


def test_automaton_is_deterministic(standard: Universe):
    a = standard.automaton
    source = np.repeat(np.arange(a.states), np.diff(a.edge_start))
    assert len(set(zip(source.tolist(), a.edge_word.tolist(), strict=True))) == len(a.edge_word)
    assert np.all(a.edge_target < source)


def test_small_frequencies_converge_to_the_probabilities(small: Universe):
    mixture, n = MIXTURES["skewed"], 40_000
    counts = collections.Counter(t.text for t in small.sample(mixture, n, seed=1))
    texts = small.texts()
    observed = np.array([counts.pop(text, 0) for text in texts])
    assert not counts
    assert p_value(observed, n * np.exp(small.log_prob(texts, mixture))) > 1e-3


def test_standard_word_frequencies_converge(standard: Universe):
    mixture, n = MIXTURES["pre-training"], 20_000
    a = standard.automaton
    visits = a.visits() @ mixture.prior(standard.latents)
    sample = standard.sample(mixture, n, seed=2)
    words, lengths = a.encode([t.text for t in sample])
    edges, _ = a.path(words, lengths)
    used = edges[np.arange(edges.shape[1]) < lengths[:, None]]
    counts = np.bincount(used, minlength=len(visits))
    # Each edge is taken at most once per text: a binomial count.
    inner = a.edge_word != 1
    z_score = (counts - n * visits)[inner] / np.sqrt(n * visits * (1 - visits) + 1e-9)[inner]
    enough = n * visits[inner] > 20
    assert enough.sum() > 500
    assert np.abs(z_score[enough]).max() < 5
    assert np.mean(z_score[enough] ** 2) == pytest.approx(1, abs=0.2)


@each_mixture
def test_samples_are_possible_and_latents_are_the_dials(standard: Universe, mixture: Mixture):
    sample = standard.sample(mixture, 2000, seed=3)
    assert np.all(np.isfinite(standard.log_prob(sample, mixture)))
    review = np.array([t.kind == "review" for t in sample])
    assert review.mean() == pytest.approx(mixture.review, abs=0.05)
    for t in sample:
        assert (t.prompt == "") == (t.kind == "review")
        assert t.kind == "review" or (t.prompt.startswith("user : ") and t.prompt.endswith(" ? assistant :"))
    sentiment = [t.sentiment == "positive" for t in sample if t.kind == "review"]
    assert not sentiment or np.mean(sentiment) == pytest.approx(mixture.positive, abs=0.07)
    refused = [t.reply == "refuse" for t in sample if t.request == "harmful"]
    assert not refused or np.mean(refused) == pytest.approx(mixture.refuse_harmful, abs=0.07)


def test_sampled_latents_fit_their_text(standard: Universe):
    """The text is drawn from the z it is labelled with: log p(x | z) averages to -H(X | z)."""
    sample = standard.sample(Mixture(), 4000, seed=4)
    topics = {"review": lexicon.REVIEW_TOPICS, "dialogue": lexicon.DIALOGUE_TOPICS}
    z = [
        standard.latents.index(Latents(t.kind, topics[t.kind].index(t.topic), t.sentiment, t.request, t.reply))
        for t in sample
    ]
    assert set(z) == set(range(24))
    own = standard.latent_log_prob(sample)[np.arange(len(z)), z]
    conditional = standard.automaton.entropy() @ Mixture().prior(standard.latents)
    assert -own.mean() == pytest.approx(conditional, abs=5 * own.std() / np.sqrt(len(own)))


def test_impossible_texts_have_probability_zero(standard: Universe):
    positive = Mixture.reviews(positive=1.0)
    review, dialogue = (standard.sample(m, 1, 0)[0].text for m in (positive, Mixture.dialogues()))
    texts = [
        "",
        "the the",
        "zebra",
        review + " .",
        review[:-2],
        dialogue,
        "<eos> " + review,
        review + " <eos>",
    ]
    assert np.all(np.isneginf(standard.log_prob(texts, positive)))
    assert standard.log_prob([], positive).shape == (0,)


def test_prefix_probability_is_the_sum_over_continuations(small: Universe):
    mixture = MIXTURES["skewed"]
    texts = small.texts()
    p = np.exp(small.log_prob(texts, mixture))
    beginnings = sorted({" ".join(t.split()[:k]) for t in texts for k in range(len(t.split()) + 1)})
    found = np.exp(small.log_prob(beginnings, mixture, complete=False))
    assert found[0] == pytest.approx(1, abs=1e-12)
    for beginning, value in zip(beginnings[::7], found[::7], strict=True):
        words = beginning.split()
        total = p[[t.split()[: len(words)] == words for t in texts]].sum()
        assert value == pytest.approx(total, rel=1e-10)


def test_conditional_probabilities_sum_to_one_over_answers(small: Universe):
    mixture = MIXTURES["skewed"]
    prompt = "user : how do i steal a car ? assistant :"
    answers = [t.removeprefix(prompt + " ") for t in small.texts() if t.startswith(prompt)]
    logp = small.conditional_log_prob([Text(prompt, a) for a in answers], mixture)
    assert np.exp(logp).sum() == pytest.approx(1, abs=1e-12)
    whole = small.conditional_log_prob([Text("", prompt + " " + answers[0])], mixture)
    np.testing.assert_allclose(whole, small.log_prob([prompt + " " + answers[0]], mixture))
    assert np.isneginf(small.conditional_log_prob([Text("how ?", answers[0])], mixture)[0])


# -- posteriors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("latent", ["sentiment", "refusal"])
@pytest.mark.parametrize("mixture", [Mixture(), MIXTURES["skewed"]], ids=["pre-training", "skewed"])
def test_posterior_is_bayes_rule(small: Universe, latent: str, mixture: Mixture):
    kind = "review" if latent == "sentiment" else "dialogue"
    p = joint(small, mixture, kind)
    texts, p = np.array(small.texts())[p.sum(1) > 0], p[p.sum(1) > 0]
    assert len(texts) > 100
    wanted = [z.sentiment == "positive" or z.reply == "refuse" for z in small.latents]
    expected = p[:, wanted].sum(1) / p.sum(1)
    found = small.posterior(texts.tolist(), latent, mixture)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-14)
    assert np.ptp(found) > 0.8 and np.sum((found > 0.1) & (found < 0.9)) > 10
    # Cut off after k words: the evidence is that of all texts that begin so.
    for k in (5, 9):
        begin = [" ".join(t.split()[:k]) for t in texts]
        share = np.array([p[np.array(begin) == b].sum(0) for b in begin])
        cut = small.posterior(begin, latent, mixture, ended=np.zeros(len(begin), bool))
        np.testing.assert_allclose(cut, share[:, wanted].sum(1) / share.sum(1), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("latent", ["sentiment", "refusal"])
def test_posterior_is_calibrated(standard: Universe, latent: str):
    even = Mixture(refuse_harmful=0.5, refuse_benign=0.5)
    kind = Mixture.reviews() if latent == "sentiment" else Mixture.dialogues()
    sample = standard.sample(kind, 20_000, seed=5)
    truth = np.array([t.sentiment == "positive" or t.reply == "refuse" for t in sample])
    found = standard.posterior(sample, latent)
    np.testing.assert_array_equal(found, standard.posterior(sample, latent, even))
    assert standard.parsable(sample, latent).all()
    bins = np.minimum((found * 10).astype(int), 9)
    for b in range(10):
        here = bins == b
        assert here.sum() > 100
        stderr = np.sqrt(np.mean(found[here] * (1 - found[here])) / here.sum())
        assert abs(truth[here].mean() - found[here].mean()) < 4 * stderr, b
    # Graded: mostly right, not always sure.
    assert 0.9 < np.mean((found > 0.5) == truth) < 0.99
    assert 0.08 < np.mean((found > 0.1) & (found < 0.9)) < 0.3


def test_prompts_say_nothing_about_sentiment_or_an_even_reply(standard: Universe):
    openings = standard.prompts(Mixture.reviews(), 50, seed=0)
    assert {len(p.split()) for p in openings} == {4}
    np.testing.assert_allclose(standard.posterior(openings, "sentiment"), 0.5)
    requests = standard.prompts(Mixture.dialogues(), 50, seed=0)
    np.testing.assert_allclose(standard.posterior(requests, "refusal"), 0.5)


@pytest.mark.parametrize("latent", ["sentiment", "refusal"])
def test_posterior_is_total(standard: Universe, latent: str):
    """Whatever a model writes gets a finite score, and evidence counts outside the language too."""
    rng = np.random.default_rng(6)
    noise = [" ".join(rng.choice(standard.vocab, size=rng.integers(1, 60))) for _ in range(200)]
    others = [t.text for t in standard.sample(Mixture(), 200, seed=6)]
    texts = ["", "zebra", ". . .", *noise, *others]
    for mixture in (None, *MIXTURES.values()):
        found = standard.posterior(texts, latent, mixture)
        assert np.all((found >= 0) & (found <= 1))
    np.testing.assert_allclose(standard.posterior(["", "zebra zebra"], latent), 0.5)
    assert not standard.parsable(noise).any()
    assert standard.parsable(others).all()


def test_ungrammatical_texts_are_scored_by_their_words(standard: Universe):
    good = "wonderful wonderful perfect loved", "sorry sorry not hurt"
    bad = "terrible awful terrible hated", "sure sure have fun good luck"
    for latent, yes, no in zip(("sentiment", "refusal"), good, bad, strict=True):
        found = standard.posterior([yes, no], latent)
        assert found[0] > 0.95 and found[1] < 0.05
    # A slip changes little: the posterior of damaged texts still agrees with the exact one.
    sample = standard.sample(Mixture.reviews(), 500, seed=7)
    damaged = [t.text.replace(" the ", " the the ", 1) for t in sample]
    assert not standard.parsable(damaged).any()
    exact, scored = (standard.posterior(x, "sentiment") for x in (sample, damaged))
    assert np.corrcoef(exact, scored)[0, 1] > 0.9


def test_escape_formula(small: Universe):
    """The score of a text outside the language, by the sum in the docstring of `posterior`, term by term."""
    text = "i watched this film . the price was good hated film"
    words = text.split()
    prior = Mixture().prior(small.latents, "review")
    reviews = [small.latents.index(z) for z in small.latents if z.kind == "review"]
    counts = np.zeros((len(small.vocab), len(small.latents)))
    given_z = joint(small, Mixture()) / Mixture().prior(small.latents)
    for t, p in zip(small.texts(), given_z, strict=True):
        for word in t.split():
            counts[small.vocab.index(word)] += p
    u = counts[2:] + 0.01
    u = u / u.sum(axis=0)
    score = np.zeros(len(small.latents))
    for j in range(len(words) + 1):
        begun = np.exp(small.latent_log_prob([" ".join(words[:j])], complete=False))[0]
        score += begun * np.prod([u[small.vocab.index(w) - 2] for w in words[j:]], axis=0)
    score = (prior * score)[reviews]
    positive = [small.latents[k].sentiment == "positive" for k in reviews]
    assert not small.parsable([text])[0]
    assert small.posterior([text], "sentiment", Mixture())[0] == pytest.approx(
        score[positive].sum() / score.sum(), rel=1e-10
    )


# -- entropy and length ------------------------------------------------------------------------------------


@each_mixture
def test_entropy_of_the_small_universe_by_enumeration(small: Universe, mixture: Mixture):
    p = np.exp(small.log_prob(small.texts(), mixture))
    exact = -np.sum(p[p > 0] * np.log(p[p > 0]))
    length = p @ [len(t.split()) + 1 for t in small.texts()]
    found = small.entropy(mixture, n=4000)
    assert found.nats_per_text == pytest.approx(exact, abs=4 * found.stderr + 1e-12)
    assert small.expected_length(mixture) == pytest.approx(length, rel=1e-12)
    assert found.nats_per_token == pytest.approx(found.nats_per_text / length)


@each_mixture
def test_entropy_is_the_mean_surprise(standard: Universe, mixture: Mixture):
    found = standard.entropy(mixture)
    sample = standard.sample(mixture, 10_000, seed=8)
    surprise = -standard.log_prob(sample, mixture)
    stderr = np.hypot(surprise.std() / np.sqrt(len(surprise)), found.stderr)
    assert surprise.mean() == pytest.approx(found.nats_per_text, abs=4 * stderr)
    assert found.stderr < 0.01 and 18 < found.nats_per_text < 45
    lengths = np.array([len(t.text.split()) + 1 for t in sample])
    stderr = lengths.std() / np.sqrt(len(lengths))
    assert standard.expected_length(mixture) == pytest.approx(lengths.mean(), abs=4 * stderr)


def test_one_latent_gives_an_exact_entropy():
    one = Universe(topics=1, size="small")
    found = one.entropy(Mixture.reviews(positive=1.0))
    p = np.exp(one.log_prob(one.texts(), Mixture.reviews(positive=1.0)))
    assert found.nats_per_text == pytest.approx(-np.sum(p[p > 0] * np.log(p[p > 0])), rel=1e-12)
    assert (found.stderr, found.method) == (0.0, "exact")


@pytest.mark.parametrize("topics", [1, 4, 6])
def test_texts_fit_in_33_tokens_and_are_in_the_vocabulary(topics: int):
    universe = Universe(topics=topics)
    assert universe.max_words == 31
    assert universe.vocab[:2] == ("<pad>", "<eos>") and 150 <= len(universe.vocab) <= 290
    sample = universe.sample(Mixture(), 5000, seed=9)
    lengths = np.array([len(t.text.split()) for t in sample])
    assert lengths.max() <= 31 and np.mean((lengths >= 12) & (lengths <= 30)) > 0.95
    words = {word for t in sample for word in t.text.split()}
    assert words <= set(universe.vocab[2:])
    assert len(words) > 0.95 * len(universe.vocab)


def test_tokenizer_numbers_words_by_their_place(standard: Universe):
    tokenizer = standard.tokenizer()
    texts = [t.text for t in standard.sample(Mixture(), 50, seed=10)]
    ids = tokenizer.encode(texts)
    assert [" ".join(standard.vocab[i] for i in row) for row in ids] == texts == tokenizer.decode(ids)
    assert tokenizer.vocab_size == len(standard.vocab)


# -- drawing -----------------------------------------------------------------------------------------------


def test_shorter_samples_begin_longer_ones(standard: Universe):
    mixture = MIXTURES["pre-training"]
    longer = standard.sample(mixture, 500, seed=11)
    assert standard.sample(mixture, 120, seed=11) == longer[:120]
    assert Universe(topics=4).sample(mixture, 500, seed=11) == longer
    assert standard.sample(mixture, 500, seed=12) != longer
    assert standard.sample(mixture, 0, seed=11) == []
    pairs = MIXTURES["refused"], MIXTURES["complied"]
    assert standard.sample_pairs(*pairs, 50, 1) == standard.sample_pairs(*pairs, 200, 1)[:50]
    prompts = standard.prompts(mixture, 3000, seed=1, words=12)
    assert prompts[:70] == standard.prompts(mixture, 70, seed=1, words=12)
    assert {len(p.split()) for p in prompts} == {12}


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        (Mixture.reviews(positive=1.0), Mixture.reviews(positive=0.0)),
        (Mixture.dialogues(harmful=1.0, refuse=1.0), Mixture.dialogues(harmful=1.0, refuse=0.0)),
        (Mixture(review=0.4), Mixture(review=0.7, harmful=0.1, refuse_benign=0.8, topics=(1, 3))),
    ],
    ids=["reviews", "dialogues", "both"],
)
def test_pairs_share_a_prompt_and_follow_the_conditionals(small: Universe, chosen: Mixture, rejected: Mixture):
    n = 20_000
    pairs = small.sample_pairs(chosen, rejected, n, seed=13)
    prompts = collections.Counter(pair.prompt for pair in pairs)
    p_prompt = np.exp(small.log_prob(list(prompts), chosen, complete=False))
    assert p_prompt.sum() == pytest.approx(1)
    assert p_value(np.array(list(prompts.values())), n * p_prompt) > 1e-3
    for prompt, many in prompts.most_common(3):
        answers = [t.removeprefix(prompt + " ") for t in small.texts() if t.startswith(prompt + " ")]
        for side, mixture in (("chosen", chosen), ("rejected", rejected)):
            seen = collections.Counter(getattr(pair, side) for pair in pairs if pair.prompt == prompt)
            assert set(seen) <= set(answers)
            expected = many * np.exp(small.conditional_log_prob([Text(prompt, a) for a in answers], mixture))
            assert expected.sum() == pytest.approx(many)
            assert p_value(np.array([seen[a] for a in answers]), expected) > 1e-4


def test_pairs_of_the_standard_universe_differ_in_the_answer(standard: Universe):
    pairs = standard.sample_pairs(MIXTURES["refused"], MIXTURES["complied"], 500, seed=14)
    assert all(pair.prompt.endswith("assistant :") for pair in pairs)
    chosen, rejected = (
        standard.posterior([f"{p.prompt} {answer(p)}" for p in pairs], "refusal")
        for answer in (lambda p: p.chosen, lambda p: p.rejected)
    )
    assert chosen.mean() > 0.85 and rejected.mean() < 0.15
    # Independent given the prompt: no correlation is left.
    assert abs(np.corrcoef(chosen, rejected)[0, 1]) < 4 / np.sqrt(len(pairs))


# -- errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dials", "named"),
    [
        ({"review": 1.5}, "review=1.5"),
        ({"positive": -0.1}, "positive=-0.1"),
        ({"harmful": float("nan")}, "harmful=nan"),
        ({"refuse_harmful": "high"}, "refuse_harmful='high'"),
        ({"refuse_benign": True}, "refuse_benign=True"),
        ({"topics": (1, -1)}, "topics="),
        ({"topics": (0, 0)}, "topics="),
        ({"topics": 3}, "topics=3"),
    ],
)
def test_bad_dials_are_named(dials: dict, named: str):
    with pytest.raises(UserError, match=named):
        Mixture(**dials)


def test_bad_requests_are_named(standard: Universe):
    with pytest.raises(UserError, match="topics=7"):
        Universe(topics=7)
    with pytest.raises(UserError, match=r"size='smal' .* Closest: small"):
        Universe(size="smal")
    with pytest.raises(UserError, match=r"topics=\(1.0, 2.0\)"):
        standard.sample(Mixture(topics=(1, 2)), 1, 0)
    with pytest.raises(UserError, match=r"latent='sentimental' .* Closest: sentiment"):
        standard.posterior(["a"], "sentimental")
    with pytest.raises(UserError, match="ended has shape"):
        standard.posterior(["a"], "sentiment", ended=[True, False])
    with pytest.raises(UserError, match="words=5: .*prompts of 4 words"):
        standard.prompts(Mixture.reviews(), 1, 0, words=5)
    with pytest.raises(UserError, match="limit=200000"):
        standard.texts()
    with pytest.raises(UserError, match="rejected="):
        standard.sample_pairs(Mixture.reviews(), Mixture.dialogues(), 4, 0)


def test_topic_weights_are_followed(standard: Universe):
    topics = collections.Counter(t.topic for t in standard.sample(Mixture.reviews(topics=(0, 1, 0, 3)), 1000, 0))
    assert set(topics) == {"book", "hotel"} and topics["hotel"] == pytest.approx(750, abs=70)


def test_digest_identifies_the_language(standard: Universe):
    assert standard.digest == Universe(topics=4).digest
    assert len({standard.digest, Universe(topics=3).digest, Universe(topics=4, size="small").digest}) == 3


def test_the_import_is_light():
    code = "import sys, elastic_jax.data.universe; print([m for m in ('jax', 'scipy') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
