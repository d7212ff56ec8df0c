import numpy as np
import pytest

from . import simulation
from ._types import Array
from .discrete_laws import stationary_covariance
from .gaussian_regression import (
    LinearRegression,
    loss_covariance,
    posterior,
    random_regression,
)
from .gradient_noise import GradientNoise, finite_population_noise, no_noise
from .linear_chains import Quadratic, sgld_chain

SCALES = np.array([1.5, 0.5])


@pytest.fixture(name="regression")
def small_regression() -> LinearRegression:
    return random_regression(np.random.default_rng(0), 6, SCALES, noise_scale=0.7)


def test_losses_without_a_noise_scale_are_half_squares():
    regression = LinearRegression(np.array([[1.0, 2.0]]), np.array([4.0]))
    assert regression.losses(np.array([1.0, 1.0])) == pytest.approx([0.5])


def test_gradients_and_hessians_are_derivatives_of_the_losses(regression: LinearRegression):
    w, step = np.array([0.3, -1.2]), 1e-5
    for axis, shift in enumerate(step * np.eye(2)):
        slope = (regression.losses(w + shift) - regression.losses(w - shift)) / (2 * step)
        np.testing.assert_allclose(regression.gradients(w)[:, axis], slope, rtol=1e-6, atol=1e-8)
        bend = (regression.gradients(w + shift) - regression.gradients(w - shift)) / (2 * step)
        np.testing.assert_allclose(regression.hessians[:, axis], bend, rtol=1e-6, atol=1e-8)


def test_mean_hessian_and_gradient_covariance(regression: LinearRegression):
    np.testing.assert_allclose(regression.hessian, regression.hessians.mean(0), rtol=1e-12)
    gradients = regression.gradients(regression.optimum)
    np.testing.assert_allclose(gradients.mean(0), 0.0, atol=1e-12)
    expected = np.cov(gradients.T, bias=True)
    np.testing.assert_allclose(regression.gradient_covariance, expected, rtol=1e-10)


def test_a_silent_input_lowers_the_rank():
    regression = random_regression(np.random.default_rng(1), 20, np.array([1.0, 0.0, 2.0]))
    assert np.linalg.matrix_rank(regression.hessian) == 2
    assert regression.optimum[1] == 0.0


def test_posterior_density_is_the_tempered_localized_one(regression: LinearRegression):
    n_beta, localization, center = 12.0, 3.0, np.array([0.4, 0.1])
    mean, covariance = posterior(regression, n_beta, localization, center)
    precision = np.linalg.inv(covariance)

    def potential(w: Array) -> float:
        prior = 0.5 * localization * np.sum((w - center) ** 2)
        return float(n_beta * regression.losses(w).mean() + prior)

    for w in np.random.default_rng(2).standard_normal((5, 2)):
        exponent = 0.5 * (w - mean) @ precision @ (w - mean)
        assert potential(w) - potential(mean) == pytest.approx(exponent, rel=1e-10)


def test_posterior_about_the_optimum_is_centred_there(regression: LinearRegression):
    mean, _ = posterior(regression, 12.0, 3.0)
    np.testing.assert_allclose(mean, regression.optimum, atol=1e-12)


def test_loss_covariance_against_draws(regression: LinearRegression):
    mean, covariance = posterior(regression, 6.0, 2.0, np.zeros(2))
    rng = np.random.default_rng(3)
    draws = rng.multivariate_normal(mean, covariance, size=200_000)
    losses = np.stack([regression.losses(w) for w in draws[:50_000]])
    centred = losses - losses.mean(0)
    expected = loss_covariance(regression, mean, covariance)
    # 21 distinct entries at 4.5 standard errors: fails by chance in 1.4e-4 of seeds.
    simulation.assert_second_moment(centred, expected)


def test_loss_covariance_is_the_derivative_in_the_example_weights(regression: LinearRegression):
    # d E[ℓ_j]/dβ_i = −(nβ/n) Cov(ℓ_i, ℓ_j): weight example i by 1 + β and refit.
    n_beta, localization, center = 6.0, 2.0, np.zeros(2)
    mean, covariance = posterior(regression, n_beta, localization, center)
    expected = -(n_beta / 6) * loss_covariance(regression, mean, covariance)
    step = 1e-5
    for example in range(6):
        up, down = (
            _mean_losses(regression, n_beta, localization, center, example, 1 + sign * step)
            for sign in (1, -1)
        )
        np.testing.assert_allclose((up - down) / (2 * step), expected[example], rtol=1e-6)


def test_minibatch_sgld_on_real_subsets(regression: LinearRegression):
    # Unlike curvatures and noisy gradients at once; three entries at 4.5 standard errors
    # fail by chance in 2e-5 of seeds.
    target = Quadratic(regression.hessian, n_beta=12.0, localization=4.0)
    gradients = regression.gradients(regression.optimum)
    noise = finite_population_noise(regression.hessians, gradients, batch_size=2)
    rng = np.random.default_rng(4)
    error = simulation.subset_error(regression.hessians, gradients, 2, rng)
    draws = simulation.run_sgld(target, np.full(2, 0.04), error, 30_000, 100, rng)
    chain = sgld_chain(target, 0.04)
    law = stationary_covariance(chain, noise)
    simulation.assert_second_moment(draws, law)
    # Both parts of the noise must matter, or the comparison says nothing about them.
    additive = stationary_covariance(chain, GradientNoise(noise.additive))
    assert law[0, 0] > 1.15 * additive[0, 0]
    assert additive[0, 0] > 1.15 * stationary_covariance(chain, no_noise(2))[0, 0]


def test_noiseless_loss_scale_is_refused():
    with pytest.raises(ValueError, match="noise_scale"):
        random_regression(np.random.default_rng(0), 5, SCALES, noise_scale=0.0)


def _mean_losses(
    regression: LinearRegression,
    n_beta: float,
    localization: float,
    center: Array,
    example: int,
    weight: float,
) -> Array:
    """E[ℓ_j] when one example's loss is weighted, shape (N,)."""
    root = np.ones(len(regression.targets))
    root[example] = np.sqrt(weight)
    weighted = LinearRegression(
        regression.inputs * root[:, None], regression.targets * root, regression.noise_scale
    )
    mean, covariance = posterior(weighted, n_beta, localization, center)
    spread = np.einsum("ni,ij,nj->n", regression.inputs, covariance, regression.inputs)
    return regression.losses(mean) + spread / (2 * regression.noise_scale**2)
