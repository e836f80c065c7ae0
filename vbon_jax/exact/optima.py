"""The minimum of each objective in theory, over all laws of an enumerable policy; float64.

The unknown is d = log pi - log pi_ref up to a constant, [P, K], for each prompt by itself.
"""

import numpy as np
import scipy.special

from vbon_jax.exact import enumeration
from vbon_jax.exact.enumeration import Law


def gibbs(law: Law, reward_pk: np.ndarray, weight: float) -> np.ndarray:
    """argmax of weight * E[reward] - KL(pi || pi_ref): log(pi_ref * e^{weight * reward} / Z)."""
    return enumeration.normalised(law.log_reference_pk + weight * reward_pk)


def best_of_pairs(law: Law, n: int) -> np.ndarray:
    """The log of the law of the better response of a pair: Best-of-N, given that it is no tie."""
    return enumeration.normalised(enumeration.log(enumeration.pair_chances(law, n).sum(axis=2)))


def bonbon(law: Law, n: int, alpha: float, target_pkk: np.ndarray | float) -> np.ndarray:
    """argmin of alpha * (-log pi(best)) + (1 - alpha) * (h - target)^2 over laws, its log.

    Convex in d; Newton's method, which at alpha = 0 (IPO) needs one step: the normal equations are
    L d = b, with the Laplacian L of the graph whose edges are the pairs, and b the target times
    (how often better - how often worse). `target_pkk` is a number, or one for each pair.
    """
    chances_pkk = enumeration.pair_chances(law, n)
    target_pkk = np.broadcast_to(target_pkk, chances_pkk.shape)
    rows = []
    for p in range(len(chances_pkk)):
        w_kk = chances_pkk[p]
        pulled_kk = w_kk * target_pkk[p]
        b_k = 2.0 * (1.0 - alpha) * (pulled_kk.sum(axis=1) - pulled_kk.sum(axis=0))
        curvature_kk = 2.0 * (1.0 - alpha) * _laplacian(w_kk)
        rows.append(_newton(law.log_reference_pk[p], curvature_kk, b_k, alpha * w_kk.sum(axis=1)))
    return enumeration.normalised(law.log_reference_pk + np.stack(rows))


def _newton(log_reference_k, curvature_kk, b_k, likelihood_k) -> np.ndarray:
    """argmin of d A d / 2 - b d - likelihood (d - log sum p e^d), with steps that never climb."""

    def value(d_k: np.ndarray) -> float:
        likelihood = likelihood_k @ d_k - likelihood_k.sum() * scipy.special.logsumexp(
            log_reference_k + d_k
        )
        return 0.5 * d_k @ curvature_kk @ d_k - b_k @ d_k - likelihood

    d_k, total = np.zeros_like(b_k), likelihood_k.sum()
    for _ in range(200):
        p_k = scipy.special.softmax(log_reference_k + d_k)
        gradient_k = curvature_kk @ d_k - b_k - likelihood_k + total * p_k
        hessian_kk = curvature_kk + total * (np.diag(p_k) - np.outer(p_k, p_k))
        step_k, size = _solve(hessian_kk, gradient_k), 1.0
        while size > 1e-6 and value(d_k - size * step_k) > value(d_k):
            size /= 2
        d_k = d_k - size * step_k
        if np.abs(size * step_k).max() < 1e-10:
            break
    return d_k


def _laplacian(chances_kk: np.ndarray) -> np.ndarray:
    """Of the graph of pairs, whichever way round they were."""
    edges_kk = chances_kk + chances_kk.T
    return np.diag(edges_kk.sum(axis=1)) - edges_kk


def _solve(matrix_kk: np.ndarray, b_k: np.ndarray) -> np.ndarray:
    """A solution of mean 0: a constant adds nothing, and the matrix has no slope along it."""
    scale_k = 1.0 / np.sqrt(np.diag(matrix_kk))  # entries span many orders; this evens them out
    ones_k = 1.0 / scale_k  # the scaled direction of a constant
    ones_k = ones_k / np.linalg.norm(ones_k)
    scaled_kk = scale_k[:, None] * matrix_kk * scale_k + np.outer(ones_k, ones_k)
    solution_k = scale_k * np.linalg.solve(scaled_kk, scale_k * b_k)
    return solution_k - solution_k.mean()
