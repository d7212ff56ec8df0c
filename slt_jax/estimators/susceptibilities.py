"""Susceptibilities by two kinds of chains: from a posterior, or from runs already made."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Unpack

import jax

from slt_jax._types import ChainKey
from slt_jax.data import Batches, Probe
from slt_jax.estimators.moments import ProbeGaps, Products, Shifts
from slt_jax.estimators.probes import Probes, join_probes
from slt_jax.estimators.susceptibility_result import Susceptibilities
from slt_jax.estimators.susceptibility_table import Table
from slt_jax.estimators.two_chains import OBSERVABLE
from slt_jax.grouping import groups
from slt_jax.kernels.base import AbstractKernel
from slt_jax.noise import stream_of
from slt_jax.posterior import LocalPosterior
from slt_jax.restriction import Restriction
from slt_jax.run import Run, SampleOptions
from slt_jax.sampling import sample
from slt_jax.validation import check_arguments

FULL_FACTOR = 4
"""How many times as many draws the full chain takes: its error is shared by all components."""


def susceptibilities(
    posterior: LocalPosterior,
    kernel: AbstractKernel,
    batches: Batches,
    key: ChainKey,
    *,
    probes: Mapping[str, Any],
    evaluation: Probe | None = None,
    batches_per_draw: int = 2,
    num_full_draws: int | None = None,
    tokens: bool = True,
    control: bool = True,
    drop_diverged: bool = False,
    **options: Unpack[SampleOptions],
) -> Susceptibilities:
    """Measure how every component responds to more of every token of the probes.

    Equation (Baker et al., arXiv 2504.18274; two chains: Elliott & Murfet, arXiv 2605.07970):

        χ̂^C_xy = −[Cov_C(g, ℓ̃_xy) + E_C[g](E_C[ℓ̃_xy] − E_full[ℓ̃_xy])],

    g = L(w) − L(w*) and ℓ̃_xy = ℓ_xy − L, in nats². Under C only the component moves, under "full"
    all weights of ``posterior`` do. L is measured on fresh minibatches at every draw, g and the L
    inside ℓ̃ on different ones. nβ χ is the rate at which E[g] changes as the token replaces
    sampling data. Nothing is kept draw by draw.

    Args:
        posterior: loss, w*, nβ (dimensionless), γ (1/weight²); its weights are those of the full
            chain.
        kernel: the sampler, one setting for all components.
        batches: the sampling data, which defines L.
        key: one typed threefry key.
        probes: name → ``slt.Probe`` or examples ``[n, ...]``, of one shape, of the kind that the
            loss takes; weights 0 where nothing is predicted.
        evaluation: measure L, both times, on these examples of the sampling data instead.
        batches_per_draw: fresh minibatches per draw, at least 2.
        num_full_draws: draws per full chain; None for 4 times as many as for a component.
        tokens: False keeps sequences and data sets only, which takes less memory.
        control: measure χ̂ without data (nβ = 0) beside it.
        drop_diverged: leave out chains that became non-finite, with their whole history.
        **options: as for ``slt.sample``; ``components``, name → restriction, is needed.

    Returns:
        The matrix component × token with errors, by sequence and data set as well.

    Raises:
        ChainsDiverged: chains became non-finite and ``drop_diverged`` is not set.
        TypeError, ValueError: see ``slt.sample``; probes unlike the sampling data or each other, a
            loss at w* that is not finite on them, too few draws for an error.

    >>> import jax.numpy as jnp
    >>> import numpy as np
    >>> from slt_jax.kernels import sgld
    >>> from slt_jax.restriction import Block
    >>> def loss(params, x):
    ...     return 0.5 * jnp.sum((x - params["w"]) ** 2, axis=(1, 2))
    >>> data = np.random.default_rng(0).normal(size=(32, 2, 3)).astype(np.float32)
    >>> posterior = LocalPosterior(loss, {"w": data.mean(0)}, n_beta=30.0, localization=1.0)
    >>> rows = {f"row {k}": Restriction([Block("w", (2, 3), (1, 3), (k, 0))]) for k in range(2)}
    >>> chi = susceptibilities(
    ...     posterior, sgld(1e-2), Batches(data, 8), jax.random.key(0), components=rows,
    ...     probes={"large": 2 * data[:4], "small": data[4:8]}, num_draws=60, progress=False)
    >>> chi.to_xarray()["susceptibility"].sizes["token"], chi.by_dataset().susceptibility.shape
    (8, (2, 2))
    """
    check_arguments(posterior, kernel, batches, key)
    shared = _own_options(options)
    components = shared.pop("components")
    joined = join_probes(probes, posterior, batches)
    num_draws = shared.setdefault("num_draws", 1000)
    num_full = FULL_FACTOR * num_draws if num_full_draws is None else num_full_draws

    def run(name: str, target: LocalPosterior, own_key: ChainKey, **own: Any) -> Run:
        merged = shared | own
        if merged.get("store") is not None:
            merged["store"] = merged["store"].within(name)
        return sample(target, kernel, batches, own_key, **merged)

    def observing(statistic: Any) -> dict[str, ProbeGaps]:
        measured = (joined.probe, statistic, evaluation, joined.names, joined.counts)
        return {OBSERVABLE: ProbeGaps(*measured, batches_per_draw, tokens)}

    # The full chain has minibatches of its own: its error is independent of the components'.
    own = {"num_draws": num_full, "observables": observing(Shifts(batch_length(num_full)))}
    full_key = jax.random.fold_in(key, stream_of("full chain"))
    table = Table(run("full", posterior, full_key, **own), control, drop_diverged)
    for number, slab in enumerate(groups(components)):
        table.add(run(f"components {number}", posterior, key, components=slab, observables=observing(Products(batch_length(num_draws)))))
    return table.result(tuple(components))


def _own_options(options: Any) -> dict[str, Any]:
    """Give the options as a dictionary, or raise if components are missing or others are taken."""
    found = dict(options)
    components = found.get("components")
    if not components or not isinstance(components, Mapping):
        raise ValueError(
            "name the components to measure: components={name: slt.Restriction(...)}, such as "
            "model.components.heads()"
        )
    for name, restriction in components.items():
        if not isinstance(restriction, Restriction):
            raise TypeError(f"component {name!r} must be an slt.Restriction, got {restriction!r}")
    taken = [name for name in ("observables", "collect") if found.get(name)]
    if taken:
        raise ValueError(
            f"susceptibilities keeps no runs, so that {' and '.join(taken)} would be lost: sample "
            "with slt.sample and observables of slt.susceptibility_observables, and use "
            "slt.susceptibilities_from"
        )
    return found


def batch_length(num_draws: int) -> int:
    """Give the draws per batch from whose scatter errors come: √T, and at least 20 batches.

    Raises:
        ValueError: a single draw, which has no scatter.

    >>> batch_length(200), batch_length(10_000), batch_length(5)
    (10, 100, 1)
    """
    if num_draws < 2:
        raise ValueError(
            f"standard errors come from the scatter of draws: num_draws must be at least 2, and "
            f"100 or more for a verdict of ok; got {num_draws}"
        )
    return max(1, min(math.isqrt(num_draws), num_draws // 20))


def susceptibilities_from(
    full_run: Run,
    component_runs: Run | Iterable[Run],
    *,
    control: bool = True,
    drop_diverged: bool = False,
) -> Susceptibilities:
    """Estimate susceptibilities from runs already made with ``slt.susceptibility_observables``.

    Args:
        full_run: chains of all weights, 4 times as many draws as the others.
        component_runs: chains of components, one run or several; read one after the other, so that
            a generator need not hold them all.
        control: measure χ̂ without data (nβ = 0) beside it, at as many draws.
        drop_diverged: leave out chains that became non-finite, with their whole history.

    Raises:
        ChainsDiverged: chains became non-finite and ``drop_diverged`` is not set, or none is left.
            ``error.result`` is what the others say.
        ValueError: runs without the observables, or with those of other probes.
    """
    table = Table(full_run, control, drop_diverged)
    for run in [component_runs] if isinstance(component_runs, Run) else component_runs:
        table.add(run)
        # A generator need not hold two runs at a time.
        del run
    return table.result()
