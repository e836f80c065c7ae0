"""The demo: data and models of its own, nothing to fetch; `make demo` and `make compare` run it."""

from ml_collections import ConfigDict

from configs import small
from vbon_jax.config import defaults

PAIRS = ("bonbon", "bonbon_released", "bonbon_calibrated", "dpo", "ipo")
METHODS = (
    *("vbon", "kl_rl", "bond", "j_bond", "raft", "online_bonbon", "vbon_regression", "qrpo"),
    *("bon_sft", "bon_sft_kl", *PAIRS),
)

# Of 1, 2 and 4e-4 the rate that took a run of N = 4, seed 9 (in no table), nearest to 0.15 nats, at
# twice the prompts a step; 2e-4 for those in neither list.
FASTER, SLOWER = ("j_bond",), ("vbon_regression", *PAIRS)


def get_config(arg: str | None = None) -> ConfigDict:
    """Small enough for a laptop: toy reviews, prompts of 2 to 8 tokens, 12 new tokens.

    Two stages come first: a policy of GPT-2's shape learns to write reviews, a classifier of
    DistilBERT's to tell good ones from bad ones, from beginnings of any length.

    `configs/demo.py` trains vBoN and KL-RL at N = 4; `configs/demo.py:compare` trains every method
    at four N and three seeds, all at one budget of sampled tokens.
    """
    config = defaults()
    with config.unlocked():
        config.data.train, config.data.eval = "toy_reviews:train", "toy_reviews:eval"
        config.data.train_limit, config.data.eval_limit = 512, 256
        _stages(config)
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
        if arg == "compare":
            _compare(config)
        elif arg:
            raise ValueError(f"configs/demo.py:{arg} is not known; give nothing or `compare`")
    return config.lock()


def _stages(config: ConfigDict) -> None:
    """The policy and the classifier, each from a fresh network and a tokenizer of its own."""
    sizes = {"batch_size": 64, "text_tokens": 80}
    config.stages.policy = {
        "network": {"model_type": "gpt2", "n_embd": 128, "n_layer": 2, "n_head": 4}
        | {"n_positions": 80},
        "vocab_size": 2048,
        "method": "sft",
        "data": {"train": "toy_reviews:train"},
        "train": small.supervised(steps=300, learning_rate=2e-3) | sizes,
    }
    config.stages.reward = {
        "network": {"model_type": "distilbert", "dim": 128, "n_layers": 1, "n_heads": 4}
        | {"hidden_dim": 512, "max_position_embeddings": 160}
        | {"id2label": {"0": "NEGATIVE", "1": "POSITIVE"}},
        "vocab_size": 2048,
        "init_seed": 1,
        "method": "reward_model",
        "data": {"train": "toy_reviews:beginnings", "over_long": "truncate"},
        "train": small.supervised(steps=120, learning_rate=2e-3) | sizes,
    }
    config.policy.path, config.reward.path = "stage:policy", "stage:reward"


def _compare(config: ConfigDict) -> None:
    """Every method at the tokens of about 36 reference responses to each of 128 prompts."""
    config.data.train_limit = 128
    config.budget.sampled_tokens = 55_000  # bond ranks N = 16 of what half of it pays for
    config.train.batch_size = 32
    config.train.steps = 36  # of a method that samples nothing: about one pass over the cache
    config.train.learning_rate = 2e-4
    for name, rate in [(name, 4e-4) for name in FASTER] + [(name, 1e-4) for name in SLOWER]:
        config.by_method[name] = {"train": {"learning_rate": rate}}
    for name in PAIRS:  # a pair is two responses: 128 of them a step, like all others
        config.by_method[name].train.samples_per_prompt = 2
    config.train.checkpoint_every = 1000  # the end alone: a run takes seconds
    config.evaluation.shown_prompts = 6
    config.methods, config.n_values, config.seeds = METHODS, (2, 4, 8, 16), (0, 1, 2)
