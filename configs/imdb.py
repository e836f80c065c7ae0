"""The sentiment task of the vBoN paper (arXiv 2407.06057, section 5): continue a movie review.

A prompt is the first 2 to 8 tokens of a review, a response 40 new tokens, the reward the logit of
POSITIVE of a classifier. Policy, reward and reviews are any folders:

    python -m experiments.compare --config configs/imdb.py --workdir runs/imdb \
        --config.policy.path=POLICY --config.reward.path=CLASSIFIER \
        --config.data.train=REVIEWS --config.data.eval=REVIEWS
"""

from ml_collections import ConfigDict

from configs import base


def get_config(arg: str | None = None) -> ConfigDict:
    """PPO as in the paper's released code: 128 rollouts, 4 epochs of 4 minibatches, clip 0.2.

    The learning rate and the number of steps are for small checkpoints; the released code takes
    3e-5, 10,000 updates and the last two layers for GPT-2 with 124 million parameters.
    """
    config = base.get_config()
    with config.unlocked():
        config.data.min_tokens, config.data.max_tokens = 2, 8
        config.data.train_limit, config.data.eval_limit = 1024, 256
        config.reward.label, config.reward.output = "POSITIVE", "logit"
        config.sampling.max_new_tokens = 40
        config.references.samples_per_prompt = 128
        config.n_values = (2, 4, 8)
        config.train.steps = 80
        config.train.batch_size, config.train.samples_per_prompt = 128, 1
        config.train.epochs, config.train.minibatches = 4, 4
        config.train.learning_rate = 1e-4
        config.train.beta1, config.train.beta2, config.train.epsilon = 0.9, 0.95, 1e-8
        config.train.weight_decay = 1e-6
        config.ppo.discount, config.ppo.gae_lambda = 1.0, 0.95
        config.ppo.clip, config.ppo.value_clip, config.ppo.value_coefficient = 0.2, 0.2, 1.0
        config.ppo.reward_clip = 10.0
    return config.lock()
