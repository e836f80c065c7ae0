"""The embedded data: a grammar of movie reviews of graded sentiment, and tokenizers trained on it.

Written for this project, so that the demonstration needs no data and no network. A review has a
hidden grade between -3 and 3; each of its clauses draws its own grade around it, and now and then
turns to the opposite ("the plot was dull, but the acting is quietly wonderful"). A review is so a
mixture, its first words usually leave the verdict open, and a classifier's score of how it goes on
is spread widely and almost without ties.
"""

import functools
import re
from collections import Counter
from typing import NamedTuple

import numpy as np

MIN_WORDS, MAX_WORDS, MAX_SENTENCES = 15, 45, 4
CLAUSE_SPREAD = 0.75  # standard deviation of a clause's grade around its review's


def _phrases(text: str) -> tuple[str, ...]:
    """Phrases that are written in one string with bars between them."""
    return tuple(phrase.strip() for phrase in text.split("|"))


# Productions. `{name}` is a symbol of either table; `{-name}` turns its grade to the opposite;
# `{~name}` is a clause of its own, which draws its own grade around the review's.
GRAMMAR: dict[str, tuple[str, ...]] = {
    "sentence": (
        "{~clause}.",
        "{~clause}.",
        "{opening}, {~clause}.",
        "{~clause}, and {~clause}.",
        "{~clause}, and {~clause}.",
        "{~clause}, {but} {-clause}.",
        "{~clause}, {but} {-clause}.",
        "{although} {-clause}, {~clause}.",
        "{~clause}, {because} {~clause}.",
        "{~account}.",
        "{~account}, and {~clause}.",
        "{~account}, {but} {-clause}.",
        "{~judgement}.",
        "{opening}, {~judgement}.",
        "{~verdict}.",
        "{~verdict}, {because} {~clause}.",
    ),
    "clause": (
        "{subject} {is} {quality}",
        "{subject} {is} {quality}",
        "{subject} {is} {quality} and {quality}",
        "{subject} {deed}",
        "{subject} {adverb} {deed}",
        "{subject} {deed} {when}",
        "{subject} {be} {thing}",
        "{person} gives a {quality} performance",
        "{person} {handles} {subject} with {manner}",
        "{subject} {felt} {like}",
    ),
    "account": (
        "this {genre} follows {hero} who {errand}",
        "{person} directs this {genre} with {manner}",
        "{person} plays {hero} with {manner}",
        "i watched this {genre} {occasion} and {reaction}",
        "the story of {hero} who {errand} {is} {quality}",
        "{person} wrote this {genre} about {hero}, and the result {is} {quality}",
        "the {genre} tells how {hero} {errand}",
    ),
    "judgement": (
        "this {genre} {be} {thing}",
        "this {be} a {quality} {genre}",
        "it {be} a {quality}, {quality} {genre} about {hero}",
        "the whole film {is} {quality}",
        "the film {felt} {like}",
        "compared with other work by {person}, this {genre} {is} {quality}",
        "as a {genre}, it {deed}",
    ),
    "subject": (
        "{aspect}",
        "{aspect}",
        "{aspect}",
        "{aspect} of this {genre}",
        "{aspect} by {person}",
        "the {part} of this {genre}",
        "the {part}",
    ),
    "quality": (
        "{adjective}",
        "{adjective}",
        "{intensifier} {adjective}",
        "{tone} {adjective}",
    ),
    "person": (
        "{first} {last}",
        "{role} {first} {last}",
    ),
    "aspect": _phrases(
        "the plot | the acting | the score | the camera work | the dialogue | the pacing | the "
        "cast | the script | the editing | the direction | the lighting | the story | the humour "
        "| the romance | the mystery | the soundtrack | the villain | the lead actor | the lead "
        "actress | the supporting cast | the costume design | the set design | the sound | the "
        "central idea"
    ),
    "part": _phrases(
        "first half | second half | first act | second act | third act | opening scene | final "
        "scene | last hour | ending | middle section | chase scene | last twist"
    ),
    "genre": _phrases(
        "thriller | comedy | drama | western | horror film | war film | love story | crime film | "
        "musical | documentary | ghost story | road movie | heist film | family film | space "
        "adventure | courtroom drama"
    ),
    "role": _phrases("newcomer | director | veteran | actor | the young | the great"),
    "first": _phrases(
        "mara | tobin | elsie | oskar | lidia | hugo | petra | anton | ivy | felix | nora | jonas "
        "| clara | bruno | edith | silas"
    ),
    "last": _phrases(
        "velden | harrow | quint | marlow | osterman | pell | rusk | tamsin | adair | bellweather "
        "| crane | lomax | varga | whitlock | sorrel | dunmore"
    ),
    "hero": _phrases(
        "a retired teacher | a young nurse | a lonely detective | two brothers | a small town "
        "doctor | a failed musician | three old friends | a sailor | a widow | a runaway boy | a "
        "bank clerk | a family of farmers"
    ),
    "errand": _phrases(
        "lost everything in one night | found a letter from the past | crossed the desert | went "
        "home after the war | fell in love by accident | hid a terrible secret | planned one last "
        "job | ran from the police | moved to the city | saved a stranger"
    ),
    "occasion": _phrases(
        "last night | with my brother | on a rainy sunday | twice | at a festival | with my "
        "family | on a long flight | for the first time | in an empty cinema | after years of "
        "waiting"
    ),
    "opening": _phrases(
        "in the end | to be fair | from the first minute | after a while | as far as i can tell | "
        "for me | by the end | at times | on the whole | like it or not | an hour in | at its "
        "core"
    ),
    "when": _phrases(
        "from start to finish | in every scene | most of the time | before the credits roll | "
        "after the first hour | again and again | when it matters most | in the quiet moments"
    ),
    "is": _phrases("is | is | was | was | feels | felt | seems | remains"),
    "be": _phrases("is | was | remains | turns out to be"),
    "felt": _phrases("is | was | feels | felt"),
    "but": _phrases("but | but | yet | although | even if | while"),
    "although": _phrases("although | even though | while | though"),
    "because": _phrases("because | since | mostly because"),
    "handles": _phrases("handles | treats | carries | shapes"),
    "adverb": _phrases("often | usually | really | somehow | certainly | simply | always"),
    "intensifier": _phrases(
        "very | really | rather | quite | so | truly | utterly | almost | surprisingly"
    ),
}

# Phrases by grade, from -3 to 3.
GRADED: dict[str, dict[int, tuple[str, ...]]] = {
    "adjective": {
        -3: _phrases("dreadful | unbearable | awful | insulting | hopeless | horrible | terrible"),
        -2: _phrases("dull | clumsy | lifeless | tedious | stale | boring | shallow | lazy"),
        -1: _phrases("uneven | thin | slow | flat | predictable | forgettable | muddled | dated"),
        0: _phrases("simple | familiar | ordinary | modest | conventional | strange | quiet | odd"),
        1: _phrases("pleasant | neat | likeable | solid | engaging | amusing | tidy | honest"),
        2: _phrases("lovely | clever | gripping | charming | warm | sharp | elegant | moving"),
        3: _phrases("superb | wonderful | magnificent | brilliant | dazzling | perfect | stunning"),
    },
    "tone": {
        -3: _phrases("painfully | shamelessly | relentlessly"),
        -2: _phrases("sadly | needlessly | stubbornly"),
        -1: _phrases("vaguely | slightly | strangely"),
        0: _phrases("fairly | mostly | plainly"),
        1: _phrases("pleasantly | nicely | calmly"),
        2: _phrases("quietly | beautifully | remarkably"),
        3: _phrases("gloriously | breathtakingly | joyfully"),
    },
    "deed": {
        -3: _phrases(
            "ruins everything | insults the audience | kills all interest | fails completely"
        ),
        -2: _phrases("drags | falls apart | wastes every chance | bores the audience"),
        -1: _phrases("wanders | loses its way | tries too hard | never quite works"),
        0: _phrases(
            "does the job | fills the time | stays on familiar ground | keeps its distance"
        ),
        1: _phrases("works | holds together | earns a smile | keeps you interested"),
        2: _phrases("shines | draws you in | stays in the mind | touches the heart"),
        3: _phrases("soars | takes your breath away | moved me to tears | deserves every prize"),
    },
    "thing": {
        -3: _phrases("a disaster | an insult | a complete failure | an ugly mess"),
        -2: _phrases("a waste of time | a chore | a sad mistake | a tired copy"),
        -1: _phrases("a missed chance | a mild disappointment | a weak effort | a hollow exercise"),
        0: _phrases("a mixed bag | a matter of taste | an experiment | a curious thing"),
        1: _phrases("a small pleasure | a decent effort | a nice surprise | a good start"),
        2: _phrases("a delight | a real success | a gem | a genuine treat"),
        3: _phrases("a triumph | a masterpiece | a treasure | an absolute joy"),
    },
    "like": {
        -3: _phrases("like a bad dream without end | like a punishment"),
        -2: _phrases("like cold soup | like a lecture that never stops"),
        -1: _phrases("like a first draft | like a song you half remember"),
        0: _phrases("like many others | like a weekday afternoon"),
        1: _phrases("like a visit from a friend | like a good short story"),
        2: _phrases("like the best of the old classics | like a warm fire in winter"),
        3: _phrases("like nothing you have ever seen | like pure magic"),
    },
    "manner": {
        -3: _phrases("no skill at all | open contempt | no idea what to do"),
        -2: _phrases("a heavy hand | no energy | little thought"),
        -1: _phrases("too little care | some confusion | too much caution"),
        0: _phrases("little fuss | a straight face | a steady pace"),
        1: _phrases("some care | good humour | a light touch"),
        2: _phrases("real warmth | a sure hand | great charm"),
        3: _phrases("rare genius | total mastery | endless grace"),
    },
    "reaction": {
        -3: _phrases("wanted to leave after ten minutes | hated every minute | felt robbed"),
        -2: _phrases("fell asleep | checked my watch all evening | regret it"),
        -1: _phrases("expected more | felt little | soon lost interest"),
        0: _phrases("had no strong feelings | understood about half | remember some of it"),
        1: _phrases("enjoyed most of it | smiled more than once | had a good time"),
        2: _phrases("laughed until the end | loved the characters | was deeply moved"),
        3: _phrases("adored every second | cried with joy | never wanted it to end"),
    },
    "verdict": {
        -3: _phrases(
            "avoid it at all costs | i want those two hours back | this is the worst film of the "
            "year | nobody should have to sit through this"
        ),
        -2: _phrases(
            "do not waste your money | i cannot recommend it | you can safely skip this one | "
            "there is almost nothing to enjoy here"
        ),
        -1: _phrases(
            "it could have been so much better | wait until it is free | i expected a lot more | "
            "it is not worth a second look"
        ),
        0: _phrases(
            "it is neither good nor bad | some people will like it more than i did | you have "
            "seen this kind of thing before | make up your own mind"
        ),
        1: _phrases(
            "it is worth a look | there are worse ways to spend an evening | i was glad to see it "
            "| fans will be happy"
        ),
        2: _phrases(
            "i would gladly see it again | go and see it soon | i recommend it to everyone | it "
            "is one of the better films of the year"
        ),
        3: _phrases(
            "do not miss it for anything | this is the best film i have ever seen | it is the "
            "film of the year | see it tonight and tell all your friends"
        ),
    },
}

GRADES = range(-3, 4)
ONE_A_REVIEW = ("genre", "hero", "errand")  # said again in the same words
_SLOT = re.compile(r"{([-~]?)(\w+)}")
_ARTICLE = re.compile(r"\ba (?=[aeiou])")


class Review(NamedTuple):
    """One review; `label` is 1 where the hidden grade is above 0."""

    text: str
    label: int
    grade: float


# Generation ---------------------------------------------------------------------------------------


def generate(count: int, *, seed: int) -> list[Review]:
    """`count` reviews of 15 to 45 words and one to four sentences, a pure function of `seed`.

    Grades are uniform on [-3, 3]. A longer list begins with the reviews of a shorter one.
    """
    rng = np.random.default_rng(seed)
    return [_review(rng) for _ in range(count)]


def _review(rng: np.random.Generator) -> Review:
    """One review: drafts are drawn until one has a length that is wanted."""
    grade = float(rng.uniform(GRADES[0], GRADES[-1]))
    while True:
        draft = _Draft(grade, rng)
        sentences = 1 + int(rng.random() * MAX_SENTENCES)
        text = " ".join(draft.expand("sentence", grade) for _ in range(sentences))
        if MIN_WORDS <= len(text.split()) <= MAX_WORDS:
            return Review(_ARTICLE.sub("an ", text), int(grade > 0), grade)


class _Draft:
    """The expansion of one review, which remembers what it has said."""

    def __init__(self, grade: float, rng: np.random.Generator):
        self.grade = grade
        self.rng = rng
        self.used: set[str] = set()
        self.settled: dict[str, str] = {}

    def expand(self, symbol: str, grade: float) -> str:
        """One phrase for `symbol`; none is used twice in a review while another is left."""
        if symbol in self.settled:
            return self.settled[symbol]
        choices = GRADED[symbol][round(grade)] if symbol in GRADED else GRAMMAR[symbol]
        fresh = [phrase for phrase in choices if phrase not in self.used] or choices
        phrase = fresh[int(self.rng.random() * len(fresh))]
        self.used.add(phrase)
        if symbol in ONE_A_REVIEW:
            self.settled[symbol] = phrase

        def fill(slot: re.Match) -> str:
            turn, name = slot.groups()
            return self.expand(name, self._clause_grade(turn) if turn else grade)

        return _SLOT.sub(fill, phrase)

    def _clause_grade(self, turn: str) -> float:
        """A clause's own grade: near the review's, or near its opposite."""
        centre = -self.grade if turn == "-" else self.grade
        grade = self.rng.normal(centre, CLAUSE_SPREAD)
        return min(max(grade, GRADES[0]), GRADES[-1])


def derivations() -> int:
    """How many reviews of 15 to 45 words the grammar can write, at most (an exact integer).

    Every choice counts as free: that a review does not repeat itself, keeps one film in mind and
    needs phrases of its grade makes the number smaller.
    """
    by_words = _derivations("sentence")
    reviews, total = Counter({0: 1}), 0
    for _ in range(MAX_SENTENCES):
        reviews = _product(reviews, by_words)
        total += sum(n for words, n in reviews.items() if MIN_WORDS <= words <= MAX_WORDS)
    return total


@functools.cache
def _derivations(symbol: str) -> Counter:
    """The number of distinct derivations of a symbol by their number of words."""
    if symbol in GRADED:
        productions = {phrase for grade in GRADES for phrase in GRADED[symbol][grade]}
    else:
        productions = set(GRAMMAR[symbol])
    total = Counter()
    for phrase in productions:
        slots = _SLOT.findall(phrase)
        words = Counter({len(phrase.split()) - len(slots): 1})
        for _, name in slots:
            words = _product(words, _derivations(name))
        total.update(words)
    return total


def _product(first: Counter, second: Counter) -> Counter:
    """Counts by length of the phrases that are one of `first` and then one of `second`."""
    total = Counter()
    for words, count in first.items():
        for more_words, more_count in second.items():
            total[words + more_words] += count * more_count
    return total
