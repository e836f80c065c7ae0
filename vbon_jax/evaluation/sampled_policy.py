"""Responses of a policy under evaluation: sampled, rewarded, and their KL to the reference."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vbon_jax.data import batching
from vbon_jax.evaluation.measures import MeasuredResponses
from vbon_jax.functional import logprobs
from vbon_jax.models import decoder, log_probs, sharding
from vbon_jax.sampling import sampler
from vbon_jax.types import Array, InputError, Params, Sequences

POLICY = "the policy that is evaluated"  # in errors


@functools.partial(jax.jit, static_argnames=("config", "new_tokens", "greedy"))
def _score(config, networks, sequences, temperatures, *, new_tokens, greedy):
    tokens_sg, mask_sg = log_probs.response_tokens(sequences, new_tokens=new_tokens)
    read = functools.partial(log_probs.response_hidden, config, new_tokens=new_tokens)
    networks = tuple(
        log_probs.Network(params, read(params, sequences), temperature)
        for params, temperature in zip(networks, temperatures, strict=True)
    )

    def statistics(logits_scv: Array, reference_scv: Array, tokens_sc: Array):
        reference_sc = logprobs.token_log_probs(reference_scv, tokens_sc)
        if greedy:
            return -reference_sc, reference_sc
        return logprobs.kl_divergence(logits_scv, reference_scv), reference_sc

    statistics_sg = log_probs.map_logits(statistics, config, networks, tokens_sg)
    return tuple(jnp.where(mask_sg, values_sg, 0.0).sum(axis=1) for values_sg in statistics_sg)


def score_sequences(
    config: decoder.DecoderConfig,
    params: Params,
    reference_params: Params,
    sequences: Sequences,
    *,
    new_tokens: int,
    temperature: float,
    reference_temperature: float,
) -> tuple[Array, Array]:
    """KL(policy || reference) along each response, and its log-probability under the reference.

    Returns `(kl_s, reference_log_probs_s)`, [S] float32, in nats. kl_s sums over the response's
    tokens, its EOS once and the prompt not, the divergence between the two whole next-token
    distributions softmax(logits / temperature) and softmax(reference logits /
    reference_temperature); its mean over responses sampled at `temperature` estimates the KL of the
    two policies without bias. At temperature 0 the policy is a point mass, and a token's divergence
    is minus its log-probability under the reference. `new_tokens` (G) bounds a response's length.
    Raises ValueError for a negative temperature or a reference temperature that is not positive.
    """
    if temperature < 0 or reference_temperature <= 0:
        raise ValueError(
            f"temperature is {temperature} and reference_temperature {reference_temperature}; give "
            "0 or more and more than 0"
        )
    greedy = temperature == 0
    temperatures = np.asarray([1.0 if greedy else temperature, reference_temperature], np.float32)
    networks = params, reference_params
    return _score(config, networks, sequences, temperatures, new_tokens=new_tokens, greedy=greedy)


class Options(NamedTuple):
    """How policies are sampled and measured; the same for all that are compared."""

    num_samples: int  # K
    sampling: sampler.Sampling
    reference_temperature: float
    batch_prompts: int  # sampled at a time


def collect(
    config: decoder.DecoderConfig,
    params: Params,
    reference_params: Params,
    prompt_ids: Sequence[Sequence[int]],
    score: Callable[[np.ndarray, list[list[int]]], np.ndarray],
    options: Options,
    *,
    key: Array,
    progress: Callable[[int, int], None] | None = None,
) -> MeasuredResponses:
    """Sample K responses to each prompt and measure them, on the host; rows in prompt order.

    `score(places [S], responses)` returns the rewards, float32, of responses (token ids) to the
    prompts at these places of `prompt_ids`. A prompt's samples depend on `key`, its place in
    `prompt_ids` and its tokens, not on `batch_prompts` nor on the devices that the parameters lie
    on, over which a batch is split: prompts are batched by length, so that few shapes are compiled,
    and the last batch is filled up by repeating. `progress(done, all)` is called with counts of
    prompts. Raises InputError without prompts, for an over-long one, and
    where top-k or top-p is on: the KL of a truncated policy is not what is measured here.
    """
    _check(config, prompt_ids, options.sampling)
    order = np.argsort([len(ids) for ids in prompt_ids], kind="stable")
    batches, done = [], 0
    size = sharding.rounded_up(options.batch_prompts, params)
    for places, count in batching.filled_batches(len(order), size):
        rows = order[places]
        filled = _measure(config, params, reference_params, prompt_ids, rows, options, key=key)
        # the rows that only fill up the batch are cut off before they cost a reward call
        batch = jax.tree.map(lambda array_b, count=count: array_b[:count], filled)
        place_s = np.repeat(rows[:count], options.num_samples)
        rewards_s = score(place_s, batch.responses.token_ids())
        rewards_bn = rewards_s.reshape(count, options.num_samples)
        batches.append(batch._replace(responses=batch.responses._replace(rewards_bn=rewards_bn)))
        done += count
        if progress is not None:
            progress(done, len(order))
    back = np.argsort(order)
    return jax.tree.map(lambda *parts: np.concatenate(parts)[back], *batches)


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
    too_long = sum(len(ids) > room for ids in prompt_ids)
    if too_long:
        raise InputError(
            f"{too_long} of {len(prompt_ids)} prompts leave no room for {sampling.max_new_tokens} "
            f"new tokens in {config.max_positions} positions; shorten them or give fewer new tokens"
        )


def _measure(
    config, params, reference_params, prompt_ids, rows: np.ndarray, options: Options, *, key: Array
) -> MeasuredResponses:
    """Responses to some rows of the prompts, a batch of fixed shape, still without rewards."""
    sampling, keys = options.sampling, sampler.prompt_keys(key, rows)
    room = config.max_positions - sampling.max_new_tokens
    prompts = batching.pad_prompts([prompt_ids[row] for row in rows], longest=room)
    responses = sampler.generate(
        config, params, prompts, keys, num_samples=options.num_samples, sampling=sampling
    )
    responses = log_probs.on_host(responses, POLICY)._replace(prompt_index_b=rows)
    width = prompts.tokens_bp.shape[1] + sampling.max_new_tokens
    measured = score_sequences(
        config,
        params,
        reference_params,
        batching.sequences(prompts, responses, width),
        new_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        reference_temperature=options.reference_temperature,
    )
    shape = responses.lengths_bn.shape
    measured = log_probs.on_host(measured, f"{POLICY}, or its reference,")
    return MeasuredResponses(responses, *(each_s.reshape(shape) for each_s in measured))
