"""From one score per response to an advantage per token or per response.

S responses, G token positions of a response; `mask_sg` is True at its tokens, which are contiguous
(lengths make it), the EOS counted. What a masked position holds, NaN included, never leaks.
A wrong dtype is a TypeError and a wrong rank or shape a ValueError; both name the argument.
"""

import jax
import jax.numpy as jnp
import numpy as np

from vbon_jax.functional import checks
from vbon_jax.types import Array


def shaped_rewards(
    score_s, log_probs_sg, reference_log_probs_sg, mask_sg, *, reward_weight, kl_weight
) -> Array:
    """−kl_weight·(log π − log π_ref) at every token, plus reward_weight·score at the last one.

    The one place where the KL enters the reward. (1, 1/(N−1)) is the objective divided by N−1 and
    (N−1, 1) the same one undivided, which is also meaningful at N = 1.
    Source: Ziegler et al., 2019, "Fine-Tuning Language Models from Human Preferences", eq. 2.

    Args:
        score_s: [S] floating, the score of each whole response.
        log_probs_sg: [S, G] floating, log π of the sampled tokens under the policy, in nats.
        reference_log_probs_sg: [S, G] floating, the same under the reference.
        mask_sg: [S, G] boolean.
        reward_weight: finite scalar.
        kl_weight: finite scalar, score units per nat.

    Returns:
        [S, G], 0 at masked positions; a response without tokens is 0 everywhere.
    """
    log_probs_sg = checks.floats("log_probs_sg", log_probs_sg, rank=2)
    shape = log_probs_sg.shape
    reference_log_probs_sg = checks.floats("reference_log_probs_sg", reference_log_probs_sg, shape)
    score_s = checks.floats("score_s", score_s, shape[:1])
    mask_sg = checks.array("mask_sg", mask_sg, np.bool_, shape)
    kl_sg = jnp.where(mask_sg, log_probs_sg - reference_log_probs_sg, 0.0)
    tokens_left_sg = jnp.cumsum(mask_sg[:, ::-1], axis=1)[:, ::-1]
    last_sg = mask_sg & (tokens_left_sg == 1)
    score_sg = jnp.where(last_sg, score_s[:, None], 0.0)
    return reward_weight * score_sg - kl_weight * kl_sg


def gae(rewards_sg, values_sg, mask_sg, *, discount, gae_lambda) -> tuple[Array, Array]:
    """Generalised advantage estimates and the returns a value function is fitted to.

    δ_t = r_t + γ·V_{t+1} − V_t and A_t = δ_t + γ·λ·A_{t+1}, both 0 after the last token; the
    return is A_t + V_t. Source: Schulman et al., 2016, eq. 16.

    Args:
        rewards_sg: [S, G] floating.
        values_sg: [S, G] floating, V before token t is chosen.
        mask_sg: [S, G] boolean.
        discount: γ, a scalar in [0, 1].
        gae_lambda: λ, a scalar in [0, 1].

    Returns:
        (advantages_sg, returns_sg), [S, G] each, 0 at masked positions.
    """
    rewards_sg = checks.floats("rewards_sg", rewards_sg, rank=2)
    values_sg = checks.floats("values_sg", values_sg, rewards_sg.shape)
    mask_sg = checks.array("mask_sg", mask_sg, np.bool_, rewards_sg.shape)
    rewards_sg = jnp.where(mask_sg, rewards_sg, 0.0)
    values_sg = jnp.where(mask_sg, values_sg, 0.0)

    def step(after, now):
        advantage_s, value_s = after
        reward_s, value_now_s, mask_s = now
        delta_s = reward_s + discount * value_s - value_now_s
        advantage_s = jnp.where(mask_s, delta_s + discount * gae_lambda * advantage_s, 0.0)
        advantage_s = advantage_s.astype(rewards_sg.dtype)
        return (advantage_s, value_now_s), advantage_s

    start = (jnp.zeros_like(rewards_sg[:, 0]), jnp.zeros_like(values_sg[:, 0]))
    by_time = (rewards_sg.T, values_sg.T, mask_sg.T)
    advantages_sg = jax.lax.scan(step, start, by_time, reverse=True)[1].T
    return advantages_sg, advantages_sg + values_sg


def rloo(scores_bn) -> Array:
    """Each score minus the mean of the other N−1 scores of its prompt.

    Source: Kool et al., 2019; Ahmadian et al., 2024, "Back to Basics", eq. 8.

    Args:
        scores_bn: [B, N] floating, N >= 2.

    Returns:
        [B, N] advantages in the scores' unit, summing to 0 over a prompt; 0 where all tie.
    """
    scores_bn = _group("rloo", scores_bn)
    n = scores_bn.shape[1]
    return _centred(scores_bn) * (n / (n - 1))


def group_normalised(scores_bn, penalties_bn=None, *, epsilon: float = 1e-4) -> Array:
    """(score − mean) / (σ + ε) within a prompt's N scores, σ at least 1 where the penalty decides.

    σ is the sample deviation (N−1 below the sum), as in the released GRPO code; Shao et al., 2024,
    "DeepSeekMath", section 4.1.2. There the KL is not in the score. Where it is, as `penalties_bn`,
    dividing by σ would turn its noise into advantages of ±1 once the rewards of a prompt tie. So a
    group whose penalties deviate more than its scores without them is not blown up: its advantages
    are the undivided ones (Liu et al., 2025, arXiv 2503.20783), or the divided ones where those are
    smaller. All other groups are what they are without penalties.

    Args:
        scores_bn: [B, N] floating, N >= 2, the penalties taken off.
        penalties_bn: [B, N] floating, in the scores' unit; None = there are none.
        epsilon: added to the deviation, in the scores' unit.

    Returns:
        [B, N] advantages; 0, and without a gradient, where all scores tie.
    """
    scores_bn = _group("group_normalised", scores_bn)
    centred_bn = _centred(scores_bn)
    variance_b1 = _variance(centred_bn)
    tied_b1 = variance_b1 <= 0
    if penalties_bn is not None:
        penalties_bn = checks.floats("penalties_bn", penalties_bn, scores_bn.shape)
        of_rewards_b1 = _variance(_centred(scores_bn + penalties_bn))
        decided_b1 = _variance(_centred(penalties_bn)) > of_rewards_b1
        variance_b1 = jnp.where(decided_b1, jnp.maximum(variance_b1, 1.0), variance_b1)
    deviation_b1 = jnp.sqrt(jnp.where(tied_b1, 1.0, variance_b1))
    return jnp.where(tied_b1, 0.0, centred_bn / (deviation_b1 + epsilon))


def whiten(values_sg, mask_sg, *, shift_mean: bool = True) -> Array:
    """Values scaled to unit variance (and mean 0) over the masked positions of the whole array.

    The variance is the population one, plus 1e-8 (in the values' unit squared). The mean is over
    the array that is passed: under `pmap` or on a part of a batch it is that part's own.

    Args:
        values_sg: [S, G] floating.
        mask_sg: [S, G] boolean.
        shift_mean: False scales around the mean and keeps it.

    Returns:
        [S, G], 0 at masked positions. One element alone becomes 0 (or stays, with its mean kept).
    """
    values_sg = checks.floats("values_sg", values_sg, rank=2)
    mask_sg = checks.array("mask_sg", mask_sg, np.bool_, values_sg.shape)
    safe_sg = jnp.where(mask_sg, values_sg, 0.0)
    count = jnp.maximum(jnp.sum(mask_sg), 1).astype(values_sg.dtype)
    mean = jnp.sum(safe_sg) / count
    centred_sg = jnp.where(mask_sg, safe_sg - mean, 0.0)
    variance = jnp.sum(centred_sg**2) / count
    whitened_sg = centred_sg * jax.lax.rsqrt(variance + 1e-8)
    return whitened_sg if shift_mean else jnp.where(mask_sg, whitened_sg + mean, 0.0)


def _group(function: str, scores_bn) -> Array:
    scores_bn = checks.floats("scores_bn", scores_bn, rank=2)
    if scores_bn.shape[1] < 2:
        raise ValueError(
            f"scores_bn must have 2 samples per prompt or more: {function} compares a sample with "
            f"the others of its prompt, got shape {scores_bn.shape}"
        )
    return scores_bn


def _variance(centred_bn: Array) -> Array:
    """The sample variance of each prompt's N centred scores, [B, 1]."""
    return jnp.sum(centred_bn**2, axis=1, keepdims=True) / (centred_bn.shape[1] - 1)


def _centred(scores_bn: Array) -> Array:
    """Scores minus their prompt's mean, taken from the first score so that ties give exactly 0."""
    relative_bn = scores_bn - scores_bn[:, :1]
    return relative_bn - jnp.mean(relative_bn, axis=1, keepdims=True)
