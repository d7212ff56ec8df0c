"""Influence matrices block by block: memory for two blocks of traces, whatever the size."""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from slt_jax.estimators.cross_covariance import CrossCovariance, cross_covariance
from slt_jax.estimators.loss_traces import Rows
from slt_jax.estimators.series import autocovariance_time, drift
from slt_jax.estimators.trace_moments import (
    Batching,
    Standardized,
    batching,
    noise_of_means,
    standardize,
)

_NUM_PROJECTIONS = 16
_PROJECTION_SEED = 20260401
_RESOLVED = 3.0


class Diagnostics(NamedTuple):
    """What says whether the entries of an influence matrix can be trusted.

    Attributes:
        autocorrelation_time: τ in draws, averaged over all rows.
        num_batches: batches of draws that the errors rest on.
        between_share: variance between chains beyond what autocorrelation explains, over the
            variance within, averaged over training rows; NaN for one chain.
        between_ratio: variance between chains over what autocorrelation explains: an F statistic.
        between_limit: the value that ``between_ratio`` exceeds once in 1000 runs by chance.
        drift_share: the variance that a linear drift of the mean training loss makes up.
        drift_ratio: that drift in standard errors.
        resolved: the share of entries with a correlation beyond 3 standard errors.
        num_constant: training and query rows that never changed.
    """

    autocorrelation_time: float
    num_batches: int
    between_share: float
    between_ratio: float
    between_limit: float
    drift_share: float
    drift_ratio: float
    resolved: float
    num_constant: tuple[int, int]


class Matrices(NamedTuple):
    """The entries with their diagnostics."""

    entries: CrossCovariance
    diagnostics: Diagnostics


def influence_matrix(
    train: Rows,
    query: Rows,
    weights: Float[np.ndarray, " draw"],
    *,
    independent: bool,
    symmetric: bool,
    out: Path | None,
    block_size: int,
) -> Matrices:
    """Compute every entry and its error, a block of rows and columns at a time.

    Args:
        train: traces of the training rows.
        query: traces of the query rows; the same as ``train`` if ``symmetric``.
        weights: of the draws.
        independent: whether chains share no minibatches.
        symmetric: compute one half of the matrix and mirror it.
        out: a folder for the matrices, as ``.npy`` files; None for memory.
        block_size: rows and columns of a block.
    """
    total, time, num_constant = _overview(train, query, block_size)
    batches = batching(weights, time, independent)
    common = standardize(total[:, :, None], batches)
    entries = _allocate((len(train), len(query)), out)
    chains, resolved = _Between(), 0
    for rows in _blocks(len(train), block_size):
        x = standardize(train.values[:, :, rows], batches)
        chains.add(x)
        for columns in _blocks(len(query), block_size):
            if symmetric and columns.start < rows.start:
                continue
            same = symmetric and columns == rows
            y = x if same else standardize(query.values[:, :, columns], batches)
            block = cross_covariance(x, y, common, batches, symmetric)
            mirrored = symmetric and not same
            _write(entries, block, rows, columns, mirrored)
            resolved += _count_resolved(block) * (2 if mirrored else 1)
    return Matrices(
        entries,
        Diagnostics(
            autocorrelation_time=time,
            num_batches=batches.counted(len(total)),
            **chains.summary(len(total), batches),
            **_drift(total, float(common.deviation[0])),
            resolved=resolved / (len(train) * len(query)),
            num_constant=num_constant,
        ),
    )


def _drift(total: np.ndarray, deviation: float) -> dict[str, float]:
    """Give the part of a linear drift in the variance of a trace, and its size in errors."""
    tiny = np.finfo(np.float64).tiny
    moved = drift(total.mean(axis=0))
    return {
        "drift_share": (moved.change / max(deviation, tiny)) ** 2 / 12,
        "drift_ratio": abs(moved.change) / max(moved.standard_error, tiny),
    }


def _overview(
    train: Rows, query: Rows, block_size: int
) -> tuple[np.ndarray, float, tuple[int, int]]:
    """Give the sum of all training rows ``[chain, draw]``, τ over all rows, and constant rows.

    Random signs turn many traces into a few with the same average autocovariance.
    """
    rng = np.random.default_rng(_PROJECTION_SEED)
    total = np.zeros(train.values.shape[:2])
    projections = np.zeros((*total.shape, _NUM_PROJECTIONS))
    constant = [0, 0]
    for rows, is_train in ((train, True), (query, False)):
        for block in _blocks(len(rows), block_size):
            values = rows.values[:, :, block].astype(np.float64)
            if is_train:
                total += values.sum(axis=2)
            values -= values.mean(axis=1, keepdims=True)
            deviation = values.std(axis=(0, 1))
            constant[0 if is_train else 1] += int(np.sum(deviation == 0))
            signs = rng.choice([-1.0, 1.0], size=(values.shape[2], _NUM_PROJECTIONS))
            projections += values @ (signs / np.where(deviation > 0, deviation, np.inf)[:, None])
    time = autocovariance_time(np.moveaxis(projections, 1, 2))
    return total, time, (constant[0], constant[1])


def _blocks(size: int, block_size: int) -> Iterator[slice]:
    for first in range(0, size, block_size):
        yield slice(first, min(first + block_size, size))


def _allocate(shape: tuple[int, int], out: Path | None) -> CrossCovariance:
    if out is None:
        return CrossCovariance(*(np.empty(shape, np.float32) for _ in CrossCovariance._fields))
    out.mkdir(parents=True, exist_ok=True)
    files = [out / f"{name}.npy" for name in CrossCovariance._fields]
    try:
        return CrossCovariance(*(_map(file, shape) for file in files))
    except OSError as error:
        for file in files:
            file.unlink(missing_ok=True)
        raise OSError(error.errno, f"{out} has no room for the matrices ({error})") from error


def _map(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """Make a file of a matrix, with room on the disk for all of it.

    Without asking for the room first, a write to a map of a full disk would end the process, and
    what was sampled with it.
    """
    matrix = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return matrix


def _write(
    entries: CrossCovariance, block: CrossCovariance, rows: slice, columns: slice, mirrored: bool
) -> None:
    for matrix, values in zip(entries, block, strict=True):
        matrix[rows, columns] = values
        if mirrored:
            matrix[columns, rows] = values.T
        if isinstance(matrix, np.memmap):
            matrix.flush()


def _count_resolved(block: CrossCovariance) -> int:
    return int(np.sum(np.abs(block.correlation) > _RESOLVED * block.correlation_error))


class _Between:
    """Sums over rows of the variance of chain means, and of what autocorrelation explains of it."""

    def __init__(self):
        self.observed = 0.0
        self.explained = 0.0
        self.num_rows = 0

    def add(self, x: Standardized) -> None:
        self.observed += float(np.sum(x.chain_means**2))
        self.explained += float(np.sum(noise_of_means(x, x, paired=True)))
        self.num_rows += int(np.sum(x.deviation > 0))

    def summary(self, num_chains: int, batches: Batching) -> dict[str, float]:
        from scipy.special import fdtri

        if num_chains < 2 or not self.explained > 0:
            return dict.fromkeys(("between_share", "between_ratio", "between_limit"), math.nan)
        observed = self.observed / (num_chains - 1)
        limit = fdtri(num_chains - 1, num_chains * (batches.num_batches - 1), 1 - 1e-3)
        return {
            "between_share": (observed - self.explained) / self.num_rows,
            "between_ratio": observed / self.explained,
            "between_limit": float(limit),
        }
