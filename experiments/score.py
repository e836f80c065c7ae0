"""Log-probabilities of given responses under a model.

`python -m experiments.score --model DIR --input FILE.jsonl --output FILE.jsonl`: rows
`{"prompt", "response"}` gain `"log_prob"` (nats, summed over the response's tokens) and
`"token_log_probs"`. No EOS is added: what is scored is the text that is given.
"""

from absl import flags

from vbon_jax import cli, files
from vbon_jax.data import response_ids, sources
from vbon_jax.models.huggingface import model_folder
from vbon_jax.sampling import scoring

MODEL = flags.DEFINE_string("model", None, "Hugging Face folder (or hub name) of a decoder.")
INPUT = flags.DEFINE_string("input", None, "JSON lines of prompt and response.")
OUTPUT = cli.define_path("output", "JSON lines to write.", writes="file")
BATCH = flags.DEFINE_integer("batch", 16, "Rows at a time.", lower_bound=1)


def main() -> None:
    """Read, check every row, score, write."""
    table = sources.read(INPUT.value)
    checkpoint = model_folder.load(MODEL.value, kind="decoder")
    tokenizer = model_folder.load_tokenizer(MODEL.value)
    ends = response_ids.response_ends(checkpoint, tokenizer, MODEL.value)
    pairs = scoring.encode(table, tokenizer, ends, longest=checkpoint.config.max_positions)
    scored = scoring.score(checkpoint, pairs, batch=BATCH.value, source=MODEL.value)
    results = zip(table.rows, scored, strict=True)
    files.write_jsonl(
        OUTPUT.value,
        (row | {"log_prob": sum(tokens), "token_log_probs": tokens} for row, tokens in results),
    )


if __name__ == "__main__":
    cli.run(main, required=("model", "input", "output"))
