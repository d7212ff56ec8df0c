from functools import reduce
from itertools import pairwise

import numpy as np
import pytest

from ._types import Array
from .teachers import partial_isometry


@pytest.mark.parametrize(
    ("widths", "rank"), [([5, 4, 6], 3), ([3, 3, 3, 3], 1), ([4, 2], 0), ([2, 7, 2], 2)]
)
def test_every_partial_product_is_an_isometry_of_the_rank(widths: list[int], rank: int):
    layers = partial_isometry(widths, rank, np.random.default_rng(0))
    shapes = [(upper, lower) for lower, upper in pairwise(widths)]
    assert [layer.shape for layer in layers] == shapes
    for first in range(len(layers)):
        for last in range(first + 1, len(layers) + 1):
            span = reduce(lambda below, layer: layer @ below, layers[first:last])
            values = np.linalg.svd(span, compute_uv=False)
            np.testing.assert_allclose(values[:rank], 1.0, atol=1e-12)
            np.testing.assert_allclose(values[rank:], 0.0, atol=1e-12)


def test_frames_are_uniform():
    # E[W] = 0 and E[W_ij²] = r/(H_0 H_1) for uniform frames; 12 entries of two moments
    # within 4.5 standard errors fail by chance in 2e-4 of seeds.
    rng = np.random.default_rng(1)
    draws = np.stack([partial_isometry([3, 4], 2, rng)[0] for _ in range(4000)])
    assert _standard_errors(draws, 0.0).max() < 4.5
    assert _standard_errors(draws**2, 2 / 12).max() < 4.5


def test_rank_beyond_a_width_is_refused():
    with pytest.raises(ValueError, match="rank"):
        partial_isometry([4, 2, 4], 3, np.random.default_rng(0))


def _standard_errors(draws: Array, expected: float) -> Array:
    error = draws.std(0, ddof=1) / np.sqrt(len(draws))
    return np.abs(draws.mean(0) - expected) / error
