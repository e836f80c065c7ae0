"""ROUGE-1, ROUGE-2 and ROUGE-L: how much of a reference's words a response has, and in order.

As Lin 2004 ("ROUGE: A Package for Automatic Evaluation of Summaries", ACL workshop) defines them
and Google's `rouge-score` counts them: words are runs of a-z and 0-9 after lower-casing, with
Porter's stemmer; what is written in other letters has no words. For n-grams, with c those that
both have (each as often as in the one that has it less often), precision P is c over the
response's, recall R is c over the reference's, and the F-measure 2PR / (P + R); for ROUGE-L, c is
the length of the longest common subsequence of words.
"""

import re
from collections.abc import Sequence

import numpy as np

MEASURES = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}  # theirs behind ours
WORD = re.compile(r"[a-zA-Z0-9]")


def has_words(text: str) -> bool:
    """Whether a text has anything that ROUGE reads."""
    return WORD.search(text) is not None


def f_measures(
    responses: Sequence[Sequence[str]], references: Sequence[Sequence[str]]
) -> dict[str, np.ndarray]:
    """F-measures "rouge_1", "rouge_2" and "rouge_l" of K responses to each of B prompts, [B, K].

    `references` has one text or more for each prompt; of several the best counts, for each measure
    by itself. A response or reference without words scores 0. Raises ValueError where the prompts
    are not the same ones or one has no reference.
    """
    from rouge_score import rouge_scorer  # late: it takes nltk with it

    if len(responses) != len(references) or not all(references):
        raise ValueError(f"responses to {len(responses)} prompts, references to {len(references)}")
    scorer = rouge_scorer.RougeScorer(list(MEASURES.values()), use_stemmer=True)
    found = [
        [scorer.score_multi(list(held), text) for text in of_prompt]
        for of_prompt, held in zip(responses, references, strict=True)
    ]
    return {
        ours: np.asarray([[one[theirs].fmeasure for one in of] for of in found], np.float64)
        for ours, theirs in MEASURES.items()
    }
