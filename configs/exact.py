"""A policy whose responses can all be enumerated: `python -m experiments.exact`.

2 cores, 7 min 20 s. vBoN's exact bound by exact gradients ends at most
1.6e-4 nats from Best-of-N; `docs/exact.md` has all numbers.
"""

from ml_collections import ConfigDict

from vbon_jax.config import defaults


def get_config(arg: str | None = None) -> ConfigDict:
    """Five words and an EOS, at most 3 tokens: 156 responses to each of 3 prompts."""
    config = defaults()
    with config.unlocked():
        # The policy and the rewards.
        config.lab = ConfigDict()
        config.lab.seed = 0  # of the policy and the rewards
        config.lab.vocab_size = 6  # the EOS counted
        config.lab.length = 3  # tokens of a response, at most
        config.lab.prompts = 3
        config.lab.width = 32
        config.lab.num_layers = 2
        config.lab.initializer_std = 0.1  # 0 = all tokens equally likely; more = more peaked
        config.lab.reward_scale = 0.3  # standard deviation; with ties, whole multiples of it
        config.n_values = (2, 4, 8, 16)
        config.lab.workers = 2  # processes; each trains a method at a time

        config.lab.cache_sizes = (5, 10, 20, 50, 100, 200, 400, 600)  # M of the study of log F
        config.lab.caches = 32  # of each size

        # Exact gradients: all responses, every one by its own weight.
        config.lab.methods = (
            *("vbon", "vbon_l1", "kl_rl", "bon_sft", "vbon_regression"),
            *("bonbon_alpha_1", "bonbon_alpha_0", "bonbon_calibrated"),
        )
        config.lab.steps_per_doubling = 175  # vbon*, kl_rl: while N grows from 1 to its value
        config.lab.steps_at_n = 300  # and then, at N, while the learning rate falls
        config.lab.steps = 600  # of the others,
        config.lab.steps_per_n = 80  # and as many times N, where the targets grow as N does
        config.lab.learning_rate = 6e-3
        config.lab.beta2 = 0.9

        # Sampled: the methods of the package, each as it is run everywhere else.
        config.lab.sampled_methods = ()  # () = all methods but those of texts, and vbon_l1
        config.sampling.max_new_tokens = config.lab.length
        config.references.samples_per_prompt = 256  # M
        config.bound = "exact"
        config.gradient = "rloo"
        config.train.steps = 120
        config.train.batch_size, config.train.samples_per_prompt = 24, 8
        config.train.epochs, config.train.minibatches = 1, 1
        config.train.learning_rate, config.train.schedule = 3e-3, "linear"
    return config.lock()
