"""The demo: everything embedded, nothing to fetch."""

from ml_collections import ConfigDict

from configs import base


def get_config(arg: str | None = None) -> ConfigDict:
    """Small enough for a laptop: embedded reviews, prompts of 2 to 8 tokens, 24 new tokens."""
    config = base.get_config()
    with config.unlocked():
        config.sampling.max_new_tokens = 24
        config.data.train_limit = 512
        config.data.eval_limit = 256
        config.references.samples_per_prompt = 64
        config.references.batch_prompts = 8
        config.n_values = (2, 4)
        config.train.steps = 60
        config.train.batch_size = 64
        config.train.samples_per_prompt = 4
        config.train.learning_rate = 3e-4
        config.embedded.policy_steps = 300
        config.embedded.reward_steps = 120
    return config.lock()
