"""Stationary and transient laws of the discrete samplers on a quadratic loss.

For z' = M z + G e + η (`linear_chains`) the batch is independent of z, so that the second
moment obeys a closed recursion,

    Σ' = M Σ Mᵀ + Q + G (S + V[Σ_ww]) Gᵀ,

exact at any step size. Σ is the law of the state before the step, which is when the loss
gap is taken.
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import solve_discrete_lyapunov

from ._types import Array
from .gradient_noise import GradientNoise, finite_population_factor
from .linear_chains import LinearChain, Quadratic


def stationary_covariance(chain: LinearChain, noise: GradientNoise) -> Array:
    """Covariance of the position at stationarity, the fixed point of the recursion.

    With additive noise it solves Σ = MΣMᵀ + Q + GSGᵀ. With multiplicative noise the
    equation is linear still, (I − M⊗M − (G⊗G) V (P⊗P)) vec Σ = vec(Q + GSGᵀ), where P
    picks w out of the state.

    Args:
        chain: the kernel on its target.
        noise: second moments of the minibatch error.

    Returns:
        Σ_ww, shape (d, d), weight².

    Raises:
        ValueError: the second moment grows without bound at this step size.
    """
    size, d = chain.load.shape
    forcing = chain.injected + chain.load @ noise.additive @ chain.load.T
    if noise.multiplicative is None:
        _require_stable(np.max(np.abs(np.linalg.eigvals(chain.transition))))
        return solve_discrete_lyapunov(chain.transition, forcing)[:d, :d]
    pick = np.eye(d, size)
    growth = np.kron(chain.transition, chain.transition) + (
        np.kron(chain.load, chain.load) @ noise.multiplicative @ np.kron(pick, pick)
    )
    _require_stable(np.max(np.abs(np.linalg.eigvals(growth))))
    solution = np.linalg.solve(np.eye(size**2) - growth, forcing.ravel())
    return solution.reshape(size, size)[:d, :d]


def covariance_after(chain: LinearChain, noise: GradientNoise, steps: int) -> Array:
    """Second moment of the position after a number of steps from `chain.start`.

    For SGLD in one dimension Var(t) = Var_∞ (1 − (1 − εa/2)^{2t}).

    Args:
        chain: the kernel on its target.
        noise: second moments of the minibatch error.
        steps: t ≥ 0.

    Returns:
        E[w_t w_tᵀ], shape (d, d), weight².
    """
    d = chain.load.shape[1]
    moment = chain.start
    for _ in range(steps):
        error = noise.covariance(moment[:d, :d])
        moment = (
            chain.transition @ moment @ chain.transition.T
            + chain.injected
            + chain.load @ error @ chain.load.T
        )
    return moment[:d, :d]


def multiplicative_variance(
    curvatures: ArrayLike,
    n_beta: float,
    localization: float,
    step_size: float,
    batch_size: int,
) -> float:
    """Stationary variance of SGLD on per-example losses ½ h_i w², in closed form.

        Var = 1/[ a (1 − εa/4) − ε (nβ)² f Var(h_i)/4 ],    a = nβ h̄ + γ,

    with f = (1/m)(N − m)/(N − 1), Var(h_i) with divisor N: here the minibatch noise
    vanishes at w* and grows away from it.

    Args:
        curvatures: h_i, shape (N,), nats/weight².
        n_beta: nβ, examples.
        localization: γ, 1/weight².
        step_size: ε, weight².
        batch_size: m.

    Returns:
        The variance, weight².

    >>> round(multiplicative_variance([1.0, 3.0], 10.0, 1.0, 0.01, 1), 6)
    0.050897
    """
    h = np.asarray(curvatures, dtype=float)
    a = n_beta * h.mean() + localization
    spread = finite_population_factor(batch_size, h.size) * h.var()
    return float(1 / (a * (1 - step_size * a / 4) - step_size * n_beta**2 * spread / 4))


def learning_coefficient(covariance: Array, hessian: Array, n_beta: float) -> float:
    """λ̂ = nβ E[L(w) − L(w*)] = ½ nβ tr(HΣ) for a chain of covariance Σ about w*.

    Lau et al., arXiv 2308.12108, on a quadratic loss.

    Args:
        covariance: Σ, shape (d, d), weight².
        hessian: H, shape (d, d), nats/weight².
        n_beta: nβ, examples.
    """
    return float(0.5 * n_beta * np.trace(hessian @ covariance))


def localized_gaussian(eigenvalues: ArrayLike, n_beta: float, localization: float) -> float:
    """λ_γ = ½ Σ nβh_i/(nβh_i + γ): the exact posterior's λ̂ on a quadratic loss.

    It tends to ½ rank H for nβh ≫ γ and to (nβ/2γ) tr H for nβh ≪ γ.

    >>> localized_gaussian([1.0, 0.0], 10.0, 10.0)
    0.25
    """
    scaled = n_beta * np.asarray(eigenvalues, dtype=float)
    return float(0.5 * np.sum(scaled / (scaled + localization)))


def control_variance(localization: float, step_sizes: ArrayLike, steps: ArrayLike) -> Array:
    """Var_i(t) of the nβ = 0 control started at w*: SGLD on the localization alone.

        Var_i(t) = (1 − ρ_i^{2t})/(γ(1 − ε_iγ/4)),    ρ_i = 1 − ε_iγ/2

    Args:
        localization: γ > 0, 1/weight².
        step_sizes: ε_i, scalar or broadcastable against `steps`, weight².
        steps: t, scalar or an array.

    Returns:
        The variances, in the broadcast shape, weight².
    """
    rate = np.asarray(step_sizes, dtype=float) * localization
    decayed = (1 - rate / 2) ** (2 * np.asarray(steps))
    return (1 - decayed) / (localization * (1 - rate / 4))


def gap_shift_after_step(chain: LinearChain, noise: GradientNoise, n_beta: float) -> float:
    """What λ̂ gains if the gap is taken after the step, on the batch that made it.

    The batch's own error e_b has moved the chain along G_w e_b, and its loss carries
    s_bᵀw, so the shift is nβ tr(G_w S): for SGLD −ε (nβ)² tr(DC)/(2m), at m ≪ N. Exact
    where the noise is additive; `noise.multiplicative` must be None.

    Args:
        chain: the kernel on its target.
        noise: additive noise.
        n_beta: nβ, examples.

    Returns:
        The (negative) shift of λ̂, dimensionless.

    Raises:
        ValueError: the noise is multiplicative.
    """
    if noise.multiplicative is not None:
        raise ValueError("expected additive noise: the shift has further terms otherwise")
    d = noise.additive.shape[0]
    return float(n_beta * np.trace(chain.load[:d] @ noise.additive))


def gap_long_run_variance(chain: LinearChain, noise: GradientNoise, target: Quadratic) -> float:
    """σ∞² of the series nβ(L(w_t) − L(w*)): T·SE² of its mean over T draws, T → ∞.

        σ∞² = ½ (nβ)² Σ_{t∈ℤ} tr(H R_t H R_tᵀ),    R_t = Cov(w_t, w_0)

    by Isserlis' theorem, so the minibatch noise must be Gaussian and additive, and the
    gap that of the full loss. Scalar SGLD: ½(nβhΣ)² (1 + ρ²)/(1 − ρ²), ρ = 1 − εa/2.

    Args:
        chain: the kernel on its target.
        noise: additive noise.
        target: the same target.

    Returns:
        σ∞² per draw, dimensionless.

    Raises:
        ValueError: the noise is multiplicative, or the chain has no stationary law.
    """
    if noise.multiplicative is not None:
        raise ValueError("expected additive noise: the states are not Gaussian otherwise")
    _require_stable(np.max(np.abs(np.linalg.eigvals(chain.transition))))
    d, hessian = target.dimension, target.hessian
    forcing = chain.injected + chain.load @ noise.additive @ chain.load.T
    state = solve_discrete_lyapunov(chain.transition, forcing)
    # Σ_{t≥0} R_tᵀHR_t with R_t = P Mᵗ Σ: a second Lyapunov equation instead of a sum.
    observed = np.zeros_like(state)
    observed[:d, :d] = hessian
    summed = solve_discrete_lyapunov(chain.transition.T, observed)
    one_sided = float(np.trace(hessian @ (state @ summed @ state)[:d, :d]))
    same_time = float(np.trace(hessian @ state[:d, :d] @ hessian @ state[:d, :d]))
    return 0.5 * target.n_beta**2 * (2 * one_sided - same_time)


def _require_stable(spectral_radius: float) -> None:
    if not spectral_radius < 1:
        raise ValueError(
            f"the second moment diverges (spectral radius {spectral_radius:.4f} ≥ 1): "
            "take a smaller step size"
        )
