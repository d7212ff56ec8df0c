import numpy as np
import pytest
from scipy.integrate import dblquad

from .quadrature import (
    asymptotic,
    localized_crossing,
    norm_power,
    normal_crossing,
    quasi_homogeneous,
    scaled_moments,
)

TEMPERATURES = [30.0, 1e3, 72_382.0, 1e6]


@pytest.mark.parametrize(("n_beta", "expected"), [(30, 0.3136), (1e3, 0.3873), (72_382, 0.4240)])
def test_crossing_on_the_unit_square(n_beta: float, expected: float):
    mean = scaled_moments(normal_crossing([1, 1]), 2, n_beta, half_width=1.0).mean
    assert round(mean, 4) == expected


@pytest.mark.parametrize("n_beta", TEMPERATURES)
def test_crossing_on_the_unit_square_in_closed_form(n_beta: float):
    # Z = √(π/16t) (log t + γ_E + 2 log 2) up to terms of order e^{−t}.
    mean = scaled_moments(normal_crossing([1, 1]), 2, n_beta, half_width=1.0).mean
    log_volume = np.log(n_beta) + np.euler_gamma + 2 * np.log(2)
    assert mean == pytest.approx(0.5 - 1 / log_volume, abs=1e-10)


@pytest.mark.parametrize("n_beta", TEMPERATURES)
@pytest.mark.parametrize("localization", [1e-2, 1.0, 100.0])
def test_localized_crossing_on_the_plane(n_beta: float, localization: float):
    mean = scaled_moments(normal_crossing([1, 1]), 2, n_beta, localization).mean
    assert mean == pytest.approx(localized_crossing(n_beta, localization), abs=1e-10)


@pytest.mark.parametrize("n_beta", [1.0, *TEMPERATURES])
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_powers_on_the_line_are_exact_at_every_temperature(k: int, n_beta: float):
    moments = scaled_moments(quasi_homogeneous([k]), 1, n_beta)
    assert moments.mean == pytest.approx(1 / (2 * k), abs=1e-8)
    assert moments.variance == pytest.approx(1 / (2 * k), abs=1e-7)


@pytest.mark.parametrize("n_beta", [1.0, 1e6])
@pytest.mark.parametrize("exponents", [(1, 1), (1, 2), (2, 3), (4, 1)])
def test_sums_of_powers_on_the_plane(exponents: tuple[int, int], n_beta: float):
    mean = scaled_moments(quasi_homogeneous(exponents), 2, n_beta).mean
    assert mean == pytest.approx(sum(1 / (2 * k) for k in exponents), abs=1e-8)


@pytest.mark.parametrize("dimension", [1, 2])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_powers_of_the_norm(k: int, dimension: int):
    mean = scaled_moments(norm_power(k), dimension, 1e4).mean
    assert mean == pytest.approx(dimension / (2 * k), abs=1e-8)


def test_localized_gaussian_is_shrunk():
    mean = scaled_moments(norm_power(1), 2, 50.0, localization=20.0).mean
    # K = |w|² has the Hessian 2I, and λ_γ = ½ Σ nβh/(nβh + γ).
    assert mean == pytest.approx(100.0 / 120.0, abs=1e-10)


def test_box_and_localization_together_against_adaptive_quadrature():
    n_beta, localization, half_width = 40.0, 3.0, 1.5
    potential = normal_crossing([1, 2])

    def density(y: float, x: float) -> float:
        energy = n_beta * x**2 * y**4 + 0.5 * localization * (x**2 + y**2)
        return float(np.exp(-energy))

    box = (0.0, half_width, 0.0, half_width)
    normalizer = dblquad(density, *box, epsabs=1e-10)[0]
    total = dblquad(lambda y, x: n_beta * x**2 * y**4 * density(y, x), *box, epsabs=1e-10)[0]
    mean = scaled_moments(potential, 2, n_beta, localization, half_width).mean
    assert mean == pytest.approx(total / normalizer, abs=1e-7)


@pytest.mark.parametrize(
    ("exponents", "value", "multiplicity"),
    [((1, 1), 1 / 2, 2), ((1, 2), 1 / 4, 1), ((2, 2), 1 / 4, 2), ((2, 3), 1 / 6, 1)],
)
def test_crossings_tend_to_their_asymptotics(
    exponents: tuple[int, int], value: float, multiplicity: int
):
    errors = []
    for n_beta in (1e2, 1e4, 1e6):
        mean = scaled_moments(normal_crossing(exponents), 2, n_beta, half_width=1.0).mean
        errors.append(abs(mean - asymptotic(value, multiplicity, n_beta)))
        assert mean < value
    # Multiplicity one converges like a power of nβ, multiplicity two like 1/log².
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] * np.log(1e6) ** 2 < 5.0


def test_a_flat_direction_needs_a_prior():
    with pytest.raises(ValueError, match="localization"):
        scaled_moments(normal_crossing([1, 1]), 2, 10.0)


def test_three_dimensions_are_refused():
    with pytest.raises(ValueError, match="dimension"):
        scaled_moments(norm_power(1), 3, 10.0)
