"""The sentiment task of the vBoN paper (arXiv 2407.06057, section 5): continue a movie review.

A prompt is the first 2 to 8 tokens of a review, a response 40 new tokens, the reward the logit of
POSITIVE of a classifier. Policy, reward and reviews are any folders:

    python -m experiments.compare --config configs/imdb.py --workdir runs/imdb \
        --config.policy.path=POLICY --config.reward.path=CLASSIFIER \
        --config.data.train=REVIEWS --config.data.eval=REVIEWS

`configs/imdb.py` trains vBoN and KL-RL at three N; `configs/imdb.py:compare` every method of both
papers at two N and two seeds, all at one budget of sampled tokens.
"""

from ml_collections import ConfigDict

from vbon_jax.config import defaults

# In the comparison the methods on the policy's own samples have twice the others' rate.
ON_POLICY = ("vbon", "kl_rl", "bond")
PAIRS = ("bonbon", "bonbon_released", "bonbon_calibrated", "dpo", "ipo")


def get_config(arg: str | None = None) -> ConfigDict:
    """PPO of the paper's released code, sized for a small checkpoint on two cores.

    As there: 128 rollouts in 4 minibatches, gamma 1, lambda 0.95, clips of 0.2. There, and not
    here: 4 epochs a rollout, up to 10,000 updates of the last two layers at a constant 3e-5, AdamW
    with a beta2 of 0.95, and a value coefficient of 1 on a value head with the same learning rate.

    A run of 200 steps sees 25,600 responses, and what a token does to the reward is much smaller
    than the noise of one response. So the embeddings are trained, which a causal language model
    like GPT-2 reads its logits from too: AdamW then takes a step of its own for each word. The last
    two layers first learn a common shift of frequent tokens, which costs KL and brings little
    (docs/methods.md has the measurement). A beta2 of 0.999 remembers a rare word's last gradient.
    """
    config = defaults()
    with config.unlocked():
        config.data.min_tokens, config.data.max_tokens = 2, 8
        config.data.train_limit, config.data.eval_limit = 5000, 512
        config.reward.label, config.reward.output = "POSITIVE", "logit"
        config.sampling.max_new_tokens = 40
        config.references.samples_per_prompt = 128
        config.n_values = (2, 4, 8)
        config.train.steps = 200
        config.train.batch_size, config.train.samples_per_prompt = 128, 1
        config.train.epochs, config.train.minibatches = 1, 4
        config.train.learning_rate, config.train.schedule = 1.5e-5, "constant"
        config.train.warmup_updates = 40
        config.train.weight_decay = 1e-6
        config.train.trainable = "decoder/(tokens|head)/.*|value/.*"
        config.train.checkpoint_every = 20
        config.ppo.discount, config.ppo.gae_lambda = 1.0, 0.95
        config.ppo.clip, config.ppo.value_clip = 0.2, 0.2
        for name in ("vbon", "kl_rl"):
            config.by_method[name] = {"ppo": {"reward_clip": 10.0}}
        if arg == "compare":
            _compare(config)
        elif arg:
            raise ValueError(f"configs/imdb.py:{arg} is not known; give nothing or `compare`")
    return config.lock()


def _compare(config: ConfigDict) -> None:
    """Eleven methods at the tokens of about 35 reference responses to each of 256 prompts."""
    config.methods = (*ON_POLICY, "vbon_regression", "bon_sft", "bon_sft_kl", *PAIRS)
    config.n_values, config.seeds = (4, 16), (0, 1)
    config.data.train_limit, config.data.eval_limit = 256, 256
    config.budget.sampled_tokens = 340_000
    config.train.steps = 70  # of a method that samples nothing: one pass over what it reads
    config.train.batch_size, config.train.samples_per_prompt = 64, 2
    config.train.learning_rate, config.train.schedule = 4e-5, "linear"
    config.train.warmup_updates = 0
    for name in ON_POLICY:
        own = config.by_method.get(name, {})
        config.by_method[name] = {**own, "train": {"learning_rate": 8e-5}}
    for name in PAIRS:  # a pair is two responses: 128 of them a step, like all others
        config.by_method[name] = {"train": {"samples_per_prompt": 1}}
    config.train.checkpoint_every = 1000  # the end alone
