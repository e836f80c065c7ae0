"""Log-probabilities of given responses under a model.

`python -m experiments.score --model DIR --input FILE.jsonl --output FILE.jsonl`: rows
`{"prompt", "response"}` gain `"log_prob"` (nats, summed over the response's tokens) and
`"token_log_probs"`. No EOS is added: what is scored is the text that is given.
"""

import json
import os
import pathlib

import numpy as np
from absl import flags

from vbon_jax import cli
from vbon_jax.data import sources
from vbon_jax.models.huggingface import model_folder
from vbon_jax.sampling import scoring
from vbon_jax.types import InputError

MODEL = flags.DEFINE_string("model", None, "Hugging Face folder (or hub name) of a decoder.")
INPUT = flags.DEFINE_string("input", None, "JSON lines of prompt and response.")
OUTPUT = flags.DEFINE_string("output", None, "JSON lines to write.")
BATCH = flags.DEFINE_integer("batch", 16, "Rows at a time.", lower_bound=1)


def main() -> None:
    """Read, check every row, score, write."""
    table = sources.read(INPUT.value)
    rows = [
        {name: table.text(row, name) for name in ("prompt", "response")} | table.rows[row]
        for row in range(len(table.rows))
    ]
    checkpoint = model_folder.load(MODEL.value, kind="decoder")
    tokenizer = model_folder.load_tokenizer(MODEL.value)
    model_folder.check_vocabulary(tokenizer, checkpoint.config, MODEL.value)
    pairs = scoring.encode(rows, tokenizer, INPUT.value)
    for number, (prompt, response) in enumerate(pairs, start=1):
        if len(prompt) + len(response) > checkpoint.config.max_positions:
            raise InputError(
                f"{INPUT.value}, line {number}: prompt and response have "
                f"{len(prompt) + len(response)} tokens, the model takes "
                f"{checkpoint.config.max_positions}; shorten the row"
            )
    scored = scoring.score(checkpoint, pairs, batch=BATCH.value)
    temporary = pathlib.Path(OUTPUT.value + ".tmp")
    temporary.parent.mkdir(parents=True, exist_ok=True)
    with temporary.open("w") as file:
        for row, log_probs in zip(rows, scored, strict=True):
            row = row | {"log_prob": float(np.sum(log_probs)), "token_log_probs": log_probs}
            file.write(json.dumps(row) + "\n")
    os.replace(temporary, OUTPUT.value)


if __name__ == "__main__":
    cli.run(main, required=("model", "input", "output"))
