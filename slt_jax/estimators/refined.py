"""Refined learning coefficients: every component on every data set, in one table."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Unpack

import numpy as np
from jaxtyping import Float

from slt_jax._types import ChainKey
from slt_jax.data import Batches
from slt_jax.estimators.chains import SINGLE_CHAIN, count_of_chains
from slt_jax.estimators.llc import llc_from
from slt_jax.estimators.options import needed_components, of_run
from slt_jax.estimators.result import with_error
from slt_jax.examples import about
from slt_jax.grouping import groups
from slt_jax.kernels.base import AbstractKernel
from slt_jax.posterior import LocalPosterior
from slt_jax.recording import keep
from slt_jax.run import ChainsDiverged, Run, SampleOptions, kept_in, kept_together
from slt_jax.sampling import sample
from slt_jax.validation import check_arguments, check_loss

_NUM_SHOWN = 4
_NUMBERS = (
    "llc",
    "standard_error",
    "degrees_of_freedom",
    "control",
    "control_error",
    "signal",
    "signal_error",
    "init_loss",
    "first_order",
    "r_hat",
    "ess",
    "autocorrelation_time",
    "num_dropped",
)


@dataclasses.dataclass(frozen=True, eq=False)
class RefinedLLC:
    """λ̂(w*; V, q′) of every component V on every data set q′ (Wang et al., arXiv 2410.02984).

    Equation: λ̂ = nβ(E[ℓ_q′(v)] − ℓ_q′(v*)), sampling only v ∈ V, on q′. All are dimensionless;
    losses are in nats. nβ is that of the posterior for all of them, so that they can be compared.

    Attributes:
        components, datasets: names of rows and columns.
        numbers: name → ``[component, dataset]``: llc, standard_error, degrees_of_freedom, control,
            control_error, signal, signal_error, init_loss, first_order, r_hat, ess,
            autocorrelation_time and num_dropped, as in ``slt.LLCResult``.
        per_chain: λ̂ of every chain, ``[component, dataset, chain]``, NaN where it was dropped.
        verdicts: text, ``[component, dataset]``.
        metadata: settings, versions and fingerprints.
    """

    components: tuple[str, ...]
    datasets: tuple[str, ...]
    numbers: Mapping[str, Float[np.ndarray, "component dataset"]]
    per_chain: Float[np.ndarray, "component dataset chain"]
    verdicts: np.ndarray
    metadata: Mapping[str, Any]

    @property
    def llc(self) -> Float[np.ndarray, "component dataset"]:
        """λ̂."""
        return self.numbers["llc"]

    @property
    def standard_error(self) -> Float[np.ndarray, "component dataset"]:
        """The standard error of λ̂, over chain noise and batch order."""
        return self.numbers["standard_error"]

    def to_xarray(self) -> Any:
        """Give an ``xarray.Dataset`` with dimensions component, dataset and chain."""
        import xarray

        grid = ("component", "dataset")
        nats = {"init_loss": "nats", "autocorrelation_time": "draws"}
        variables: dict[str, Any] = {
            name: (grid, values, {"units": nats.get(name, "1")})
            for name, values in self.numbers.items()
        }
        variables["llc_per_chain"] = ((*grid, "chain"), self.per_chain, {"units": "1"})
        variables["verdict"] = (grid, self.verdicts)
        coordinates = {
            "component": np.asarray(self.components, dtype=np.str_),
            "dataset": np.asarray(self.datasets, dtype=np.str_),
        }
        attributes = {"metadata": json.dumps(dict(self.metadata), ensure_ascii=False)}
        return xarray.Dataset(variables, coordinates, attributes)

    def to_tree(self) -> Any:
        """Give an ``xarray.DataTree`` for a file, which ``RefinedLLC.from_tree`` reads."""
        import xarray

        return xarray.DataTree(self.to_xarray())

    @classmethod
    def from_tree(cls, tree: Any) -> "RefinedLLC":
        """Give back the object that ``to_tree`` wrote.

        Raises:
            ValueError: a tree that was not made by it.
        """
        missing = sorted({*_NUMBERS, "llc_per_chain", "verdict"} - set(tree.data_vars))
        if missing:
            raise ValueError(f"not a tree of refined learning coefficients: it lacks {missing}")
        return cls(
            components=tuple(str(name) for name in tree["component"].values),
            datasets=tuple(str(name) for name in tree["dataset"].values),
            numbers={name: tree[name].values for name in _NUMBERS},
            per_chain=tree["llc_per_chain"].values,
            verdicts=tree["verdict"].values.astype(np.str_),
            metadata=json.loads(tree.attrs["metadata"]),
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RefinedLLC):
            return NotImplemented
        return (
            (self.components, self.datasets) == (other.components, other.datasets)
            and dict(self.metadata) == dict(other.metadata)
            and np.array_equal(self.verdicts, other.verdicts)
            and np.array_equal(self.per_chain, other.per_chain, equal_nan=True)
            and all(
                np.array_equal(self.numbers[name], other.numbers[name], equal_nan=True)
                for name in _NUMBERS
            )
        )

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __str__(self) -> str:
        rows = [["", *self.datasets]]
        for number, name in enumerate(self.components):
            cells = zip(self.llc[number], self.standard_error[number], strict=True)
            marks = ["" if text == "ok" else " *" for text in self.verdicts[number]]
            shown = [with_error(*cell) + mark for cell, mark in zip(cells, marks, strict=True)]
            rows.append([name, *shown])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [f"Refined LLC of {len(self.components)} components (rows) by data set (columns)"]
        lines += [
            "  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
            for row in rows
        ]
        told = self.metadata
        lines.append(
            f"  {count_of_chains(told['num_chains'])} × {told['num_draws']} draws; "
            f"nβ {told['n_beta']:.4g}, γ {told['localization']:.4g}"
        )
        if told["num_chains"] == 1:
            lines.append(f"  {SINGLE_CHAIN}")
        found: dict[str, list[str]] = {}
        for (row, column), text in np.ndenumerate(self.verdicts):
            place = f"{self.components[row]} on {self.datasets[column]}"
            found.setdefault(str(text).split(":")[0], []).append(place)
        found.pop("ok", None)
        lines += [
            f"  * {name} ({len(places)} of {self.verdicts.size}): {', '.join(places[:_NUM_SHOWN])}"
            + (", …" if len(places) > _NUM_SHOWN else "")
            for name, places in found.items()
        ]
        return "\n".join(lines) + kept_in(told)


def refined_llc(
    posterior: LocalPosterior,
    kernel: AbstractKernel,
    datasets: Mapping[str, Batches],
    key: ChainKey,
    *,
    trained_on: Collection[str] = (),
    drop_diverged: bool = False,
    surroundings: bool = True,
    **options: Unpack[SampleOptions],
) -> RefinedLLC:
    """Estimate the learning coefficient of every component on every data set.

    Equation: λ̂(w*; V, q′) = nβ(E[ℓ_q′(v)] − ℓ_q′(v*)), v ∈ V, all other weights at w* (Wang et al.,
    arXiv 2410.02984, section 3). Sampling loss and measured loss are both on q′. The same key
    serves all data sets, so that a component has the same noise on each of them: differences
    along a row are more certain than the errors of their terms say.

    Args:
        posterior: loss, w*, nβ (dimensionless, the same for all) and γ (1/weight²).
        kernel: the sampler, one setting for all.
        datasets: name → minibatches of a data set.
        key: one typed threefry key.
        trained_on: names of the data sets that w* was trained on. On others a gradient at w* is
            expected, and not held against the estimate.
        drop_diverged: leave out chains that became non-finite, with their whole history.
        surroundings: measure control, curvature, noise and acceptance for every entry as well:
            about 150 minibatch gradients each.
        **options: as for ``slt.sample``; ``components``, name → restriction, is needed.

    Raises:
        ChainsDiverged: chains became non-finite and ``drop_diverged`` is not set; ``error.result``
            is the table without them.
        TypeError, ValueError: see ``slt.sample``.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from slt_jax.kernels import sgld
    >>> from slt_jax.restriction import Block, Restriction
    >>> def loss(params, x):
    ...     return 0.5 * jnp.sum((params["w"] - x) ** 2, axis=-1)
    >>> data = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    >>> posterior = LocalPosterior(loss, {"w": data.mean(0)}, n_beta=20.0, localization=0.2)
    >>> halves = {name: Restriction([Block("w", (4,), (2,), (start,))])
    ...           for name, start in {"left": 0, "right": 2}.items()}
    >>> table = refined_llc(posterior, sgld(3e-3), {"all": Batches(data, 32)}, jax.random.key(0),
    ...                     components=halves, num_draws=500, surroundings=False, progress=False)
    >>> table.llc.shape
    (2, 1)
    """
    shared: dict[str, Any] = dict(options)
    components = needed_components(shared.pop("components", None))
    _check_datasets(posterior, kernel, datasets, key, trained_on)

    def runs_on(dataset: str, batches: Batches) -> Iterator[Run]:
        for number, piece in enumerate(groups(components)):
            own = of_run(shared, f"{dataset}/components {number}", components=piece)
            yield sample(posterior, kernel, batches, key, **own)

    runs = {dataset: runs_on(dataset, batches) for dataset, batches in datasets.items()}
    found, lost = _found(runs, trained_on, surroundings)
    table = _checked(_table(tuple(components), tuple(datasets), found), lost, drop_diverged)
    return keep(shared.get("store"), table)


def refined_llc_from(
    runs: Mapping[str, Iterable[Run]],
    *,
    trained_on: Collection[str] = (),
    drop_diverged: bool = False,
    surroundings: bool = True,
) -> RefinedLLC:
    """Estimate refined learning coefficients from runs already made, such as those for another use.

    Args:
        runs: name of a data set → the runs on it, which may have several components each; all of
            one posterior and kernel. Read one after the other: a generator need not hold them all.
        trained_on: as for ``slt.refined_llc``.
        drop_diverged: leave out chains that became non-finite, with their whole history.
        surroundings: as for ``slt.refined_llc``.

    Raises:
        ChainsDiverged: chains became non-finite and ``drop_diverged`` is not set; ``error.result``
            is the table without them.
        ValueError: no runs, or names in ``trained_on`` that are not data sets.
    """
    _check_trained_on(runs, trained_on)
    found, lost = _found(runs, trained_on, surroundings)
    names = (*(name for name, _ in found), *(name for run in lost for name in run.components))
    if not names:
        raise ValueError("no component was sampled: give at least one run of components")
    return _checked(_table(tuple(dict.fromkeys(names)), tuple(runs), found), lost, drop_diverged)


def _found(
    runs: Mapping[str, Iterable[Run]], trained_on: Collection[str], surroundings: bool
) -> tuple[dict[tuple[str, str], dict[str, Any]], list[Run]]:
    """Estimate every component of every run that has a live chain; give the runs that lost some."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    lost: list[Run] = []
    for dataset, own in runs.items():
        for run in own:
            lost += [] if run.health.alive.all() else [run]
            for name, alive in zip(run.components, run.health.alive, strict=True):
                if alive.any():
                    refined = dataset not in trained_on
                    found[name, dataset] = _entry(run, name, refined, surroundings)
    return found, lost


def _checked(table: RefinedLLC, lost: list[Run], drop_diverged: bool) -> RefinedLLC:
    """Give the table, or raise if chains were lost that may not be dropped."""
    if lost and (np.isnan(table.llc).any() or not drop_diverged):
        raise _refusal(lost, table)
    return table


def _entry(run: Run, name: str, data_refined: bool, surroundings: bool) -> dict[str, Any]:
    """Estimate one entry and keep what the table needs, but not the run."""
    result = llc_from(
        run,
        component=name,
        data_refined=data_refined,
        drop_diverged=True,
        surroundings=surroundings,
    )
    per_chain = np.full(run.settings.num_chains, np.nan)
    per_chain[run.health.alive[list(run.components).index(name)]] = result.per_chain
    numbers = {field: getattr(result, field) for field in _NUMBERS if field != "llc"}
    return numbers | {
        "llc": result.mean,
        "per_chain": per_chain,
        "verdict": str(result.verdict),
        "metadata": result.metadata,
    }


def _table(
    components: tuple[str, ...],
    datasets: tuple[str, ...],
    found: Mapping[tuple[str, str], Mapping[str, Any]],
) -> RefinedLLC:
    """Arrange the entries; where no chain was left they are NaN."""

    def grid(field: str, missing: Any) -> np.ndarray:
        return np.asarray(
            [
                [found.get((name, dataset), {}).get(field, missing) for dataset in datasets]
                for name in components
            ]
        )

    if not found:
        told, num_chains = {}, 0
    else:
        first = next(iter(found.values()))
        told, num_chains = first["metadata"], first["per_chain"].size
    prints = {entry["metadata"]["fingerprint"] for entry in found.values()}
    dropped = {"components", "num_examples", "fingerprint", "num_params"}
    metadata = {name: value for name, value in told.items() if name not in dropped}
    text = " ".join(sorted(prints)).encode()
    metadata |= kept_together(entry["metadata"] for entry in found.values())
    metadata["fingerprint"] = hashlib.blake2b(text, digest_size=16).hexdigest()
    return RefinedLLC(
        components,
        datasets,
        {field: grid(field, math.nan).astype(np.float64) for field in _NUMBERS},
        grid("per_chain", np.full(num_chains, np.nan)),
        grid("verdict", "diverged: no chain is left").astype(np.str_),
        metadata,
    )


def _refusal(lost: list[Run], table: RefinedLLC) -> ChainsDiverged:
    dead = [
        name
        for run in lost
        for name, alive in zip(run.components, run.health.alive, strict=True)
        if not alive.all()
    ]
    return ChainsDiverged(
        f"chains became non-finite in {', '.join(dict.fromkeys(dead))}: an average over the others "
        "is not an estimate. Lower the step size, raise the localization, or go on without them: "
        "drop_diverged=True, or error.result",
        lost[0],
        table,
    )


def _check_datasets(
    posterior: LocalPosterior,
    kernel: AbstractKernel,
    datasets: Mapping[str, Batches],
    key: ChainKey,
    trained_on: Collection[str],
) -> None:
    if not isinstance(datasets, Mapping) or not datasets:
        raise TypeError(
            'datasets must name at least one, as in {"code": slt.Batches(code, 32)}; got '
            f"{type(datasets).__name__}"
        )
    for name, batches in datasets.items():
        with about(f"data set {name!r}"):
            check_arguments(posterior, kernel, batches, key)
            check_loss(posterior, batches)
    _check_trained_on(datasets, trained_on)


def _check_trained_on(datasets: Mapping[str, Any], trained_on: Collection[str]) -> None:
    if isinstance(trained_on, str) or not set(trained_on) <= set(datasets):
        raise ValueError(
            f"trained_on must be a list of names among {list(datasets)}, got {trained_on!r}"
        )
