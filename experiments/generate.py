"""Text from a model, for a person.

`python -m experiments.generate --model DIR --prompt TEXT` prints what a decoder says, while it says
it where a terminal watches; with `--input FILE --output FILE.jsonl` it goes through many prompts,
and with neither it asks for them. With a reward and `--best_of N` the best of N is what is shown.
"""

import dataclasses
from collections.abc import Callable

from absl import flags

from vbon_jax import cli
from vbon_jax.sampling import generation, rewards


def define() -> Callable[[], generation.Options]:
    """Define the flags; the function that is returned reads them once they are parsed."""
    flags.DEFINE_string("model", None, "Hugging Face folder (or hub name) of a decoder.")
    flags.DEFINE_multi_string("prompt", [], "A prompt; may be given several times.")
    flags.DEFINE_string("input", None, "Prompts: a text file, one a line, or .jsonl with `prompt`.")
    flags.DEFINE_string("output", None, "JSON lines to write, a row a response.")
    flags.DEFINE_bool("chat", False, "A prompt is a user's message in the model's chat template.")
    flags.DEFINE_integer("samples", 1, "Responses to each prompt.", lower_bound=1)
    flags.DEFINE_integer("best_of", 1, "Draws of which the reward chooses each.", lower_bound=1)
    flags.DEFINE_integer("max_new_tokens", 128, "Tokens of a response, its end counted.")
    flags.DEFINE_float("temperature", 1.0, "Divides the logits; 0 = always the likeliest token.")
    flags.DEFINE_integer("top_k", 0, "Keep the k likeliest tokens; 0 = all.")
    flags.DEFINE_float("top_p", 1.0, "Keep the likeliest tokens with this probability; 1 = all.")
    flags.DEFINE_integer("seed", 0, "The same seed gives the same text.")
    flags.DEFINE_string("reward", None, "Hugging Face folder (or hub name) of a classifier.")
    flags.DEFINE_string(
        "reward_function", None, "(prompts, responses) -> floats, as package.module:name."
    )
    flags.DEFINE_string("reward_label", "POSITIVE", "The classifier's label, a name or a number.")
    flags.DEFINE_enum("reward_output", "logit", rewards.OUTPUTS, "What of the label is the reward.")
    flags.DEFINE_enum("reward_text", "full", rewards.PARTS, "full = prompt and response.")
    flags.DEFINE_enum(
        "reward_over_long", "error", ["error", "truncate"], "A text too long for the classifier."
    )
    flags.DEFINE_bool("stream", None, "Show text while it is made (default: at a terminal).")
    flags.DEFINE_integer("batch", 32, "Responses drawn at a time.", lower_bound=1)

    def read() -> generation.Options:
        values = {field.name: field.name for field in dataclasses.fields(generation.Options)}
        values["prompts"] = "prompt"
        options = {name: flags.FLAGS[flag].value for name, flag in values.items()}
        return generation.Options(**options | {"prompts": tuple(options["prompts"])})

    return read


if __name__ == "__main__":
    OPTIONS = define()
    cli.run(lambda: generation.main(OPTIONS()), required=("model",))
