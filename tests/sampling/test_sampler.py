"""The sampler: what it may pick, the law it samples from, and that rows do not see each other."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vbon_jax.models import decoder
from vbon_jax.models.huggingface import model_folder
from vbon_jax.sampling import sampler
from vbon_jax.types import InputError, Prompts

forward = jax.jit(decoder.forward, static_argnums=0)
pick = jax.jit(sampler.pick, static_argnames="sampling")


def tiny(vocab_size: int, *, seed: int, scale: float):
    """A decoder of one layer with weights large enough for uneven distributions."""
    config = decoder.DecoderConfig(
        vocab_size=vocab_size,
        width=8,
        num_layers=1,
        num_heads=2,
        mlp_width=16,
        max_positions=40,
    )
    params = decoder.init(config, jax.random.key(seed))
    return config, jax.tree.map(lambda leaf: leaf * scale if leaf.ndim > 1 else leaf, params)


def padded(rows: list[list[int]]) -> Prompts:
    lengths = np.array([len(row) for row in rows], np.int32)
    tokens = np.full((len(rows), lengths.max()), 3, np.int32)  # a real token's id, on purpose
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = row
    return Prompts(tokens, lengths)


def draw(logits, uniforms, *, temperature=1.0, top_k=0, top_p=1.0):
    """`pick` for plain numbers: logits [V] or [S, V], uniforms [2, S]."""
    sampling = sampler.Sampling(1, temperature=temperature, top_k=top_k, top_p=top_p)
    logits, uniforms = jnp.asarray(logits, jnp.float32), jnp.asarray(uniforms, jnp.float32)
    logits = jnp.broadcast_to(logits, (uniforms.shape[1], logits.shape[-1]))
    token, log_prob = pick(logits, uniforms, temperature, top_p, sampling=sampling)
    return np.asarray(token), np.asarray(log_prob)


GRID = np.stack([np.full(1000, 0.5), (np.arange(1000) + 0.5) / 1000])
LAW = np.array([0.15, 0.5, 0.05, 0.3])


def test_pick_by_hand():
    token, log_prob = draw(np.log(LAW), [[0.5] * 4, [0.1, 0.6, 0.68, 0.71]])
    np.testing.assert_array_equal(token, [0, 1, 2, 3])
    np.testing.assert_allclose(log_prob, np.log(LAW), atol=1e-6)
    token, log_prob = draw(np.log(LAW), [[0.5], [0.9]], temperature=0.0)
    assert token == 1
    np.testing.assert_allclose(log_prob, np.log(0.5), atol=1e-6)


@pytest.mark.parametrize(
    ("cut", "expected"),
    [
        ({"top_p": 0.5}, {1}),
        ({"top_p": 0.501}, {1, 3}),
        ({"top_p": 0.8}, {1, 3}),
        ({"top_p": 0.96}, {0, 1, 2, 3}),
        ({"top_p": 1e-6}, {1}),
        ({"top_k": 1}, {1}),
        ({"top_k": 3}, {0, 1, 3}),
        ({"top_k": 99}, {0, 1, 2, 3}),
        ({"top_k": 3, "top_p": 0.6}, {1, 3}),  # of 0.95: one alone is 0.526
        ({"top_k": 2, "top_p": 0.6}, {1}),  # of 0.8: one alone is 0.625
    ],
)
def test_cuts_keep_the_smallest_set_and_its_proportions(cut, expected):
    token, log_prob = draw(np.log(LAW) + 1e-5, GRID, **cut)
    kept = sorted(expected)
    assert set(token.tolist()) == expected
    frequencies = np.bincount(token, minlength=4)[kept] / len(token)
    np.testing.assert_allclose(frequencies, LAW[kept] / LAW[kept].sum(), atol=2e-3)
    np.testing.assert_allclose(log_prob, np.log(LAW)[token], atol=1e-5)  # before the cut


def test_ties_at_the_edge_are_kept():
    assert set(draw([1.0, 1, 0, 1], GRID, top_k=2)[0].tolist()) == {0, 1, 3}
    assert set(draw([1.0, 1, 0, 1], GRID, top_p=0.4)[0].tolist()) == {0, 1, 3}


@pytest.mark.parametrize("size", [5, 256, 257, 300, 1024])
@pytest.mark.parametrize("cut", [{}, {"top_k": 40, "top_p": 0.9, "temperature": 0.3}])
def test_a_token_of_probability_0_is_never_picked(size, cut):
    rng = np.random.default_rng(size)
    ends = np.array([0.0, 1e-30, 2.0**-24, 0.5, 1 - 2.0**-24, 1.0])
    uniforms = np.array(list(itertools.product(ends, ends))).T
    for share in (0.02, 0.5, 0.95):
        possible = rng.random((uniforms.shape[1], size)) < share
        possible[:, size // 2] = True
        logits = np.where(possible, rng.normal(scale=5, size=possible.shape), -np.inf)
        token, log_prob = draw(logits, uniforms, **cut)
        assert np.take_along_axis(possible, token[:, None], 1).all()
        assert np.isfinite(log_prob).all()


@pytest.mark.slow
def test_pick_from_a_large_vocabulary_inverts_its_distribution():
    size, rows = 50257, 32
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=3, size=(rows, size)).astype(np.float32)
    uniforms = rng.random((2, rows)).astype(np.float32)
    token, log_prob = draw(logits, uniforms, temperature=0.8)
    law = np.exp(logits.astype(np.float64) / 0.8)
    law /= law.sum(1, keepdims=True)
    blocks = np.pad(law, ((0, 0), (0, -size % 256))).reshape(rows, -1, 256)
    row, block, index = np.arange(rows), token // 256, token % 256
    inside = blocks[row, block] / blocks[row, block].sum(1, keepdims=True)
    for weights, picked, uniform in ((blocks.sum(2), block, 0), (inside, index, 1)):
        above = np.cumsum(weights, 1)[row, picked]
        assert (above > uniforms[uniform] - 1e-5).all()
        assert (above - weights[row, picked] < uniforms[uniform] + 1e-5).all()
    np.testing.assert_allclose(log_prob, np.log(law[row, token]), atol=1e-4)
    # The cuts agree with a sort of the whole vocabulary.
    for cut in ({"top_k": 1000}, {"top_p": 0.7}):
        token, _ = draw(logits, uniforms, **cut)
        ordered = -np.sort(-np.exp(logits - logits.max(1, keepdims=True)).astype(np.float64), 1)
        reached = np.cumsum(ordered, 1) / ordered.sum(1, keepdims=True)
        size_kept = cut.get("top_k", 1 + (reached < cut.get("top_p", 1)).sum(1))
        rank = 1 + (logits > logits[row, token][:, None]).sum(1)
        assert (rank <= size_kept).all()
        sampling = sampler.Sampling(1, **cut)
        weights = jnp.exp(logits - logits.max(1, keepdims=True))[:, None]
        kept = sampler._cut(weights, cut.get("top_p", 1.0), sampling=sampling)
        np.testing.assert_allclose((kept > 0).sum((1, 2)), size_kept, atol=1)


def cut_law(logits: np.ndarray, sampling: sampler.Sampling) -> np.ndarray:
    """softmax(logits / temperature) after top-k and top-p, by a sort, in float64."""
    law = np.exp(logits.astype(np.float64) / sampling.temperature)
    law /= law.sum(-1, keepdims=True)
    if sampling.top_k:
        law = np.where(law >= -np.sort(-law, -1)[..., [sampling.top_k - 1]], law, 0)
        law /= law.sum(-1, keepdims=True)
    order = np.argsort(-law, -1)
    ordered = np.take_along_axis(law, order, -1)
    ordered[np.cumsum(ordered, -1) - ordered >= sampling.top_p] = 0
    np.put_along_axis(law, order, ordered, -1)
    return law / law.sum(-1, keepdims=True)


def enumerated(config, params, prompt: list[int], sampling: sampler.Sampling) -> dict:
    """The probability of every response."""
    responses = {(): 1.0}
    for _ in range(sampling.max_new_tokens):
        ended = {r: p for r, p in responses.items() if r[-1:] == sampling.eos_token_ids}
        open_rows = [r for r in responses if r not in ended]
        tokens = jnp.array([[*prompt, *response] for response in open_rows])
        law = cut_law(np.asarray(forward(config, params, tokens))[:, -1], sampling)
        responses = ended | {
            (*response, token): responses[response] * law[row, token]
            for row, response in enumerate(open_rows)
            for token in range(config.vocab_size)
        }
    return responses


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [{}, {"temperature": 0.6}, {"top_k": 3}, {"top_p": 0.75}, {"top_k": 4, "top_p": 0.9}],
)
def test_the_law_of_the_responses_is_the_enumerated_one(change):
    config, params = tiny(5, seed=1, scale=8)
    sampling = sampler.Sampling(3, eos_token_ids=(2,), **change)
    size = 1 << 15
    samples = sampler.generate(
        config,
        params,
        padded([[4, 1]]),
        jax.random.split(jax.random.key(7), 1),
        num_samples=size,
        sampling=sampling,
    )
    law = enumerated(config, params, [4, 1], sampling)
    lengths = np.asarray(samples.lengths_bn)[0]
    tokens = np.asarray(samples.tokens_bng)[0]
    seen = dict.fromkeys(law, 0)
    for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True):
        seen[tuple(row[:length])] += 1
    expected, observed = np.array(list(law.values())) * size, np.array(list(seen.values()))
    assert sum(law.values()) == pytest.approx(1)
    assert len(law) == 1 + 4 + 16 * 5
    assert not observed[expected == 0].any()
    rare = expected < 5
    assert (~rare).sum() > 5
    expected = np.append(expected[~rare], max(expected[rare].sum(), 1e-9))
    observed = np.append(observed[~rare], observed[rare].sum())
    keep = expected > 1e-6
    statistic = ((observed - expected)[keep] ** 2 / expected[keep]).sum()
    assert stats.chi2.sf(statistic, keep.sum() - 1) > 1e-3


ROWS = [[7, 1, 299, 12, 4], [9, 8], [30, 2, 250], [11]]
EOS = (5, 17, 40, 41, 42, 100, 120, 140, 180, 200, 220, 260)


@pytest.fixture(scope="module")
def model():
    return tiny(300, seed=2, scale=30)


def run(model, prompts, ids, *, num_samples=3, **sampling):
    config, params = model
    sampling = {"max_new_tokens": 6, "eos_token_ids": EOS} | sampling
    return jax.tree.map(
        np.asarray,
        sampler.generate(
            config,
            params,
            prompts,
            sampler.prompt_keys(jax.random.key(3), np.array(ids)),
            num_samples=num_samples,
            sampling=sampler.Sampling(**sampling),
        ),
    )


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_prompt_gives_in_a_batch_what_it_gives_alone(model, temperature):
    together = run(model, padded(ROWS), [0, 1, 2, 3], temperature=temperature)
    for index in (1, 2):
        alone = run(model, padded([ROWS[index]]), [index], temperature=temperature)
        for mine, batched in zip(alone[:3], together[:3], strict=True):
            np.testing.assert_array_equal(mine[0], batched[index])
        np.testing.assert_allclose(alone[3][0], together.log_probs_bng[index], atol=1e-5)


@pytest.mark.slow
def test_a_sample_depends_on_its_index_and_not_on_how_many_there_are(model):
    few, many = (run(model, padded(ROWS), range(4), num_samples=n) for n in (1, 3))
    np.testing.assert_array_equal(few.tokens_bng, many.tokens_bng[:, :1])
    assert (many.tokens_bng[:, 0] != many.tokens_bng[:, 1]).any()
    again = run(model, padded(ROWS), range(4))
    jax.tree.map(np.testing.assert_array_equal, again, many)
    moved = run(model, padded(ROWS[::-1]), [3, 2, 1, 0])
    np.testing.assert_array_equal(moved.tokens_bng[::-1], many.tokens_bng)


def check_log_probs(model, rows, samples, temperature=1.0):
    """Those of a teacher-forced forward pass; greedy tokens are the likeliest ones."""
    width = max(map(len, rows)) + samples.tokens_bng.shape[-1]
    for row, prompt in enumerate(rows):
        for n, length in enumerate(samples.lengths_bn[row]):
            response = samples.tokens_bng[row, n, :length]
            tokens = np.zeros((1, width), np.int32)
            tokens[0, : len(prompt) + length] = [*prompt, *response]
            logits = forward(*model, jnp.array(tokens))[0, len(prompt) - 1 :][:length]
            log_probs = jax.nn.log_softmax(logits / (temperature or 1.0))
            expected = np.take_along_axis(np.asarray(log_probs), response[:, None], 1)[:, 0]
            np.testing.assert_allclose(samples.log_probs_bng[row, n, :length], expected, atol=1e-4)
            if temperature == 0:
                np.testing.assert_array_equal(response, np.argmax(logits, -1))


# 26 tokens: the cache grows on the way.
@pytest.mark.slow
@pytest.mark.parametrize(("temperature", "new_tokens"), [(0.0, 6), (0.7, 6), (1.0, 6), (1.0, 26)])
def test_log_probs_are_those_of_a_teacher_forced_forward(model, temperature, new_tokens):
    samples = run(model, padded(ROWS), range(4), temperature=temperature, max_new_tokens=new_tokens)
    assert samples.lengths_bn.max() == new_tokens
    assert samples.log_probs_bng.dtype == np.float32
    check_log_probs(model, ROWS, samples, temperature)


@pytest.mark.slow
def test_a_response_ends_with_its_first_eos_and_nothing_is_behind_it(model):
    samples = run(model, padded(ROWS), range(4), num_samples=16)
    behind = np.arange(6) >= samples.lengths_bn[..., None]
    assert not samples.tokens_bng[behind].any()
    assert not samples.log_probs_bng[behind].any()
    ends = np.isin(samples.tokens_bng, EOS) & ~behind
    np.testing.assert_array_equal(ends.any(-1), samples.finished_bn)
    first = np.where(samples.finished_bn, ends.argmax(-1) + 1, 6)
    np.testing.assert_array_equal(first, samples.lengths_bn)
    assert 0 < samples.finished_bn.mean() < 1
    whole = run(model, padded(ROWS), range(4), num_samples=16, eos_token_ids=())
    assert not whole.finished_bn.any()
    assert (whole.lengths_bn == 6).all()
    np.testing.assert_array_equal(whole.tokens_bng[~behind], samples.tokens_bng[~behind])


@pytest.mark.slow
def test_the_loop_stops_when_every_row_has_ended(model):
    config, params = model
    samples, steps = sampler._generate(
        config,
        params,
        jax.tree.map(jnp.array, padded(ROWS)),
        sampler.prompt_keys(jax.random.key(3), np.arange(4)),
        1.0,
        1.0,
        num_samples=1,
        sampling=sampler.Sampling(10, eos_token_ids=tuple(range(0, 300, 2))),
    )
    assert samples.lengths_bn.min() < steps == samples.lengths_bn.max() < 10
    assert run(model, padded(ROWS), range(4), max_new_tokens=1).tokens_bng.shape == (4, 3, 1)


@pytest.mark.slow
def test_a_sweep_of_temperature_and_top_p_compiles_once(model):
    run(model, padded(ROWS[:2]), [0, 1], temperature=0.5, top_p=0.5)
    size = sampler._generate._cache_size()
    cold = run(model, padded(ROWS[:2]), [0, 1], temperature=0.01, top_p=0.99)
    run(model, padded(ROWS[:2]), [0, 1], temperature=1.0, top_p=0.9)
    assert sampler._generate._cache_size() == size
    assert (cold.log_probs_bng > -0.7).mean() > 0.9  # the temperature is not a constant of it


def test_requests_that_cannot_be_met_are_refused(model):
    with pytest.raises(ValueError, match="num_samples"):
        run(model, padded(ROWS), range(4), num_samples=0)
    for eos in (300, -1):
        with pytest.raises(ValueError, match="300 tokens"):
            run(model, padded(ROWS), range(4), eos_token_ids=(eos,))
    with pytest.raises(InputError, match=r"5 tokens and 36 new ones need 41 positions.* 40"):
        run(model, padded(ROWS), range(4), max_new_tokens=36)


@pytest.mark.slow
def test_padding_takes_no_position(model):
    wide = padded(ROWS[1:])._replace(tokens_bp=np.ones((3, 38), np.int32))
    assert run(model, wide, range(3), max_new_tokens=6).tokens_bng.shape == (3, 3, 6)


@pytest.mark.slow
def test_a_real_checkpoint(shared):
    config, params, _, eos = model_folder.load(shared / "models" / "gpt2-imdb-mini", kind="decoder")
    rows = [[0, 464, 807], [0, 40, 373, 262, 1000]]
    samples = run((config, params), padded(rows), [0, 1], max_new_tokens=12, eos_token_ids=eos)
    check_log_probs((config, params), rows, samples)
