"""Susceptibilities: a matrix component × token with its errors and its control."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from slt_jax.estimators.probes import Entries
from slt_jax.estimators.susceptibility_text import describe
from slt_jax.estimators.verdict import Verdict

_SCALES = {
    "raw": (
        "nats^2",
        "raw χ in nats², with an unknown factor per component: compare tokens, not components",
    ),
    "z-score": ("1", "χ in standard deviations over the tokens of each component, about the mean"),
    "correlation": ("1", "χ over the root mean squares of g and of ℓ̃ − E_full[ℓ̃], at most 1"),
}

_MATRICES = (
    "susceptibility",
    "standard_error",
    "shared_error",
    "control",
    "control_error",
    "covariance",
    "normalizer",
    "control_normalizer",
)
_OF_ENTRIES = ("full_mean", "full_error")
_OF_COMPONENTS = ("observable_mean", "observable_error")
_UNITS = {
    "normalizer": "nats^2",
    "control_normalizer": "nats^2",
    "full_mean": "nats",
    "full_error": "nats",
    "observable_mean": "nats",
    "observable_error": "nats",
    "loss": "nats",
}


class AgainstControl(NamedTuple):
    """How a matrix of susceptibilities compares with its control, component by component.

    ``correlation`` and ``slope`` are those of the regression, with an intercept, of χ̂ on the
    control over the entries of a component, ``[component]``; ``residual`` is what it leaves,
    ``[component, entry]`` in the units of χ̂.
    """

    correlation: Float[np.ndarray, " component"]
    slope: Float[np.ndarray, " component"]
    residual: Float[np.ndarray, "component entry"]


@dataclasses.dataclass(frozen=True, eq=False)
class Susceptibilities:
    """The susceptibility of every component to every token, sequence or data set of the probes.

    Equation: χ̂ = −[Cov_C(g, ℓ̃) + E_C[g](E_C[ℓ̃] − E_full[ℓ̃])] in nats², with g = L − L(w*) and
    ℓ̃ = ℓ_xy − L (Baker et al., arXiv 2504.18274; Elliott & Murfet, arXiv 2605.07970). nβ χ is the
    rate at which E[g] of the component changes when the token replaces sampling data: χ < 0 where
    the component expresses the token, so that more of it lowers the loss, χ > 0 where it holds it
    back. Equal parts of a probe contribute equally: χ of a data set is the mean of its tokens'.

    Attributes:
        components: names, ``[component]``.
        entries: what the columns are: tokens, sequences or data sets.
        susceptibility: χ̂, ``[component, entry]``, in nats² unless scaled.
        standard_error: of χ̂, all of it, from the scatter of batches of draws.
        shared_error: the part of it that comes from the full chain, |E_C[g]| times ``full_error``:
            rank one, so that it looks like a leading principal component with loadings E_C[g].
        control, control_error: χ̂ of the same kernel at nβ = 0, at as many draws; NaN if it was not
            measured.
        covariance: −Cov_C(g, ℓ̃), the part of χ̂ that needs no full chain.
        normalizer, control_normalizer: root mean square of g times that of ℓ̃ − E_full[ℓ̃], nats².
        full_mean, full_error: E_full[ℓ̃] − ℓ̃(w*), ``[entry]`` in nats.
        observable_mean, observable_error: E_C[g], ``[component]`` in nats.
        scale: ``"raw"``, ``"z-score"`` or ``"correlation"``.
        findings: everything that speaks against the estimate, the gravest first.
        metadata: settings, versions and fingerprint.
        coarser: the same by sequence and by data set, with errors of their own.
    """

    components: tuple[str, ...]
    entries: Entries
    susceptibility: Float[np.ndarray, "component entry"]
    standard_error: Float[np.ndarray, "component entry"]
    shared_error: Float[np.ndarray, "component entry"]
    control: Float[np.ndarray, "component entry"]
    control_error: Float[np.ndarray, "component entry"]
    covariance: Float[np.ndarray, "component entry"]
    normalizer: Float[np.ndarray, "component entry"]
    control_normalizer: Float[np.ndarray, "component entry"]
    full_mean: Float[np.ndarray, " entry"]
    full_error: Float[np.ndarray, " entry"]
    observable_mean: Float[np.ndarray, " component"]
    observable_error: Float[np.ndarray, " component"]
    scale: str
    findings: tuple[Verdict, ...]
    metadata: Mapping[str, Any]
    coarser: Mapping[str, "Susceptibilities"]

    @classmethod
    def of_datasets(
        cls,
        values: Mapping[str, Any],
        datasets: Sequence[str],
        *,
        errors: Mapping[str, Any] | None = None,
        n_beta: float,
    ) -> "Susceptibilities":
        """Make the object of numbers from elsewhere, without chains, control or findings.

        Args:
            values: component → χ of every data set, nats².
            datasets: their names.
            errors: component → standard errors; None for 0.
            n_beta: nβ of the chains that they come from.
        """
        matrix = np.asarray(list(values.values()), np.float64)
        error = np.zeros_like(matrix)
        if errors is not None:
            error = np.asarray([errors[name] for name in values], np.float64)
        count, unknown = len(datasets), np.full_like(matrix, np.nan)
        nothing, nowhere = np.full(count, np.nan), np.full(count, -1)
        names = np.asarray(datasets, dtype=np.str_)
        made = dict.fromkeys(_MATRICES, unknown) | {
            "susceptibility": matrix,
            "standard_error": error,
            "shared_error": np.zeros_like(matrix),
        }
        return cls(
            components=tuple(values),
            entries=Entries("dataset", names, nowhere, nowhere, np.ones(count), nothing),
            scale="raw",
            findings=(Verdict("not judged", "the numbers come from elsewhere", ""),),
            metadata={"n_beta": float(n_beta)},
            coarser={},
            **made,
            **dict.fromkeys(_OF_ENTRIES, nothing),
            **dict.fromkeys(_OF_COMPONENTS, unknown[:, 0]),
        )

    @property
    def verdict(self) -> Verdict:
        """The gravest finding, or ok."""
        return self.findings[0]

    def by_sequence(self) -> "Susceptibilities":
        """Give the susceptibility to every sequence: the mean over its tokens."""
        return self._coarse("sequence")

    def by_dataset(self) -> "Susceptibilities":
        """Give the susceptibility to every data set: the mean over its tokens."""
        return self._coarse("dataset")

    def _coarse(self, kind: str) -> "Susceptibilities":
        if self.entries.kind == kind:
            return self
        if kind not in self.coarser:
            raise ValueError(
                f"there is no finer than {self.entries.kind!r} here: a sum over tokens has lost "
                f"them. Take {kind!r} from the matrix by token"
            )
        return self.coarser[kind]

    def z_scored(self) -> "Susceptibilities":
        """Give χ̂ in units of its standard deviation over tokens, about the mean, by component.

        One shift and one scale per component, at the finest resolution there is, serve the coarser
        ones too, so that a data set stays the mean of its tokens. The control is scaled likewise,
        by its own. The error of shift and scale is not in the errors.
        """
        centers, spreads = _affine(self.susceptibility)
        nulls, null_spreads = _affine(self.control)

        def apply(one: Susceptibilities) -> dict[str, Any]:
            return {
                "susceptibility": (one.susceptibility - centers) / spreads,
                "standard_error": one.standard_error / spreads,
                "shared_error": one.shared_error / spreads,
                "covariance": one.covariance / spreads,
                "control": (one.control - nulls) / null_spreads,
                "control_error": one.control_error / null_spreads,
            }

        return self._scaled("z-score", apply)

    def correlation(self) -> "Susceptibilities":
        """Give χ̂/√(E_C[g²] E_C[(ℓ̃ − E_full[ℓ̃])²]), between −1 and 1, entry by entry.

        χ̂ is −E_C[g (ℓ̃ − E_full[ℓ̃])], so that this is the cosine of the angle between the two. The
        error of the normalizer is not in the errors. NaN where the estimate of a mean square, from
        two independent minibatches, is negative, which the printed form says.
        """

        def apply(one: Susceptibilities) -> dict[str, Any]:
            named = ("susceptibility", "standard_error", "shared_error", "covariance")
            scaled = {name: getattr(one, name) / one.normalizer for name in named}
            return scaled | {
                name: getattr(one, name) / one.control_normalizer
                for name in ("control", "control_error")
            }

        return self._scaled("correlation", apply)

    def _scaled(self, scale: str, apply: Any) -> "Susceptibilities":
        if self.scale != "raw":
            raise ValueError(f"already scaled to {self.scale!r}: start from the raw matrix")
        coarser = {
            kind: dataclasses.replace(one, scale=scale, **apply(one))
            for kind, one in self.coarser.items()
        }
        return dataclasses.replace(self, scale=scale, coarser=coarser, **apply(self))

    def against_control(self) -> AgainstControl:
        """Regress χ̂ on the control: what is left was not put there by the localization alone."""
        x = self.control - self.control.mean(axis=1, keepdims=True)
        y = self.susceptibility - self.susceptibility.mean(axis=1, keepdims=True)
        with np.errstate(invalid="ignore", divide="ignore"):
            slope = (x * y).sum(axis=1) / (x * x).sum(axis=1)
            spread = np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))
            correlation = (x * y).sum(axis=1) / spread
        return AgainstControl(correlation, slope, y - slope[:, None] * x)

    def to_xarray(self) -> Any:
        """Give an ``xarray.Dataset`` with units on every variable and provenance in the attributes.

        Dimensions: component, and token, sequence or dataset; coordinates along a token are
        dataset, sequence (row within the probe) and position (index into the row's losses).
        """
        import xarray

        kind, units = self.entries.kind, _SCALES[self.scale][0]
        variables: dict[str, Any] = {}
        for names, dimensions in (
            (_MATRICES, ("component", kind)),
            (_OF_ENTRIES, (kind,)),
            (_OF_COMPONENTS, ("component",)),
        ):
            for name in names:
                own = {"units": _UNITS.get(name, units)}
                variables[name] = (dimensions, getattr(self, name), own)
        for name in ("weight", "loss"):
            own = {"units": _UNITS.get(name, "1")}
            variables[name] = ((kind,), getattr(self.entries, name), own)
        coordinates: dict[str, Any] = {"component": np.asarray(self.components, dtype=np.str_)}
        for name in ("dataset", "sequence", "position"):
            values = getattr(self.entries, name)
            if name == "dataset" or (values >= 0).all():
                coordinates[name] = ((kind,), values)
        return xarray.Dataset(variables, coordinates, self._attributes())

    def _attributes(self) -> dict[str, str]:
        findings = [dataclasses.astuple(finding) for finding in self.findings]
        return {
            "kind": self.entries.kind,
            "scale": self.scale,
            "meaning": _SCALES[self.scale][1],
            "verdict": str(self.verdict),
            "findings": json.dumps(findings, ensure_ascii=False),
            "metadata": json.dumps(dict(self.metadata), ensure_ascii=False),
        }

    def to_tree(self) -> Any:
        """Give an ``xarray.DataTree`` with a node per resolution, for a file.

        Law: ``Susceptibilities.from_tree(chi.to_tree()) == chi``.
        """
        import xarray

        nodes = {one.entries.kind: one.to_xarray() for one in (self, *self.coarser.values())}
        tree = xarray.DataTree.from_dict(nodes)
        tree.attrs["finest"] = self.entries.kind
        return tree

    @classmethod
    def from_tree(cls, tree: Any) -> "Susceptibilities":
        """Give back the object that ``to_tree`` wrote.

        Raises:
            ValueError: a tree that was not made by it.
        """
        finest = tree.attrs.get("finest")
        if finest not in tree.children:
            raise ValueError(
                f"not a tree of susceptibilities: no attribute 'finest' that names one of its "
                f"nodes {list(tree.children)}"
            )
        read = {kind: cls._read(node.to_dataset()) for kind, node in tree.children.items()}
        return dataclasses.replace(read.pop(finest), coarser=read)

    @classmethod
    def _read(cls, dataset: Any) -> "Susceptibilities":
        kind, size = dataset.attrs["kind"], dataset.sizes[dataset.attrs["kind"]]
        columns = {
            name: dataset[name].values if name in dataset.coords else np.full(size, -1)
            for name in ("dataset", "sequence", "position")
        }
        columns["dataset"] = columns["dataset"].astype(np.str_)
        entries = Entries(
            kind, **columns, weight=dataset["weight"].values, loss=dataset["loss"].values
        )
        names = (*_MATRICES, *_OF_ENTRIES, *_OF_COMPONENTS)
        return cls(
            components=tuple(str(name) for name in dataset["component"].values),
            entries=entries,
            scale=dataset.attrs["scale"],
            findings=tuple(Verdict(*parts) for parts in json.loads(dataset.attrs["findings"])),
            metadata=json.loads(dataset.attrs["metadata"]),
            coarser={},
            **{name: dataset[name].values for name in names},
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Susceptibilities):
            return NotImplemented
        plain = ("components", "scale", "findings")
        return (
            all(getattr(self, name) == getattr(other, name) for name in plain)
            and dict(self.metadata) == dict(other.metadata)
            and self.entries.kind == other.entries.kind
            and all(map(np.array_equal, self.entries[1:], other.entries[1:]))
            and all(
                np.array_equal(getattr(self, name), getattr(other, name), equal_nan=True)
                for name in (*_MATRICES, *_OF_ENTRIES, *_OF_COMPONENTS)
            )
            and dict(self.coarser) == dict(other.coarser)
        )

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __str__(self) -> str:
        return describe(self, _SCALES[self.scale][1])


def _affine(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give mean and standard deviation of every component, ``[component, 1]``."""
    return values.mean(axis=1, keepdims=True), values.std(axis=1, keepdims=True)
