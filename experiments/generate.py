"""Text from a model: prompts in, responses out, or of N responses the one with the best reward.

`python -m experiments.generate --model DIR --prompt TEXT` prints a response. `--input FILE --output
FILE.jsonl` reads many prompts and writes a row for each response. `--best_of N` draws N responses
and keeps the best by a reward, `--reward.path=DIR` (a classifier) or
`--reward.function=package.module:name`, with the keys of `config.reward`.
"""

import os

from absl import flags
from ml_collections import ConfigDict

from vbon_jax import cli, config
from vbon_jax.sampling import generation

DEFINE = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
    tuple: flags.DEFINE_multi_string,
}


def define() -> None:
    """Define a flag for each of `generation.KEYS`."""
    for key in generation.KEYS:
        if key.choices:
            flags.DEFINE_enum(key.name, key.default, key.choices, key.help)
        else:
            DEFINE[type(key.default)](key.name, key.default, key.help)


def main() -> None:
    """Generate as the flags say."""
    options = ConfigDict()
    config.add(options, generation.KEYS)
    values = {key.name: flags.FLAGS[key.name].value for key in generation.KEYS}
    # In a C locale Python has what is not ASCII as lone surrogates, one for each byte of UTF-8.
    words = (os.fsencode(text).decode("utf-8", "surrogateescape") for text in values["prompt"])
    options.update_from_flattened_dict(values | {"prompt": tuple(words)})
    generation.main(options)


if __name__ == "__main__":
    define()
    cli.run(main, required=("model",))
