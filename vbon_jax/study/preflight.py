"""What a configuration names, looked at before anything is computed: rows, networks, heads.

Whatever takes long comes after this, so that a bad row or the wrong folder costs seconds. Rows are
checked for what each of them is; whether a prompt fits the policy is seen when it is tokenised.
"""

from ml_collections import ConfigDict

from vbon_jax.data import formats, sft_rows, sources
from vbon_jax.models.huggingface import model_folder
from vbon_jax.sampling import rewards
from vbon_jax.study import plan, stages
from vbon_jax.training import methods
from vbon_jax.types import InputError


def check(config: ConfigDict) -> None:
    """Everything that a comparison reads; InputError, in one line, for what cannot be used."""
    if config.reward.path and config.reward.function:
        raise InputError("reward.path and reward.function are both given; keep one of them")
    stages.require(config, "data.train", "data.eval", "policy.path",
                   *([] if config.reward.function else ["reward.path"]))  # fmt: skip
    stages.check(config)
    if not config.policy.path.startswith(stages.PREFIX):
        model_folder.read_config(config.policy.path, kind="decoder")
    _check_reward("reward", config.reward, config)
    for name, settings in plan.judges(config).items():
        _check_reward(f"judges.{name}", settings, config)
    check_stages(config)
    tokenizer = _tokenizer(config, config.policy.path)
    for split in ("train", "eval"):
        table = sources.read_split(config.data, split)
        formats.prompts(table, name=config.data.field, tokenizer=tokenizer)
    for changed in _given_pairs(config):
        formats.read_pairs(changed.pairs, tokenizer)


def check_text_method(config: ConfigDict) -> None:
    """What `sft` and `reward_model` read: their rows, one model, and the stages."""
    model = "policy" if methods.method(config.method).network == "decoder" else "reward"
    stages.require(config, "data.train", f"{model}.path")
    check_stages(config)


def check_stages(config: ConfigDict) -> None:
    """The settings and the rows of every stage."""
    stages.check(config)
    for name in config.stages:
        own, run = stages.settings(config, name)
        tokenizer = _tokenizer(config, own.base)
        for split in ("train", "eval"):
            if run.data[split]:
                sft_rows.texts(run, sources.read_split(run.data, split), tokenizer)


def _given_pairs(config: ConfigDict) -> list[ConfigDict]:
    """The cells' configurations that name given pairs, one for each way of reading them."""
    found = {}
    for cell in plan.every(config):
        changed = plan.config_of(config, cell)
        if changed.pairs.path and methods.method(changed.method).pairs:
            settings = changed.pairs.to_dict()
            read = {name: settings[name] for name in settings.keys() - {"alpha", "beta", "average"}}
            found[repr(sorted(read.items()))] = changed
    return list(found.values())


def _tokenizer(config: ConfigDict, path: str):
    """That of the folder which a model begins with; None where it is made on the way."""
    folder = stages.base_folder(config, path)
    return model_folder.load_tokenizer(folder) if folder else None


def _check_reward(where: str, settings: ConfigDict, config: ConfigDict) -> None:
    """A reward or judge: a function that can be imported, or a classifier that has the label."""
    if settings.function:
        rewards.load(settings)
    elif settings.path.startswith(stages.PREFIX):
        name = settings.path.removeprefix(stages.PREFIX)
        labels = stages.labels(config, name)
        rewards.label_index(f"{where} ({settings.path})", settings.label, labels)
    elif settings.path:
        labels = model_folder.read_config(settings.path, kind="classifier").labels
        rewards.label_index(settings.path, settings.label, labels)
