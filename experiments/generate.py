"""Text from a model: prompts in, responses out, or of N responses the one with the best reward.

`python -m experiments.generate --model DIR --prompt TEXT` prints a response. `--input FILE --output
FILE.jsonl` reads many prompts and writes a row for each response. `--best_of N` draws N responses
and keeps the best by a reward, `--reward.path=DIR` (a classifier) or
`--reward.function=package.module:name`, with the keys of `config.reward`.
"""

import dataclasses

from absl import flags
from ml_collections import ConfigDict

from vbon_jax import cli
from vbon_jax.sampling import generation, rewards


def define() -> None:
    """Define the flags, which have the names of `generation.Options`."""
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
    flags.DEFINE_integer("batch", 32, "Responses drawn at a time.", lower_bound=1)
    for key in rewards.KEYS:
        if key.choices:
            flags.DEFINE_enum(key.name, key.default, key.choices, key.help)
        elif isinstance(key.default, int):
            flags.DEFINE_integer(key.name, key.default, key.help)
        else:
            flags.DEFINE_string(key.name, key.default, key.help)


def main() -> None:
    """Generate as the flags say."""
    fields = [field.name for field in dataclasses.fields(generation.Options)]
    values = {name: flags.FLAGS[name].value for name in fields if name != "reward"}
    reward = {key.name.removeprefix("reward."): flags.FLAGS[key.name].value for key in rewards.KEYS}
    values |= {"prompt": tuple(values["prompt"]), "reward": ConfigDict(reward)}
    generation.main(generation.Options(**values))


if __name__ == "__main__":
    define()
    cli.run(main, required=("model",))
