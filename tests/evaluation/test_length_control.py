"""The length-controlled win rate: what is left when responses are as long as the reference's."""

import numpy as np
import pytest
from scipy import optimize

from vbon_jax.evaluation import length_control, measures
from vbon_jax.evaluation.bootstrap import Bootstrap
from vbon_jax.evaluation.length_control import length_controlled_win_rate

BOOTSTRAP = Bootstrap(0, 300)


def controlled(*arguments):
    return length_controlled_win_rate(*arguments, BOOTSTRAP)


def sample(seed=0, prompts=40, length_worth=0.0, worth=0.0, longer=0):
    """Rewards and lengths of a policy (K = 3) and its reference (M = 5)."""
    random = np.random.default_rng(seed)
    lengths_bk = random.integers(4, 20, (prompts, 3)) + longer
    reference_lengths_bm = random.integers(4, 20, (prompts, 5))
    rewards_bk = random.normal(size=(prompts, 3)) + worth + length_worth * lengths_bk
    reference_bm = random.normal(size=(prompts, 5)) + length_worth * reference_lengths_bm
    return rewards_bk, lengths_bk, reference_bm, reference_lengths_bm


def test_lengths_that_say_nothing_leave_the_win_rate_as_it_is():
    # each difference of length, -1 and +1, is won in three of four pairs: the slope is 0
    rewards_bk = np.float32([[1.0], [1.0]])
    reference_bm = np.float32([[0, 0, 0, 2, 0, 0, 0, 2]] * 2)
    reference_lengths_bm = np.array([[4, 4, 4, 4, 6, 6, 6, 6]] * 2)
    lengths_bk = np.array([[5], [5]])
    win_rate = controlled(rewards_bk, lengths_bk, reference_bm, reference_lengths_bm)
    np.testing.assert_allclose(win_rate, [0.75, 0.0, 0.75, 0.75], atol=1e-7)


@pytest.mark.parametrize("length", [7, 9])
def test_lengths_that_are_all_the_same(length):
    arguments = list(sample())
    arguments[1] = np.full_like(arguments[1], length)
    arguments[3] = np.full_like(arguments[3], 7)
    win_rate = controlled(*arguments)
    if length == 7:  # no difference anywhere: nothing to take away
        win_bk = measures.win_rates(arguments[0], arguments[2])
        plain = BOOTSTRAP.estimate(win_bk)
        np.testing.assert_allclose(win_rate, plain, rtol=0.05)
        assert win_rate.value == pytest.approx(plain.value, abs=1e-6)
    else:  # always two tokens longer: what that is worth cannot be known
        assert np.isnan(win_rate).all()


def test_equal_length_outside_of_what_was_seen_is_not_guessed():
    rewards_bk, lengths_bk, reference_bm, reference_lengths_bm = sample()
    for lengths in (lengths_bk + 100, lengths_bk - 3):
        win_rate = controlled(rewards_bk, lengths, reference_bm, reference_lengths_bm)
        assert np.isnan(win_rate.value) == (lengths.min() > 100)


def test_wins_that_come_from_length_alone_are_one_half():
    # the longer response wins, whoever gave it; pairs at -2, 0 and +2 balance
    lengths_bk = np.array([[4, 6, 8]] * 3)
    win_rate = controlled(lengths_bk * 1.0, lengths_bk, np.full((3, 1), 6.0), np.full((3, 1), 6))
    np.testing.assert_allclose(win_rate, [0.5, 0.0, 0.5, 0.5], atol=1e-6)
    # and noisily, with responses 5 tokens longer than the reference's: much of it is taken away
    arguments = sample(prompts=400, length_worth=0.2, longer=5)
    plain = measures.win_rates(arguments[0], arguments[2]).mean()
    win_rate = controlled(*arguments)
    assert plain > 0.65
    assert win_rate.lo < 0.5 < win_rate.hi
    assert win_rate.hi - win_rate.lo < 0.08


def test_what_is_not_length_stays():
    arguments = sample(prompts=400, worth=1.0, longer=5)
    plain = measures.win_rates(arguments[0], arguments[2]).mean()
    win_rate = controlled(*arguments)
    assert plain > 0.7
    assert win_rate.lo < plain < win_rate.hi


def test_the_regression_is_the_one_of_all_pairs():
    """By another optimiser, on the pairs one by one, from the formula in the module's docstring."""
    arguments = sample(length_worth=0.1, worth=0.3, longer=2)
    rewards_bk, lengths_bk, reference_bm, reference_lengths_bm = arguments
    difference = (lengths_bk[:, :, None] - reference_lengths_bm[:, None]).ravel()
    win = (np.sign(rewards_bk[:, :, None] - reference_bm[:, None]).ravel() + 1) / 2
    x = np.tanh(difference / difference.std())

    def loss(theta):
        z = theta[0] + theta[1] * x
        return (np.logaddexp(0, z) - win * z).mean() + length_control.RIDGE[1] / 2 * theta[1] ** 2

    best = optimize.minimize(loss, [0.0, 0.0], tol=1e-12).x
    win_rate = controlled(*arguments)
    assert win_rate.value == pytest.approx(1 / (1 + np.exp(-best[0])), abs=1e-5)
    assert win_rate == controlled(*arguments)


@pytest.mark.parametrize("best", [-9.0, 9.0])
def test_a_policy_that_always_or_never_wins(best):
    _, lengths_bk, reference_bm, reference_lengths_bm = sample()
    rewards_bk = np.full(lengths_bk.shape, best)
    win_rate = controlled(rewards_bk, lengths_bk, reference_bm, reference_lengths_bm)
    np.testing.assert_allclose(win_rate, [best > 0, 0, best > 0, best > 0], atol=1e-6)


def test_the_interval_is_over_prompts():
    wide, narrow = (controlled(*sample(prompts=prompts, worth=0.3)) for prompts in (30, 480))
    assert wide.lo < wide.value < wide.hi
    assert (wide.hi - wide.lo) / (narrow.hi - narrow.lo) == pytest.approx(4, rel=0.4)


def test_what_cannot_be_compared_is_refused():
    rewards_bk, lengths_bk, reference_bm, reference_lengths_bm = sample()
    with pytest.raises(ValueError, match="not of the same prompts"):
        controlled(rewards_bk[:2], lengths_bk[:2], reference_bm, reference_lengths_bm)
    with pytest.raises(ValueError, match="float64"):
        controlled(rewards_bk, lengths_bk * 1.0, reference_bm, reference_lengths_bm)
