"""`METHODS`, the one dictionary from a method's name to its functions and what it needs.

To add a method is to write an objective, or a transform of the reward, and a row: here, or in a
file of one's own that a configuration names as "package.module:name" (docs/adding_a_method.md).
"""

import importlib
import math

from vbon_jax.config import get
from vbon_jax.training.methods import (
    bonbon,
    bond,
    distillation,
    kl_rl,
    preferences,
    regression,
    sft,
    vbon,
)
from vbon_jax.training.task import Method, Task
from vbon_jax.types import InputError

__all__ = ["METHODS", "Method", "Task", "check", "method"]

METHODS: dict[str, Method] = {
    # Samples of the policy, ranked among the cached rewards, or scored alone.
    "vbon": Method(vbon.batch, vbon.objective, vbon.CONSTANTS, samples=True, cache="rewards",
                   check=vbon.check),
    "kl_rl": Method(kl_rl.batch, vbon.objective, vbon.CONSTANTS, samples=True, check=vbon.check),
    # Samples of the policy, and the best of N of the cache or of fresh draws.
    "bond": Method(bond.batch, bond.objective, bond.CONSTANTS, samples=True, cache="responses",
                   whole_n_from=1, check=bond.check),
    "j_bond": Method(bond.anchored_batch, bond.objective, bond.CONSTANTS, samples=True,
                     whole_n_from=2, anchor=True, check=bond.check),
    "raft": Method(distillation.raft_batch, distillation.objective, distillation.CONSTANTS,
                   samples=True, whole_n_from=1, rows_per_prompt=1),
    "online_bonbon": Method(bonbon.online_batch, bonbon.objective, bonbon.CONSTANTS, samples=True,
                            whole_n_from=2, rows_per_prompt=1),
    # Cached responses, any of them or the best of N.
    "vbon_regression": Method(regression.vbon_batch, regression.vbon_objective,
                              regression.VBON_CONSTANTS, cache="responses"),
    "qrpo": Method(regression.qrpo_batch, regression.qrpo_objective, regression.QRPO_CONSTANTS,
                   cache="responses", check=regression.check_qrpo),
    "bon_sft": Method(distillation.batch, distillation.objective, distillation.CONSTANTS,
                      cache="responses", whole_n_from=1),
    "bon_sft_kl": Method(distillation.kl_batch, distillation.kl_objective,
                         distillation.KL_CONSTANTS, cache="responses", whole_n_from=1),
    # Best and worst of N cached responses; or, with pairs=True, preferences that are given.
    "bonbon": Method(bonbon.batch, bonbon.objective, bonbon.CONSTANTS, cache="responses",
                     whole_n_from=2, pairs=True),
    "bonbon_released": Method(bonbon.batch, bonbon.released_objective, bonbon.CONSTANTS,
                              cache="responses", whole_n_from=2, pairs=True),
    "bonbon_calibrated": Method(bonbon.calibrated_batch, bonbon.calibrated_objective,
                                bonbon.CONSTANTS, cache="responses", whole_n_from=2,
                                check=bonbon.check_calibrated),
    "dpo": Method(bonbon.batch, preferences.dpo_objective, preferences.DPO_CONSTANTS,
                  cache="responses", whole_n_from=2, pairs=True),
    "ipo": Method(bonbon.batch, preferences.ipo_objective, preferences.IPO_CONSTANTS,
                  cache="responses", whole_n_from=2, pairs=True, check=preferences.check_ipo),
    # Rows of text.
    "sft": Method(sft.batch, sft.sft_objective),
    "reward_model": Method(sft.batch, sft.reward_model_objective, ("reward_model.centring",),
                           network="classifier"),
}  # fmt: skip


def method(name: str) -> Method:
    """The row of METHODS, or of the METHODS of the module in "package.module:name".

    Raises InputError, in one line, where there is no such method or module.
    """
    module_name, _, key = name.rpartition(":")
    if not module_name:
        if name not in METHODS:
            raise InputError(
                f"method={name!r} is not known; choose one of {', '.join(METHODS)}, or name your "
                'own by "package.module:name"'
            )
        return METHODS[name]
    try:
        rows = importlib.import_module(module_name).METHODS
    except (ImportError, AttributeError) as error:
        raise InputError(f"method={name!r}: {error}; give a module with METHODS") from error
    if key not in rows:
        raise InputError(f"method={name!r}: METHODS of {module_name} has {', '.join(rows)}")
    return rows[key]


def check(config) -> None:
    """Refuse an N, a number of references, or other keys that the method has no meaning for.

    What one key alone can get wrong is `vbon_jax.config.check`'s to find.
    """
    row, n, most, end = method(config.method), float(config.n), math.inf, ""
    if row.cache == "responses" and row.needs_cache(config):
        source = "references.used" if config.references.used else "references.samples_per_prompt"
        most = get(config, source)
        end = f" to {source}={most}"
        if most < 2:
            raise InputError(
                f"{source}={most}: {config.method} compares cached responses; give at least 2"
            )
    least = row.whole_n_from
    if least is not None and not (n == int(n) and least <= n <= most):
        raise InputError(
            f"n={n:g} (n_values): {config.method} takes a whole number from {least}{end}"
        )
    if row.check is not None:
        row.check(config)
