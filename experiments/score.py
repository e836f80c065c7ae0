"""Log-probabilities of given responses under a model.

`python -m experiments.score --model DIR --input FILE.jsonl --output FILE.jsonl`: rows
`{"prompt", "response"}` gain `"log_prob"` (nats, summed over the response's tokens) and
`"token_log_probs"`. No EOS is added: what is scored is the text that is given.
"""

import functools
import json
import os
import pathlib

import jax
import numpy as np
import tqdm
from absl import flags

from experiments import cli
from vbon_jax import data
from vbon_jax.models import hub, responses
from vbon_jax.types import InputError, Sequences

MODEL = flags.DEFINE_string("model", None, "Hugging Face folder (or hub name) of a decoder.")
INPUT = flags.DEFINE_string("input", None, "JSON lines of prompt and response.")
OUTPUT = flags.DEFINE_string("output", None, "JSON lines to write.")
BATCH = flags.DEFINE_integer("batch", 16, "Rows at a time.", lower_bound=1)


@functools.partial(jax.jit, static_argnames=("model", "new_tokens"))
def _token_log_probs(params, sequences: Sequences, *, model, new_tokens: int):
    tokens, mask = responses.slots(sequences, new_tokens=new_tokens)
    hidden = responses.hidden(model, params, sequences, new_tokens=new_tokens)
    return responses.log_probs(model, params, hidden, tokens, mask, temperature=1.0)


def encode(rows: list[dict], tokenizer, source: str) -> list[tuple[list[int], list[int]]]:
    """Token ids of each row's prompt and response, tokenised apart, as the sampler would have.

    An empty prompt is the beginning-of-text token; InputError where the tokenizer has none.
    """
    encoded = []
    for number, row in enumerate(rows, start=1):
        (prompt,) = data.as_prompts(tokenizer, [row["prompt"]])
        prompt = prompt or data.beginning(tokenizer, f"{source}: line {number}")
        said = tokenizer(row["response"], add_special_tokens=False, verbose=False)["input_ids"]
        encoded.append((prompt, said))
    return encoded


def score(checkpoint: hub.Checkpoint, pairs, *, batch: int) -> list[list[float]]:
    """log pi(token) of each response's tokens, in the order of `pairs` of token ids."""
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
    scored: list[list[float]] = [[] for _ in pairs]
    for start in tqdm.tqdm(range(0, len(order), batch), unit="batch", desc="score"):
        chosen = order[start : start + batch]
        padded = chosen + [chosen[-1]] * (batch - len(chosen))
        joined = [[*pairs[i][0], *pairs[i][1]] for i in padded]
        new_tokens = data.bucket_length(max(len(pairs[i][1]) for i in padded))
        whole = data.pad_prompts(joined, longest=checkpoint.config.max_positions)
        prompt_lengths = np.asarray([len(pairs[i][0]) for i in padded], np.int32)
        sequences = Sequences(whole.tokens_bp, prompt_lengths, whole.lengths_b)
        said = _token_log_probs(
            checkpoint.params, sequences, model=checkpoint.config, new_tokens=new_tokens
        )
        for row, i in zip(np.asarray(said), chosen, strict=False):
            scored[i] = [float(value) for value in row[: len(pairs[i][1])]]
    return scored


def main() -> None:
    """Read, check every row, score, write."""
    rows = data.read_jsonl(INPUT.value, ("prompt", "response"))
    checkpoint = hub.load(MODEL.value, kind="decoder")
    tokenizer = hub.load_tokenizer(MODEL.value)
    hub.check_vocabulary(tokenizer, checkpoint.config, MODEL.value)
    pairs = encode(rows, tokenizer, INPUT.value)
    for number, (prompt, response) in enumerate(pairs, start=1):
        if len(prompt) + len(response) > checkpoint.config.max_positions:
            raise InputError(
                f"{INPUT.value}, line {number}: prompt and response have "
                f"{len(prompt) + len(response)} tokens, the model takes "
                f"{checkpoint.config.max_positions}; shorten the row"
            )
    scored = score(checkpoint, pairs, batch=BATCH.value)
    temporary = pathlib.Path(OUTPUT.value + ".tmp")
    temporary.parent.mkdir(parents=True, exist_ok=True)
    with temporary.open("w") as file:
        for row, log_probs in zip(rows, scored, strict=True):
            row = row | {"log_prob": float(np.sum(log_probs)), "token_log_probs": log_probs}
            file.write(json.dumps(row) + "\n")
    os.replace(temporary, OUTPUT.value)


if __name__ == "__main__":
    cli.run(main, required=("model", "input", "output"))
