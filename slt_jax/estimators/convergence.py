"""R-hat and effective sample size, through blackjax."""

import math
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float


class Convergence(NamedTuple):
    """Rank-normalised split R-hat and bulk effective sample size (Vehtari et al. 2021)."""

    r_hat: float
    ess_bulk: float


@jax.jit
def _diagnose(gap: Float[Array, "chain draw"]) -> tuple[Array, Array]:
    from blackjax.diagnostics import ess_bulk, rhat

    return rhat(gap), ess_bulk(gap)


def convergence(gap: Float[np.ndarray, "chain draw"]) -> Convergence:
    """Compare chains with each other and with their own halves.

    Chains that share minibatches or start at one point look more alike than they are: a small
    R-hat then proves nothing (definition D5).

    Args:
        gap: the paired gap, any unit.

    Returns:
        NaN for both below 4 draws, or if no value ever changes.
    """
    if gap.shape[1] < 4 or np.ptp(gap) == 0:
        return Convergence(math.nan, math.nan)
    # Ranks do not depend on the scale, and float32 keeps them best near one.
    scaled = ((gap - gap.mean()) / gap.std()).astype(np.float32)
    # blackjax divides integers by floats, which strict promotion refuses.
    with jax.numpy_dtype_promotion("standard"):
        r_hat, bulk = jax.device_get(_diagnose(jax.device_put(scaled)))
    return Convergence(float(r_hat), float(bulk))
