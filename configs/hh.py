"""Single-turn helpful and harmless dialogue, the task of the BoNBoN paper (arXiv 2406.00832, 5).

A prompt is a dialogue that ends in "Assistant:", a response its next turn; n = 8 and alpha = 0.005
as there. Length is the measure that no reward asks for: the report draws its drift against KL.
Policy, reward and judge are any folders; prompts are rows with `prompt`:

    python -m experiments.compare --config configs/hh.py --workdir runs/hh \
        --config.policy.path=POLICY --config.reward.path=REWARD --config.judges.judge.path=JUDGE \
        --config.data.train=PROMPTS --config.data.eval=PROMPTS

With `small` nothing is trained beforehand: a small Llama learns the preferred answers of dialogues
(rows with `chosen` and `rejected`, whole dialogues or with a `prompt`), becomes a reward model on
the same preferences, and a larger one judges:

    python -m experiments.compare --config configs/hh.py:small --workdir runs/hh \
        --config.data.train=PROMPTS --config.data.eval=PROMPTS \
        --config.stages.sft.data.train=DIALOGUES --config.stages.sft.data.eval=DIALOGUES
"""

from ml_collections import ConfigDict

from configs import small
from vbon_jax.config import defaults

METHODS = ("vbon", "bonbon", "dpo", "kl_rl", "bon_sft")


def get_config(arg: str | None = None) -> ConfigDict:
    """Both papers' methods at n = 8 on dialogues of one turn or more."""
    if arg not in (None, "", "small"):
        raise ValueError(f"configs/hh.py:{arg} is not known; give nothing or `small`")
    config = defaults()
    with config.unlocked():
        config.data.field = "prompt"
        config.data.max_tokens, config.data.longest_prompt = 0, 512
        config.data.over_long = "drop"
        config.data.train_limit, config.data.eval_limit = 2048, 256
        config.reward.label = "0"
        config.judges.judge = {"path": "", "label": "0"}
        config.sampling.max_new_tokens = 128
        config.references.samples_per_prompt = 32
        config.methods, config.n_values = METHODS, (8,)
        config.pairs.alpha = 0.005
        config.train.steps = 100
        config.train.batch_size, config.train.samples_per_prompt = 64, 4
        config.train.epochs, config.train.minibatches = 1, 4
        config.train.learning_rate, config.train.schedule = 3e-6, "linear"
        config.reward.missing_eos_penalty = 1.0
        if arg == "small":
            _small(config)
    return config.lock()


def _small(config: ConfigDict) -> None:
    """Small Llama networks; the rewards learn from the dialogues of the policy."""
    config.data.longest_prompt = 160  # and room for what a response may become in a reward
    network = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64}
    network |= {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 176}
    network |= {"max_position_embeddings": 256}
    small.from_nothing(
        config,
        network=network,
        larger={"hidden_size": 96, "intermediate_size": 264, "num_hidden_layers": 3},
        text_tokens=224,
        sft={"train": "", "eval": "", "field": "prompt", "completion_field": "chosen"},
        preferences={"train": "", "eval": ""},
    )
    config.stages.sft.pairs = small.PAIRS
    for name in ("train", "eval"):
        same = config.stages.sft.data.get_oneway_ref(name)
        config.stages.reward_model.data[name] = same
