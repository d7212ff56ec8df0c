"""The loss kernel: closed form, symmetry, positive semidefiniteness, and the map of the data."""

import functools

import jax
import numpy as np
import pytest
from scipy import stats

import slt_jax as slt
from tests.estimators.influence_regression import (
    BATCHES,
    KERNEL,
    LOSS_COVARIANCE,
    NUM_TRAIN,
    OPTIONS,
    POSTERIOR,
    correlation,
    run,
)

EXACT = LOSS_COVARIANCE[:NUM_TRAIN, :NUM_TRAIN]
OFF_DIAGONAL = ~np.eye(NUM_TRAIN, dtype=bool)


@functools.cache
def kernel(normalize: bool = True, block_size: int = 1024) -> slt.LossKernel:
    return slt.loss_kernel_from(run(), normalize=normalize, block_size=block_size)


@pytest.mark.parametrize("normalize", [True, False])
def test_matrix_is_that_of_the_exact_posterior(normalize):
    """Largest |z| of 1128 pairs below the t quantile of one family in 1e4."""
    found = kernel(normalize)
    exact = correlation(EXACT) if normalize else EXACT
    z = ((found.matrix - exact) / found.standard_error)[np.triu_indices(NUM_TRAIN, 1)]
    assert np.abs(z).max() < stats.t.isf(0.5e-4 / z.size, 200)
    assert 0.6 < np.mean(z**2) < 1.6
    np.testing.assert_allclose(found.self_influence, np.diagonal(EXACT), rtol=0.25)


def test_partial_correlation_leaves_both_examples_out_of_the_mode():
    """Against the inverse of the exact covariance of (ℓ_i, ℓ_j, the sum of all others)."""
    exact = np.ones((NUM_TRAIN, NUM_TRAIN))
    for i, j in zip(*np.nonzero(OFF_DIAGONAL), strict=True):
        picks = np.zeros((3, NUM_TRAIN))
        picks[2] = 1
        picks[2, [i, j]] = 0
        picks[0, i] = picks[1, j] = 1
        precision = np.linalg.inv(picks @ EXACT @ picks.T)
        exact[i, j] = -precision[0, 1] / np.sqrt(precision[0, 0] * precision[1, 1])
    own = kernel().influence
    z = ((own.partial_correlation - exact) / own.partial_correlation_error)[OFF_DIAGONAL]
    assert np.abs(z).max() < stats.t.isf(0.5e-4 / z.size, 200)
    assert 0.6 < np.mean(z**2) < 1.6


def test_kernel_is_symmetric_and_positive_semidefinite():
    tiled = kernel(block_size=10)
    np.testing.assert_array_equal(tiled.matrix, tiled.matrix.T)
    np.testing.assert_allclose(tiled.matrix, kernel().matrix, atol=1e-6)
    np.testing.assert_allclose(np.diagonal(tiled.matrix), 1.0, atol=1e-6)
    assert np.linalg.eigvalsh(tiled.matrix.astype(np.float64)).min() > -1e-5
    assert tiled.influence.diagnostics.resolved == pytest.approx(
        kernel().influence.diagnostics.resolved
    )


@pytest.mark.parametrize("normalize", [True, False])
def test_distances_on_the_map_are_those_of_the_kernel(normalize):
    found = kernel(normalize)
    full = found.data_map(num_axes=NUM_TRAIN - 1)
    placed = full.coordinate.values
    squared = np.sum((placed[:, None] - placed[None]) ** 2, axis=-1)
    diagonal = np.diagonal(found.matrix)
    expected = diagonal[:, None] + diagonal[None] - 2 * found.matrix
    np.testing.assert_allclose(squared, expected, atol=1e-4 * expected.max())
    assert float(full.explained_share.sum()) == pytest.approx(1.0, abs=1e-4)
    plane = found.data_map(labels=np.arange(NUM_TRAIN))
    np.testing.assert_allclose(plane.coordinate, placed[:, :2], atol=1e-4 * np.abs(placed).max())
    assert plane.label.dims == ("example",)


def test_map_refuses_what_it_cannot_place():
    with pytest.raises(ValueError, match="expected 48, got 3"):
        kernel().data_map(labels=[1, 2, 3])
    with pytest.raises(ValueError, match="48 varying examples has 1 to 47 axes, not 48"):
        kernel().data_map(num_axes=48)


def test_one_call_and_its_exports():
    called = slt.loss_kernel(POSTERIOR, KERNEL, BATCHES, jax.random.key(0), **OPTIONS)
    np.testing.assert_allclose(called.matrix, kernel().matrix, atol=1e-4)
    assert slt.LossKernel.from_tree(called.to_tree()) == called
    dataset = called.to_xarray()
    assert dataset.kernel.dims == dataset.standard_error.dims == ("example", "other")
    assert called.verdict.ok
    assert str(called).startswith("loss kernel of 48 examples, correlation (8 chains")
