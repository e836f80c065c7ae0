"""Posts with summaries and dialogues with preferences, made from the grammar of reviews."""

import json
import pathlib

import numpy as np

from vbon_jax.data import toy_reviews

SUBREDDITS = ("relationships", "relationship_advice", "tifu", "askreddit")


def _write(folder: pathlib.Path, rows: list[dict]) -> None:
    """train.jsonl, three rows of four, and test.jsonl, the rest."""
    folder.mkdir(parents=True, exist_ok=True)
    part = len(rows) * 3 // 4
    for name, content in (("train", rows[:part]), ("test", rows[part:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))


def _opinions(count: int, seed: int) -> tuple[list[str], list[str]]:
    """Good and bad opinions, `count` of each: short reviews of about twenty words."""
    reviews = sorted(
        toy_reviews.generate(8 * count, seed=seed), key=lambda review: len(review.text)
    )
    rng = np.random.default_rng(seed)
    good, bad = ([r.text for r in reviews if r.label == label][:count] for label in (1, 0))
    return rng.permutation(good).tolist(), rng.permutation(bad).tolist()


def make_tldr(folder: pathlib.Path, *, posts: int, seed: int = 3) -> pathlib.Path:
    """`posts/{train,test}.jsonl` and `preferences/{train,test}.jsonl`.

    A post is a review, its summary another in short; the preferred summary is the kinder one.
    """
    rng = np.random.default_rng(seed)
    stories = [review.text for review in toy_reviews.generate(posts, seed=seed)]
    good, bad = _opinions(posts, seed + 1)
    prompts = [
        {
            "subreddit": (subreddit := SUBREDDITS[rng.integers(len(SUBREDDITS))]),
            "prompt": f"SUBREDDIT: r/{subreddit}\nPOST: {text}\nTL;DR:",
        }
        for text in stories
    ]
    rows = [
        prompt | {"completion": " " + (good if rng.random() < 0.5 else bad)[index]}
        for index, prompt in enumerate(prompts)
    ]
    pairs = [
        {"prompt": prompt["prompt"], "chosen": " " + good[index], "rejected": " " + bad[index]}
        for index, prompt in enumerate(prompts)
    ]
    _write(folder / "posts", rows)
    _write(folder / "preferences", pairs)
    return folder


def make_hh(folder: pathlib.Path, *, dialogues: int, seed: int = 5) -> pathlib.Path:
    """`dialogues/{train,test}.jsonl`, chosen and rejected whole, and `prompts` of the same."""
    good, bad = _opinions(dialogues, seed)
    topics = [review.text for review in toy_reviews.generate(dialogues, seed=seed + 1)]
    starts = [f"\n\nHuman: What of this? {text}\n\nAssistant:" for text in topics]
    pairs = [
        {"chosen": f"{start} {better}", "rejected": f"{start} {worse}"}
        for start, better, worse in zip(starts, good, bad, strict=True)
    ]
    prompts = [{"prompt": start} for start in starts]
    _write(folder / "dialogues", pairs)
    _write(folder / "prompts", prompts)
    return folder


def make_hh_from(prompts: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """Preferences from real dialogues: `dialogues/{train,test}.jsonl`.

    A prompt of several turns has answers in it, each preferred to the answer of another dialogue.
    """
    turn = "Assistant:"
    answers = []
    for line in prompts.read_text().splitlines():
        *turns, _ = json.loads(line)["prompt"].split(turn)
        for number in range(1, len(turns)):
            answer = turns[number].partition("\n\nHuman:")[0]
            if answer.strip():
                answers.append((turn.join(turns[:number]) + turn, answer))
    half = len(answers) // 2
    others = answers[half:] + answers[:half]
    pairs = [
        {"prompt": prompt, "chosen": answer, "rejected": other}
        for (prompt, answer), (_, other) in zip(answers, others, strict=True)
        if answer != other
    ]
    _write(folder / "dialogues", pairs)
    return folder
