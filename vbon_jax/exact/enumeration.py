"""Laws of a policy whose responses can all be written down: truth by enumeration, in float64.

    P prompts     K responses, the same to every prompt     V vocabulary, L tokens at most

Token 0 is the EOS. Nothing here is estimated.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vbon_jax.functional import bon, streams
from vbon_jax.types import Sequences

EOS = 0


class Space(NamedTuple):
    """All responses of a vocabulary, and the tree that they are the leaves of.

    Every token of a response is predicted at a position of one of the S = (V - 1)^(L-1) longest
    contexts, so one forward pass over these gives every conditional probability.
    """

    tokens_kl: np.ndarray  # [K, L] int32, 0 behind the end; a truncated response has no EOS
    lengths_k: np.ndarray  # [K] int32, the EOS counted
    context_k: np.ndarray  # [K] int32, a longest context that begins as the response does
    contexts_sl: np.ndarray  # [S, L - 1] int32, words alone

    @property
    def size(self) -> int:
        """K."""
        return len(self.lengths_k)


def enumerate_responses(vocab_size: int, length: int) -> Space:
    """Responses that end with EOS after 1 to L tokens, and those of L words without one."""
    words = range(1, vocab_size)
    ended = [
        (*start, EOS) for size in range(length) for start in itertools.product(words, repeat=size)
    ]
    responses = ended + list(itertools.product(words, repeat=length))
    tokens_kl = np.zeros((len(responses), length), np.int32)
    for row, response in zip(tokens_kl, responses, strict=True):
        row[: len(response)] = response
    place_l = (vocab_size - 1) ** np.arange(length - 2, -1, -1)
    return Space(
        tokens_kl,
        np.array([len(response) for response in responses], np.int32),
        (np.maximum(tokens_kl[:, :-1] - 1, 0) @ place_l).astype(np.int32),
        np.array(list(itertools.product(words, repeat=length - 1)), np.int32),
    )


def sequences(prompts_pt: np.ndarray, responses_rl: np.ndarray, lengths_r: np.ndarray) -> Sequences:
    """Every prompt followed by every response, [P * R] rows; prompts of one length."""
    prompts, width = prompts_pt.shape
    rows = len(responses_rl)
    tokens = np.concatenate(
        [np.repeat(prompts_pt, rows, axis=0), np.tile(responses_rl, (prompts, 1))], axis=1
    )
    return Sequences(
        tokens.astype(np.int32),
        np.full(prompts * rows, width, np.int32),
        np.tile(width + lengths_r, prompts).astype(np.int32),
    )


def draw_rewards(prompts: int, responses: int, *, seed: int, scale: float, ties: bool):
    """Normal rewards [P, K] of standard deviation `scale`; with ties, whole multiples of it."""
    rewards_pk = streams.generator("rewards of the lab", seed).normal(size=(prompts, responses))
    return scale * (np.round(rewards_pk) if ties else rewards_pk)


class Law(NamedTuple):
    """The reference policy, the rewards, and their distribution functions, [P, K] each."""

    log_reference_pk: np.ndarray  # nats
    rewards_pk: np.ndarray
    below_pk: np.ndarray  # F = P(r' < r)
    at_or_below_pk: np.ndarray  # F+ = P(r' <= r)

    @property
    def reference_pk(self) -> np.ndarray:
        """pi_ref."""
        return np.exp(self.log_reference_pk)

    @property
    def middle_pk(self) -> np.ndarray:
        """P(r' < r) + P(r' = r) / 2, the limit of every estimator of F as M grows."""
        return 0.5 * (self.below_pk + self.at_or_below_pk)


def law(log_reference_pk: np.ndarray, rewards_pk: np.ndarray) -> Law:
    """The law of rewards under a reference policy, which is normalised here."""
    log_reference_pk = normalised(np.asarray(log_reference_pk, np.float64))
    p_p1k = np.exp(log_reference_pk)[:, None, :]
    rewards_p1k, rewards_pk1 = rewards_pk[:, None, :], rewards_pk[:, :, None]
    below_pk = np.where(rewards_p1k < rewards_pk1, p_p1k, 0.0).sum(axis=2)
    tied_pk = np.where(rewards_p1k == rewards_pk1, p_p1k, 0.0).sum(axis=2)
    highest = rewards_pk == rewards_pk.max(axis=1, keepdims=True)
    return Law(log_reference_pk, rewards_pk, below_pk, np.where(highest, 1.0, below_pk + tied_pk))


def normalised(log_weights_pk: np.ndarray) -> np.ndarray:
    """Log-probabilities from unnormalised ones."""
    highest = log_weights_pk.max(axis=1, keepdims=True)
    rest = np.log(np.exp(log_weights_pk - highest).sum(axis=1, keepdims=True))
    return log_weights_pk - highest - rest


def log(values: np.ndarray) -> np.ndarray:
    """The logarithm, −inf at 0: nothing is below the lowest reward."""
    with np.errstate(divide="ignore"):
        return np.log(values)


def log_ratio(log_below, log_at_or_below, n: float) -> np.ndarray:
    """`bon.log_ratio` in float64: log pi_BoN - log pi_ref."""
    with jax.enable_x64(True):
        wide = [jnp.asarray(part, jnp.float64) for part in (log_below, log_at_or_below)]
        return np.asarray(bon.log_ratio(*wide, n))


def best_of_n(law: Law, n: float) -> np.ndarray:
    """log pi_BoN [P, K]; its probabilities sum to 1 without being divided by their sum."""
    return law.log_reference_pk + log_ratio(log(law.below_pk), log(law.at_or_below_pk), n)


def kl(log_p_pk: np.ndarray, log_q_pk: np.ndarray) -> float:
    """KL(p || q) in nats, the mean over prompts."""
    p_pk = np.exp(log_p_pk)
    terms_pk = p_pk * (np.where(p_pk > 0, log_p_pk, 0.0) - np.where(p_pk > 0, log_q_pk, 0.0))
    return float(terms_pk.sum(axis=1).mean())


def measures(log_policy_pk: np.ndarray, law: Law, n: float) -> dict[str, float]:
    """KLs, win rate and entropy of a policy over all responses; nats, means over prompts."""
    log_best_pk, p_pk = best_of_n(law, n), np.exp(log_policy_pk)
    return {
        "kl_to_bon": kl(log_policy_pk, log_best_pk),
        "kl_from_bon": kl(log_best_pk, log_policy_pk),
        "kl_to_ref": kl(log_policy_pk, law.log_reference_pk),
        "win_rate": float((p_pk * law.middle_pk).sum(axis=1).mean()),
        "entropy": float(-(p_pk * log_policy_pk).sum(axis=1).mean()),
    }


def pair_chances(law: Law, n: int) -> np.ndarray:
    """The chance that best and worst of n reference draws are i and j, [P, K, K]; 0 for a tie.

    With S the mass from j's rewards to i's, and A and B that of all responses that tie with i and
    with j, all n draws lie in S, at least one in A and one in B:

        S^n - (S - A)^n - (S - B)^n + (S - A - B)^n,

    and the first of the draws that tie at an end is any of them, by its probability.
    """
    a_pk1 = (law.at_or_below_pk - law.below_pk)[:, :, None]
    b_p1k = np.swapaxes(a_pk1, 1, 2)
    s_pkk = law.at_or_below_pk[:, :, None] - law.below_pk[:, None, :]
    inside_pkk = np.maximum(s_pkk - a_pk1 - b_p1k, 0.0)
    both_pkk = s_pkk**n - (s_pkk - a_pk1) ** n - (s_pkk - b_p1k) ** n + inside_pkk**n
    share_pkk = (law.reference_pk[:, :, None] / a_pk1) * (law.reference_pk[:, None, :] / b_p1k)
    better_pkk = law.rewards_pk[:, :, None] > law.rewards_pk[:, None, :]
    return np.where(better_pkk, np.maximum(both_pkk, 0.0) * share_pkk, 0.0)
