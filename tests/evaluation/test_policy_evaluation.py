"""Win rates, KL, the Best-of-N ruler and the deficit to it."""

import functools
import itertools

import jax
import numpy as np
import pytest

from tests.fake_models import make_measured
from vbon_jax.data import batching
from vbon_jax.evaluation import bon_curve, bootstrap, measures, sampled_policy
from vbon_jax.evaluation.bootstrap import Bootstrap
from vbon_jax.functional import bon
from vbon_jax.models import decoder, log_probs
from vbon_jax.sampling import sampler
from vbon_jax.types import InputError, Prompts, Responses, Sequences

EOS = 2
TINY = decoder.DecoderConfig(
    vocab_size=3, width=8, num_layers=1, num_heads=2, mlp_width=16, max_positions=24
)
FORWARD = jax.jit(functools.partial(decoder.forward, TINY))


@pytest.fixture(scope="module")
def policies():
    """Two policies far apart: parameters large enough that their laws are far from uniform."""
    init = jax.jit(functools.partial(decoder.init, TINY))
    return [
        jax.tree.map(lambda leaf: 4 * np.asarray(leaf), init(jax.random.key(i))) for i in (0, 1)
    ]


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def numpy_log_probs(params, ids, temperature=1.0):
    """log softmax of every position's logits, [T, V] float64, without the package's help."""
    padded = np.zeros((1, 8), np.int32)  # behind the end, where no token looks
    padded[0, : len(ids)] = ids
    scaled = np.asarray(FORWARD(params, padded)[0, : len(ids)], np.float64) / temperature
    return scaled - np.log(np.exp(scaled).sum(axis=-1, keepdims=True))


def all_responses(new_tokens):
    """Every response that a policy over {0, 1, EOS} can give in `new_tokens` tokens."""
    for length in range(1, new_tokens + 1):
        for body in itertools.product((0, 1), repeat=length - 1):
            yield (*body, EOS)
    yield from itertools.product((0, 1), repeat=new_tokens)


def pack(prompt, responses, new_tokens=4, width=14):
    """Sequences of one prompt with each response."""
    tokens = np.zeros((1, len(responses), new_tokens), np.int32)
    for row, ids in enumerate(responses):
        tokens[0, row, : len(ids)] = ids
    lengths = np.asarray([[len(ids) for ids in responses]], np.int32)
    samples = Responses(tokens, lengths, lengths > 0, np.zeros(tokens.shape, np.float32))
    prompts = Prompts(np.asarray([prompt], np.int32), np.asarray([len(prompt)], np.int32))
    return batching.sequences(prompts, samples, width)


def score(policies, sequences, temperature=1.0, reference_temperature=1.0, new_tokens=4):
    """`score_sequences` on 32 rows, and the policy's own log-probabilities between its two."""
    rows = len(sequences.lengths_s)
    filled = jax.tree.map(lambda each: np.resize(each, (32, *each.shape[1:])), sequences)
    options = {"new_tokens": new_tokens, "temperature": temperature}
    kl, reference = sampled_policy.score_sequences(
        TINY, *policies, filled, reference_temperature=reference_temperature, **options
    )
    options["temperature"] = temperature or 1.0
    own = log_probs.sequence_log_probs(TINY, policies[0], filled, **options)
    return [np.asarray(each)[:rows] for each in (kl, own, reference)]


# ------------------------------------------------------------------------------- score_sequences


@pytest.mark.slow
def test_kl_is_the_enumerated_one(policies):
    prompt, responses = (1, 0, 1), list(all_responses(4))
    temperatures = 0.7, 1.3
    kl, own, reference = score(policies, pack(prompt, responses), *temperatures)
    by_hand = []
    for params, temperature in zip(policies, temperatures, strict=True):
        of_params = []
        for ids in responses:
            log_p = numpy_log_probs(params, prompt + ids, temperature)
            of_params.append(sum(log_p[len(prompt) - 1 + i, token] for i, token in enumerate(ids)))
        by_hand.append(np.asarray(of_params))
    np.testing.assert_allclose(own, by_hand[0], atol=2e-5)
    np.testing.assert_allclose(reference, by_hand[1], atol=2e-5)
    p = np.exp(by_hand[0])
    assert p.sum() == pytest.approx(1, abs=1e-6)
    exact = (p * (by_hand[0] - by_hand[1])).sum()
    assert exact > 0.05
    # the mean of the per-response sums, over the policy's own responses, is the sequence KL
    assert (p * kl).sum() == pytest.approx(exact, rel=1e-4)


@pytest.mark.slow
def test_prompt_is_excluded_and_eos_is_counted_once(policies):
    prompt, response = (0, 1, 1, 0), (1, EOS)
    log_p, log_q = (numpy_log_probs(params, prompt + response) for params in policies)
    by_token = (np.exp(log_p) * (log_p - log_q)).sum(axis=-1)
    expected = by_token[3] + by_token[4]  # what predicts `1`, what predicts EOS
    for new_tokens, width in ((2, 6), (4, 14)):  # padding behind the end changes nothing
        sequences = pack(prompt, [response], new_tokens, width)
        kl, own, _ = score(policies, sequences, new_tokens=new_tokens)
        assert kl[0] == pytest.approx(expected, rel=1e-4)
        assert own[0] == pytest.approx(log_p[3, 1] + log_p[4, EOS], rel=1e-4)


@pytest.mark.slow
def test_kl_of_a_policy_to_itself_is_zero(policies):
    kl, own, reference = score([policies[0]] * 2, pack((1, 1), list(all_responses(4))))
    assert np.abs(kl).max() <= 1e-6
    np.testing.assert_array_equal(own, reference)


@pytest.mark.slow
def test_greedy_policy_is_a_point_mass(policies):
    sequences = pack((1, 1), [(0, EOS), (1, 1, 0, 1)])
    kl, own, reference = score(policies, sequences, 0.0, 1.5)
    np.testing.assert_array_equal(kl, -reference)
    np.testing.assert_allclose(own, score(policies, sequences)[1], rtol=1e-5)


def test_temperatures_without_meaning_are_refused():
    sequences = Sequences(np.ones((1, 4), np.int32), np.int32([2]), np.int32([4]))
    for temperatures in ((-1.0, 1.0), (1.0, 0.0)):
        with pytest.raises(ValueError, match="reference_temperature"):
            score((None, None), sequences, *temperatures)


# ------------------------------------------------------------------------------- collect


PROMPTS = [(1,), (0, 1, 1, 0, 1, 1, 0, 1, 1, 0), (0, 0), (1, 0, 1), (0,)]  # widths 8 and 16


def collect(policies, prompts=PROMPTS, *, score=None, seed=3, progress=None, **changes):
    def sums(places, responses):
        return np.float32(
            [sum(prompts[p]) + 10 * sum(r) for p, r in zip(places, responses, strict=True)]
        )

    sampling = sampler.Sampling(max_new_tokens=4, eos_token_ids=(EOS,))
    options = sampled_policy.Options(2, sampling, 1.0, batch_prompts=2)._replace(**changes)
    key = jax.random.key(seed)
    return sampled_policy.collect(
        TINY, *policies, prompts, score or sums, options, key=key, progress=progress
    )


@pytest.fixture(scope="module")
def collected(policies):
    """The run that several tests look at, and what it told of its progress."""
    counts = []
    measured = collect(policies, progress=lambda done, total: counts.append((done, total)))
    return measured, counts


@pytest.mark.slow
def test_collect_keeps_prompt_order_and_measures_what_it_sampled(policies, collected):
    measured, counts = collected
    responses, tokens = measured.responses, measures.token_lists(measured.responses)
    assert counts == [(2, 5), (4, 5), (5, 5)]
    assert responses.rewards_bn.shape == measured.kl_bn.shape == (5, 2)
    assert responses.rewards_bn.dtype == np.float32
    assert responses.prompt_index_b.tolist() == [0, 1, 2, 3, 4]
    for row, prompt in enumerate(PROMPTS):
        kl, own, reference = score(policies, pack(prompt, tokens[row]))
        np.testing.assert_allclose(measured.kl_bn[row], kl, atol=2e-5)
        np.testing.assert_allclose(responses.log_probs_bng[row].sum(axis=-1), own, atol=2e-5)
        np.testing.assert_allclose(measured.reference_log_probs_bn[row], reference, atol=2e-5)
        for column, ids in enumerate(tokens[row]):
            assert responses.rewards_bn[row, column] == sum(prompt) + 10 * sum(ids)
            assert responses.lengths_bn[row, column] == len(ids)
            assert responses.finished_bn[row, column] == (ids[-1] == EOS)
            assert EOS not in ids[:-1]


@pytest.mark.slow
def test_samples_do_not_depend_on_the_batch_and_follow_the_key(policies, collected):
    first = collected[0].responses
    again = collect(policies, batch_prompts=5).responses
    np.testing.assert_array_equal(first.tokens_bng, again.tokens_bng)
    np.testing.assert_array_equal(first.rewards_bn, again.rewards_bn)
    assert (first.tokens_bng != collect(policies, seed=4).responses.tokens_bng).any()


@pytest.mark.slow
def test_fillers_cost_no_reward_call_and_nothing_is_compiled_twice(policies, collected):
    calls, compiled = [], sampled_policy._score._cache_size()

    def count(places, responses):
        calls.append(len(responses))
        return np.zeros(len(responses), np.float32)

    collect(policies, score=count)
    assert calls == [4, 4, 2]
    assert sampled_policy._score._cache_size() == compiled


@pytest.mark.slow
def test_sampled_kl_estimates_the_enumerated_kl(policies):
    prompt = (1, 0)
    _, own, reference = score(policies, pack(prompt, list(all_responses(4))))
    exact = (np.exp(own) * (own - reference)).sum()
    measured = collect(policies, [prompt] * 500)
    spread = measured.kl_bn.std() / measured.kl_bn.size**0.5
    assert abs(measured.kl_bn.mean() - exact) < 4 * spread
    assert spread < 0.2 * exact


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": []}, "no prompts"),
        ({"prompts": [(1,) * 21]}, "1 of 1 prompts leave no room for 4 new tokens"),
        ({"sampling": sampler.Sampling(max_new_tokens=4, top_p=0.9)}, "top_p=0.9"),
    ],
)
def test_collect_refuses(changes, message):
    with pytest.raises(InputError, match=message):
        collect((None, None), **changes)


# ------------------------------------------------------------------------------- the ruler


def test_win_rate_hand_worked_with_ties_half():
    reference_bm = np.float32([[1, 2, 2, 4], [0, 0, 0, 0]])
    rewards_bk = np.float32([[2, 5, 0], [0, -1, 3]])
    # 2 beats 1, ties with two 2s: (1 + 2 / 2) / 4
    expected = [[0.5, 1.0, 0.0], [0.5, 0.0, 1.0]]
    np.testing.assert_array_equal(measures.win_rates(rewards_bk, reference_bm), expected)
    with pytest.raises(ValueError, match="1 prompts, and cached rewards of 2"):
        measures.win_rates(rewards_bk[:1], reference_bm)


def test_distinct_2_hand_worked():
    # bigrams 12 23 | 12 21 12: distinct 12 23 21; none across the two responses
    assert measures.distinct_2([(1, 2, 3), (1, 2, 1, 2)]) == 3 / 5
    assert measures.distinct_2([(1,), (2,)]) == 0.0
    assert measures.distinct_2([]) == 0.0


def test_curve_hand_worked():
    # two distinct rewards, N = 2: the better one has mass 3/4, so win 1/4 * 1/4 + 3/4 * 3/4
    best = bon_curve.mean_curve(bon_curve.curve(np.float32([[0.0, 1.0]]), [1.0, 2.0]))
    np.testing.assert_allclose(best.reward_bg, [0.5, 0.75], atol=1e-6)
    np.testing.assert_allclose(best.win_rate_bg, [0.5, 0.625], atol=1e-6)
    kl = 0.25 * np.log(0.5) + 0.75 * np.log(1.5)
    np.testing.assert_allclose(best.kl_bg, [0.0, kl], atol=1e-6)


def test_win_rate_at_interpolates_and_is_monotone():
    reference_bm = normal(0, 20, 64)
    best = bon_curve.mean_curve(bon_curve.curve(reference_bm))
    curve = best.kl_bg, best.win_rate_bg
    assert bon_curve.win_rate_at(0.0, *curve) == bon_curve.win_rate_at(-1e-9, *curve) == 0.5
    rates = [bon_curve.win_rate_at(kl, *curve) for kl in np.linspace(0, 8, 500)]
    assert np.diff(rates).min() >= 0
    for n in (1.5, 2, 4, 8, 16):  # and near the continuous law, which it knows nothing of
        assert bon_curve.win_rate_at(bon.kl(n), *curve) == pytest.approx(bon.win_rate(n), abs=0.004)
    assert bon_curve.win_rate_at(50.0, *curve) == pytest.approx(1 - 1 / 128, abs=1e-5)
    kls = np.array([0.1, 0.5, 2.0])
    again = bon_curve.kl_at(bon_curve.win_rate_at(kls, *curve), *curve)
    np.testing.assert_allclose(again, kls, rtol=1e-6)
    np.testing.assert_array_equal(bon_curve.kl_at(np.array([0.4, 0.5]), *curve), 0.0)


def test_curve_of_tied_rewards_ends_where_nothing_more_can_be_won():
    # binary reward, 1 with chance 1/4: the best policy has KL log 4 and win rate 1 - 1/8
    reference_bm = np.tile(np.float32([0, 0, 0, 1]), (3, 1))
    best = bon_curve.mean_curve(bon_curve.curve(reference_bm))
    assert best.kl_bg[-1] == pytest.approx(np.log(4), abs=1e-4)
    win_rate = bon_curve.win_rate_at(3.0, best.kl_bg, best.win_rate_bg)
    assert win_rate == pytest.approx(0.875, abs=1e-4)
    constant = bon_curve.mean_curve(bon_curve.curve(np.zeros((3, 4), np.float32)))
    assert bon_curve.win_rate_at(1.0, constant.kl_bg, constant.win_rate_bg) == pytest.approx(0.5)


@pytest.mark.slow
def test_ruler_of_distinct_rewards():
    reference_bm = normal(1, 50, 32)
    by_n = bon_curve.ruler(reference_bm, [1, 2, 4, 2.5, 32, 100], Bootstrap(0, 200))
    assert by_n[1]["kl"].value == pytest.approx(0, abs=1e-6)
    for n in (1, 2, 4):  # whatever the rewards are, so there is no spread over prompts
        exact = n / (n + 1)
        np.testing.assert_allclose(by_n[n]["win_rate"], [exact, 0, exact, exact], atol=1e-6)
    assert by_n[32]["reward"].value == pytest.approx(reference_bm.max(axis=1).mean(), rel=1e-5)
    rising = [by_n[n]["reward"].value for n in (1, 2, 2.5, 4, 32)]
    assert rising == sorted(rising)
    assert by_n[100]["win_rate"].value > by_n[32]["win_rate"].value


# ------------------------------------------------------------------------------- summarise


def best_of_n_policy(reference_bm, n, samples, random):
    """Samples of Best-of-N among the cached rewards (with replacement), and their log-ratios."""
    prompts, m = reference_bm.shape
    draws = random.integers(m, size=(prompts, samples, n))
    rewards_bk = np.take_along_axis(reference_bm[:, None], draws, axis=2).max(axis=2)
    at_or_below = (reference_bm[:, None] <= rewards_bk[..., None]).mean(axis=2)
    below = (reference_bm[:, None] < rewards_bk[..., None]).mean(axis=2)
    mass = at_or_below**n - below**n
    return rewards_bk, np.log(mass / (at_or_below - below)).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("ties", [False, True])
def test_best_of_n_has_no_deficit_to_itself(ties):
    random = np.random.default_rng(5)
    reference_bm = random.normal(size=(150, 64)).astype(np.float32)
    if ties:
        reference_bm = np.round(reference_bm)
    rewards_bk, kl_bk = best_of_n_policy(reference_bm, 4, 32, random)
    summary = measures.summarise(make_measured(rewards_bk, kl_bk), reference_bm, Bootstrap(0))
    assert summary["deficit"].lo <= 0 <= summary["deficit"].hi
    assert abs(summary["deficit"].value) < 0.01
    ruler = bon_curve.ruler(reference_bm, [4], Bootstrap(0))[4]
    assert summary["win_rate"].value == pytest.approx(ruler["win_rate"].value, abs=0.02)
    if not ties:
        assert summary["win_rate"].value == pytest.approx(0.8, abs=0.02)


def test_a_worse_policy_has_a_deficit_and_the_joint_interval_is_narrower():
    random = np.random.default_rng(6)
    reference_bm = random.normal(size=(150, 64)).astype(np.float32)
    rewards_bk, kl_bk = best_of_n_policy(reference_bm, 4, 32, random)
    wasted = make_measured(rewards_bk, kl_bk + 0.5)  # the same rewards for half a nat more
    summary = measures.summarise(wasted, reference_bm, Bootstrap(0))
    at = bon.kl(4) + 0.5
    curve = bon_curve.mean_curve(bon_curve.curve(reference_bm))
    expected = bon_curve.win_rate_at(at, curve.kl_bg, curve.win_rate_bg) - 0.8
    assert summary["deficit"].value == pytest.approx(expected, abs=0.015)
    assert summary["deficit"].lo > 0
    # win rate and KL rise together along the curve, so their errors cancel in the deficit
    assert summary["deficit"].se < summary["win_rate"].se


def test_means_over_seeds_keep_each_one_s_own_deficit():
    random = np.random.default_rng(8)
    reference_bm = random.normal(size=(60, 32)).astype(np.float32)
    best = bon_curve.curve(reference_bm)
    policies = [best_of_n_policy(reference_bm, n, 16, random) for n in (4, 2, 8)]
    policies[1][1][...] += 0.4  # nats for nothing
    summaries = [
        measures.summarise(make_measured(*of), reference_bm, Bootstrap(3)) for of in policies
    ]
    kl_bp, reward_bp = (
        np.stack([np.asarray(of[at], np.float64).mean(axis=1) for of in policies], axis=1)
        for at in (1, 0)
    )
    win_bp = np.stack([measures.win_rates(of[0], reference_bm).mean(axis=1) for of in policies], 1)
    groups = [("vbon", 4), ("dpo", 2), ("vbon", 4)]
    means = measures.group_means(
        {"kl": kl_bp, "win_rate": win_bp, "reward": reward_bp}, groups, best, Bootstrap(3)
    )
    assert list(means) == [("vbon", 4), ("dpo", 2)]
    for name in ("kl", "win_rate", "reward", "deficit"):
        alone, mean = means["dpo", 2][name], means["vbon", 4][name]
        assert alone.value == pytest.approx(summaries[1][name].value, rel=1e-6)
        assert (alone.lo, alone.hi) == pytest.approx(summaries[1][name][2:], rel=1e-6)
        assert mean.value == pytest.approx(
            (summaries[0][name].value + summaries[2][name].value) / 2
        )
        assert mean.lo <= mean.value <= mean.hi
        # the two agree about their prompts, and differ in their samples
        assert mean.se < max(summaries[0][name].se, summaries[2][name].se)
    # Best-of-N itself spends what it needs; two fifths of a nat for nothing are not of use
    assert means["vbon", 4]["efficiency"].value == pytest.approx(1.0, abs=0.06)
    wasted = means["dpo", 2]
    assert wasted["efficiency"].value == pytest.approx(bon.kl(2) / (bon.kl(2) + 0.4), abs=0.04)
    assert wasted["efficiency"].lo < wasted["efficiency"].value < wasted["efficiency"].hi < 0.5


def test_a_policy_that_has_not_moved_has_no_efficiency():
    reference_bm = normal(9, 20, 16)
    columns = {"kl": 0.0, "win_rate": 0.5, "reward": 0.0}
    means_bp = {name: np.full((20, 1), value) for name, value in columns.items()}
    best = bon_curve.curve(reference_bm)
    means = measures.group_means(means_bp, ["vbon"], best, Bootstrap(0, 50))["vbon"]
    assert np.isnan(means["efficiency"].value)
    assert bootstrap.columns(**means)["efficiency"] is None  # a dash in the table
    assert means["deficit"].value == 0.0


def test_the_reference_itself():
    random = np.random.default_rng(7)
    reference_bm = random.normal(size=(100, 64)).astype(np.float32)
    rewards_bk = random.normal(size=(100, 16)).astype(np.float32)
    zeros = np.zeros(rewards_bk.shape, np.float32)
    summary = measures.summarise(make_measured(rewards_bk, zeros), reference_bm, Bootstrap(0))
    assert summary["kl"] == (0, 0, 0, 0)
    assert summary["bon_win_rate_at_kl"] == (0.5, 0, 0.5, 0.5)
    assert summary["win_rate"].lo <= 0.5 <= summary["win_rate"].hi
    assert summary["deficit"].lo <= 0 <= summary["deficit"].hi
    assert summary["perplexity"].value == pytest.approx(np.exp(2.0))
    assert summary["length"].value == 2 and summary["eos_rate"].value == 1
    assert summary["distinct2"].value == 1 / 16
    names = "reward win_rate kl length eos_rate distinct2 perplexity bon_win_rate_at_kl deficit"
    assert set(summary) == set(names.split())


def test_perplexity_weighs_tokens_not_responses():
    zeros = np.zeros((2, 2), np.float32)
    measured = make_measured(zeros, zeros, lengths_bn=np.int32([[1, 9], [5, 5]]))
    measured = measured._replace(reference_log_probs_bn=np.float32([[-2, -9], [-5, -5]]))
    summary = measures.summarise(measured, np.float32([[0, 1], [0, 1]]), Bootstrap(0))
    assert summary["perplexity"].value == pytest.approx(np.exp(21 / 20))


@pytest.mark.slow
def test_soft_best_of_n_lies_between_the_reference_and_best_of_n():
    rewards = normal(3, 40, 32)
    best, colder, warmer = (
        bon_curve.ruler(rewards, [4], Bootstrap(0, 50), temperature=t)[4] for t in (None, 0.3, 1.0)
    )
    assert 0.5 < warmer["win_rate"].value < colder["win_rate"].value < best["win_rate"].value + 0.01
    assert 0.0 < warmer["kl"].value < colder["kl"].value < best["kl"].value + 0.01
    assert colder["reward"].lo < colder["reward"].value < colder["reward"].hi
