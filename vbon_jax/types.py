"""The axis legend, the arrays that travel between the rooms, and the one error a user sees.

    B prompts                 P prompt tokens (padded)        V vocabulary
    N samples per prompt      G new tokens (padded)           D width
    S sequences (= B * N)     T tokens of a whole sequence    H heads
    M reference rewards per prompt                            L layers

A suffix names the axes of an array: `rewards_bm` is `[B, M]`. Log-probabilities and rewards are
float32 and in nats; token ids and lengths are int32. Padding is told by lengths alone, never by a
token's value.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

Array = jax.Array
Params = dict[str, Any]  # a nested dict of arrays


class InputError(ValueError):
    """Something a user gave cannot be used: the message names file, field and remedy, in one line.

    The programs in `experiments/` print it alone and leave with status 2.
    """


@contextlib.contextmanager
def naming(where: str) -> Iterator[None]:
    """Errors of a user's keys inside begin with `where` those were set; "" adds nothing."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{where}: {error}" if where else f"{error}") from error


class Mean(NamedTuple):
    """A mean that is not divided yet, so that parts of a batch add up to the global mean."""

    total: Array  # [] float32, the weighted sum
    weight: Array  # [] float32, how many elements it is over

    def value(self) -> Array:
        """total / weight, and 0 where nothing was counted. [] float32."""
        safe_weight = jax.numpy.where(self.weight == 0, 1.0, self.weight)
        return jax.numpy.where(self.weight == 0, 0.0, self.total / safe_weight)


class Prompts(NamedTuple):
    """Prompts, padded on the right."""

    tokens_bp: Array  # [B, P] int32
    lengths_b: Array  # [B] int32, 1 <= length <= P


class Responses(NamedTuple):
    """N responses to each of B prompts, from the sampler to the report.

    A response's EOS is its last token; a truncated one has none.
    """

    tokens_bng: Array  # [B, N, G] int32, 0 behind the end
    lengths_bn: Array  # [B, N] int32, response tokens, the EOS counted
    finished_bn: Array  # [B, N] bool, ended by an EOS token
    log_probs_bng: Array  # [B, N, G] float32 under the policy and temperature that sampled; or 0
    rewards_bn: Array | None = None  # [B, N] float32, once they are scored
    prompt_index_b: Array | None = None  # [B] int64, places of the prompts in their PromptSet

    def token_ids(self) -> list[list[int]]:
        """The tokens of each response, its EOS included, B * N lists in order (numpy arrays)."""
        tokens_sg = self.tokens_bng.reshape(-1, self.tokens_bng.shape[-1])
        lengths_s = self.lengths_bn.reshape(-1)
        return [row[:size].tolist() for row, size in zip(tokens_sg, lengths_s, strict=True)]


class Sequences(NamedTuple):
    """Prompt and response without a gap between them, padded on the right; what a learner reads."""

    tokens_st: Array  # [S, T] int32
    prompt_lengths_s: Array  # [S] int32
    lengths_s: Array  # [S] int32, prompt and response
