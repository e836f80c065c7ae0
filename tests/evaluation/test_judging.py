"""Agreement of rewards, Best-of-N under a judge, verdicts of pairs: the numbers by hand."""

import itertools

import numpy as np
import pytest
from scipy import stats

from vbon_jax.evaluation import agreement, best_of_n, bon_curve, pairwise
from vbon_jax.evaluation.bootstrap import Bootstrap

BOOTSTRAP = Bootstrap(0, 200)


# ------------------------------------------------------------------------------- agreement


def test_agreement_hand_worked():
    # prompt 0: pairs 01 02 12; the first reward orders all, the second ties 12: two agree.
    # prompt 1: the first orders 01 and 02 (0 below 1 = 2), the second says the contrary twice.
    first_bk = np.float32([[1, 2, 3], [0, 1, 1]])
    second_bk = np.float32([[5, 9, 9], [1, 0, 0]])
    counts = agreement.pair_counts(first_bk, second_bk)
    np.testing.assert_array_equal(counts, [[2, 0], [0, 2], [3, 2], [2, 2]])
    agreed = agreement.agreement(first_bk, second_bk, BOOTSTRAP)
    assert agreed["agreement"].value == 2 / 4
    assert agreed["ordered"].value == 4 / 6
    assert agreed["tau_b"].value == pytest.approx((2 / 6**0.5 - 1) / 2)
    assert agreed["agreement"].lo == 0.0
    assert agreed["agreement"].hi == 1.0


def test_tau_b_is_scipys_prompt_by_prompt():
    random = np.random.default_rng(0)
    first_bk = np.round(random.normal(size=(30, 6)), 0)
    second_bk = np.round(first_bk + random.normal(size=(30, 6)), 0)
    first_bk[4] = 1.0  # a prompt without any order has no tau-b and is left out
    by_hand = [
        stats.kendalltau(*rewards).statistic
        for at, rewards in enumerate(zip(first_bk, second_bk, strict=True))
        if at != 4
    ]
    agreed = agreement.agreement(first_bk, second_bk, BOOTSTRAP)
    assert agreed["tau_b"].value == pytest.approx(np.mean(by_hand), abs=1e-12)
    assert agreed["tau_b"].lo < agreed["tau_b"].value < agreed["tau_b"].hi


def test_only_the_order_within_a_prompt_matters():
    random = np.random.default_rng(1)
    rewards_bk = random.normal(size=(8, 4))
    other_bk = np.exp(rewards_bk) + 100 * random.normal(size=(8, 1))
    same = agreement.agreement(rewards_bk, other_bk, BOOTSTRAP)
    np.testing.assert_array_equal(same["agreement"], [1, 0, 1, 1])
    np.testing.assert_allclose(same["tau_b"], [1, 0, 1, 1], atol=1e-12)
    contrary = agreement.agreement(rewards_bk, -other_bk, BOOTSTRAP)
    assert contrary["agreement"].value == 0
    assert contrary["tau_b"].value == pytest.approx(-1)


def test_rewards_that_order_nothing_agree_in_nothing():
    agreed = agreement.agreement(np.ones((3, 4)), np.ones((3, 4)), BOOTSTRAP)
    assert np.isnan(agreed["agreement"]).all()
    assert np.isnan(agreed["tau_b"]).all()
    assert agreed["ordered"].value == 0
    assert agreement.agreement(np.ones((3, 1)), np.ones((3, 1)), BOOTSTRAP) == {}
    with pytest.raises(ValueError, match="shapes"):
        agreement.agreement(np.ones((3, 2)), np.ones((2, 2)), BOOTSTRAP)


# ------------------------------------------------------------------------------- Best-of-N


def enumerated(rewards_m, judge_m, n) -> tuple[float, float]:
    """The judge's reward and win rate of the best of N over all draws, by all other opponents.

    A tied best is each of them equally often.
    """
    rewards, wins = [], []
    for drawn in itertools.combinations(range(len(rewards_m)), n):
        best = [i for i in drawn if rewards_m[i] == max(rewards_m[list(drawn)])]
        rewards.append(judge_m[best].mean())
        for opponent in set(range(len(rewards_m))) - set(drawn):
            wins.append(np.mean((np.sign(judge_m[best] - judge_m[opponent]) + 1) / 2))
    return np.mean(rewards), np.mean(wins) if wins else np.nan


WITH_TIES = np.random.default_rng(1).integers(0, 4, size=(4, 6)).astype("f4")
WITH_TIES[3] = 2.0
DISTINCT = np.random.default_rng(0).normal(size=(3, 7)).astype("f4")
DISTINCT[1, 2] = DISTINCT[1, 5]


@pytest.mark.parametrize(
    ("rewards_bm", "judge_bm"),
    [
        (DISTINCT, DISTINCT),
        (WITH_TIES, WITH_TIES),
        (np.array([[0.0, 2, 2, 1, 0]]), np.array([[3.0, 1, 4, 4, 0]])),
    ],
)
def test_best_of_n_by_enumeration_of_all_draws(rewards_bm, judge_bm):
    m = rewards_bm.shape[1]
    for n in range(1, m + 1):
        both = zip(rewards_bm, judge_bm.astype("f8"), strict=True)
        rewards, wins = zip(*(enumerated(*of_prompt, n) for of_prompt in both), strict=True)
        computed = best_of_n.expected_best(rewards_bm, judge_bm, n)
        np.testing.assert_allclose(computed, rewards, rtol=1e-12)
        if n < m:
            computed = best_of_n.best_of_n_win_rate(rewards_bm, judge_bm, n)
            np.testing.assert_allclose(computed, wins, rtol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 8, 127])
def test_win_rate_of_distinct_rewards(n):
    distinct = np.random.default_rng(2).permutation(128).reshape(1, 128).astype("f4")
    computed = best_of_n.best_of_n_win_rate(distinct, distinct, n)
    np.testing.assert_allclose(computed, n / (n + 1), rtol=1e-12)


@pytest.mark.parametrize("ties", [False, True])
def test_the_empirical_law_seen_by_a_judge(ties):
    random = np.random.default_rng(2)
    rewards_bm, judge_bm = random.normal(size=(2, 5, 12)).astype(np.float32)
    if ties:
        rewards_bm, judge_bm = np.round(rewards_bm), np.round(judge_bm)
    n_g = [1.0, 2.5, 8.0]
    same = bon_curve.curve(rewards_bm, n_g, rewards_bm)
    for values, expected in zip(same, bon_curve.curve(rewards_bm, n_g), strict=True):
        np.testing.assert_array_equal(values, expected)
    seen = bon_curve.curve(rewards_bm, n_g, judge_bm)
    for b, (rewards_m, judge_m) in enumerate(zip(rewards_bm, judge_bm.astype("f8"), strict=True)):
        up_to_m = (rewards_m[None] <= rewards_m[:, None]).mean(axis=1)
        below_m = (rewards_m[None] < rewards_m[:, None]).mean(axis=1)
        win_m = (np.sign(judge_m[:, None] - judge_m[None]) + 1).mean(axis=1) / 2
        for g, n in enumerate(n_g):
            mass_m = (up_to_m**n - below_m**n) / (up_to_m - below_m) / 12
            assert seen.reward_bg[b, g] == pytest.approx(mass_m @ judge_m, abs=1e-5)
            assert seen.win_rate_bg[b, g] == pytest.approx(mass_m @ win_m, abs=1e-5)


def test_a_judge_of_the_contrary_opinion_loses():
    rewards_bm = np.random.default_rng(3).normal(size=(4, 9))
    computed = best_of_n.best_of_n_win_rate(rewards_bm, -rewards_bm, 4)
    np.testing.assert_allclose(computed, 1 / 5, atol=1e-12)


@pytest.mark.parametrize("n", [0, -1, 0.99, 1.5, np.nan, np.inf, 10])
def test_n_that_cannot_be_drawn_is_refused(n):
    rewards_bm = np.zeros((2, 9))
    with pytest.raises(ValueError, match=r"n must be an integer in 1\.\.9"):
        best_of_n.expected_best(rewards_bm, rewards_bm, n)
    with pytest.raises(ValueError, match=r"n must be an integer in 1\.\.8"):
        best_of_n.best_of_n_win_rate(rewards_bm, rewards_bm, n)


def test_rewards_of_other_responses_are_refused():
    for function in (best_of_n.expected_best, best_of_n.best_of_n_win_rate):
        for shapes in (((2, 3), (2, 4)), ((3,), (3,))):
            with pytest.raises(ValueError, match="shapes"):
                function(*map(np.zeros, shapes), 1)


# ------------------------------------------------------------------------------- verdicts of pairs


def test_verdicts_hand_worked():
    # wins in both orders, loses in both, a tie in both, the first place twice, a tie and a win
    first_b, second_b = [1, -1, 0, 1, 0], [1, -1, 0, -1, 1]
    np.testing.assert_array_equal(pairwise.scores(first_b, second_b), [1, 0, 0.5, 0.5, 0.5])
    summary = pairwise.summarise(first_b, second_b, [2.0, 1.0, 0.0, 1.0, -1.0], BOOTSTRAP)
    assert summary["win_rate"].value == 0.5
    assert summary["ties"].value == 1 / 5
    assert summary["disagreements"].value == 2 / 5
    # of ten verdicts 2 + 2 are for the first place, 1 + 2 for the second, 3 are ties
    assert summary["position_bias"].value == pytest.approx((4 - 3) / 10)
    assert summary["reward_agreement"].value == 1 / 2  # the judge decides two pairs, one as it does


def test_a_judge_that_takes_the_first_place_says_nothing_else():
    summary = pairwise.summarise([1] * 6, [-1] * 6, [1.0] * 6, BOOTSTRAP)
    np.testing.assert_array_equal(summary["win_rate"], [0.5, 0, 0.5, 0.5])
    np.testing.assert_array_equal(summary["position_bias"], [1, 0, 1, 1])
    assert summary["disagreements"].value == 1
    assert np.isnan(summary["reward_agreement"]).all()


def test_verdicts_without_meaning_are_refused():
    with pytest.raises(ValueError, match="a verdict is"):
        pairwise.scores([0.5], [1])
    with pytest.raises(ValueError, match="shapes"):
        pairwise.scores([1], [1, 1])
