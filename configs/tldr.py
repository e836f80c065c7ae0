"""Summarisation of Reddit posts, the second task of the vBoN paper (arXiv 2407.06057, section 6).

A prompt is a whole post that ends in "TL;DR:", a response its summary. Training posts are of the
relationship subreddits, and so are the held-out ones, or with `ood` those of all others. Policy
(in the paper Pythia-2.8B after SFT), reward and judge are any folders; posts are rows with
`prompt`, `completion` and `subreddit`, whatever their columns are called:

    python -m experiments.compare --config configs/tldr.py --workdir runs/tldr \
        --config.policy.path=POLICY --config.reward.path=REWARD --config.judges.judge.path=JUDGE \
        --config.data.train=POSTS --config.data.eval=POSTS

With `small` nothing is trained beforehand: a small GPT-NeoX learns to summarise the posts, becomes
a reward model on preferences (`prompt`, `chosen` and `rejected`), and a larger one judges:

    python -m experiments.compare --config configs/tldr.py:small --workdir runs/tldr \
        --config.data.train=POSTS --config.data.eval=POSTS \
        --config.stages.reward_model.data.train=PREFERENCES \
        --config.stages.reward_model.data.eval=PREFERENCES

`small,ood` is both. BoNBoN and DPO, which reviewers of both papers missed, are beside vBoN.
"""

from ml_collections import ConfigDict

from configs import small
from vbon_jax.config import defaults

RELATIONSHIPS = ("relationships", "relationship_advice")


def get_config(arg: str | None = None) -> ConfigDict:
    """50 new tokens, a penalty for a summary without an end, temperatures from 0.1 to 1."""
    words = set(arg.split(",")) if arg else set()
    if unknown := words - {"small", "ood"}:
        raise ValueError(f"configs/tldr.py:{arg}: {sorted(unknown)[0]!r} is not small or ood")
    config = defaults()
    with config.unlocked():
        config.data.field = "prompt"
        config.data.max_tokens, config.data.longest_prompt = 0, 512
        config.data.over_long = "drop"
        config.data.train_limit, config.data.eval_limit = 2048, 256
        config.data.filter.subreddit = RELATIONSHIPS
        if "ood" in words:
            config.data.filter_eval["not subreddit"] = RELATIONSHIPS
        config.reward.label = "0"
        config.judges.judge = {"path": "", "label": "0"}
        config.sampling.max_new_tokens = 50
        config.references.samples_per_prompt = 32
        config.methods = ("vbon", "bonbon", "dpo", "kl_rl", "bon_sft")
        config.n_values = (4,)
        config.train.steps = 100
        config.train.batch_size, config.train.samples_per_prompt = 64, 4
        config.train.epochs, config.train.minibatches = 1, 4
        config.train.learning_rate, config.train.schedule = 3e-6, "linear"
        config.reward.missing_eos_penalty = 1.0
        config.evaluation.temperatures = (0.1, 0.25, 0.5, 0.75, 1.0)
        if "small" in words:
            _small(config)
    return config.lock()


def _small(config: ConfigDict) -> None:
    """Small GPT-NeoX networks."""
    config.data.longest_prompt = 96  # and room for what a response may become in a reward
    config.evaluation.temperatures = (0.5, 1.0)
    network = {"model_type": "gpt_neox", "num_hidden_layers": 2, "hidden_size": 64}
    network |= {"num_attention_heads": 4, "intermediate_size": 256, "max_position_embeddings": 192}
    posts = {name: config.data.get_oneway_ref(name) for name in ("train", "eval")}
    small.from_nothing(
        config,
        network=network,
        larger={"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 3},
        text_tokens=160,
        sft=posts | {"field": "prompt", "completion_field": "completion"},
        preferences={"train": "", "eval": ""},
    )
