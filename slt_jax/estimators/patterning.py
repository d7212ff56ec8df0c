"""Patterning: which data to up- or down-weight so that the observables of components move."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from slt_jax.estimators.probes import Entries
from slt_jax.estimators.susceptibility_result import Susceptibilities

_NUM_SHOWN = 5
_SMALLEST = 1e-12


@dataclasses.dataclass(frozen=True, eq=False)
class Patterning:
    """A change of the data, and the change of E[g] that it is predicted to bring.

    Equation: dμ = R dh and dh = R† dμ (Wang & Murfet, arXiv 2601.13548), with R = nβχ: to first
    order in h, replacing a share dh_j of the sampling data by entry j changes E[g] of component C
    by Σ_j nβχ_Cj dh_j. A negative share takes away.

    Attributes:
        components, entries: the rows and columns of χ.
        target: dμ, ``[component]``, in nats for raw χ and in units of χ if it is scaled.
        change: dh, ``[entry]``, as shares of the sampling data.
        standard_error: of ``change``, from the errors of χ, its shared error included.
        predicted, predicted_error: R dh for this change, ``[component]``, in units of the target.
            The prediction rests on the same χ as the change and flatters it.
        expected: R dh averaged over changes made from χ with fresh errors: what to hope for.
        singular_values: of R, the largest first.
        ridge: what was added to the squared singular values; 0 for a truncated inverse.
        rank: how many singular directions were used.
    """

    components: tuple[str, ...]
    entries: Entries
    target: Float[np.ndarray, " component"]
    change: Float[np.ndarray, " entry"]
    standard_error: Float[np.ndarray, " entry"]
    predicted: Float[np.ndarray, " component"]
    predicted_error: Float[np.ndarray, " component"]
    expected: Float[np.ndarray, " component"]
    singular_values: Float[np.ndarray, " rank"]
    ridge: float
    rank: int
    scale: str

    def to_xarray(self) -> Any:
        """Give an ``xarray.Dataset`` with dimensions component and token, sequence or dataset."""
        import xarray

        kind, units = self.entries.kind, "nats" if self.scale == "raw" else "1"
        variables: dict[str, Any] = {
            name: (("component",), getattr(self, name), {"units": units})
            for name in ("target", "predicted", "predicted_error", "expected")
        }
        variables |= {
            name: ((kind,), getattr(self, name), {"units": "share of the sampling data"})
            for name in ("change", "standard_error")
        }
        variables["singular_values"] = (("direction",), self.singular_values, {"units": units})
        coordinates: dict[str, Any] = {"component": np.asarray(self.components, dtype=np.str_)}
        for name in ("dataset", "sequence", "position"):
            values = getattr(self.entries, name)
            if name == "dataset" or (values >= 0).all():
                coordinates[name] = ((kind,), values)
        attributes = {"ridge": self.ridge, "rank": self.rank, "scale": self.scale}
        return xarray.Dataset(variables, coordinates, attributes)

    def __str__(self) -> str:
        how = f"ridge {self.ridge:.3g}" if self.ridge else f"rank {self.rank}"
        norm = float(np.linalg.norm(self.target))
        miss = float(np.linalg.norm(self.expected - self.target))
        head = f"Patterning of {len(self.components)} components by {self.change.size} "
        head += f"{self.entries.kind}s ({how}): expected to miss {100 * miss / norm:.0f} % of the "
        lines = [head + "target"]
        order = np.argsort(self.change).tolist()
        for word, chosen in (("more of", order[::-1]), ("less of", order)):
            shown = [self._entry(number) for number in chosen[:_NUM_SHOWN]]
            lines.append(f"  {word}: " + "; ".join(shown))
        return "\n".join(lines)

    def _entry(self, number: int) -> str:
        place = [self.entries.dataset[number]]
        place += [
            f"{word} {value[number]}"
            for word, value in (("row", self.entries.sequence), ("position", self.entries.position))
            if value[number] >= 0
        ]
        return (
            f"{', '.join(place)} ({self.change[number]:+.3g} ± {self.standard_error[number]:.1g})"
        )


def patterning(
    chi: Susceptibilities,
    target: Mapping[str, float] | Float[np.ndarray, " component"],
    *,
    ridge: float | None = None,
    rank: int | None = None,
    num_resamples: int = 200,
    seed: int = 0,
) -> Patterning:
    """Find the least change of the data that moves the observables of components as asked for.

    Equation: dh = Rᵀ(RRᵀ + λ)⁻¹ dμ, R = nβχ (ridge), or dh = Σ_{k ≤ r} v_k u_kᵀdμ/s_k over the
    largest r singular values of R (truncated pseudo-inverse) (Wang & Murfet, arXiv 2601.13548).
    Errors of χ are propagated by drawing it again: every entry with its own error, and the error of
    the full chain with one number per entry for all components.

    Args:
        chi: by token, sequence or data set; raw or scaled.
        target: dμ, name → change of E[g], 0 for the components left out; in nats for raw χ,
            otherwise in units of the scaled χ.
        ridge: λ ≥ 0, in squared units of R. If neither this nor ``rank`` is given, λ is the part of
            RRᵀ that the errors of χ contribute, on average over components.
        rank: r ≥ 1, the number of singular directions, instead of a ridge.
        num_resamples: how often χ is drawn again.
        seed: of these draws.

    Raises:
        ValueError: unknown components, both a ridge and a rank, values out of range, a χ that is
            not finite.

    >>> chi = Susceptibilities.of_datasets(
    ...     {"l0h0": [1.0, 0.0], "l0h1": [0.0, 1.0]}, ["code", "prose"], n_beta=10.0)
    >>> result = patterning(chi, {"l0h0": 0.1}, ridge=0.0)
    >>> result.change.round(6).tolist(), result.predicted.round(6).tolist()
    ([0.01, 0.0], [0.1, 0.0])
    """
    response, own, shared = _responses(chi)
    goal = _target(chi, target)
    if ridge is None and rank is None:
        ridge = float(np.mean(np.sum(own**2 + shared**2, axis=1)))
    _check_inverse(ridge, rank, response.shape)
    change = _inverse(response, goal, ridge, rank)
    generator = np.random.default_rng(seed)
    resampled = np.stack(
        [
            _inverse(_drawn_again(generator, response, own, shared), goal, ridge, rank)
            for _ in range(num_resamples)
        ]
    )
    singular_values = np.linalg.svd(response, compute_uv=False)
    return Patterning(
        components=chi.components,
        entries=chi.entries,
        target=goal,
        change=change,
        standard_error=resampled.std(axis=0, ddof=1),
        predicted=response @ change,
        predicted_error=np.hypot(np.sqrt(own**2 @ change**2), np.sqrt(shared**2 @ change**2)),
        expected=response @ resampled.mean(axis=0),
        singular_values=singular_values,
        ridge=0.0 if ridge is None else float(ridge),
        rank=int(rank or np.sum(singular_values > _SMALLEST * singular_values[0])),
        scale=chi.scale,
    )


def _responses(chi: Susceptibilities) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give R with its own and its shared errors, ``[component, entry]``."""
    factor = float(chi.metadata["n_beta"]) if chi.scale == "raw" else 1.0
    own = np.sqrt(np.maximum(chi.standard_error**2 - chi.shared_error**2, 0))
    if not np.all(np.isfinite(chi.susceptibility)) or not np.all(np.isfinite(own)):
        lost = [
            name
            for name, values in zip(chi.components, chi.susceptibility + own, strict=True)
            if not np.isfinite(values).all()
        ]
        raise ValueError(f"the susceptibilities of {lost} or their errors are not finite")
    return factor * chi.susceptibility, factor * own, factor * chi.shared_error


def _target(chi: Susceptibilities, target: Any) -> np.ndarray:
    if isinstance(target, Mapping):
        unknown = sorted(set(target) - set(chi.components))
        if unknown:
            raise ValueError(f"unknown components {unknown}: there are {list(chi.components)}")
        goal = np.asarray([target.get(name, 0.0) for name in chi.components], np.float64)
    else:
        goal = np.asarray(target, np.float64)
    if goal.shape != (len(chi.components),) or not np.isfinite(goal).all() or not goal.any():
        raise ValueError(
            f"target must give {len(chi.components)} finite numbers, one per component and not "
            f"all 0, got {goal}"
        )
    return goal


def _check_inverse(ridge: float | None, rank: int | None, shape: tuple[int, int]) -> None:
    if (ridge is None) == (rank is None):
        raise ValueError("give a ridge or a rank, not both")
    if ridge is not None and not ridge >= 0:
        raise ValueError(f"ridge must be at least 0, got {ridge}")
    if rank is not None and not 1 <= rank <= min(shape):
        raise ValueError(f"rank must be between 1 and {min(shape)}, got {rank}")


def _inverse(
    response: np.ndarray, goal: np.ndarray, ridge: float | None, rank: int | None
) -> np.ndarray:
    """Give R† dμ by the eigenvectors of RRᵀ, which is small where there are many entries."""
    values, vectors = np.linalg.eigh(response @ response.T)
    if rank is not None:
        kept = np.argsort(values)[-rank:]
        values, vectors, ridge = values[kept], vectors[:, kept], 0.0
    damped = values + (ridge or 0.0)
    usable = damped > _SMALLEST * damped.max()
    weights = np.divide(vectors.T @ goal, damped, out=np.zeros_like(damped), where=usable)
    return response.T @ (vectors @ weights)


def _drawn_again(
    generator: np.random.Generator, response: np.ndarray, own: np.ndarray, shared: np.ndarray
) -> np.ndarray:
    common = generator.standard_normal(response.shape[1])
    return response + own * generator.standard_normal(response.shape) + shared * common
