"""Keys that are set and that no run reads: what is set, the method or methods, the key named.

Each is a number in a configuration that would change nothing, in silence.
"""

SINGLE = (  # of train: the one run reads it, or it is refused
    ("kl_rl", {"bound": "exact"}, "bound"),
    ("raft", {"train.samples_per_prompt": 8}, "train.samples_per_prompt"),
    ("online_bonbon", {"cdf.estimator": "add_one"}, "cdf.estimator"),
    ("dpo", {"ppo.reward_clip": 5.0}, "ppo.reward_clip"),
    ("dpo", {"gradient": "rloo"}, "gradient"),
    ("bonbon_calibrated", {"pairs.beta": 0.1}, "pairs.beta"),
    ("bon_sft", {"bon_sft.kl_weight": 0.3}, "bon_sft.kl_weight"),
    ("bond", {"bond.anchor_rate": 0.5}, "bond.anchor_rate"),
    ("qrpo", {"cdf.estimator": "add_one"}, "cdf.estimator"),
    ("j_bond", {"references.used": 8}, "references.used"),
    ("vbon", {"data.label_field": ""}, "data.label_field"),
    ("sft", {"data.train_limit": 100}, "data.train_limit"),
    ("sft", {"reward_model.centring": 0.1}, "reward_model.centring"),
    ("reward_model", {"data.completion_field": "chosen"}, "data.completion_field"),
)
NEEDS = (  # of a method that reads it, where another key has another value
    ("vbon", {"gradient": "rloo", "ppo.value_learning_rate": 0.1}, "gradient='ppo'"),
    ("kl_rl", {"gradient": "grpo", "ppo.gae_lambda": 0.5}, "gradient='ppo'"),
    ("dpo", {"pairs.split": "test"}, "pairs.path"),
    ("vbon", {"policy.lora.rank": 4}, "policy.lora.pattern"),
    ("vbon", {"data.max_tokens": 0, "data.min_tokens": 5}, "data.max_tokens"),
    ("vbon", {"train.eval_prompts": 8}, "train.eval_every"),
    ("reward_model", {"reward_model.centring": 0.1}, "data.label_field=''"),
    ("vbon", {"reward.function": "f:g", "reward.label": "0"}, "reward.function=''"),
)
COMPARED = (  # of compare: one of the methods reads it, or it is refused
    (("vbon", "dpo"), {"bond.backward": 0.3}, "bond.backward"),
    (("bon_sft", "raft"), {"pairs.alpha": 0.5}, "pairs.alpha"),
    (("raft", "online_bonbon"), {"train.samples_per_prompt": 8}, "train.samples_per_prompt"),
    (("vbon",), {"pairs.path": "pairs.jsonl"}, "pairs.path"),
)
STAGE = (  # of a stage of sft
    {"train": {"samples_per_prompt": 4}},
    {"sampling": {"max_new_tokens": 12}},
    {"references": {"samples_per_prompt": 4}},
    {"evaluation": {"seed": 3}},
    {"ppo": {"clip": 0.1}},
    {"policy": {"path": "elsewhere"}},
    {"budget": {"sampled_tokens": 100}},
    {"data": {"train_limit": 5}},
)
