"""Memory of log-probabilities over a large vocabulary, beside the same network without its head.

    python benchmarks/memory.py --output=benchmarks/memory.json

For GPT-2's own shape (124M parameters, a vocabulary of 50,257), a batch of 64 sequences of 512
tokens and float32: the peak of the program that gives every token's log-probability (scoring) and
of the one that gives the gradient of their sum (training), each beside the peak of the program that
stops at the last hidden state, which is parameters and activations alone. XLA plans a program's
memory when it compiles it; nothing is run, so a small machine does. The last line is JSON.
"""

import json
from collections.abc import Callable

import jax
import jax.numpy as jnp
from absl import app, flags

from vbon_jax import files
from vbon_jax.models import decoder, log_probs

WIDTH = flags.DEFINE_integer("width", 768, "of the network", lower_bound=8)
LAYERS = flags.DEFINE_integer("layers", 12, "of the network", lower_bound=1)
HEADS = flags.DEFINE_integer("heads", 12, "of attention", lower_bound=1)
VOCABULARY = flags.DEFINE_integer("vocabulary", 50257, "tokens", lower_bound=2)
BATCH = flags.DEFINE_integer("batch", 64, "sequences", lower_bound=1)
TOKENS = flags.DEFINE_integer("tokens", 512, "of a sequence", lower_bound=2)
OUTPUT = flags.DEFINE_string("output", "", "JSON file to write; empty = none")


def peak(function: Callable, *arguments) -> int:
    """Bytes that the compiled program holds at most: arguments, results and what lies between."""
    plan = jax.jit(function).lower(*arguments).compile().memory_analysis()
    held = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
    return held + plan.temp_size_in_bytes


def measure(config: decoder.DecoderConfig, *, batch: int, tokens: int) -> dict:
    """Peaks in bytes, and the ratio of each program with its head to the one without."""
    params = jax.eval_shape(lambda: decoder.init(config, jax.random.key(0)))
    rows = jax.ShapeDtypeStruct((batch, tokens), jnp.int32)

    def states(params, rows):
        return decoder.hidden(config, params, rows)

    def scores(params, rows):
        return log_probs.token_log_probs(config, params, states(params, rows), rows)

    def slope(function: Callable) -> Callable:
        return jax.grad(lambda params, rows: function(params, rows).sum())

    found = {}
    for name, change in (("scoring", lambda function: function), ("training", slope)):
        without, whole = (peak(change(f), params, rows) for f in (states, scores))
        found[name] = {"peak": whole, "without_head": without, "ratio": round(whole / without, 4)}
    found["logits"] = 4 * batch * tokens * config.vocab_size
    return found


def main(_) -> None:
    """Measure, print, write."""
    config = decoder.DecoderConfig(
        vocab_size=VOCABULARY.value,
        width=WIDTH.value,
        num_layers=LAYERS.value,
        num_heads=HEADS.value,
        mlp_width=4 * WIDTH.value,
        max_positions=TOKENS.value,
    )
    found = measure(config, batch=BATCH.value, tokens=TOKENS.value)
    for name in ("scoring", "training"):
        row = found[name]
        print(
            f"{name}: {row['peak'] / 1e9:.3f} GB, without the head "
            f"{row['without_head'] / 1e9:.3f} GB, ratio {row['ratio']:.3f}"
        )
    print(f"all logits at once would be {found['logits'] / 1e9:.3f} GB")
    settings = {
        "batch": BATCH.value, "tokens": TOKENS.value, "vocabulary": VOCABULARY.value,
        "width": WIDTH.value, "layers": LAYERS.value, "heads": HEADS.value,
        "backend": jax.default_backend(), "jax": jax.__version__,
    }  # fmt: skip
    if OUTPUT.value:
        files.write_json(OUTPUT.value, settings | found)
    print(json.dumps(settings | found))


if __name__ == "__main__":
    app.run(main)
