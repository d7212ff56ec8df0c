"""Susceptibilities as they come in, run by run: responses of components, collected and checked."""

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from slt_jax._tree import path_table
from slt_jax.estimators.control import control_of
from slt_jax.estimators.moments import ProbeGaps, Products, Shifts
from slt_jax.estimators.probes import Probes, Resolution, resolutions
from slt_jax.estimators.susceptibility_findings import Lost, Quality, findings, quality
from slt_jax.estimators.susceptibility_result import Susceptibilities
from slt_jax.estimators.two_chains import OBSERVABLE, FullMean, Response, full_mean, responses
from slt_jax.persistence import AbstractStore
from slt_jax.run import ChainsDiverged, Run, kept_together
from slt_jax.statistics import AbstractStatistic

_MIN_ENTRIES = 10
# Column of the result → whether the control gives it, and where a response has it.
_COLUMNS = {
    "susceptibility": (False, "value"),
    "standard_error": (False, "own_error"),
    "covariance": (False, "covariance"),
    "normalizer": (False, "scale"),
    "control": (True, "value"),
    "control_error": (True, "own_error"),
    "control_normalizer": (True, "scale"),
}
_TOLD = (
    "kernel",
    "n_beta",
    "localization",
    "weight_decay",
    "bounding_box",
    "num_examples",
    "batch_size",
    "loss",
    "batch_order",
    "batches",
    "num_chains",
    "num_burnin_steps",
    "num_steps_bw_draws",
    "dispersed",
    "paired",
    "key",
    "slt_jax",
    "jax",
    "python",
    "device",
)


class Table:
    """The responses of components to the probes of a full chain.

    Args:
        full_run: chains of all weights; it is not kept.
        control: whether to measure everything at nβ = 0 as well.
        drop_diverged: whether to go on without chains that became non-finite.
        store: where the controls are kept.
    """

    def __init__(
        self,
        full_run: Run,
        control: bool,
        drop_diverged: bool,
        store: AbstractStore | None = None,
    ):
        observable = _observable(full_run, Shifts)
        self.observable, self.digest = observable, _digest(observable)
        self.full = full_mean(full_run, drop_diverged)
        self.told: list[Mapping[str, Any]] = []
        self.store = store
        self.localized = float(full_run.posterior.prior_precision) > 0
        self.wants_control = control
        self.control_full: FullMean | None = None
        if control and self.localized:
            self.control_full = full_mean(self._control_of(full_run, "full"), drop_diverged=False)
        self.drop_diverged = drop_diverged
        losses, weights = jax.device_get(full_run.centers[OBSERVABLE][0])
        self.probes = Probes(
            observable.losses.probe, observable.names, observable.counts, losses, weights
        )
        between = {"the full chain": self.full.between}
        self.full_quality = _quality("the full chain", full_run, between)
        alive = full_run.health.alive
        self.lost = Lost(int((~alive).sum()), alive.size)
        self.metadata = dict(full_run.metadata)
        self.gaps: dict[str, tuple[float, float, float]] = {}
        self.columns: dict[str, dict[str, np.ndarray]] = {name: {} for name in _COLUMNS}
        self.qualities: list[Quality] = []
        self.diverged: list[Run] = []
        self.fingerprints = [full_run.metadata["fingerprint"]]
        self.told.append(full_run.metadata)
        self.changing = False

    def _control_of(self, run: Run, name: str) -> Run:
        store = None if self.store is None else self.store.within(f"control of {name}")
        control = control_of(run, store)
        self.told.append(control.metadata)
        return control

    def add(self, run: Run, name: str = "components") -> None:
        """Take in the components of one run, whose control is kept under this name."""
        observable = _observable(run, Products)
        if _digest(observable) != self.digest:
            raise ValueError(
                f"the runs measure different things: {observable.names} for "
                f"{list(run.components)}, {self.observable.names} for the full chain. Use the same "
                "probes, evaluation set and number of minibatches for both"
            )
        _check_settings(self.metadata, run)
        found = responses(run, self.full)
        controls: dict[str, Response] = {}
        if self.control_full is not None:
            controls = responses(self._control_of(run, name), self.control_full)
        for component, response in found.items():
            if component in self.gaps:
                raise ValueError(f"two runs have a component called {component!r}")
            self._put(component, response, controls.get(component))
        alive = run.health.alive
        self.lost = Lost(self.lost.dropped + int((~alive).sum()), self.lost.total + alive.size)
        if not alive.all():
            self.diverged.append(run)
        between = {component: response.between for component, response in found.items()}
        self.qualities.append(_quality("the components", run, between))
        self.fingerprints.append(run.metadata["fingerprint"])
        self.told.append(run.metadata)
        weights = run.traces["weight"][alive]
        unfrozen = run.kernel.adapts and run.settings.num_burnin_steps == 0
        self.changing |= unfrozen or bool(np.ptp(weights, axis=-1).any())

    def _put(self, name: str, response: Response, control: Response | None) -> None:
        unknown = np.full(response.value.shape, np.nan)
        for column, (is_control, field) in _COLUMNS.items():
            source = control if is_control else response
            self.columns[column][name] = unknown if source is None else getattr(source, field)
        null = 0.0 if control is None else control.gap
        self.gaps[name] = response.gap, response.gap_error, null

    def result(self, order: Sequence[str] | None = None) -> Susceptibilities:
        """Give what the runs so far say, or raise if chains were lost that may not be dropped.

        Args:
            order: the names of the components in the order of the result; None for that of the
                runs.
        """
        if not self.gaps:
            raise ValueError("no component was sampled: give at least one run of components")
        names = tuple(self.gaps if order is None else order)
        result = self._assemble(names)
        empty = [name for name in names if np.isnan(self.gaps[name][0])]
        if self.diverged and (empty or not self.drop_diverged):
            raise self._refusal(empty, result)
        return result

    def _assemble(self, names: tuple[str, ...]) -> Susceptibilities:
        found = resolutions(self.probes, self.observable.tokens)
        finest, *others = found
        gaps = np.asarray([self.gaps[name] for name in names]).T
        # The finest comes last: it is large, and takes the place of what it is made of.
        made = {kind: self._matrices(names, found[kind], gaps) for kind in (*others, finest)}
        shared = {
            "components": names,
            "scale": "raw",
            "findings": self._findings(made[finest]),
            "metadata": self._metadata(),
            "observable_mean": gaps[0],
            "observable_error": gaps[1],
        }
        results = {
            kind: Susceptibilities(entries=found[kind].entries, coarser={}, **matrices, **shared)
            for kind, matrices in made.items()
        }
        return dataclasses.replace(results.pop(finest), coarser=results)

    def _matrices(
        self, names: Sequence[str], resolution: Resolution, gaps: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Give everything that has a value per entry, at one resolution."""
        numbers, made = resolution.numbers, {}
        for column, values in self.columns.items():
            made[column] = np.stack([values[name][numbers] for name in names])
            if resolution.is_finest:
                values.clear()
        made["full_mean"] = self.full.mean[numbers]
        made["full_error"] = self.full.standard_error[numbers]
        made["shared_error"] = np.abs(gaps[0])[:, None] * made["full_error"]
        np.hypot(made["standard_error"], made["shared_error"], out=made["standard_error"])
        if self.control_full is not None:
            common = np.abs(gaps[2])[:, None] * self.control_full.standard_error[numbers]
            np.hypot(made["control_error"], common, out=made["control_error"])
        return made

    def _findings(self, made: dict[str, np.ndarray]) -> Any:
        return findings(
            self.full_quality,
            self.qualities,
            self.lost,
            self.changing and self.control_full is not None,
            self.localized or not self.wants_control,
            _excess(made),
        )

    def _metadata(self) -> dict[str, Any]:
        told = {name: self.metadata[name] for name in _TOLD if name in self.metadata}
        parts = " ".join([*self.fingerprints, self.digest])
        longest = max(self.qualities, key=lambda one: one.num_draws)
        told |= kept_together(self.told)
        return told | {
            "num_draws": longest.num_draws,
            "num_full_draws": self.full_quality.num_draws,
            "num_batches": longest.num_batches,
            "batch_length": longest.batch_length,
            "autocorrelation_time": max(one.autocorrelation_time for one in self.qualities),
            "batches_per_draw": self.observable.batches_per_draw,
            "evaluation": "minibatches" if self.observable.evaluation is None else "fixed set",
            "num_dropped": self.lost.dropped,
            "fingerprint": hashlib.blake2b(parts.encode(), digest_size=16).hexdigest(),
        }

    def _refusal(self, empty: list[str], result: Susceptibilities) -> ChainsDiverged:
        run = self.diverged[0]
        dead = [
            name
            for one in self.diverged
            for name, alive in zip(one.components, one.health.alive, strict=True)
            if not alive.all()
        ]
        left = f"; of {', '.join(empty)} none is left" if empty else ""
        return ChainsDiverged(
            f"{self.lost.dropped} of {self.lost.total} chains became non-finite, in "
            f"{', '.join(dead)}{left}. Lower the step size, raise the localization, or go on "
            "without those chains: drop_diverged=True, or error.result",
            run,
            result,
        )


def _observable(run: Run, statistic: type[AbstractStatistic]) -> ProbeGaps:
    """Give what the run measured of the probes, or raise ValueError if it is not what is needed."""
    found = run.observables.get(OBSERVABLE)
    if not isinstance(found, ProbeGaps) or not isinstance(found.statistic, statistic):
        whose = "the full chain" if statistic is Shifts else "components"
        raise ValueError(
            "the run did not measure the loss on the sampling data together with the losses on "
            f"the probes, as is needed of {whose}: it has the observables {list(run.observables)}. "
            "Sample with observables=slt.susceptibility_observables(...), of the full chain with "
            "full=True"
        )
    if run.num_draws < 2:
        raise ValueError(
            f"standard errors come from the scatter of draws: the run has {run.num_draws}"
        )
    return found


def _digest(observable: ProbeGaps) -> str:
    """Name what is measured: data sets, their examples and weights, and how L is measured."""
    told = (observable.names, observable.counts, observable.batches_per_draw, observable.tokens)
    digest = hashlib.blake2b(repr(told).encode(), digest_size=16)
    for path, leaf in path_table((observable.losses, observable.evaluation)).items():
        digest.update(path.encode() + np.asarray(jax.device_get(leaf)).tobytes())
    return digest.hexdigest()


def _check_settings(full: dict[str, Any], run: Run) -> None:
    """Raise ValueError unless a run has the posterior, kernel and data of the full chain."""
    names = ("kernel", "n_beta", "localization", "weight_decay", "num_examples", "loss")
    unlike = {
        name: (full[name], run.metadata[name]) for name in names if full[name] != run.metadata[name]
    }
    if unlike:
        raise ValueError(
            f"the chains of {list(run.components)} and the full chain differ in (full, component) "
            f"{unlike}: both must sample one posterior with one kernel"
        )


def _quality(name: str, run: Run, between: Mapping[str, float]) -> Quality:
    total, statistic = run.total(OBSERVABLE), run.observables[OBSERVABLE].statistic
    return quality(name, run, int(total["batches"]), statistic.batch_length, between)


def _excess(made: dict[str, np.ndarray]) -> float:
    """Give the mean square, in errors, of what the control leaves; the median over components."""
    names = ("control", "control_error", "susceptibility", "standard_error")
    # Row by row: the matrices are as large as the memory that was announced.
    found = [_left(*row) for row in zip(*(made[name] for name in names), strict=True)]
    return math.nan if np.isnan(found).all() else float(np.nanmedian(found))


def _left(
    control: np.ndarray, control_error: np.ndarray, value: np.ndarray, error: np.ndarray
) -> float:
    """Give the mean square of the residuals of χ̂ on the control, in their errors."""
    if len(value) < _MIN_ENTRIES:
        return math.nan
    x, y = control - control.mean(), value - value.mean()
    with np.errstate(invalid="ignore", divide="ignore"):
        slope = (x * y).sum() / (x * x).sum()
        squares = (y - slope * x) ** 2 / (error**2 + (slope * control_error) ** 2)
    return float(squares.mean())
