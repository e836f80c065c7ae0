"""Log-probabilities of given responses under a model.

`python -m experiments.score --model DIR --input FILE.jsonl --output FILE.jsonl`: rows
`{"prompt", "response"}` gain `"log_prob"` (nats, summed over the response's tokens) and
`"token_log_probs"`. No EOS is added: what is scored is the text that is given.
"""

import numpy as np
import tqdm

from vbon_jax.data import batching, token_ids
from vbon_jax.models.huggingface import model_folder
from vbon_jax.models.log_probs import response_log_probs
from vbon_jax.types import Sequences


def encode(rows: list[dict], tokenizer, source: str) -> list[tuple[list[int], list[int]]]:
    """Token ids of each row's prompt and response, tokenised apart, as the sampler would have.

    An empty prompt is the beginning-of-text token; InputError where the tokenizer has none.
    """
    encoded = []
    for number, row in enumerate(rows, start=1):
        place = f"{source}: line {number}"
        (prompt,) = token_ids.prompt_ids(tokenizer, [row["prompt"]], [place])
        said = tokenizer(row["response"], add_special_tokens=False, verbose=False)["input_ids"]
        encoded.append((prompt, said))
    return encoded


def score(checkpoint: model_folder.Checkpoint, pairs, *, batch: int) -> list[list[float]]:
    """log pi(token) of each response's tokens, in the order of `pairs` of token ids."""
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
    scored: list[list[float]] = [[] for _ in pairs]
    for start in tqdm.tqdm(range(0, len(order), batch), unit="batch", desc="score"):
        chosen = order[start : start + batch]
        padded = chosen + [chosen[-1]] * (batch - len(chosen))
        joined = [[*pairs[i][0], *pairs[i][1]] for i in padded]
        new_tokens = batching.bucket_length(max(len(pairs[i][1]) for i in padded))
        whole = batching.pad_prompts(joined, longest=checkpoint.config.max_positions)
        prompt_lengths = np.asarray([len(pairs[i][0]) for i in padded], np.int32)
        sequences = Sequences(whole.tokens_bp, prompt_lengths, whole.lengths_b)
        log_probs_sg, _, _ = response_log_probs(
            checkpoint.config, checkpoint.params, sequences, new_tokens=new_tokens, temperature=1.0
        )
        for row, i in zip(np.asarray(log_probs_sg), chosen, strict=False):
            scored[i] = [float(value) for value in row[: len(pairs[i][1])]]
    return scored
