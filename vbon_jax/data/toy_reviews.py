"""A grammar of movie reviews of graded sentiment: data for the demonstration, without a download.

A review has a hidden grade between -3 and 3; each of its clauses draws its own grade around it, and
now and then turns to the opposite ("the plot was dull, but the acting is quietly wonderful"). So a
review's first words usually leave the verdict open, and a classifier's score of how it goes on is
spread widely and almost without ties. The phrases are in toy_reviews.txt.
"""

import functools
import pathlib
import re
from typing import Any, NamedTuple

import numpy as np

from vbon_jax.functional import streams
from vbon_jax.types import InputError

MIN_WORDS, MAX_WORDS, MAX_SENTENCES = 15, 45, 4
CLAUSE_SPREAD = 0.75  # standard deviation of a clause's grade around its review's
GRADES = range(-3, 4)
ONE_A_REVIEW = ("genre", "hero", "errand")  # repeated in the same words
_SLOT = re.compile(r"{([-~]?)(\w+)}")
_ARTICLE = re.compile(r"\ba (?=[aeiou])")
SOURCE = re.compile(r"toy_reviews:(train|eval|beginnings)(?:\?reviews=(\d+))?")
SEED, REVIEWS = 0, 12_000  # of the named source
EVAL_SHARE = 20  # training reviews for each held-out one


def read_phrases(text: str) -> dict[str, Any]:
    """The phrases of each symbol, or of each of its grades, from the lines of toy_reviews.txt."""
    phrases: dict[str, Any] = {}
    for line in re.sub(r"\n +", " ", text).splitlines():
        symbol, colon, listed = line.partition(": ")
        if colon and not line.startswith("#"):
            name, _, grade = symbol.partition(" ")
            choices = tuple(phrase.strip() for phrase in listed.split("|"))
            if grade:
                phrases.setdefault(name, {})[int(grade)] = choices
            else:
                phrases[name] = choices
    return phrases


PHRASES = read_phrases(pathlib.Path(__file__).with_suffix(".txt").read_text("utf-8"))


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
    rng = streams.generator("toy reviews", seed)
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
    """The expansion of one review, which remembers its phrases."""

    def __init__(self, grade: float, rng: np.random.Generator):
        self.grade = grade
        self.rng = rng
        self.used: set[str] = set()
        self.settled: dict[str, str] = {}

    def expand(self, symbol: str, grade: float) -> str:
        """One phrase for `symbol`; none is used twice in a review while another is left."""
        if symbol in self.settled:
            return self.settled[symbol]
        choices = PHRASES[symbol]
        if isinstance(choices, dict):
            choices = choices[round(grade)]
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
        """The grade of a clause: near the review's, or near its opposite."""
        centre = -self.grade if turn == "-" else self.grade
        grade = self.rng.normal(centre, CLAUSE_SPREAD)
        return min(max(grade, GRADES[0]), GRADES[-1])


# A source of rows ---------------------------------------------------------------------------------


def rows(source: str) -> list[dict[str, Any]]:
    """The rows of "toy_reviews:train", "toy_reviews:eval" or "toy_reviews:beginnings".

    Each has a `text` and a `label`. There are 12,000 training reviews, the 600 held-out ones that
    follow them, and the beginnings of the training reviews, cut after any number of words from the
    fourth on: what a classifier will score are responses that end anywhere. With "?reviews=200"
    behind the name they are 200, and the held-out ones the ten that follow.
    Raises InputError for another name.
    """
    parts = SOURCE.fullmatch(source)
    if parts is None:
        raise InputError(
            f"{source}: give toy_reviews:train, toy_reviews:eval or toy_reviews:beginnings, each "
            "with ?reviews=N behind it for fewer"
        )
    part, count = parts[1], int(parts[2] or REVIEWS)
    reviews = _generated(count + count // EVAL_SHARE)
    chosen = reviews[count:] if part == "eval" else reviews[:count]
    table = [{"text": review.text, "label": review.label} for review in chosen]
    if part == "beginnings":
        generator = streams.generator("beginnings of toy reviews", SEED)
        for row in table:
            words = row["text"].split(" ")
            kept = generator.integers(min(4, len(words)), len(words) + 1)
            row["text"] = " ".join(words[:kept])
    return table


@functools.lru_cache(maxsize=2)
def _generated(count: int) -> list[Review]:
    return generate(count, seed=SEED)
