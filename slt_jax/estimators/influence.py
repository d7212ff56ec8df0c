"""Bayesian influence: which training example shapes which output, from the draws of a posterior."""

import dataclasses
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from slt_jax._types import ChainKey
from slt_jax.data import Batches
from slt_jax.estimators.chains import (
    are_independent,
    component_number,
    draw_weights,
    live_chains,
)
from slt_jax.estimators.influence_matrix import influence_matrix
from slt_jax.estimators.influence_result import BIFResult
from slt_jax.estimators.loss_traces import (
    Rows,
    add_observables,
    mean_weight,
    own_rows,
    read_rows,
    traced_losses,
)
from slt_jax.estimators.trace_size import announce_traces, check_num_draws
from slt_jax.kernels.base import AbstractKernel
from slt_jax.observables import AbstractObservable
from slt_jax.posterior import LocalPosterior
from slt_jax.recording import keep, surviving
from slt_jax.run import Run, SampleOptions
from slt_jax.sampling import sample
from slt_jax.statistics import Trace
from slt_jax.validation import check_arguments, check_loss


def bif(
    posterior: LocalPosterior,
    kernel: AbstractKernel,
    batches: Batches,
    key: ChainKey,
    *,
    query: Any,
    train: Any = None,
    normalize: bool = True,
    per_token: bool = False,
    every: int = 1,
    drop_diverged: bool = False,
    out: str | Path | None = None,
    block_size: int = 1024,
    **options: Unpack[SampleOptions],
) -> BIFResult:
    """Estimate the Bayesian influence of training examples on queries.

    Equation: BIF(z_i, φ) = ∂E[φ]/∂β_i = −Cov(ℓ_i, φ) over the local posterior in which ℓ_i has the
    weight β_i (Kreer et al., arXiv 2509.26544); normalized, the correlation of ℓ_i and φ. In the
    limit of small noise it is the damped influence function (``slt.damped_influence``).

    The losses of all examples are kept at every draw, on the host: 8 bytes × chains × draws/every ×
    (train + query rows) while sampling, which is shown before it starts. The matrices are computed
    from them in float64, block by block, and hold 28 bytes per entry.

    Args:
        posterior: loss, w*, nβ (dimensionless), γ (1/weight²) and the weights that move.
        kernel: the sampler, such as ``slt.sgld(1e-5)``.
        batches: minibatches of the data whose posterior is sampled.
        key: one typed threefry key.
        query: the outputs φ: an ``slt.Probe`` or examples, for their losses; or an
            ``slt.Observable`` that gives ``[query]`` numbers, measured as ``every`` says.
        train: an ``slt.Probe`` or examples whose influence is asked for; None for all of the
            sampled data.
        normalize: let ``influence`` be the correlation instead of −Cov.
        per_token: one row per position with weight instead of one per example.
        every: measure at every so many draws.
        drop_diverged: leave out chains that became non-finite, with their whole history.
        out: a folder to which the matrices are written as ``.npy`` files while they are computed;
            the result then maps them into memory. None keeps them in memory.
        block_size: rows and columns computed at once.
        **options: as for ``slt.sample``.

    Returns:
        Covariances, correlations and partial correlations with their errors, and a verdict.

    Raises:
        ChainsDiverged: chains became non-finite and ``drop_diverged`` is not set.
        TypeError, ValueError: see ``slt.sample``; examples that the loss does not take.
        OSError: no room for the matrices on the disk of ``out``, before sampling.
        NotStored: no room for them any more; ``error.run`` is what was sampled.

    >>> import jax, jax.numpy as jnp
    >>> def loss(params, x):
    ...     return 0.5 * jnp.sum((params["w"] - x) ** 2, axis=-1)
    >>> data = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
    >>> posterior = LocalPosterior(loss, {"w": data.mean(0)}, n_beta=20.0, localization=1.0)
    >>> from slt_jax.kernels import sgld
    >>> inf = bif(posterior, sgld(5e-2), Batches(data, 32), jax.random.key(0),
    ...           query=data[:3], num_draws=200, progress=False)
    >>> inf.covariance.shape, inf.top(query=1, k=1, include_self=True)[0].train
    ((32, 3), 1)
    """
    check_arguments(posterior, kernel, batches, key)
    check_loss(posterior, batches)
    own: dict[str, AbstractObservable] = {
        "train": traced_losses(train, batches, per_token, every),
        "query": _query(query, batches, per_token, every),
    }
    add_observables(options, own, "bif")
    announce_traces(posterior, batches, own, options, out)
    run = sample(posterior, kernel, batches, key, **options)
    with surviving(run):
        result = bif_from(
            run,
            normalize=normalize,
            per_token=per_token,
            drop_diverged=drop_diverged,
            out=out,
            block_size=block_size,
        )
    # Matrices that go to a folder of their own are not written a second time.
    return keep(options.get("store") if out is None else None, result)


def _query(query: Any, batches: Batches, per_token: bool, every: int) -> AbstractObservable:
    if query is None:
        raise TypeError("query must be an slt.Probe, examples or an slt.Observable, got None")
    if not isinstance(query, AbstractObservable):
        return traced_losses(query, batches, per_token, every)
    if query.num_fresh:
        raise ValueError(
            f"query must be measured on a fixed probe, {type(query).__name__} draws minibatches: "
            "their noise would be taken for variation of the weights"
        )
    return dataclasses.replace(query, statistic=Trace(), every=every)


def bif_from(
    run: Run,
    *,
    train: str = "train",
    query: str = "query",
    component: str | None = None,
    normalize: bool = True,
    per_token: bool = False,
    drop_diverged: bool = False,
    out: str | Path | None = None,
    block_size: int = 1024,
) -> BIFResult:
    """Estimate the Bayesian influence from a run that kept losses at its draws.

    Args:
        run: from ``slt.sample`` with, for example, ``observables={"train":
            slt.LossValues(train, slt.Trace()), "query": slt.LossValues(query, slt.Trace())}``.
        train: the name of an observable of losses.
        query: the name of an observable of losses or of other numbers; that of ``train`` for the
            influence of the training examples on each other.
        component: which one, if the run has several.
        normalize: let ``influence`` be the correlation instead of −Cov.
        per_token: one row per position with weight instead of one per example.
        drop_diverged: leave out chains that became non-finite, with their whole history.
        out: a folder for the matrices; None keeps them in memory.
        block_size: rows and columns computed at once.

    Raises:
        ChainsDiverged: chains became non-finite and ``drop_diverged`` is not set, or none is left.
        ValueError: no such observable or one that forgets its draws, too few draws for an error,
            an unknown component.
    """
    number = component_number(run, component)
    alive = live_chains(run, number, drop_diverged, "bif_from")
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}")
    rows = read_rows(run, train, number, alive, per_token)
    queries = rows if train == query else read_rows(run, query, number, alive, per_token)
    _check_rows(train, rows, query, queries)
    matrices = influence_matrix(
        rows,
        queries,
        _weights(run, number, alive, train, query)[: rows.values.shape[1]],
        independent=are_independent(run),
        symmetric=train == query,
        out=None if out is None else Path(out),
        block_size=block_size,
    )
    entries = matrices.entries._asdict()
    return BIFResult(
        **entries,
        **_labels(rows, queries, alive),
        self_row=own_rows(run, train, query, rows, queries),
        weight_factor=_weight_factor(run, rows),
        normalized=normalize,
        n_beta=float(run.posterior.n_beta),
        localization=float(run.posterior.localization),
        diagnostics=matrices.diagnostics,
        metadata=dict(run.metadata) | {"every": run.observables[train].every},
    )


def _labels(rows: Rows, queries: Rows, alive: np.ndarray) -> dict[str, Any]:
    """Give what the result says of its rows and columns, chains and draws."""
    return {
        "train_sequence": rows.sequence,
        "train_position": rows.position,
        "query_sequence": queries.sequence,
        "query_position": queries.position,
        "num_chains": rows.values.shape[0],
        "num_draws": rows.values.shape[1],
        "num_dropped": int((~alive).sum()),
    }


def _check_rows(train: str, rows: Rows, query: str, queries: Rows) -> None:
    if not rows.is_loss:
        raise ValueError(
            f"the rows of an influence matrix are losses of training examples: {train!r} must be "
            "an slt.LossValues"
        )
    for name, traces in ((train, rows), (query, queries)):
        if len(traces) == 0:
            raise ValueError(f"{name!r} has no row: all its weights are 0")
        bad = np.flatnonzero(~np.isfinite(traces.values).all(axis=(0, 1)))
        if bad.size:
            raise ValueError(
                f"{name!r} is not finite at some draws for {bad.size} of {len(traces)} rows, the "
                f"first of them example {int(traces.sequence[bad[0]])}: the loss there must be "
                "finite wherever the chains go, masked or not"
            )
    check_num_draws(rows.values.shape[1])


def _weights(run: Run, number: int, alive: np.ndarray, train: str, query: str) -> np.ndarray:
    """Give the weights of the draws at which both were measured."""
    first, second = run.observables[train].every, run.observables[query].every
    if first != second:
        raise ValueError(
            f"{train!r} is measured every {first} draws and {query!r} every {second}: a covariance "
            "needs both at the same draws"
        )
    return draw_weights(run, number, alive)[::first]


def _weight_factor(run: Run, rows: Rows) -> np.ndarray:
    """Give −∂E[φ]/∂β_i over Cov(ℓ_i, φ): the coefficient of ℓ_i in nβ L_n."""
    n_beta = float(run.posterior.n_beta)
    return n_beta / run.batches.num_examples * rows.weight / mean_weight(run)
