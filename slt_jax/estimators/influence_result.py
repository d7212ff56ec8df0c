"""The result of a Bayesian influence estimate, and how it prints, ranks and exports."""

import dataclasses
import json
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from slt_jax.estimators.chains import SINGLE_CHAIN, count_of_chains
from slt_jax.estimators.influence_matrix import Diagnostics
from slt_jax.estimators.influence_verdict import findings
from slt_jax.estimators.verdict import Verdict
from slt_jax.run import kept_in

Matrix = Float[np.ndarray, "train query"]

_UNITS = {
    "covariance": "nats^2",
    "covariance_error": "nats^2",
    "between_covariance": "nats^2",
    "correlation": "1",
    "correlation_error": "1",
    "partial_correlation": "1",
    "partial_correlation_error": "1",
}
_LABELS = ("train_sequence", "train_position", "query_sequence", "query_position")


class Influence(NamedTuple):
    """One entry: the training row, its influence and the standard error of that."""

    train: int
    influence: float
    standard_error: float


@dataclasses.dataclass(frozen=True, eq=False)
class BIFResult:
    """Which training example shapes which output: Bayesian influence, entry by entry.

    Equation: BIF(z_i, φ) = ∂E[φ]/∂β_i = −Cov(ℓ_i, φ) over the localized posterior in which ℓ_i has
    the weight β_i (Kreer et al., arXiv 2509.26544). All covariances are within chains and carry the
    (1 − τ/T) correction. The sign, once: ``covariance`` is Cov(ℓ_i, φ_j); ``influence`` is minus
    that, or the correlation (plus sign) if ``normalized``; ``derivative`` is −(nβ/n)·Cov, the
    change of E[φ_j] per unit of weight on example i. A positive covariance thus means a helpful
    example: more weight on it lowers φ.

    Attributes:
        covariance, covariance_error: Cov(ℓ_i, φ_j) within chains, nats² if φ is a loss.
        between_covariance: covariance of chain means beyond what autocorrelation explains.
        correlation, correlation_error: of ℓ_i and φ_j over draws.
        partial_correlation, partial_correlation_error: given the mean loss of the other training
            examples, the mode that all losses share.
        train_sequence, train_position: which example of ``train`` a row is, and which position of
            it; −1 for an example as a whole.
        query_sequence, query_position: likewise; an entry of the observable, if φ is one.
        self_row: the training row that is the query itself, −1 if there is none, ``[query]``.
        weight_factor: (nβ/n)·(weight of the row)/(mean weight of an example), ``[train]``: minus
            the derivative over the covariance.
        normalized: whether ``influence`` is the correlation.
        num_chains, num_draws, num_dropped: chains and draws per chain used, chains left out.
        n_beta, localization: of the posterior.
        diagnostics: autocorrelation, batches, disagreement of chains, drift.
        metadata: settings, versions and fingerprint of the run.
    """

    covariance: Matrix
    covariance_error: Matrix
    between_covariance: Matrix
    correlation: Matrix
    correlation_error: Matrix
    partial_correlation: Matrix
    partial_correlation_error: Matrix
    train_sequence: Int[np.ndarray, " train"]
    train_position: Int[np.ndarray, " train"]
    query_sequence: Int[np.ndarray, " query"]
    query_position: Int[np.ndarray, " query"]
    self_row: Int[np.ndarray, " query"]
    weight_factor: Float[np.ndarray, " train"]
    normalized: bool
    num_chains: int
    num_draws: int
    num_dropped: int
    n_beta: float
    localization: float
    diagnostics: Diagnostics
    metadata: dict[str, Any]

    @property
    def influence(self) -> Matrix:
        """−Cov(ℓ_i, φ_j), or the correlation if ``normalized``."""
        return self.correlation if self.normalized else -self.covariance

    @property
    def standard_error(self) -> Matrix:
        """Of ``influence``."""
        return self.correlation_error if self.normalized else self.covariance_error

    @property
    def derivative(self) -> Matrix:
        """∂E[φ_j]/∂β_i = −(nβ/n)·Cov(ℓ_i, φ_j), nats per unit weight of example i.

        Taking an example out of the data changes E[φ_j] by minus this, to first order.
        """
        return np.float32(-1) * self.weight_factor[:, None].astype(np.float32) * self.covariance

    @property
    def derivative_error(self) -> Matrix:
        """Of ``derivative``."""
        return self.weight_factor[:, None].astype(np.float32) * self.covariance_error

    @property
    def findings(self) -> tuple[Verdict, ...]:
        """Everything that speaks against the matrix, the gravest first."""
        return findings(self)

    @property
    def verdict(self) -> Verdict:
        """The gravest finding, or ok."""
        return self.findings[0]

    def top(
        self, query: int, k: int = 10, *, harmful: bool = False, include_self: bool = False
    ) -> list[Influence]:
        """Rank the training rows that help a query the most: those with the largest covariance.

        Ranked by the correlation if ``normalized``. Rows without variation are left out.

        Args:
            query: the column.
            k: how many.
            harmful: rank those that harm it the most, with the most negative covariance.
            include_self: keep the training row that is the query itself.

        Raises:
            IndexError: no such column.
            ValueError: k below 1.
        """
        num_queries = self.covariance.shape[1]
        if not -num_queries <= query < num_queries:
            raise IndexError(f"query {query} of {num_queries}: there is none")
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        values = self.correlation if self.normalized else self.covariance
        rank = (1 if harmful else -1) * np.asarray(values[:, query], np.float64)
        if self.self_row[query] >= 0 and not include_self:
            rank[self.self_row[query]] = np.nan
        order = np.argsort(rank, kind="stable")[: int(np.sum(~np.isnan(rank)))][:k]
        sign = 1.0 if self.normalized else -1.0
        return [
            Influence(int(i), sign * float(values[i, query]), float(self.standard_error[i, query]))
            for i in order
        ]

    def __str__(self) -> str:
        rows, columns = self.covariance.shape
        found = self.diagnostics
        kind = "correlation of ℓ_i and φ" if self.normalized else "−Cov(ℓ_i, φ)"
        side = "positive" if self.normalized else "negative"
        lost = f", {self.num_dropped} dropped" if self.num_dropped else ""
        chains = f"{count_of_chains(self.num_chains)}{lost}"
        head = (
            f"BIF {rows} × {columns} ({chains}, {self.num_draws} draws each, "
            f"τ {found.autocorrelation_time:.1f} draws; verdict: {self.verdict})"
        )
        share = (
            f"  {100 * found.resolved:.0f} % of the correlations exceed 3 of their standard errors "
            f"(0.3 % would by chance), from {found.num_batches} batches of draws"
        )
        between = f"between chains {100 * found.between_share:+.1f} % of the variance within them"
        lines = [
            head,
            f"  influence is {kind}: {side} where more weight on the example lowers φ",
            share,
            f"  {SINGLE_CHAIN if self.num_chains == 1 else between}",
            f"  nβ {self.n_beta:.4g}, γ {self.localization:.4g}",
        ]
        lines += [f"  also {finding}" for finding in self.findings[1:]]
        return "\n".join(lines) + kept_in(self.metadata)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BIFResult):
            return NotImplemented
        names = [field.name for field in dataclasses.fields(self)]
        return all(_same(getattr(self, name), getattr(other, name)) for name in names)

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def to_xarray(self) -> Any:
        """Give an ``xarray.Dataset`` of influence and standard_error, each (train, query).

        Beside them stand the covariance, the correlation and the partial correlation with their
        errors, and the covariance between chains; units, settings and diagnostics are attributes.
        """
        dataset = self.to_tree().to_dataset()
        unit = "1" if self.normalized else _UNITS["covariance"]
        meaning = "correlation of l_i and phi" if self.normalized else "-Cov(l_i, phi)"
        described = {"units": unit, "long_name": meaning}
        dims = ("train", "query")
        dataset["influence"] = (dims, self.influence, described)
        dataset["standard_error"] = (dims, self.standard_error, {"units": unit})
        return dataset

    def to_tree(self) -> Any:
        """Give an ``xarray.DataTree`` from which ``BIFResult.from_tree`` makes an equal result."""
        import xarray

        dims = ("train", "query")
        variables: dict[str, Any] = {
            name: (dims, getattr(self, name), {"units": unit}) for name, unit in _UNITS.items()
        }
        variables["self_row"] = ("query", self.self_row)
        variables["weight_factor"] = ("train", self.weight_factor, {"units": "1"})
        coordinates = {name: (name.partition("_")[0], getattr(self, name)) for name in _LABELS}
        attributes = {name: getattr(self, name) for name in _scalars()} | {
            "normalized": int(self.normalized),
            "diagnostics": json.dumps(self.diagnostics._asdict()),
            "metadata": json.dumps(self.metadata),
            "verdict": str(self.verdict),
        }
        return xarray.DataTree(xarray.Dataset(variables, coordinates, attributes))

    @classmethod
    def from_tree(cls, tree: Any) -> "BIFResult":
        """Give back the result that ``to_tree`` gave.

        Raises:
            ValueError: a tree of something else.
        """
        dataset = tree.to_dataset()
        arrays = (*_UNITS, *_LABELS, "self_row", "weight_factor")
        missing = [name for name in arrays if name not in dataset.variables]
        if missing:
            raise ValueError(f"not the tree of a BIFResult: {missing} are missing")
        found = json.loads(dataset.attrs["diagnostics"])
        found["num_constant"] = tuple(found["num_constant"])
        values: dict[str, Any] = {name: dataset[name].values for name in arrays}
        values |= {name: kind(dataset.attrs[name]) for name, kind in _scalars().items()}
        values["normalized"] = bool(dataset.attrs["normalized"])
        values["diagnostics"] = Diagnostics(**found)
        values["metadata"] = json.loads(dataset.attrs["metadata"])
        return cls(**values)


def _scalars() -> dict[str, Any]:
    counts: dict[str, Any] = dict.fromkeys(("num_chains", "num_draws", "num_dropped"), int)
    return counts | dict.fromkeys(("n_beta", "localization"), float)


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, np.ndarray):
        return np.array_equal(first, second, equal_nan=first.dtype.kind == "f")
    if isinstance(first, Diagnostics):
        return repr(first) == repr(second)
    return first == second
