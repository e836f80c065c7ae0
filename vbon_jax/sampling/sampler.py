"""Sampling from a decoder: one jitted program from prompts to responses and their log-probs.

Each prompt is run once and its cache is shared by its N rows; one loop then decodes a token a
step in every row, and ends as soon as every row has.

A token is picked by inverting the cumulated probabilities at a uniform number, first among blocks
of 256 tokens and then, with a second uniform, inside the block: two numbers a row and step where
Gumbel noise takes one for every entry of the vocabulary. A row's uniforms come from its own key,
so a sample depends on its prompt, its prompt's key and its index alone: not on its neighbours in
the batch, nor on how many samples are asked for.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vbon_jax.models import decoder, sharding
from vbon_jax.types import Array, InputError, Params, Prompts, Responses

BLOCK = 256  # tokens; with a vocabulary of 50k both levels then have about 200 entries
STAGES = 4  # sizes of the cache while a response grows; each is a loop of its own to compile


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How responses are drawn.

    `max_new_tokens` counts the EOS. `temperature` divides the logits; 0 is greedy decoding.
    `top_k` (0: off) keeps the k likeliest tokens and those that tie with the last of them, then
    `top_p` (1: off) the smallest set of likeliest tokens whose probability is at least `top_p`,
    ties at its edge included; the probability is the one that temperature and `top_k` leave. Any
    of `eos_token_ids` ends a response; with none of them every response has full length.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    eos_token_ids: tuple[int, ...] = ()


def prompt_keys(key: Array, prompt_ids_b: Array) -> Array:
    """One key a prompt, [B], from a number that names the prompt in any batch."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.asarray(prompt_ids_b))


def generate(
    config: decoder.DecoderConfig,
    params: Params,
    prompts: Prompts,
    keys_b: Array,
    *,
    num_samples: int,
    sampling: Sampling,
) -> Responses:
    """Draw `num_samples` responses to each prompt.

    keys_b [B] are typed keys, one a prompt (`prompt_keys`). Prompts are split over all devices that
    the parameters lie on, filled up where they do not divide. The returned log-probs are those of
    softmax(logits / temperature) over the whole vocabulary, before top-k and top-p cut it (greedy:
    at temperature 1). The program is compiled once per shape, `num_samples` and `sampling`; a
    change of temperature or top-p that switches neither on or off compiles nothing.

    Raises InputError when a prompt and its response have more tokens than the model has positions,
    ValueError for fewer than one sample or an EOS outside of the vocabulary.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples is {num_samples}; at least 1 is needed")
    if any(not 0 <= token < config.vocab_size for token in sampling.eos_token_ids):
        raise ValueError(
            f"eos_token_ids {sampling.eos_token_ids}: the vocabulary has {config.vocab_size} tokens"
        )
    _check_positions(config, prompts, sampling.max_new_tokens)
    program = dataclasses.replace(  # which of the options are on; their numbers are arguments
        sampling,
        temperature=1.0 if sampling.temperature > 0 else 0.0,
        top_p=1.0 if sampling.top_p == 1 else 0.5,
    )
    mesh, count = sharding.mesh_of(params), len(keys_b)
    if mesh is not None:
        filled = np.minimum(np.arange(sharding.rounded_up(count, params)), count - 1)
        if len(filled) > count:
            prompts, keys_b = jax.tree.map(lambda rows: rows[filled], (prompts, keys_b))
        prompts, keys_b = sharding.shard_rows((prompts, keys_b), mesh)
    responses, _ = _generate(
        config,
        params,
        prompts,
        keys_b,
        sampling.temperature,
        sampling.top_p,
        num_samples=num_samples,
        sampling=program,
    )
    if len(responses.lengths_bn) == count:
        return responses
    return jax.tree.map(lambda rows: rows[:count], responses)


def _check_positions(config, prompts: Prompts, new_tokens: int) -> None:
    width = prompts.tokens_bp.shape[1]
    if width + new_tokens <= config.max_positions:
        return
    lengths = prompts.lengths_b
    # Padding takes no position; where the lengths cannot be read here, the width bounds them.
    known = getattr(lengths, "is_fully_addressable", True)
    longest = int(np.max(lengths)) if known and not isinstance(lengths, jax.core.Tracer) else width
    if longest + new_tokens > config.max_positions:
        raise InputError(
            f"a prompt of {longest} tokens and {new_tokens} new ones need "
            f"{longest + new_tokens} positions and the model has {config.max_positions}: shorten "
            "the prompts or max_new_tokens"
        )


class _State(NamedTuple):
    """The carry of the loop; the slot is the number of tokens that were drawn so far."""

    slot: Array  # [] int32
    finished_bn: Array  # [B, N] bool
    lengths_bn: Array  # [B, N] int32
    tokens_gbn: Array  # [G, B, N] int32
    log_probs_gbn: Array  # [G, B, N] float32
    cache: decoder.Cache


@functools.partial(jax.jit, static_argnames=("config", "num_samples", "sampling"))
def _generate(config, params, prompts, keys_b, temperature, top_p, *, num_samples, sampling):
    """The program behind `generate`: its samples, and how many tokens its loop drew in each row."""
    shape = len(prompts.lengths_b), num_samples
    uniforms_g2bn = _uniforms(keys_b, num_samples, sampling.max_new_tokens)
    eos = jnp.array(sampling.eos_token_ids, jnp.int32)

    def draw(state: _State, hidden_bnd: Array) -> _State:
        """One more token in every row that has not ended."""
        logits = decoder.logits(config, params, hidden_bnd).astype(jnp.float32)
        uniforms_2bn = uniforms_g2bn[state.slot]
        token_bn, log_prob_bn = pick(logits, uniforms_2bn, temperature, top_p, sampling=sampling)
        token_bn = jnp.where(state.finished_bn, 0, token_bn)
        log_prob_bn = jnp.where(state.finished_bn, 0.0, log_prob_bn)
        return state._replace(
            slot=state.slot + 1,
            finished_bn=state.finished_bn | (token_bn[..., None] == eos).any(-1),
            lengths_bn=state.lengths_bn + ~state.finished_bn,
            tokens_gbn=state.tokens_gbn.at[state.slot].set(token_bn),
            log_probs_gbn=state.log_probs_gbn.at[state.slot].set(log_prob_bn),
        )

    def step(state: _State) -> _State:
        """Feed the token drawn last, draw the next."""
        fed = state.slot - 1  # the cache counts the tokens fed, one behind the tokens drawn
        last_bn = state.tokens_gbn[fed]
        hidden_bnd, cache = decoder.decode(config, params, state.cache, last_bn, fed)
        return draw(state._replace(cache=cache), hidden_bnd)

    hidden_bd, cache = decoder.prefill(config, params, *prompts, num_samples=num_samples)
    state = _State(
        slot=jnp.int32(0),
        finished_bn=jnp.zeros(shape, bool),
        lengths_bn=jnp.zeros(shape, jnp.int32),
        tokens_gbn=jnp.zeros((sampling.max_new_tokens, *shape), jnp.int32),
        log_probs_gbn=jnp.zeros((sampling.max_new_tokens, *shape), jnp.float32),
        cache=cache,
    )
    state = draw(state, hidden_bd[:, None])
    for end in _stages(sampling.max_new_tokens):
        # A slot for each token fed; the one drawn last in a stage is fed in the next, or never.
        state = state._replace(cache=decoder.grow(state.cache, max(1, end - 1)))
        state = jax.lax.while_loop(
            lambda state, end=end: (state.slot < end) & ~state.finished_bn.all(), step, state
        )
    responses = Responses(
        tokens_bng=jnp.moveaxis(state.tokens_gbn, 0, -1),
        lengths_bn=state.lengths_bn,
        finished_bn=state.finished_bn,
        log_probs_bng=jnp.moveaxis(state.log_probs_gbn, 0, -1),
    )
    return responses, state.slot


def _stages(new_tokens: int) -> list[int]:
    """How many tokens are drawn by the end of each stage; the last is `new_tokens`.

    A step reads every slot of the cache, written or not, so the cache starts small and grows.
    """
    count = min(STAGES, max(1, new_tokens // 8))
    return [-(-new_tokens * stage // count) for stage in range(1, count + 1)]


def _uniforms(keys_b: Array, num_samples: int, new_tokens: int) -> Array:
    """Two numbers strictly between 0 and 1 for every step and row, [G, 2, B, N]."""

    def of_row(key, index):
        # The middles of 2^23 equal cells: 0 and 1 are edges, where a token of probability 0 may be.
        return jax.random.uniform(jax.random.fold_in(key, index), (new_tokens, 2)) + 2.0**-24

    of_prompt = jax.vmap(of_row, (None, 0))
    uniforms_bng2 = jax.vmap(of_prompt, (0, None))(keys_b, jnp.arange(num_samples))
    return jnp.moveaxis(uniforms_bng2, (0, 1), (2, 3))


def pick(
    logits: Array, uniforms: Array, temperature: Array, top_p: Array, *, sampling: Sampling
) -> tuple[Array, Array]:
    """A token and its log-probability for each row of logits [..., V], in float32.

    uniforms is [2, ...], in [0, 1], and what it is broadcast with gives the shape of the result.
    `sampling` says which of temperature and cuts are on; their values are the arrays. A token of
    probability 0 is never picked, whatever the uniforms are.
    """
    highest = logits.max(-1, keepdims=True)
    if sampling.temperature == 0:
        ids = jnp.where(logits == highest, jnp.arange(logits.shape[-1]), logits.shape[-1])
        log_prob = -jnp.log(jnp.exp(logits - highest).sum(-1))
        shape = uniforms.shape[1:]
        return jnp.broadcast_to(ids.min(-1), shape), jnp.broadcast_to(log_prob, shape)
    weights = jnp.exp((logits - highest) / temperature)
    rest = [(0, 0)] * (logits.ndim - 1) + [(0, -logits.shape[-1] % BLOCK)]
    weights = jnp.pad(weights, rest).reshape(*logits.shape[:-1], -1, BLOCK)
    kept = _cut(weights, top_p, sampling=sampling)
    block = _invert(kept.sum(-1), uniforms[0])
    inside = jnp.take_along_axis(kept, block[..., None, None], axis=-2)[..., 0, :]
    token = block * BLOCK + _invert(inside, uniforms[1])
    chosen = jnp.take_along_axis(logits, token[..., None], axis=-1)
    scaled = (chosen - highest)[..., 0] / temperature
    return token, scaled - jnp.log(weights.sum((-2, -1)))


def _invert(weights: Array, uniform: Array) -> Array:
    """The index at which the cumulated weights [..., K] pass `uniform` of their total."""
    cumulated = jnp.cumsum(weights, axis=-1)
    # A sum's rounding can pass the mark at a weight of 0, or nowhere when uniform is nearly 1.
    possible = weights > 0
    passed = (cumulated > uniform[..., None] * cumulated[..., -1:]) & possible
    # Plain reductions: XLA's argmax carries pairs, which a CPU does one by one.
    index = jnp.arange(weights.shape[-1])
    first = jnp.where(passed, index, len(index)).min(-1)
    return jnp.minimum(first, jnp.where(possible, index, 0).max(-1))


def _cut(weights: Array, top_p: Array, *, sampling: Sampling) -> Array:
    """Weights [..., K, BLOCK], with 0 where top-k and then top-p take a token out."""
    if sampling.top_k:
        ones = jnp.ones_like(weights)
        edge = _edge(weights, ones, jnp.float32(sampling.top_k))
        weights = jnp.where(weights >= edge, weights, 0.0)
    if sampling.top_p < 1:
        edge = _edge(weights, weights, top_p * weights.sum((-2, -1)))
        weights = jnp.where(weights >= edge, weights, 0.0)
    return weights


def _edge(weights: Array, sizes: Array, target: Array) -> Array:
    """The largest number whose upper set, the weights that reach it, has sizes of `target` in sum.

    weights are in [0, 1]. The bits of a positive float are ordered as the floats are, so they are
    found from the highest to the lowest: exact, in 30 passes, where a sort of a vocabulary of 50k
    takes fifty times as long. Returns [..., 1, 1], 0 where even all weights fall short.
    """

    def next_bit(index, bits):
        candidate = bits | jnp.left_shift(1, 29 - index)
        edge = jax.lax.bitcast_convert_type(candidate, jnp.float32)
        upper = jnp.where(weights >= edge[..., None, None], sizes, 0.0).sum((-2, -1))
        return jnp.where(upper >= target, candidate, bits)

    bits = jax.lax.fori_loop(0, 30, next_bit, jnp.zeros(weights.shape[:-2], jnp.int32))
    return jax.lax.bitcast_convert_type(bits, jnp.float32)[..., None, None]
