"""The rows of METHODS, and the configurations that a method refuses."""

import pytest

from vbon_jax.config import check, defaults
from vbon_jax.training import methods
from vbon_jax.types import InputError


def test_an_unknown_method_is_refused_with_the_list():
    with pytest.raises(
        InputError, match=r"vbon, kl_rl, bond, .*vbon_regression, .*, sft, reward_model"
    ):
        methods.method("ppo")


def refuse(config, **changes) -> None:
    """Check a configuration as a study does, with changed keys."""
    changed = config.copy_and_resolve_references()
    changed.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    check(changed)
    methods.check(changed)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n": 1.0}, r"n=1 .*bonbon takes a whole number from 2 to references"),
        ({"n": 2.5}, r"n=2\.5"),
        ({"method": "bond", "n": 2.5}, r"n=2\.5"),
        ({"method": "raft", "n": 0.5}, r"n=0\.5: give a number from 1"),
        ({"method": "online_bonbon", "n": 1.0}, r"n=1 .*from 2$"),
        ({"method": "vbon_regression", "n": 0.5}, r"n=0\.5: give a number from 1 to"),
        ({"method": "qrpo", "n": 1.0}, r"pairs\.beta or a larger N"),
        ({"pairs__alpha": 1.5}, r"pairs\.alpha=1\.5"),
        ({"pairs__beta": -1.0}, r"pairs\.beta=-1"),
        ({"bon_sft__kl_weight": -1.0}, r"bon_sft\.kl_weight=-1"),
        ({"bon_sft__select": "all"}, r"bon_sft\.select='all'.*weighted, best"),
        ({"references__samples_per_prompt": 1}, r"references\.samples_per_prompt=1.*at least 2"),
        ({"references__used": 3}, r"n=4 .*references\.used=3"),
        ({"pairs__path": "x", "n": 2.5}, r"n=2\.5 .*bonbon takes a whole number from 2"),
        ({"pairs__path": "x", "method": "bonbon_released", "n": 1.0}, r"n=1 "),
        ({"pairs__average": True, "method": "ipo"}, r"pairs\.average: .*give pairs\.beta"),
        ({"method": "bonbon_calibrated", "pairs__path": "x"}, r"pairs\.path: bonbon_calibrated"),
        ({"method": "bond", "bond__backward": 2.0}, r"bond\.backward=2"),
        ({"method": "j_bond", "bond__anchor_rate": 0.0}, r"bond\.anchor_rate=0"),
        ({"method": "j_bond", "bond__anchor_kl": -1.0}, r"bond\.anchor_kl=-1"),
        ({"method": "bond", "train__batch_size": 1, "train__samples_per_prompt": 1}, "at least 2"),
    ],
)
def test_constants_are_refused_by_name(changes, message):
    config = defaults()
    with config.unlocked():
        config.method, config.n = "bonbon", 4.0
    refuse(config)
    with pytest.raises(InputError, match=message):
        refuse(config, **changes)
