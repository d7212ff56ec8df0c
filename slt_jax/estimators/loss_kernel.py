"""The loss kernel: how the losses of examples move together over the posterior, and its map."""

import dataclasses
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from jaxtyping import Float

from slt_jax._types import ChainKey
from slt_jax.data import Batches
from slt_jax.estimators.chains import component_number, count_of_chains, live_chains
from slt_jax.estimators.influence import bif_from
from slt_jax.estimators.influence_result import BIFResult
from slt_jax.estimators.loss_traces import add_observables, traced_losses
from slt_jax.estimators.trace_size import announce_traces
from slt_jax.estimators.verdict import Verdict
from slt_jax.kernels.base import AbstractKernel
from slt_jax.posterior import LocalPosterior
from slt_jax.recording import keep, surviving
from slt_jax.run import Run, SampleOptions, kept_in
from slt_jax.sampling import sample
from slt_jax.validation import check_arguments, check_loss

_MAP_BLOCK = 1024


@dataclasses.dataclass(frozen=True)
class LossKernel:
    """The covariance of the losses of examples over the local posterior, a kernel on the data.

    Equation: K_ij = Cov(ℓ_i, ℓ_j) in nats², or their correlation if ``normalized`` ("The Loss
    Kernel", arXiv 2509.26537). Both are positive semidefinite up to rounding: they are sums over
    draws and batches of draws of products. An example that is hard to fit has a large
    ``self_influence``; examples that the network treats alike are close on the map.

    Attributes:
        influence: the same matrix as influence of the examples on each other, with its errors,
            partial correlations, diagnostics and labels.
    """

    influence: BIFResult

    @property
    def matrix(self) -> Float[np.ndarray, "example other"]:
        """The correlation if normalized, the covariance in nats² if not."""
        own = self.influence
        return own.correlation if own.normalized else own.covariance

    @property
    def standard_error(self) -> Float[np.ndarray, "example other"]:
        """Of ``matrix``; 0 on the diagonal of a correlation."""
        return self.influence.standard_error

    @property
    def self_influence(self) -> Float[np.ndarray, " example"]:
        """Var(ℓ_i) in nats²: large for examples that only a few weights hold, mislabelled ones."""
        return np.diagonal(self.influence.covariance)

    @property
    def verdict(self) -> Verdict:
        """The gravest finding, or ok."""
        return self.influence.verdict

    def data_map(self, num_axes: int = 2, labels: Any = None) -> Any:
        """Place the examples in a plane: classical scaling of the kernel, that is its PCA.

        Distances in all axes together are those of the kernel, |x_i − x_j|² = K_ii + K_jj − 2K_ij.

        Args:
            num_axes: leading axes to give.
            labels: one per row, carried along as a coordinate.

        Returns:
            ``xarray.Dataset``: coordinate (example, axis), explained_share (axis), and the
            coordinates sequence, position and label of the examples; NaN where a loss never varied.

        Raises:
            ValueError: labels of another length, or fewer varying examples than axes.
        """
        import xarray

        own = self.influence
        names = {"sequence": own.train_sequence, "position": own.train_position}
        if labels is not None:
            names["label"] = np.asarray(labels)
            if len(names["label"]) != len(own.train_sequence):
                raise ValueError(
                    f"labels must have one entry per row: expected {len(own.train_sequence)}, got "
                    f"{len(names['label'])}"
                )
        placed, shares = _scale(self.matrix, num_axes)
        unit = "1" if own.normalized else "nats"
        return xarray.Dataset(
            {
                "coordinate": (("example", "axis"), placed, {"units": unit}),
                "explained_share": ("axis", shares, {"units": "1"}),
            },
            {name: ("example", values) for name, values in names.items()},
        )

    def to_xarray(self) -> Any:
        """Give an ``xarray.Dataset`` of kernel and standard_error, each (example, other)."""
        renamed = self.influence.to_xarray().rename(train="example", query="other")
        kernel = renamed["correlation" if self.influence.normalized else "covariance"]
        return renamed.drop_vars(["influence", "self_row"]).assign(kernel=kernel)

    def to_tree(self) -> Any:
        """Give an ``xarray.DataTree`` from which ``LossKernel.from_tree`` makes an equal kernel."""
        return self.influence.to_tree()

    @classmethod
    def from_tree(cls, tree: Any) -> "LossKernel":
        """Give back the kernel that ``to_tree`` gave."""
        return cls(BIFResult.from_tree(tree))

    def __str__(self) -> str:
        found = self.influence.diagnostics
        kind = "correlation" if self.influence.normalized else "covariance"
        chains = count_of_chains(self.influence.num_chains)
        return (
            f"loss kernel of {len(self.matrix)} examples, {kind} ({chains}, "
            f"{self.influence.num_draws} draws each, τ {found.autocorrelation_time:.1f} draws; "
            f"verdict: {self.verdict})"
        ) + kept_in(self.influence.metadata)


def _scale(kernel: np.ndarray, num_axes: int) -> tuple[np.ndarray, np.ndarray]:
    """Give the leading principal coordinates ``[row, axis]`` and their shares of the variance."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    rows = np.flatnonzero(np.isfinite(np.diagonal(kernel)))
    size = len(rows)
    if not 1 <= num_axes < size:
        raise ValueError(
            f"a map of {size} varying examples has 1 to {size - 1} axes, not {num_axes}"
        )

    def image(vector: np.ndarray) -> np.ndarray:
        blocks = (rows[first : first + _MAP_BLOCK] for first in range(0, size, _MAP_BLOCK))
        return np.concatenate([kernel[block][:, rows] @ vector for block in blocks])

    def centred(vector: np.ndarray) -> np.ndarray:
        moved = image(vector.ravel() - vector.mean())
        return moved - moved.mean()

    operator: Any = LinearOperator((size, size), matvec=centred)  # pyright: ignore[reportCallIssue]
    # A start of one's own, or the same kernel gives another map every time.
    start = np.random.default_rng(0).normal(size=size)
    values, vectors = eigsh(operator, k=num_axes, which="LA", v0=start)
    values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
    largest = vectors[np.argmax(np.abs(vectors), axis=0), np.arange(num_axes)]
    placed = np.full((len(kernel), num_axes), np.nan)
    placed[rows] = vectors * np.sign(largest) * np.sqrt(values)
    trace = np.diagonal(kernel)[rows].sum() - image(np.ones(size)).mean()
    return placed, values / trace


def loss_kernel(
    posterior: LocalPosterior,
    kernel: AbstractKernel,
    batches: Batches,
    key: ChainKey,
    *,
    examples: Any = None,
    normalize: bool = True,
    per_token: bool = False,
    every: int = 1,
    drop_diverged: bool = False,
    out: str | Path | None = None,
    block_size: int = 1024,
    **options: Unpack[SampleOptions],
) -> LossKernel:
    """Estimate how the losses of examples move together over the local posterior.

    Equation: K_ij = Cov(ℓ_i, ℓ_j), or the correlation ("The Loss Kernel", arXiv 2509.26537).

    Args:
        posterior: loss, w*, nβ (dimensionless), γ (1/weight²) and the weights that move.
        kernel: the sampler, such as ``slt.sgld(1e-5)``.
        batches: minibatches of the data whose posterior is sampled.
        key: one typed threefry key.
        examples: an ``slt.Probe`` or examples; None for all of the sampled data.
        normalize: give the correlation instead of the covariance.
        per_token: one row per position with weight instead of one per example.
        every: measure at every so many draws.
        drop_diverged: leave out chains that became non-finite, with their whole history.
        out: a folder for the matrices, as for ``slt.bif``; None keeps them in memory.
        block_size: rows and columns computed at once.
        **options: as for ``slt.sample``.

    Returns:
        The kernel with its errors, a map of the examples, and a verdict.

    Raises:
        ChainsDiverged, TypeError, ValueError, OSError: see ``slt.bif``.

    >>> import jax, jax.numpy as jnp
    >>> def loss(params, x):
    ...     return 0.5 * jnp.sum((params["w"] - x) ** 2, axis=-1)
    >>> data = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
    >>> posterior = LocalPosterior(loss, {"w": data.mean(0)}, n_beta=20.0, localization=1.0)
    >>> from slt_jax.kernels import sgld
    >>> similar = loss_kernel(posterior, sgld(5e-2), Batches(data, 32), jax.random.key(0),
    ...                       num_draws=200, progress=False)
    >>> similar.matrix.shape, similar.data_map().coordinate.shape
    ((32, 32), (32, 2))
    """
    check_arguments(posterior, kernel, batches, key)
    check_loss(posterior, batches)
    own = {"train": traced_losses(examples, batches, per_token, every)}
    add_observables(options, own, "loss_kernel")
    announce_traces(posterior, batches, own, options, out)
    run = sample(posterior, kernel, batches, key, **options)
    with surviving(run):
        result = loss_kernel_from(
            run,
            normalize=normalize,
            per_token=per_token,
            drop_diverged=drop_diverged,
            out=out,
            block_size=block_size,
        )
    return keep(options.get("store") if out is None else None, result)


def loss_kernel_from(
    run: Run,
    *,
    examples: str = "train",
    component: str | None = None,
    normalize: bool = True,
    per_token: bool = False,
    drop_diverged: bool = False,
    out: str | Path | None = None,
    block_size: int = 1024,
) -> LossKernel:
    """Estimate the loss kernel from a run that kept losses at its draws.

    Args:
        run: as for ``slt.bif_from``.
        examples: the name of an observable of losses.
        component: which one, if the run has several.
        normalize: give the correlation instead of the covariance.
        per_token: one row per position with weight instead of one per example.
        drop_diverged: leave out chains that became non-finite, with their whole history.
        out: a folder for the matrices; None keeps them in memory.
        block_size: rows and columns computed at once.

    Raises:
        ChainsDiverged, ValueError: see ``slt.bif_from``.
    """
    live_chains(run, component_number(run, component), drop_diverged, "loss_kernel_from")
    return LossKernel(
        bif_from(
            run,
            train=examples,
            query=examples,
            component=component,
            normalize=normalize,
            per_token=per_token,
            drop_diverged=drop_diverged,
            out=out,
            block_size=block_size,
        )
    )
