"""A policy whose responses can all be enumerated: `python -m experiments.exact`.

`docs/exact.md` has what it showed.
"""

from ml_collections import ConfigDict

from vbon_jax.config import defaults
from vbon_jax.exact.keys import LAB_KEYS


def get_config(arg: str | None = None) -> ConfigDict:
    """Five words and an EOS, at most 3 tokens: 156 responses to each of 3 prompts."""
    config = defaults(LAB_KEYS)  # the policy, the rewards and exact gradients: config.lab
    config.n_values = (2, 4, 8, 16)
    # Sampled: the methods of the package, each as it is run everywhere else.
    config.sampling.max_new_tokens = config.lab.length
    config.references.samples_per_prompt = 256  # M
    with config.unlocked():
        config.by_method.vbon = {"bound": "exact", "gradient": "rloo"}
        config.by_method.kl_rl = {"gradient": "rloo"}
        config.by_method.bond = {"bound": "exact"}
    config.train.steps = 120
    config.train.batch_size, config.train.samples_per_prompt = 24, 8
    config.train.epochs, config.train.minibatches = 1, 1
    config.train.learning_rate, config.train.schedule = 3e-3, "linear"
    return config.lock()
