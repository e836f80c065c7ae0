"""The keys of the exact lab, besides those of every run (`vbon_jax.config`).

`identifies` says what has to be computed anew when a key changes: every "run" of the lab, those
with "exact" gradients, or the study of log F ("cdf").
"""

from vbon_jax.config import LARGE, SEED, Key

_KEYS: list[Key] = [
    Key("seed", 0, "of the policy and the rewards", **SEED),
    Key("vocab_size", 6, "the EOS counted", least=3),
    Key("length", 3, "tokens of a response at most", least=2),
    Key("prompts", 3, "of two words each", least=1),
    Key("width", 32, "of the network", least=4),
    Key("num_layers", 2, "of the network", least=1),
    Key("initializer_std", 0.1, "0 = all tokens equally likely; more = more peaked", least=0,
        most=10),
    Key("reward_scale", 0.3, "standard deviation; with ties, rewards are whole multiples of it",
        above=0, most=LARGE),
    Key("workers", 2, "processes; each trains a method at a time", least=1, identifies=""),
    Key("cache_sizes", (5, 10, 20, 50, 100, 200, 400, 600), "M of the study of log F", least=1,
        identifies="cdf"),
    Key("caches", 32, "of each size", least=2, identifies="cdf"),
    # Exact gradients: all responses, each weighted by its own chance.
    Key("methods", ("vbon", "vbon_l1", "kl_rl", "bon_sft", "vbon_regression", "bonbon_alpha_1",
        "bonbon_alpha_0", "bonbon_calibrated"), "trained by exact gradients", identifies=""),
    Key("steps_per_doubling", 175, "of vbon, vbon_l1 and kl_rl while N grows from 1", least=1,
        identifies="exact"),
    Key("steps_at_n", 300, "and then at N, while the learning rate falls", least=1,
        identifies="exact"),
    Key("steps", 600, "of the other methods", least=4, identifies="exact"),
    Key("steps_per_n", 80, "and as many times N, where the targets grow as N does", least=0,
        identifies="exact"),
    Key("learning_rate", 6e-3, "peak", above=0, most=10, identifies="exact"),
    Key("beta2", 0.9, "of AdamW", least=0, most=0.9999999, identifies="exact"),
    # Sampled: the methods of the package, each as it is run everywhere else.
    Key("sampled_methods", (), "() = all methods but those of texts, and vbon_l1", identifies=""),
]  # fmt: skip
LAB_KEYS = [key._replace(name=f"lab.{key.name}") for key in _KEYS]
