"""The exact lab: laws by enumeration against counting, optima by hand, and the lab in small."""

import csv
import itertools
import math
import re
import shlex

import jax
import numpy as np
import pytest
import scipy.optimize

from configs import exact as exact_config
from tests.tiny_config import ROOT, program
from vbon_jax import files
from vbon_jax.exact import cdf_errors, enumeration, gradients, grid, optima, sampled_methods
from vbon_jax.functional import bon
from vbon_jax.models import log_probs
from vbon_jax.training import methods
from vbon_jax.types import InputError

SMALL = {"lab.vocab_size": 4, "lab.length": 2, "lab.prompts": 2, "lab.width": 16}
SMALL |= {"lab.num_layers": 1, "sampling.max_new_tokens": 2, "lab.workers": 1}


def small(**changes):
    config = exact_config.get_config()
    changes = SMALL | {key.replace("__", "."): value for key, value in changes.items()}
    with config.ignore_type():
        config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope="module")
def lab():
    """Setting and laws of the small lab: 13 responses to each of 2 prompts."""
    config = small()
    setting = gradients.make_setting(config)
    return setting, grid.make_laws(config, setting)


def toy(p=(0.1, 0.4, 0.3, 0.2), rewards=(1.0, 0.0, 2.0, 1.0)) -> enumeration.Law:
    """Four responses to one prompt, two of them with the same reward."""
    return enumeration.law(np.log([p]), np.array([rewards]))


# ---------------------------------------------------------------------------- enumeration


def test_all_responses_are_written_down():
    space = enumeration.enumerate_responses(3, 2)
    rows = [tuple(t[:n]) for t, n in zip(space.tokens_kl.tolist(), space.lengths_k, strict=True)]
    assert rows == [(0,), (1, 0), (2, 0), (1, 1), (1, 2), (2, 1), (2, 2)]
    assert space.size == 7
    begun = space.contexts_sl[space.context_k][:, 0]
    words = space.lengths_k > 1
    np.testing.assert_array_equal(begun[words], space.tokens_kl[words, 0])


def test_one_run_over_contexts_says_what_the_package_says_of_each_response(lab):
    setting, _ = lab
    space = setting.space
    sequences = enumeration.behind(setting.prompts_pt, space.tokens_kl, space.lengths_k)
    said, mask, _ = log_probs.response_log_probs(
        setting.model, setting.params, sequences, new_tokens=2, temperature=1.0
    )
    np.testing.assert_array_equal(mask.sum(axis=1), np.tile(space.lengths_k, 2))
    log_pk = gradients.enumerate_policy(setting, setting.params)
    np.testing.assert_allclose(said.sum(axis=1), log_pk.ravel(), atol=2e-6)
    np.testing.assert_allclose(np.exp(log_pk).sum(axis=1), 1.0, rtol=1e-12)


def test_a_law_by_hand():
    law = toy()
    np.testing.assert_allclose(law.below_pk, [[0.4, 0.0, 0.7, 0.4]])
    np.testing.assert_allclose(law.at_or_below_pk, [[0.7, 0.4, 1.0, 0.7]])
    np.testing.assert_allclose(law.middle_pk, [[0.55, 0.2, 0.85, 0.55]])
    # Best-of-2 by hand: 1 - 0.7^2 for the top, 0.7^2 - 0.4^2 shared 1 : 2 by the two that tie
    best = np.exp(enumeration.best_of_n(law, 2))
    np.testing.assert_allclose(best, [[0.11, 0.16, 0.51, 0.22]], rtol=1e-12)
    found = enumeration.measures(np.log(best), law, 2)
    assert found["kl_to_bon"] == pytest.approx(0.0, abs=1e-15)
    assert found["win_rate"] == pytest.approx(0.11 * 0.55 + 0.16 * 0.2 + 0.51 * 0.85 + 0.22 * 0.55)
    assert found["entropy"] == pytest.approx(-(best * np.log(best)).sum())


@pytest.mark.parametrize("n", [2, 3])
def test_laws_against_counting_every_draw(n):
    law = toy()
    p, rewards = law.reference_pk[0], law.rewards_pk[0]
    best, pairs = np.zeros(4), np.zeros((4, 4))
    for drawn in itertools.product(range(4), repeat=n):
        chance, of = np.prod(p[list(drawn)]), rewards[list(drawn)]
        best[drawn[of.argmax()]] += chance  # the first of those that tie: any, by exchange
        if of.max() > of.min():
            pairs[drawn[of.argmax()], drawn[of.argmin()]] += chance
    np.testing.assert_allclose(np.exp(enumeration.best_of_n(law, n))[0], best, rtol=1e-12)
    np.testing.assert_allclose(enumeration.pair_chances(law, n)[0], pairs, atol=1e-15)
    given = optima.best_of_pairs(law, n)[0]
    np.testing.assert_allclose(np.exp(given), pairs.sum(axis=1) / pairs.sum(), rtol=1e-10)


# ---------------------------------------------------------------------------- optima


def test_the_gibbs_law_by_hand():
    law = toy((0.5, 0.5), (0.0, 1.0))
    found = np.exp(optima.gibbs(law, law.rewards_pk, math.log(3.0)))
    np.testing.assert_allclose(found, [[0.25, 0.75]])


def test_ipo_of_two_responses_hits_its_target():
    law = toy((0.5, 0.5), (0.0, 1.0))
    # at n = 2 the one pair is to have log-ratios that differ by (n-1) H_{n-1} = 1
    log_p = optima.ipo(law, 2)[0]
    assert log_p[1] - log_p[0] == pytest.approx(1.0)
    assert np.exp(log_p).sum() == pytest.approx(1.0)


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_the_optimum_of_pairs_against_a_general_minimiser(alpha):
    law = toy()
    chances, target = enumeration.pair_chances(law, 3)[0], bon.bonbon_target(3)

    def loss(free: np.ndarray) -> float:
        log_p = enumeration.normalised(np.append(free, 0.0)[None])[0]
        d = log_p - law.log_reference_pk[0]
        square = (d[:, None] - d[None, :] - target) ** 2
        return (chances * ((1 - alpha) * square - alpha * log_p[:, None])).sum()

    found = scipy.optimize.minimize(loss, np.zeros(3), tol=1e-12).x
    expected = enumeration.normalised(np.append(found, 0.0)[None])
    np.testing.assert_allclose(optima.bonbon(law, 3, alpha, target), expected, atol=1e-5)
    if alpha == 0.0:
        np.testing.assert_allclose(optima.ipo(law, 3), expected, atol=1e-5)


@pytest.mark.parametrize("n", [2, 16])
def test_the_optimum_of_a_regression_is_a_law_and_a_minimum(n):
    law = toy()
    target = (n - 1) * np.log(law.middle_pk) + math.log(n)
    log_p = optima.regression(law, target)
    assert np.exp(log_p).sum() == pytest.approx(1.0, abs=1e-9)

    def loss(log_p: np.ndarray) -> float:
        return float((law.reference_pk * (log_p - law.log_reference_pk - target) ** 2).sum())

    generator = np.random.default_rng(0)
    for _ in range(20):
        near = enumeration.normalised(log_p + 1e-3 * generator.normal(size=4))
        assert loss(near) > loss(log_p)


# ---------------------------------------------------------------------------- the lab


@pytest.mark.parametrize("n", [2, 16])
@pytest.mark.parametrize("ties", [False, True])
def test_exact_gradients_of_vbon_reach_best_of_n(lab, n, ties):
    setting, laws = lab
    config = small(lab__steps_per_doubling=120, lab__steps_at_n=250)
    cell = {"method": "vbon", "n": n, "gradient": grid.EXACT, "ties": ties}
    row = grid.run_exact(config, setting, laws[ties], cell)
    assert row["kl_to_bon"] < 1e-3
    assert row["theory"]["kl_theory_to_bon"] == 0.0
    assert row["kl_to_ref"] > 0.1


@pytest.mark.parametrize("method", [name for name in gradients.METHODS if name != "vbon"])
def test_every_method_reaches_its_own_optimum(lab, method):
    setting, laws = lab
    config = small(lab__steps=300, lab__steps_per_n=0, lab__steps_at_n=250)
    cell = {"method": method, "n": 2, "gradient": grid.EXACT, "ties": True}
    theory = grid.run_exact(config, setting, laws[True], cell)["theory"]
    assert theory["kl_theory_to_code"] < 1e-3
    assert theory["left"] < 1e-2


def test_the_hand_made_task_says_what_the_law_says(lab):
    setting, laws = lab
    task = sampled_methods.make_task(small(), setting, laws[False])
    table = {}
    space = setting.space
    for p, prompt in enumerate(task.prompts.token_ids):
        for k in range(space.size):
            response = tuple(space.tokens_kl[k][: space.lengths_k[k]].tolist())
            table[prompt, response] = laws[False].rewards_pk[p, k]
            rewards = task.score([p], [list(response)])
            assert rewards == np.float32(table[prompt, response])
    rewards, shares = task.cache.rewards_bn, laws[False]
    assert rewards.shape == (2, 256)
    for p in range(2):
        mean, law = (shares.reference_pk[p] * shares.rewards_pk[p]).sum(), shares.rewards_pk[p]
        assert set(rewards[p]) <= set(law.astype(np.float32))
        assert rewards[p].mean() == pytest.approx(mean, abs=4 * law.std() / 16)


def test_all_methods_of_the_package_are_in_the_lab():
    config = small()
    names = sampled_methods.names(config)
    assert {*names} - {"vbon_l1"} == {
        name for name, row in methods.METHODS.items() if not row.reads_text
    }
    grid.check(config)
    assert sampled_methods.cell_config(config, "vbon_l1", 2).bound == "l1"
    assert sampled_methods.cell_config(config, "vbon", 2).bound == "exact"


def test_a_sampled_run_comes_nearer_to_best_of_n(lab):
    setting, laws = lab
    config = sampled_methods.cell_config(small(train__steps=40), "vbon", 4)
    *_, params = sampled_methods.run(
        sampled_methods.make_task(config, setting, laws[False]), setting.params
    )
    log_policy = gradients.enumerate_policy(setting, jax.device_get(params))
    before = enumeration.measures(laws[False].log_reference_pk, laws[False], 4)
    after = enumeration.measures(log_policy, laws[False], 4)
    assert after["kl_to_bon"] < 0.7 * before["kl_to_bon"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_values": (2, 2.5)}, "n_values: 2.5"),
        ({"lab.methods": ("vbon", "vbn")}, "lab.methods: 'vbn'"),
        ({"lab.sampled_methods": ("sft",)}, "lab.sampled_methods: 'sft'"),
        ({"sampling.max_new_tokens": 5}, "lab.length=2"),
        ({"references.samples_per_prompt": 8, "n_values": (16,)}, "n=16"),
    ],
)
def test_what_cannot_be_is_refused(changes, words):
    with pytest.raises(InputError, match=re.escape(words)):
        grid.check(small(**changes))


def test_estimates_of_log_cdf_improve_with_the_cache(lab):
    law = lab[1][False]
    rows = cdf_errors.errors(law, [2, 16], [5, 50, 600], ties=False, seed=0, draws=6)
    found = {(row["estimator"], row["m"], row["n"]): row for row in rows}
    for estimator in ("harmonic", "add_one"):
        few, many = found[estimator, 5, 16], found[estimator, 600, 16]
        assert few["rmse"] > 2 * many["rmse"]
        assert few["ks"] > 4 * many["ks"]
        assert many["ks"] < 0.06  # 1.36 / sqrt(600) is the 95 % point of Kolmogorov's law
        assert few["kl_to_bon"] > 10 * many["kl_to_bon"]
    assert abs(found["harmonic", 50, 2]["bias"]) < abs(found["add_one", 50, 2]["bias"])


def test_every_key_of_the_lab_is_read():
    code = "".join(path.read_text() for path in (ROOT / "experiments").glob("*.py"))
    for key in exact_config.get_config().lab:
        read = rf"lab\.{key}\b|lab\[\"{key}\"\]|\"{key}\""
        assert re.search(read, code), f"nothing reads lab.{key}"


LAB = SMALL | {"lab.workers": 2, "n_values": 2, "lab.methods": "vbon", "lab.steps_at_n": 10}
LAB |= {
    "lab.steps_per_doubling": 10,
    "lab.caches": 2,
    "lab.cache_sizes": "5,20",
    "train.steps": 2,
    "train.batch_size": 4,
}
LAB |= {"lab.sampled_methods": "vbon_regression", "references.samples_per_prompt": 8}
OVERRIDES = [f"--config.{key}={value}" for key, value in LAB.items()]


def test_the_documented_command_in_small(tmp_path):
    """As printed, in another folder; then once more, and nothing is trained again."""
    page = (ROOT / "docs" / "exact.md").read_text()
    command = re.search(r"^python -m experiments\.exact.*$", page, re.MULTILINE)[0]
    name, *arguments = shlex.split(command)[2:]
    assert (name, arguments) == ("experiments.exact", [])
    done = program("exact", "--workdir", tmp_path, *OVERRIDES)
    assert done.returncode == 0, done.stderr[-3000:]
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        *("method", "n", "gradient", "ties", "kl_to_bon", "kl_from_bon", "kl_to_ref"),
        *("win_rate", "entropy"),
    ]
    trained = [(row["method"], row["gradient"], row["ties"]) for row in rows[4:]]
    assert trained == [
        ("vbon", "exact", "no"),
        ("vbon", "exact", "yes"),
        ("vbon_regression", "sampled", "no"),
        ("vbon_regression", "sampled", "yes"),
    ]
    best = [row for row in rows if row["method"] == "best_of_n"]
    assert [float(row["kl_to_bon"]) for row in best] == [0.0, 0.0]
    assert "KL(policy || Best-of-N)" in done.stdout
    for file in ("optima.csv", "cdf.csv", "exact.svg", "cdf.svg"):
        assert (tmp_path / file).stat().st_size > 100
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").rglob("*.json")}
    again = program("exact", "--workdir", tmp_path, *OVERRIDES)
    assert again.stdout == done.stdout
    assert stamps == {
        path: path.stat().st_mtime_ns for path in (tmp_path / "cells").rglob("*.json")
    }
    config = small(n_values=(2,), lab__seed=1)
    cell = {"method": "vbon", "n": 2, "gradient": grid.EXACT, "ties": False}
    with pytest.raises(InputError, match=r"lab\.seed was 0 and is 1"):
        files.begin(grid.folder(tmp_path, cell), grid.inputs(config, cell))


def test_the_default_workdir_and_configuration():
    """What `python -m experiments.exact` stands for."""
    code = (ROOT / "experiments" / "exact.py").read_text()
    assert '"configs" / "exact.py"' in code
    assert files.flat(exact_config.get_config())["lab.vocab_size"] == 6
