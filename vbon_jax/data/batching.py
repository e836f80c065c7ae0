"""Batches of one shape out of rows of unequal length, in an order made of (seed, step).

A run that is resumed needs to know only its step.
"""

from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from vbon_jax.functional import streams
from vbon_jax.types import Prompts, Responses, Sequences


def bucket_length(length: int, *, multiple: int = 8) -> int:
    """The padded length for `length` tokens, from a short list, so that few shapes are compiled.

    Multiples of `multiple` up to 8 of them, then four lengths an octave (with 8: 8, 16, ..., 64,
    80, 96, 112, 128, 160, ...), so at most a quarter of a long row is padding.
    """
    length = max(length, 1)
    octave = (length - 1).bit_length() - 1  # the greatest power of two below `length`
    step = max(multiple, 2**octave // 4 if length > 8 * multiple else 0)
    return -(-length // step) * step


def pad_prompts(
    token_ids: Sequence[Sequence[int]],
    *,
    width: int | None = None,
    multiple: int = 8,
    longest: int | None = None,
) -> Prompts:
    """Prompts of unequal length as one batch, padded with 0 on the right.

    To `width` where it is given (ValueError if one is longer), else to a bucket's length that is
    never above `longest`, the room that the model has for a prompt. Arrays are numpy's int32:
    `[B, P]` and `[B]`.
    """
    lengths_b = np.asarray([len(ids) for ids in token_ids], np.int32)
    if width is None:
        width = bucket_length(int(lengths_b.max()), multiple=multiple)
        width = width if longest is None else min(width, longest)
    return Prompts(tokens_bp=pad_rows(token_ids, lengths_b, width), lengths_b=lengths_b)


def pad_rows(token_ids: Sequence[Sequence[int]], lengths_b: np.ndarray, width: int) -> np.ndarray:
    """`[B, width]` int32, each row on the left of it, 0 behind."""
    if lengths_b.max(initial=0) > width:
        raise ValueError(f"a row of {lengths_b.max()} tokens does not fit the width {width}")
    tokens_bt = np.zeros((len(token_ids), width), np.int32)
    flat = [token for ids in token_ids for token in ids]
    tokens_bt[np.arange(width) < lengths_b[:, None]] = flat
    return tokens_bt


def unpadded(tokens_bt: np.ndarray, lengths_b: np.ndarray) -> list[tuple[int, ...]]:
    """The rows of `pad_rows`."""
    rows = zip(tokens_bt, lengths_b, strict=True)
    return [tuple(tokens[:length].tolist()) for tokens, length in rows]


def batch_indices(size: int, batch_size: int, *, seed: int, step: int) -> np.ndarray:
    """Which of `size` rows make up batch `step`: `[batch_size]` int64, a pure function.

    The batches cut an endless stream of permutations, one an epoch, drawn from (`seed`, epoch): an
    epoch visits every row exactly once, a batch may straddle epochs and be larger than `size`.
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.int64)
    epochs, offsets = np.divmod(positions, size)
    orders = [
        streams.generator("order of rows", seed, epoch).permutation(size)
        for epoch in range(epochs[0], epochs[-1] + 1)
    ]
    return np.stack(orders)[epochs - epochs[0], offsets]


def filled_batches(size: int, batch_size: int) -> Iterator[tuple[np.ndarray, int]]:
    """0 .. size - 1 in batches of one size, the last one filled up with its last row.

    Yields the rows of a batch, `[batch_size]` int64, and how many of them are not fillers.
    """
    for first in range(0, size, batch_size):
        rows = np.minimum(np.arange(first, first + batch_size), size - 1)
        yield rows, min(batch_size, size - first)


def at_prompts(responses: Responses, index_b: np.ndarray) -> Responses:
    """The responses to some of the prompts, `index_b` [B] int64, in this order."""
    return _mapped(lambda array: array[index_b], responses, index_b)


def first(responses: Responses, count: int) -> Responses:
    """The first `count` responses to each prompt."""
    return _mapped(lambda array: array[:, :count], responses, responses.prompt_index_b)


def take(responses: Responses, chosen_bs: np.ndarray) -> Responses:
    """Some of each prompt's responses, by their places `chosen_bs` [B, S] among its N."""

    def chosen(array: np.ndarray) -> np.ndarray:
        places = chosen_bs.reshape(*chosen_bs.shape, *(1,) * (array.ndim - 2))
        return np.take_along_axis(array, places, axis=1)

    return _mapped(chosen, responses, responses.prompt_index_b)


def _mapped(function: Callable, responses: Responses, index_b: np.ndarray | None) -> Responses:
    """A function of every array but the places of the prompts, which are `index_b`."""
    arrays = jax.tree.map(function, responses._replace(prompt_index_b=None))
    return arrays._replace(prompt_index_b=index_b)


def sequences(prompts: Prompts, samples: Responses, width: int | None = None) -> Sequences:
    """Joins every prompt and each of its N responses without a gap, B * N rows in order.

    Rows are padded with 0 on the right to `width` tokens, at least the longest of them; without it
    to P + G. Numpy arrays, whatever the arguments were.
    """
    prompts = Prompts(*map(np.asarray, prompts))
    tokens_bng, lengths_bn = np.asarray(samples.tokens_bng), np.asarray(samples.lengths_bn)
    num_samples, new_tokens = tokens_bng.shape[1:]
    width = prompts.tokens_bp.shape[1] + new_tokens if width is None else width
    prompt_lengths_s = np.repeat(prompts.lengths_b, num_samples).astype(np.int32)
    lengths_s = (prompt_lengths_s + lengths_bn.reshape(-1)).astype(np.int32)
    if lengths_s.max() > width:
        raise ValueError(f"a sequence of {lengths_s.max()} tokens does not fit the width {width}")

    prompt_tokens_sp = np.repeat(prompts.tokens_bp, num_samples, axis=0)
    padded_sq = np.concatenate([prompt_tokens_sp, tokens_bng.reshape(-1, new_tokens)], axis=1)
    gap_s = prompt_tokens_sp.shape[1] - prompt_lengths_s
    position_t = np.arange(width)
    from_st = position_t + np.where(position_t >= prompt_lengths_s[:, None], gap_s[:, None], 0)
    from_st = np.minimum(from_st, padded_sq.shape[1] - 1)
    tokens_st = np.take_along_axis(padded_sq, from_st, axis=1)
    tokens_st = np.where(position_t < lengths_s[:, None], tokens_st, 0).astype(np.int32)
    return Sequences(tokens_st, prompt_lengths_s, lengths_s)
