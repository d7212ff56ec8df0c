"""Statistical assertions, with the probability that a correct engine fails them."""

import numpy as np


def assert_agrees(samples, expected, standard_errors, what="the mean"):
    """The mean of independent samples (sample, *shape) equals ``expected`` within its error.

    The error is the spread of the samples, so that a correct engine fails in a share of seeds
    that Student's t bounds: 2 · entries · P(t > standard_errors) at samples − 1 degrees of freedom.
    """
    samples = np.asarray(samples, np.float64).reshape(len(samples), -1)
    expected = np.broadcast_to(expected, np.shape(expected)).ravel()
    error = samples.std(0, ddof=1) / np.sqrt(len(samples))
    distance = np.abs(samples.mean(0) - expected) / error
    assert distance.max() < standard_errors, (
        f"{what} {samples.mean(0)} is {distance.max():.1f} standard errors from {expected}"
    )


def second_moments(positions):
    """Mean over draws of w wᵀ: (chain, draw, d) ↦ the upper triangle, (chain, d(d + 1)/2)."""
    moments = np.einsum("ctj,ctk->cjk", positions, positions) / positions.shape[1]
    return upper_triangle(moments)


def upper_triangle(matrices):
    """The distinct entries of symmetric matrices: (*batch, d, d) ↦ (*batch, d(d + 1)/2)."""
    rows, columns = np.triu_indices(np.shape(matrices)[-1])
    return np.asarray(matrices)[..., rows, columns]
