"""Checks of mathematical functions: the same under jit, and slopes by finite differences."""

import jax
import numpy as np


def both_ways(function, *arguments):
    """The value of a function, which under jit is the same but for rounding.

    Each operation outside of jit is a program of its own to compile: other tests compile functions.
    """
    plain = function(*arguments)
    compiled = jax.jit(function)(*arguments)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), compiled, plain
    )
    return plain


def check_gradient(function, array, step=1e-6):
    """The gradient of a scalar function is its central differences, in float64."""
    function, array = jax.jit(function), np.asarray(array)
    differences = np.zeros(array.shape)
    for index in np.ndindex(*array.shape):
        change = np.zeros(array.shape)
        change[index] = step
        differences[index] = (function(array + change) - function(array - change)) / (2 * step)
    np.testing.assert_allclose(
        jax.jit(jax.grad(function))(array), differences, rtol=1e-6, atol=1e-8
    )
