"""Standard errors and bootstrap intervals over prompts."""

import numpy as np
import pytest

from vbon_jax.evaluation import bootstrap
from vbon_jax.evaluation.bootstrap import Bootstrap


def test_hand_worked_mean_and_standard_error():
    # prompt means 1, 2, 6: mean 3, deviations -2, -1, 3, variance 14 / 2, se sqrt(7 / 3)
    estimate = Bootstrap(0).estimate([[0.0, 2.0], [2.0, 2.0], [5.0, 7.0]])
    assert estimate.value == 3.0
    assert estimate.se == pytest.approx((7 / 3) ** 0.5)
    assert 1.0 <= estimate.lo < estimate.value < estimate.hi <= 6.0


def test_two_prompts_by_enumeration():
    # four equally likely resamples of (0, 1): means 0, 1/2, 1/2, 1
    means = Bootstrap(3, 20_000).means(np.array([[0.0], [1.0]]))[:, 0]
    shares = [(means == mean).mean() for mean in (0.0, 0.5, 1.0)]
    assert sum(shares) == 1.0
    np.testing.assert_allclose(shares, [0.25, 0.5, 0.25], atol=0.015)


def test_columns_of_a_resample_see_the_same_prompts():
    values_b = np.random.default_rng(0).normal(size=50)
    means = Bootstrap(1).means(np.stack([values_b, 1 - 2 * values_b], 1))
    np.testing.assert_allclose(means[:, 1], 1 - 2 * means[:, 0], atol=1e-12)
    # so a difference that is the same in every prompt has no uncertainty
    both = np.stack([values_b, values_b + 0.25], axis=1)
    gap = Bootstrap(1).estimate_of_means(both, lambda rc: rc[:, 1] - rc[:, 0])
    np.testing.assert_allclose(gap, [0.25, 0.0, 0.25, 0.25], atol=1e-12)


def test_interval_is_the_analytic_one_for_many_prompts():
    values_b = np.random.default_rng(1).normal(size=400)
    estimate = Bootstrap(0, 8000).estimate(values_b)
    assert estimate.hi - estimate.value == pytest.approx(1.96 * estimate.se, rel=0.05)
    assert estimate.value - estimate.lo == pytest.approx(1.96 * estimate.se, rel=0.05)
    spread = Bootstrap(0).estimate_of_means(values_b[:, None], lambda rc: rc[:, 0]).se
    assert spread == pytest.approx(estimate.se, rel=0.05)


def test_interval_covers_and_samples_of_a_prompt_are_one_cluster():
    random = np.random.default_rng(2)
    covered, naive = 0, 0
    for trial in range(200):
        values_bk = random.normal(size=(40, 1)) + 0.1 * random.normal(size=(40, 8))
        estimate = Bootstrap(trial, 400).estimate(values_bk)
        covered += estimate.lo <= 0 <= estimate.hi
        naive += abs(estimate.value) <= 1.96 * values_bk.std() / values_bk.size**0.5
    assert 0.88 <= covered / 200 <= 0.99
    assert naive / 200 < 0.65  # what independent samples would claim


def test_deterministic_by_seed_and_chunking_keeps_all_resamples(monkeypatch):
    values_b = np.random.default_rng(4).normal(size=30)
    first = Bootstrap(7).estimate(values_b)
    assert first == Bootstrap(7).estimate(values_b)
    assert first != Bootstrap(8).estimate(values_b)
    monkeypatch.setattr(bootstrap, "CHUNK", 64)
    means = Bootstrap(7, 101).means(values_b[:, None])
    assert means.shape == (101, 1)
    assert means.std() == pytest.approx(first.se, rel=0.25)


@pytest.mark.parametrize("prompts", [0, 1])
def test_refuses_too_few_prompts(prompts):
    with pytest.raises(ValueError, match=f"{prompts} prompt"):
        Bootstrap(0).estimate(np.zeros((prompts, 3)))


def test_refuses_what_is_not_finite():
    with pytest.raises(ValueError, match="prompt 1 is not finite: nan"):
        Bootstrap(0).estimate([0.0, np.nan, 1.0])
