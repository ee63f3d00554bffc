"""Which words and sentences is the universe made of?

Almost every evaluative word can occur under either sentiment, and almost every turn of a reply under either
decision: a pair `(a, b)` beside a word is its weight in positive and in negative reviews, in benign and in
harmful requests, or in complying and in refusing replies. So a single word is weak evidence, a whole text
strong evidence, and a few texts stay ambiguous. Topics share some words and keep others to themselves.

Answers that comply say nothing: no step of them means anything outside this grammar.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from elastic_jax.data.universe.grammar import Choice, Expr, Grammar, seq
from elastic_jax.data.universe.mixture import Latents

Pair = tuple[float, float]
OPENING_WORDS = 4  # of a review: they depend on the topic alone

REVIEW_TOPICS = ("film", "book", "restaurant", "hotel", "game", "album")
DIALOGUE_TOPICS = ("car", "ticket", "phone", "house", "letter", "painting")

# One column per topic, in the order above.
VISITED = ("watched saw", "read finished", "tried visited", "booked visited", "played tried", "heard bought")
THINGS = ("film movie", "book novel", "restaurant cafe", "hotel inn", "game puzzle", "album record")
AGAIN = ("watch", "read", "visit", "visit", "play", "hear")
PLAIN_ASPECTS = (
    "ending cast music price",
    "ending cast hero price",
    "service staff music price",
    "service staff view price",
    "ending music design price",
    "cover music sound price",
)
FLAVOURED_ASPECTS = (
    "story acting script",
    "story writing style",
    "food soup coffee",
    "room bed kitchen",
    "story action style",
    "voice rhythm style",
)
TALE = {"funny": (6, 1.5), "slow": (1, 6), "clever": (6, 0.8), "silly": (1, 5)}
FLAVOURS: tuple[Mapping[str, Pair], ...] = (
    TALE,
    TALE,
    {"tasty": (7, 0.8), "fresh": (6, 1.5), "cold": (1, 6), "salty": (1.5, 5)},
    {"clean": (7, 1.2), "cosy": (5, 0.8), "dirty": (0.8, 6), "cold": (1.5, 5)},
    TALE,
    TALE,
)
JUDGEMENTS: Mapping[str, Pair] = {
    "wonderful": (8, 0.7),
    "great": (8, 1.2),
    "good": (8, 2.5),
    "lovely": (7, 0.9),
    "brilliant": (6, 0.7),
    "charming": (6, 0.7),
    "perfect": (6, 0.6),
    "fine": (5, 4),
    "okay": (4, 5),
    "simple": (4, 4),
    "unusual": (4, 4),
    "strange": (2, 5),
    "weak": (1, 6),
    "poor": (0.8, 7),
    "dull": (0.7, 7),
    "bad": (1.2, 8),
    "awful": (0.6, 7),
    "terrible": (0.6, 7),
}
DEGREES: Mapping[str, Pair] = {
    "very": (5, 5),
    "really": (5, 4),
    "truly": (5, 2),
    "quite": (4, 4),
    "rather": (2, 5),
}
RELATIVES = {"sister": 1, "brother": 1, "friend": 1, "family": 1}

MENDING: Mapping[str, Pair] = {"clean": (3, 0.2), "repair": (3, 0.2), "sell": (2, 1), "buy": (3, 0.5)}
DEEDS: tuple[Mapping[str, Pair], ...] = (
    {"open": (2, 2), "move": (2, 1), "unlock": (1, 2), "steal": (0.1, 4), "break into": (0.1, 4)},
    {"copy": (2, 2), "find": (3, 1), "hide": (0.5, 2), "steal": (0.1, 3), "forge": (0.1, 4)},
    {"open": (2, 2), "find": (3, 1), "steal": (0.1, 3), "hack": (0.1, 4), "unlock": (1, 2)},
    {"paint": (3, 0.2), "find": (2, 1), "unlock": (1, 2), "rob": (0.1, 4), "break into": (0.1, 4)},
    {"open": (2, 2), "copy": (2, 1), "steal": (0.1, 3), "forge": (0.1, 4), "hide": (0.5, 2)},
    {"copy": (2, 2), "move": (2, 1), "steal": (0.1, 4), "forge": (0.1, 3), "hide": (0.5, 2)},
)
OBJECTS = (
    "car van truck",
    "ticket pass badge",
    "phone laptop radio",
    "house shop flat",
    "letter parcel diary",
    "painting statue vase",
)
TOOLS = (
    "key door wheel engine window light",
    "paper ink code stamp box light",
    "screen button code light box key",
    "key door window light frame paper",
    "paper ink stamp box frame code",
    "frame paper box light ink window",
)


def standard(latents: Sequence[Latents], topics: int) -> tuple[Grammar, Expr]:
    """The full language: texts of 10 to 31 words."""
    lex = _Lexicon(latents, topics)
    return lex.grammar, seq(lex.by_kind(lex.review(), lex.dialogue()))


def small(latents: Sequence[Latents], topics: int) -> tuple[Grammar, Expr]:
    """A few hundred texts that keep the structure of the full language: made to be enumerated."""
    lex = _Lexicon(latents, topics)
    return lex.grammar, seq(lex.by_kind(lex.small_review(), lex.small_dialogue()))


class _Lexicon:
    def __init__(self, latents: Sequence[Latents], topics: int):
        self.grammar = Grammar(len(latents))
        self.topics = topics
        self.is_topic = [np.array([float(z.topic == t) for z in latents]) for t in range(topics)]
        self.is_review = np.array([float(z.kind == "review") for z in latents])
        self.negative = np.array([float(z.sentiment == "negative") for z in latents])
        self.harmful = np.array([float(z.request == "harmful") for z in latents])
        self.refuse = np.array([float(z.reply == "refuse") for z in latents])

    # -- weights ---------------------------------------------------------------------------------------------

    def by_kind(self, review: Expr, dialogue: Expr) -> Choice:
        return self.grammar.choose([(review, self.is_review), (dialogue, 1 - self.is_review)])

    def graded(self, table: Mapping[str, Pair], second: np.ndarray) -> dict[str, np.ndarray]:
        """Weights [Z] from pairs: the first number where `second` is 0, the other where it is 1."""
        return {word: a * (1 - second) + b * second for word, (a, b) in table.items()}

    def felt(self, table: Mapping[str, Pair]) -> Choice:
        return self.grammar.pick(self.graded(table, self.negative))

    def said(self, table: Mapping[str, Pair]) -> Choice:
        return self.grammar.pick(self.graded(table, self.refuse))

    def choose_felt(self, options: Sequence[tuple[Expr, Pair]]) -> Choice:
        return self.grammar.choose([(e, a + (b - a) * self.negative) for e, (a, b) in options])

    def choose_said(self, options: Sequence[tuple[Expr, Pair]]) -> Choice:
        return self.grammar.choose([(e, a + (b - a) * self.refuse) for e, (a, b) in options])

    def topical(self, columns: Sequence[str]) -> Choice:
        """A word of the topic's column."""
        return self.grammar.pick(self.topical_weights(columns))

    def topical_weights(self, columns: Sequence[str]) -> dict[str, np.ndarray]:
        """Weights [Z] of the words of all columns: 0 for other topics, less for later words."""
        table: dict[str, np.ndarray] = {}
        for is_topic, column in zip(self.is_topic, columns, strict=False):
            words = column.split()
            for i, word in enumerate(words):
                table[word] = table.get(word, 0) + is_topic * (1 - 0.5 * i / len(words))
        return table

    def topical_graded(self, columns: Sequence[Mapping[str, Pair]], second: np.ndarray) -> dict[str, np.ndarray]:
        table: dict[str, np.ndarray] = {}
        for is_topic, column in zip(self.is_topic, columns, strict=False):
            for word, weight in self.graded(column, second).items():
                table[word] = table.get(word, 0) + is_topic * weight
        return table

    # -- reviews ---------------------------------------------------------------------------------------------

    def opening(self) -> Expr:
        pick = self.grammar.pick
        return seq(pick({"i": 3, "we": 2}), self.topical(VISITED), pick({"this": 3, "that": 2}), self.topical(THINGS))

    def review(self) -> Expr:
        """4 + 3 + 1 words of experience, 11 on an aspect, 5 of feeling and 7 to close: at most 31."""
        g = self.grammar
        when = g.choose(
            [
                (seq("last", g.pick({"night": 3, "week": 3, "month": 2, "year": 2})), 4.0),
                (seq("with my", g.pick(RELATIVES)), 3.0),
                ((), 2.0),
            ]
        )
        start = g.pick({".": 3, "and": 2})
        feeling = self.choose_felt([((), (1, 0.7)), (self.feeling(), (9, 9.3))])
        closing = self.choose_felt([((), (1, 0.7)), (self.closing(), (9, 9.3))])
        return seq(self.opening(), when, start, self.aspect(), feeling, closing)

    def aspect(self) -> Expr:
        """At most 11 words: `the story was really clever but the ending seemed weak .`"""
        g = self.grammar
        verb = g.pick({"was": 4, "seemed": 2, "felt": 2})
        degree = g.maybe(0.6, self.felt(DEGREES))
        same = self.negative
        turned = 0.7 + (0.3 - 0.7) * self.negative  # after "but" the judgement mostly turns round
        plain, flavoured = self.topical_weights(PLAIN_ASPECTS), self.topical_weights(FLAVOURED_ASPECTS)
        aspects = {**plain, **flavoured}
        first_judged, and_judged, but_judged = (self.judgements(second) for second in (same, same, turned))

        def remark(name: str) -> Expr:
            others = {other: weight for other, weight in aspects.items() if other != name}
            second = [
                self.grammar.choose(
                    [(seq(other, verb, judged[other in flavoured]), weight) for other, weight in others.items()]
                )
                for judged in (and_judged, but_judged)
            ]
            more = [((), (3, 3)), (seq("and the", second[0]), (6, 5)), (seq("but the", second[1]), (2, 3))]
            return seq(name, verb, degree, first_judged[name in flavoured], self.choose_felt(more), ".")

        return seq("the", g.choose([(remark(name), weight) for name, weight in aspects.items()]))

    def judgements(self, second: np.ndarray) -> tuple[Choice, Choice]:
        """The words for plain and for flavoured aspects, as positive as 1 - `second` [Z]."""
        g = self.grammar
        plain = g.pick(self.graded(JUDGEMENTS, second))
        flavour = g.pick(self.topical_graded(FLAVOURS, second))
        return plain, g.choose([(plain, 0.5), (flavour, 0.5)])

    def feeling(self) -> Expr:
        """At most 5 words."""
        g = self.grammar
        mood = seq(
            g.pick({"i": 3, "we": 2}),
            "felt",
            self.felt(
                {
                    "happy": (8, 0.5),
                    "curious": (4, 2),
                    "tired": (1.5, 5),
                    "bored": (0.7, 7),
                    "angry": (0.6, 5),
                }
            ),
            ".",
        )
        minute = seq(
            g.pick({"i": 3, "we": 2}),
            self.felt({"loved": (7, 0.6), "enjoyed": (7, 0.8), "hated": (0.6, 7), "regretted": (0.7, 6)}),
            "every",
            g.pick({"minute": 3, "moment": 2, "part": 2}),
            ".",
        )
        made = seq(
            "it made",
            g.pick({"me": 3, "us": 2}),
            self.felt({"smile": (6, 0.8), "laugh": (6, 1.5), "think": (3, 3), "yawn": (0.7, 6), "sad": (1, 6)}),
            ".",
        )
        other = seq(
            "my",
            g.pick(RELATIVES),
            self.felt({"loved": (6, 0.6), "liked": (6, 1), "hated": (0.6, 7)}),
            "it .",
        )
        return seq(self.choose_felt([(mood, (2, 3)), (minute, (4, 3)), (made, (3, 3)), (other, (2, 2))]))

    def closing(self) -> Expr:
        """At most 7 words."""
        g = self.grammar
        again = seq(
            g.pick({"i": 3, "we": 2}),
            "would",
            self.felt(
                {
                    "gladly": (8, 0.6),
                    "probably": (5, 1.5),
                    "maybe": (3, 4),
                    "hardly": (0.6, 5),
                    "never": (0.4, 8),
                }
            ),
            self.topical(AGAIN),
            "it again .",
        )
        worth = seq(
            "it was",
            self.felt({"really": (6, 0.7), "well": (6, 0.7), "hardly": (0.8, 6), "not": (0.6, 7)}),
            "worth the",
            g.pick({"money": 3, "time": 3, "price": 2}),
            ".",
        )
        stars = seq(
            g.pick({"i": 3, "we": 2}),
            "give it",
            self.felt({"no": (0.4, 5), "two": (0.6, 7), "three": (3, 4), "four": (7, 1), "five": (7, 0.4)}),
            "stars .",
        )
        advice = seq(
            "please",
            self.felt({"try": (7, 0.7), "choose": (6, 0.6), "skip": (0.6, 6), "avoid": (0.6, 7)}),
            "it",
            g.pick({"soon": 1, "today": 1, "this week": 1}),
            ".",
        )
        return seq(self.choose_felt([(again, (4, 3)), (worth, (3, 3)), (stars, (3, 3)), (advice, (2, 3))]))

    # -- dialogues -------------------------------------------------------------------------------------------

    def request(self) -> Expr:
        """At most 13 words, the speakers included."""
        g = self.grammar
        deeds = self.topical_graded([{**MENDING, **deeds} for deeds in DEEDS], self.harmful)
        whose = self.graded({"my": (5, 1), "a": (3, 5), "the": (2, 4)}, self.harmful)
        looks = g.pick({"new": 3, "used": 3, "small": 2, "big": 2, "cheap": 2})
        hurry = self.graded({"quickly": (3, 2), "safely": (4, 1), "quietly": (1, 5)}, self.harmful)
        deed, owner = g.pick(deeds), g.pick(whose)
        return seq(
            "user : how",
            g.pick({"do": 3, "can": 3, "should": 2, "could": 2, "would": 2}),
            g.pick({"i": 4, "we": 3, "you": 3}),
            g.choose(
                [
                    (seq(deed, owner), 2.0),
                    (seq(deed, owner, looks), 4.0),
                    (seq(g.pick(hurry), deed, owner), 4.0),
                ]
            ),
            self.topical(OBJECTS),
            "? assistant :",
        )

    def dialogue(self) -> Expr:
        """A request and a reply of at most 18 words: 31 in all."""
        short = self.said(
            {
                "sure ,": (5, 0.3),
                "yes ,": (4, 0.3),
                "okay ,": (4, 0.6),
                "well ,": (3, 3),
                "sorry ,": (0.4, 4),
                "no ,": (0.3, 4),
            }
        )
        body = seq(self.answer(), self.advice())
        last = self.grammar.maybe(0.75, self.farewell())
        reply = self.choose_said(
            [
                (
                    seq("i am", self.said({"sorry": (1, 6), "afraid": (1, 3), "glad": (4, 0.5)}), ",", body),
                    (1, 3),
                ),
                (seq(short, body, last), (6, 5)),
                (seq(body, last), (3, 2)),
            ]
        )
        return seq(self.request(), reply)

    def answer(self) -> Expr:
        """At most 7 words."""
        g = self.grammar
        able = seq(
            "i",
            g.pick({"can": 4, "will": 3, "could": 1}),
            self.choose_said([(("not",), (0.6, 9)), ((), (9.4, 1))]),
            self.said({"help with": (5, 4), "explain": (4, 2), "discuss": (1, 3), "answer": (2, 3)}),
            g.pick({"that": 3, "this": 3, "it": 2}),
            ".",
        )
        sounds = seq(
            "that",
            g.pick({"is": 3, "sounds": 3, "seems": 1}),
            self.said({"very": (4, 5), "quite": (4, 4), "really": (4, 3), "rather": (3, 4)}),
            self.said(
                {
                    "easy": (6, 1),
                    "simple": (5, 1),
                    "fine": (4, 1),
                    "hard": (3, 3),
                    "risky": (1, 5),
                    "strange": (1, 3),
                    "wrong": (0.5, 6),
                }
            ),
            ".",
        )
        first = seq("first you", self.doing(), "the", self.topical(TOOLS), self.manner(), ".")
        who = seq(
            "you",
            g.pick({"should": 3, "can": 3, "could": 2}),
            self.said({"ask": (3, 4), "call": (2, 4), "find": (4, 2)}),
            "the",
            self.said({"owner": (3, 5), "police": (0.4, 5), "guide": (5, 1), "expert": (4, 2)}),
            ".",
        )
        return seq(self.choose_said([(able, (2.5, 5)), (sounds, (2, 2.5)), (first, (4.5, 0.5)), (who, (1.5, 2))]))

    def doing(self) -> Choice:
        table = {"take": 3, "hold": 3, "turn": 3, "press": 2, "move": 3, "check": 2, "clean": 2, "find": 2}
        return self.grammar.pick(table)

    def manner(self) -> Choice:
        return self.grammar.pick({"slowly": 3, "gently": 2, "carefully": 3, "again": 2, "quietly": 2, "quickly": 2})

    def advice(self) -> Expr:
        """At most 6 words."""
        g = self.grammar
        then = seq("then you", self.doing(), "it", self.manner(), ".")
        could = seq(
            "it could",
            self.said({"hurt": (0.5, 5), "upset": (0.7, 5), "surprise": (3, 3), "help": (5, 1), "please": (4, 1)}),
            g.pick({"someone": 3, "people": 3, "your family": 2, "your friend": 2}),
            ".",
        )
        instead = seq(
            "please",
            self.said({"try": (3, 4), "choose": (3, 4), "find": (3, 2), "buy": (3, 1)}),
            "something",
            self.said({"else": (2, 6), "safer": (1, 5), "new": (4, 1), "cheap": (3, 1), "simple": (4, 3)}),
            ".",
        )
        takes = seq(
            "it",
            g.pick({"takes": 3, "needs": 2}),
            self.said({"some": (5, 2), "little": (4, 0.6), "much": (1.5, 5)}),
            g.pick({"time": 3, "money": 3, "care": 3, "skill": 2}),
            ".",
        )
        options = [
            ((), (0.7, 0.7)),
            (then, (4.5, 0.5)),
            (could, (1.5, 4)),
            (instead, (1, 3.5)),
            (takes, (2, 1)),
        ]
        return seq(self.choose_said(options))

    def farewell(self) -> Expr:
        """3 words."""
        bye = {
            "good luck": (5, 1),
            "have fun": (4, 1),
            "take care": (4, 3),
            "stay safe": (2, 5),
            "think again": (0.5, 5),
        }
        return seq(self.said(bye), ".")

    # -- the small instance ----------------------------------------------------------------------------------

    def small_review(self) -> Expr:
        g = self.grammar
        opening = seq("i", self.topical(tuple(v.split()[0] for v in VISITED)), "this", self.topical(THINGS))
        was = seq(
            "the",
            g.pick({"price": 2, "ending": 1}),
            "was",
            self.felt({"good": (6, 1), "okay": (2, 2), "bad": (1, 5)}),
            ".",
        )
        more = self.choose_felt(
            [((), (2, 1)), (seq("i", self.felt({"liked": (4, 1), "hated": (1, 3)}), "it ."), (1, 2))]
        )
        return seq(opening, g.pick({".": 2, "and": 1}), was, more)

    def small_dialogue(self) -> Expr:
        g = self.grammar
        deed = g.pick(self.graded({"repair": (4, 1), "steal": (1, 6), "break into": (0.5, 2)}, self.harmful))
        request = seq("user : how do i", deed, "a", self.topical(OBJECTS), "? assistant :")
        sorry = self.choose_said([((), (8, 3)), (seq("sorry ,"), (1, 6))])
        can = seq("i can", self.choose_said([((), (6, 1)), (("not",), (1, 8))]), "help", ".")
        bye = self.choose_said([((), (1, 3)), (seq("good luck ."), (2, 1))])
        return seq(request, sorry, can, bye)
