"""The demo: everything embedded, nothing to fetch; what `make demo` runs."""

from ml_collections import ConfigDict

from configs import base


def get_config(arg: str | None = None) -> ConfigDict:
    """Small enough for a laptop: embedded reviews, prompts of 2 to 8 tokens, 12 new tokens."""
    config = base.get_config()
    with config.unlocked():
        config.data.train_limit, config.data.eval_limit = 512, 256
        config.sampling.max_new_tokens = 12
        config.references.samples_per_prompt = 64
        config.references.batch_prompts = 16
        config.n_values = (4,)
        config.train.steps = 300
        config.train.batch_size, config.train.samples_per_prompt = 64, 4
        config.train.epochs, config.train.minibatches = 1, 4
        config.train.learning_rate, config.train.schedule = 1e-4, "linear"
        config.train.trainable = "decoder/(tokens|head)/.*|value/.*"
        config.train.checkpoint_every = 50
        config.embedded.policy_steps = 300
        config.embedded.reward_steps = 120
    return config.lock()
