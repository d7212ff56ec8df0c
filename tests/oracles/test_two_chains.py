"""The closed form of a susceptibility is the derivative that defines it."""

import numpy as np
import pytest

from .two_chains import Quadratics, perturbed_gap, squared_errors, tempered, two_chains

N_BETA, LOCALIZATION = 30.0, 3.0


@pytest.fixture(scope="module")
def problem():
    """Losses of sampling data and of a data set, around weights that are not the optimum."""
    rng = np.random.default_rng(0)
    weights = rng.standard_normal(5)

    def losses(count: int) -> Quadratics:
        inputs = rng.standard_normal((count, 5))
        return squared_errors(inputs, inputs @ weights + rng.standard_normal(count), weights)

    return losses(40), losses(7)


@pytest.mark.parametrize("moving", [[0], [1, 3], [0, 1, 2, 3, 4]])
def test_susceptibility_is_a_derivative(problem, moving):
    """dE[g]/dh = nβχ, both chains and the partition functions between them included."""
    sampled, probe = problem
    step = 1e-4
    ends = [
        perturbed_gap(sampled, [probe], moving, N_BETA, LOCALIZATION, [sign * step])
        for sign in (1, -1)
    ]
    slope = (ends[0] - ends[1]) / (2 * step)
    answer = two_chains(sampled, probe, moving, N_BETA, LOCALIZATION)
    assert slope == pytest.approx(N_BETA * answer.value.mean(), rel=1e-6)


def test_without_a_second_chain_the_cross_term_vanishes(problem):
    answer = two_chains(*problem, range(5), N_BETA, LOCALIZATION)
    np.testing.assert_allclose(answer.value, answer.covariance, rtol=1e-12)


def test_moments_of_quadratics_agree_with_draws(problem):
    """Means and covariances within 5 errors of 2·10⁵ draws: 1e-5 of seeds fail."""
    sampled, probe = problem
    mean, covariance, _ = tempered(sampled.mean(), N_BETA, LOCALIZATION)
    draws = np.random.default_rng(1).multivariate_normal(mean, covariance, 200_000)

    def values(functions: Quadratics) -> np.ndarray:
        curved = np.einsum("ti,kij,tj->tk", draws, functions.matrices, draws)
        return 0.5 * curved + draws @ functions.slopes.T

    of_probe, of_data = values(probe), values(sampled.mean())
    products = (of_probe - of_probe.mean(0)) * (of_data - of_data.mean())
    for found, exact in (
        (of_probe, probe.expectation(mean, covariance)),
        (products, probe.covariance(sampled.mean(), mean, covariance)),
    ):
        assert np.all(np.abs(found.mean(0) - exact) < 5 * found.std(0) / np.sqrt(len(draws)))
