"""Responses of a policy under evaluation: sampled, rewarded, and their KL to the reference."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vbon_jax.data import batching
from vbon_jax.functional import logprobs
from vbon_jax.models import decoder, log_probs
from vbon_jax.sampling import sampler
from vbon_jax.types import Array, InputError, Params, Sequences


@functools.partial(jax.jit, static_argnames=("config", "new_tokens", "greedy"))
def _score(config, params, reference_params, sequences, temperatures, *, new_tokens, greedy):
    tokens_sg, mask_sg = log_probs.response_tokens(sequences, new_tokens=new_tokens)
    networks = tuple(
        log_probs.Network(
            weights,
            log_probs.response_hidden(config, weights, sequences, new_tokens=new_tokens),
            temperature,
        )
        for weights, temperature in zip((params, reference_params), temperatures, strict=True)
    )

    def statistics(logits_scv: Array, reference_scv: Array, tokens_sc: Array):
        log_probs_sc = logprobs.token_log_probs(logits_scv, tokens_sc)
        reference_sc = logprobs.token_log_probs(reference_scv, tokens_sc)
        if greedy:
            return -reference_sc, log_probs_sc, reference_sc
        return logprobs.kl_divergence(logits_scv, reference_scv), log_probs_sc, reference_sc

    of_tokens = log_probs.map_logits(statistics, config, networks, tokens_sg)
    return tuple(jnp.where(mask_sg, values_sg, 0.0).sum(axis=1) for values_sg in of_tokens)


def score_sequences(
    config: decoder.DecoderConfig,
    params: Params,
    reference_params: Params,
    sequences: Sequences,
    *,
    new_tokens: int,
    temperature: float,
    reference_temperature: float,
) -> tuple[Array, Array, Array]:
    """KL(policy || reference) along each response, and its log-probability under both.

    Returns `(kl_s, log_probs_s, reference_log_probs_s)`, [S] float32, in nats. kl_s sums over the
    response's tokens, its EOS once and the prompt not, the divergence between the two whole
    next-token distributions softmax(logits / temperature) and softmax(reference logits /
    reference_temperature); its mean over responses sampled at `temperature` estimates the KL of the
    two policies without bias. At temperature 0 the policy is a point mass, a token's divergence is
    minus its log-probability under the reference, and log_probs_s is that of temperature 1, as the
    sampler's is. `new_tokens` (G) bounds a response's length. Raises ValueError for a negative
    temperature or a reference temperature that is not positive.
    """
    if temperature < 0 or reference_temperature <= 0:
        raise ValueError(
            f"temperature is {temperature} and reference_temperature {reference_temperature}; give "
            "0 or more and more than 0"
        )
    greedy = temperature == 0
    temperatures = np.asarray([1.0 if greedy else temperature, reference_temperature], np.float32)
    return _score(
        config,
        params,
        reference_params,
        sequences,
        temperatures,
        new_tokens=new_tokens,
        greedy=greedy,
    )


class MeasuredResponses(NamedTuple):
    """K responses to each of B prompts and what was measured on them, on the host."""

    rewards_bk: np.ndarray  # float32
    kl_bk: np.ndarray  # float32, nats, see `score_sequences`
    log_probs_bk: np.ndarray  # float32, nats a response
    reference_log_probs_bk: np.ndarray  # float32, nats a response
    lengths_bk: np.ndarray  # int32, tokens, the EOS counted
    finished_bk: np.ndarray  # bool, ended by an EOS
    tokens: list[list[tuple[int, ...]]]  # B lists of K responses, the EOS included


def collect(
    config: decoder.DecoderConfig,
    params: Params,
    reference_params: Params,
    prompt_ids: Sequence[Sequence[int]],
    *,
    key: Array,
    num_samples: int,
    sampling: sampler.Sampling,
    reference_temperature: float,
    score: Callable[[np.ndarray, list], np.ndarray],
    batch_prompts: int,
    progress: Callable[[int, int], None] | None = None,
) -> MeasuredResponses:
    """Samples K = `num_samples` responses to each prompt and measures them; rows in prompt order.

    `score(places [S], responses)` returns the rewards, float32, of responses (token ids) to the
    prompts at these places of `prompt_ids`. A prompt's samples depend on `key`, its place in
    `prompt_ids` and its tokens, not on `batch_prompts`: prompts are batched by length, so that few
    shapes are compiled, and the last batch is filled up by repeating. `progress(done, all)` is
    called with counts of prompts.
    Raises InputError without prompts, for an over-long one, and where top-k or top-p is on: the KL
    of a truncated policy is not what is measured here.
    """
    _check(config, prompt_ids, sampling)
    order = np.argsort([len(ids) for ids in prompt_ids], kind="stable")
    parts = []
    done = 0
    for places, count in batching.filled_batches(len(order), batch_prompts):
        filled = order[places]
        rows = filled[:count]
        batch = _measure(
            config,
            params,
            reference_params,
            [prompt_ids[row] for row in filled],
            sampler.prompt_keys(key, filled),
            num_samples=num_samples,
            sampling=sampling,
            reference_temperature=reference_temperature,
        )
        # the rows that only fill up the batch are cut off before they cost a reward call
        tokens = batch.tokens[: len(rows)]
        rewards = score(
            np.repeat(rows, num_samples), [ids for of_prompt in tokens for ids in of_prompt]
        ).reshape(len(rows), num_samples)
        measured = [array[: len(rows)] for array in batch[1:-1]]
        parts.append(MeasuredResponses(rewards, *measured, tokens))
        done += count
        if progress is not None:
            progress(done, len(order))
    return _in_order(parts, np.argsort(order))


def _check(config, prompt_ids, sampling: sampler.Sampling) -> None:
    """InputError for what cannot be evaluated, before compute is spent."""
    if not prompt_ids:
        raise InputError("no prompts to evaluate on; give a file with at least one")
    if sampling.top_k or sampling.top_p < 1:
        raise InputError(
            f"top_k={sampling.top_k}, top_p={sampling.top_p}: the KL is measured for the policy "
            "without truncation; evaluate with top_k=0 and top_p=1"
        )
    room = config.max_positions - sampling.max_new_tokens
    over = sum(len(ids) > room for ids in prompt_ids)
    if over:
        raise InputError(
            f"{over} of {len(prompt_ids)} prompts leave no room for {sampling.max_new_tokens} new "
            f"tokens in {config.max_positions} positions; shorten them or ask for fewer new tokens"
        )


def _in_order(parts: list[MeasuredResponses], place: np.ndarray) -> MeasuredResponses:
    """Batches joined; row `place[i]` of them becomes row i."""
    *arrays, tokens = zip(*parts, strict=True)
    tokens = [responses for part in tokens for responses in part]
    return MeasuredResponses(
        *(np.concatenate(array)[place] for array in arrays), [tokens[row] for row in place]
    )


def _measure(
    config,
    params,
    reference_params,
    prompt_ids,
    keys_b,
    *,
    num_samples: int,
    sampling: sampler.Sampling,
    reference_temperature: float,
) -> MeasuredResponses:
    """One batch of fixed shape; its rewards are still missing (None)."""
    room = config.max_positions - sampling.max_new_tokens
    prompts = batching.pad_prompts(prompt_ids, longest=room)
    samples = sampler.generate(
        config, params, prompts, keys_b, num_samples=num_samples, sampling=sampling
    )
    samples = jax.device_get(samples)
    width = prompts.tokens_bp.shape[1] + sampling.max_new_tokens
    kl_s, log_probs_s, reference_log_probs_s = score_sequences(
        config,
        params,
        reference_params,
        batching.sequences(prompts, samples, width),
        new_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        reference_temperature=reference_temperature,
    )
    shape = samples.lengths_bn.shape
    tokens = [
        [tuple(ids[:length].tolist()) for ids, length in zip(*of_prompt, strict=True)]
        for of_prompt in zip(samples.tokens_bng, samples.lengths_bn, strict=True)
    ]
    return MeasuredResponses(
        rewards_bk=None,
        kl_bk=np.asarray(kl_s).reshape(shape),
        log_probs_bk=np.asarray(log_probs_s).reshape(shape),
        reference_log_probs_bk=np.asarray(reference_log_probs_s).reshape(shape),
        lengths_bk=samples.lengths_bn,
        finished_bk=samples.finished_bn,
        tokens=tokens,
    )
