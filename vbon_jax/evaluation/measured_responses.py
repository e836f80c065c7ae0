"""The responses of a policy under evaluation, as arrays; no network is needed to read them."""

from typing import NamedTuple

import numpy as np

from vbon_jax.types import Responses


class MeasuredResponses(NamedTuple):
    """K responses to each of B prompts, with rewards, and what else is measured on them."""

    responses: Responses
    kl_bn: np.ndarray  # float32, nats a response, see `sampled_policy.score_sequences`
    reference_log_probs_bn: np.ndarray  # float32, nats a response


def token_lists(responses: Responses) -> list[list[list[int]]]:
    """The token ids of each prompt's responses, without padding."""
    return [
        [ids_g[:length].tolist() for ids_g, length in zip(ids_ng, lengths_n, strict=True)]
        for ids_ng, lengths_n in zip(responses.tokens_bng, responses.lengths_bn, strict=True)
    ]
