"""The exact lab: laws by enumeration against counting, optima by hand, and the lab in small."""

import csv
import itertools
import math
import re
import shlex

import numpy as np
import pytest
import scipy.optimize

from configs import exact as exact_config
from tests.tiny_config import ROOT, succeed, write_times
from vbon_jax.exact import cdf_study, enumeration, gradients, grid, optima, sampled_methods
from vbon_jax.exact.keys import LAB_KEYS
from vbon_jax.functional import bon
from vbon_jax.models.log_probs import response_log_probs
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


@pytest.fixture(scope="session")
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
    first_k = space.contexts_sl[space.context_k][:, 0]
    words = space.lengths_k > 1
    np.testing.assert_array_equal(first_k[words], space.tokens_kl[words, 0])


def test_one_pass_over_contexts_gives_the_log_probability_of_each_response(lab):
    setting, _ = lab
    space = setting.space
    sequences = enumeration.sequences(setting.prompts_pt, space.tokens_kl, space.lengths_k)
    log_probs_sg, mask, _ = response_log_probs(
        setting.model, setting.params, sequences, new_tokens=2, temperature=1.0
    )
    np.testing.assert_array_equal(mask.sum(axis=1), np.tile(space.lengths_k, 2))
    log_pk = gradients.enumerate_policy(setting, setting.params)
    np.testing.assert_allclose(log_probs_sg.sum(axis=1), log_pk.ravel(), atol=2e-6)
    np.testing.assert_allclose(np.exp(log_pk).sum(axis=1), 1.0, rtol=1e-12)


def test_a_law_by_hand():
    law = toy()
    np.testing.assert_allclose(law.below_pk, [[0.4, 0.0, 0.7, 0.4]])
    np.testing.assert_allclose(law.at_or_below_pk, [[0.7, 0.4, 1.0, 0.7]])
    np.testing.assert_allclose(law.middle_pk, [[0.55, 0.2, 0.85, 0.55]])
    # Best-of-2 by hand: 1 - 0.7^2 for the top, 0.7^2 - 0.4^2 shared 1 : 2 by the two that tie
    best = np.exp(enumeration.best_of_n(law, 2))
    np.testing.assert_allclose(best, [[0.11, 0.16, 0.51, 0.22]], rtol=1e-12)
    measures = enumeration.measures(np.log(best), law, 2)
    assert measures["kl_to_bon"] == pytest.approx(0.0, abs=1e-15)
    win_rate = 0.11 * 0.55 + 0.16 * 0.2 + 0.51 * 0.85 + 0.22 * 0.55
    assert measures["win_rate"] == pytest.approx(win_rate)
    assert measures["entropy"] == pytest.approx(-(best * np.log(best)).sum())


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
    best = np.exp(optima.gibbs(law, law.rewards_pk, math.log(3.0)))
    np.testing.assert_allclose(best, [[0.25, 0.75]])


def test_ipo_of_two_responses_hits_its_target():
    law = toy((0.5, 0.5), (0.0, 1.0))
    # at n = 2 the one pair is to have log-ratios that differ by (n-1) H_{n-1} = 1
    log_p = optima.bonbon(law, 2, 0.0, bon.bonbon_target(2))[0]
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

    minimum = scipy.optimize.minimize(loss, np.zeros(3), tol=1e-12).x
    expected = enumeration.normalised(np.append(minimum, 0.0)[None])
    np.testing.assert_allclose(optima.bonbon(law, 3, alpha, target), expected, atol=1e-5)


# ---------------------------------------------------------------------------- the lab


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 16])
@pytest.mark.parametrize("ties", [False, True])
def test_exact_gradients_of_vbon_reach_best_of_n(lab, tmp_path, n, ties):
    setting, laws = lab
    config = small(lab__steps_per_doubling=120, lab__steps_at_n=250)
    cell = {"method": "vbon", "n": n, "gradient": grid.EXACT, "ties": ties}
    place = grid.artifact(config, tmp_path, cell)
    row = grid.run_cell(config, setting, laws[ties], cell, place)
    assert row["kl_to_bon"] < 1e-3
    assert row["theory"]["kl_theory_to_bon"] == 0.0
    assert row["kl_to_ref"] > 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", [name for name, row in gradients.METHODS.items() if row.optimum and name != "vbon"]
)
def test_every_method_reaches_its_own_optimum(lab, tmp_path, method):
    setting, laws = lab
    config = small(lab__steps=300, lab__steps_per_n=0, lab__steps_at_n=250)
    cell = {"method": method, "n": 2, "gradient": grid.EXACT, "ties": True}
    place = grid.artifact(config, tmp_path, cell)
    theory = grid.run_cell(config, setting, laws[True], cell, place)["theory"]
    assert theory["kl_theory_to_code"] < 1e-3
    assert theory["left"] < 1e-2


def test_the_hand_made_task_has_the_rewards_of_the_law(lab):
    setting, law = lab[0], lab[1][False]
    task = sampled_methods.make_task(sampled_methods.run_config(small(), "vbon", 2), setting, law)
    space = setting.space
    for p in range(2):
        for tokens, size, reward in zip(
            space.tokens_kl, space.lengths_k, law.rewards_pk[p], strict=True
        ):
            assert task.score([p], [tokens[:size].tolist()]) == np.float32(reward)
    rewards = task.cache.rewards_bn
    assert rewards.shape == (2, 256)
    for p in range(2):
        mean, rewards_k = (law.reference_pk[p] * law.rewards_pk[p]).sum(), law.rewards_pk[p]
        assert set(rewards[p]) <= set(rewards_k.astype(np.float32))
        assert rewards[p].mean() == pytest.approx(mean, abs=4 * rewards_k.std() / 16)


def test_all_methods_of_the_package_are_in_the_lab():
    config = small()
    names = sampled_methods.every()
    assert {*names} - {"vbon_l1"} == {
        name for name, row in methods.METHODS.items() if not row.reads_text
    }
    assert {cell["method"] for cell in grid.cells(config) if cell["gradient"] == "sampled"} == {
        *names
    }
    grid.check_lab(config)
    assert sampled_methods.run_config(config, "vbon_l1", 2).bound == "l1"
    assert sampled_methods.run_config(config, "vbon", 2).bound == "exact"


@pytest.mark.slow
def test_a_sampled_run_comes_nearer_to_best_of_n_and_is_not_trained_twice(lab, tmp_path):
    setting, laws = lab
    config = small(train__steps=40)
    cell = {"method": "vbon", "n": 4, "gradient": grid.SAMPLED, "ties": False}
    place = grid.artifact(config, tmp_path, cell)
    after = grid.run_cell(config, setting, laws[False], cell, place)
    before = enumeration.measures(laws[False].log_reference_pk, laws[False], 4)
    assert after["kl_to_bon"] < 0.7 * before["kl_to_bon"]
    log = place.folder / "run" / "metrics.jsonl"
    written = log.stat().st_mtime_ns
    assert grid.run_cell(config, setting, laws[False], cell, place) == after  # from its checkpoint
    assert log.stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_values": (2, 2.5)}, "n_values: 2.5"),
        ({"lab.methods": ("vbon", "vbn")}, "lab.methods: 'vbn'"),
        ({"lab.sampled_methods": ("sft",)}, "lab.sampled_methods: 'sft'"),
        ({"sampling.max_new_tokens": 5}, "lab.length=2"),
        ({"references.samples_per_prompt": 8, "n_values": (16,)}, "n=16"),
        *(
            ({key.name: type(key.default)(end - 1)}, f"{key.name}={type(key.default)(end - 1)}")
            for key in LAB_KEYS
            if (end := key.above if key.least is None else key.least) is not None
            and not isinstance(key.default, tuple)
        ),
        ({"lab.cache_sizes": (5, 0)}, "lab.cache_sizes=0"),
        ({"lab.sampled_methods": ("dpo",), "bond.backward": 0.3}, "bond.backward=0.3: dpo does"),
    ],
)
def test_what_cannot_be_is_refused(changes, words):
    with pytest.raises(InputError, match=re.escape(words)):
        grid.check_lab(small(**changes))


@pytest.mark.slow
def test_estimates_of_log_cdf_improve_with_the_cache(lab):
    law = lab[1][False]
    rows = cdf_study.errors(law, [2, 16], [5, 50, 600], ties=False, seed=0, draws=6)
    by_key = {(row["estimator"], row["m"], row["n"]): row for row in rows}
    for estimator in ("harmonic", "add_one"):
        few, many = by_key[estimator, 5, 16], by_key[estimator, 600, 16]
        assert few["rmse"] > 2 * many["rmse"]
        assert few["ks"] > 4 * many["ks"]
        assert many["ks"] < 0.06  # 1.36 / sqrt(600) is the 95 % point of Kolmogorov's law
        assert few["kl_to_bon"] > 10 * many["kl_to_bon"]
    rows = cdf_study.errors(law, [2], [50], ties=False, seed=0, draws=400)
    bias = {row["estimator"]: abs(row["bias"]) for row in rows}
    assert bias["harmonic"] < 0.5 * bias["add_one"]


def test_every_key_of_the_lab_is_read():
    paths = (ROOT / "vbon_jax" / "exact").glob("*.py")
    code = "".join(path.read_text() for path in paths if path.name != "keys.py")
    for key in exact_config.get_config().lab:
        read = rf"lab\.{key}\b|lab\[\"{key}\"\]|\"{key}\""
        assert re.search(read, code), f"nothing reads lab.{key}"


LAB = SMALL | {"lab.workers": 2, "n_values": 2, "lab.methods": "vbon", "lab.steps_at_n": 10}
LAB |= {"lab.steps_per_doubling": 10, "lab.caches": 2, "lab.cache_sizes": "5,20"}
LAB |= {"train.steps": 2, "train.batch_size": 4}
LAB |= {"lab.sampled_methods": "vbon_regression", "references.samples_per_prompt": 8}
OVERRIDES = [f"--config.{key}={value}" for key, value in LAB.items()]


@pytest.mark.slow
def test_the_documented_command_in_small(tmp_path):
    """As printed, in another folder; then once more, and nothing is trained again."""
    page = (ROOT / "docs" / "exact.md").read_text()
    command = re.search(r"^python -m experiments\.exact.*$", page, re.MULTILINE)[0]
    name, *arguments = shlex.split(command)[2:]
    assert (name, arguments) == ("experiments.exact", [])
    done = succeed("exact", "--workdir", tmp_path, *OVERRIDES)
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    columns = "method,n,gradient,ties,kl_to_bon,kl_from_bon,kl_to_ref,win_rate,entropy"
    assert list(rows[0]) == columns.split(",")
    trained = [(row["method"], row["gradient"], row["ties"]) for row in rows[4:]]
    kinds = (("vbon", "exact"), ("vbon_regression", "sampled"))
    assert trained == [(*kind, ties) for kind in kinds for ties in ("no", "yes")]
    best = [row for row in rows if row["method"] == "best_of_n"]
    assert [float(row["kl_to_bon"]) for row in best] == [0.0, 0.0]
    assert "KL(policy || Best-of-N)" in done.stdout
    for file in ("optima.csv", "cdf.csv", "exact.svg", "cdf.svg"):
        assert (tmp_path / file).stat().st_size > 100
    stamps = write_times(tmp_path, "cells/**/*.json")
    assert succeed("exact", "--workdir", tmp_path, *OVERRIDES).stdout == done.stdout
    assert write_times(tmp_path, "cells/**/*.json") == stamps
    config = small(n_values=(2,), lab__seed=1)
    for method, gradient in kinds:
        cell = {"method": method, "n": 2, "gradient": gradient, "ties": False}
        with pytest.raises(InputError, match=r"lab\.seed was 0 and is 1"):
            grid.artifact(config, tmp_path, cell).is_left()
