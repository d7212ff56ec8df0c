"""Statistical assertions, with the probability that a correct engine fails them."""

import numpy as np
from scipy.stats import t


def assert_agrees(samples, expected, standard_errors, what="the mean"):
    """The mean of independent samples (sample, *shape) equals ``expected`` within its error.

    The error is the spread of the samples. A correct engine fails in a share
    ``false_alarm_rate(standard_errors, number of entries, samples)`` of seeds.
    """
    samples = np.asarray(samples, np.float64).reshape(len(samples), -1)
    expected = np.broadcast_to(expected, np.shape(expected)).ravel()
    error = samples.std(0, ddof=1) / np.sqrt(len(samples))
    distance = np.abs(samples.mean(0) - expected) / error
    assert distance.max() < standard_errors, (
        f"{what} {samples.mean(0)} is {distance.max():.1f} standard errors from the exact {expected}"
    )


def false_alarm_rate(standard_errors, num_entries, num_samples):
    """Bound the share of seeds at which ``assert_agrees`` fails though nothing is wrong."""
    return float(2 * num_entries * t.sf(standard_errors, num_samples - 1))


def second_moments(positions):
    """Mean over draws of w wᵀ: (chain, draw, d) ↦ the upper triangle, (chain, d(d + 1)/2)."""
    moments = np.einsum("ctj,ctk->cjk", positions, positions) / positions.shape[1]
    return upper_triangle(moments)


def upper_triangle(matrices):
    """The distinct entries of symmetric matrices: (*batch, d, d) ↦ (*batch, d(d + 1)/2)."""
    rows, columns = np.triu_indices(np.shape(matrices)[-1])
    return np.asarray(matrices)[..., rows, columns]
