"""Numbers of keys without a meaning: dotted key, value, words of the refusal.

A count fits 32 bits, a rate is above 0 where it is computed with, a share is within [0, 1], a seed
is one that JAX can tell from any other, and an interval has resamples outside of its ends.
"""

MEANINGLESS = (
    ("seed", -1, "give a whole number from 0"),
    ("seed", 5_000_000_000, "to 4294967295"),  # 705032704 has the same key
    ("seeds", (0, 2**32), "to 4294967295"),
    ("seeds", (0.5,), "give a whole number"),
    ("references.seed", -1, "from 0"),
    ("evaluation.seed", 2**32, "to 4294967295"),
    ("evaluation.resamples", 0, "from 40"),
    ("evaluation.resamples", 2, "from 40"),
    ("evaluation.ruler_n", (0, 2), "from 1"),
    ("train.max_gradient_norm", -1.0, "from 0"),  # gradient ascent
    ("train.learning_rate", -1e-4, "above 0"),
    ("train.learning_rate", 1e-50, "above 0"),  # 0 in 32 bits: nothing is trained
    ("train.learning_rate", float("nan"), "above 0"),
    ("train.weight_decay", float("nan"), "from 0"),
    ("train.warmup_updates", -3, "from 0"),
    ("train.beta1", 1.0, "to 0.9999999"),  # 0 / 0 at the first update
    ("train.beta2", 1.0, "to 0.9999999"),
    ("train.beta2", 0.99999999, "to 0.9999999"),  # 1 in 32 bits
    ("train.epsilon", 0.0, "from 1e-30"),  # 0 / 0 where a row has no gradient
    ("train.epsilon", 1e-40, "from 1e-30"),
    ("train.text_tokens", 0, "from 2"),
    ("train.eval_prompts", 1, "from 2"),
    ("train.eval_prompts", -5, "from 2"),
    ("train.steps", 2**31, "from 1"),
    ("ppo.clip", -1.0, "above 0 to 1"),
    ("ppo.clip", 1.5, "above 0 to 1"),  # 1 - clip would be a negative ratio
    ("ppo.gae_lambda", 1.9, "to 1"),
    ("ppo.discount", 1.01, "to 1"),
    ("ppo.reward_clip", -1.0, "from 0"),
    ("ppo.value_learning_rate", float("inf"), "above 0"),
    ("sampling.temperature", 0.0, "above 0"),
    ("n_values", (2, "many"), "give a number"),
    ("methods", (3,), "give a text"),
)
EMPTY = ("methods", "n_values", "seeds")  # nothing would be compared, without a word
