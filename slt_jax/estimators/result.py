"""The result of a local learning coefficient estimate, and how it prints and exports."""

import dataclasses
import json
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float

from slt_jax.estimators.chains import SINGLE_CHAIN, count_of_chains
from slt_jax.estimators.verdict import Verdict, findings
from slt_jax.run import Run, kept_in

if TYPE_CHECKING:
    from slt_jax.estimators.difference import LLCDifference

# Digits after the point beyond which a power of ten is easier to read.
_MAX_DIGITS = 6


class BiasBudget(NamedTuple):
    """Predicted relative biases of the estimate (definition D8), NaN where they were not measured.

    To first order, relative to the estimate without them: ``step_size`` from the discretisation,
    ``minibatch`` from gradient noise, and ``anchor`` (an upper bound) from anchoring at a gradient
    of only a part of the data. All raise the estimate; infinite where they would explain all of it.
    """

    step_size: float
    minibatch: float
    anchor: float


@dataclasses.dataclass(frozen=True, eq=False)
class LLCResult:
    """A local learning coefficient, its error, and everything that speaks for or against it.

    Equation: λ̂ = nβ(E[L_n(w)] − L_n(w*)) (Lau et al., arXiv 2308.12108). ``mean``,
    ``standard_error``, ``per_chain`` and all quantities called an estimate are dimensionless;
    losses and gaps are in nats. The standard error is that of the average over chain noise and
    batch order, given data set, kernel and step size; data-set sampling error is not in it.

    Attributes:
        mean: λ̂.
        standard_error: of ``mean``, with ``degrees_of_freedom``.
        per_chain: λ̂ of every live chain, ``[chain]``.
        r_hat, ess, ess_bulk: rank-normalised split R-hat; pooled variance / SE²; bulk ESS.
        autocorrelation_time: of the gap, in draws.
        drift, drift_error: change of λ̂ over the draws by linear regression.
        relaxations: length of the run in relaxation times of the localization, 2/(εγ) for SGLD.
        remaining_rise: the rise that a linear drift still allows, at 2 standard errors.
        init_loss: L_n(w*) over ``num_survey_examples`` examples.
        gap: paired gap, ``[chain, draw]``.
        acceptance: mean acceptance of a Metropolis kernel, 1 for others.
        mala_acceptance: of the run's Langevin step by Metropolis's rule on a minibatch loss.
        distance, gradient_norm, noise_norm, localization_norm: means over draws, weight units.
        effective_curvature: h* = γ/nβ, below which a direction is invisible, nats/weight².
        stiffness: the largest εa seen, a = nβh + γ; SGLD is unstable from 4 on.
        first_order: ½(nβ)² gᵀ(nβH + 2γ)(nβH + γ)⁻² g, g = ∇L_n(w*): how much λ̂ is too low.
        bias: predicted relative biases.
        control, control_error: λ̂₀, the reading of the same kernel with nβ = 0.
        signal, signal_error: s = 1 − λ̂/λ̂₀, 0 if only the localization was seen.
        gradient_noise: ratio of anchored to plain gradient variance at the chains' last position.
        second_estimator, second_estimator_error: (nβ)² Var_w(L_n), free of L_n(w*).
        singular_fluctuation: (nβ/2) mean_i Var_w(ℓ_i); NaN without an evaluation set.
        wbic: n E_w[L_n] in nats, at nβ = n/log n only; NaN otherwise.
        data_refined: whether w* was trained on other data, so that a gradient at it is expected.
        num_dropped: chains left out because they became non-finite.
        adapting: whether the metric still changed, so that control and biases are approximate.
        findings: all findings, gravest first.
    """

    mean: float
    standard_error: float
    degrees_of_freedom: int
    per_chain: Float[np.ndarray, " chain"]
    gap: Float[np.ndarray, "chain draw"]
    draw_weights: Float[np.ndarray, " draw"]
    init_loss: float
    num_survey_examples: int
    r_hat: float
    ess: float
    ess_bulk: float
    autocorrelation_time: float
    drift: float
    drift_error: float
    relaxations: float
    remaining_rise: float
    acceptance: float
    mala_acceptance: float
    distance: float
    gradient_norm: float
    noise_norm: float
    localization_norm: float
    n_beta: float
    localization: float
    effective_curvature: float
    stiffness: float
    first_order: float
    bias: BiasBudget
    control: float
    control_error: float
    signal: float
    signal_error: float
    gradient_noise: float
    second_estimator: float
    second_estimator_error: float
    singular_fluctuation: float
    wbic: float
    num_params: int
    num_dropped: int
    data_refined: bool
    adjusted: bool
    adapting: bool
    independent_chains: bool
    comparable_starts: bool
    metadata: dict[str, Any]
    source: Run | None = dataclasses.field(repr=False, default=None)

    @property
    def run(self) -> Run:
        """What the estimate rests on; extend it with ``slt.extend(result.run, …)``.

        Raises:
            ValueError: the result was read from a file, which does not hold it.
        """
        if self.source is None:
            raise ValueError(
                "this result was read from a file, which holds no weights, data or code: make the "
                "call that it came from again; with store=slt.Store(path) nothing is sampled twice"
            )
        return self.source

    @property
    def num_chains(self) -> int:
        """Chains that entered the estimate."""
        return self.gap.shape[0]

    @property
    def num_draws(self) -> int:
        """Draws per chain."""
        return self.gap.shape[1]

    @property
    def findings(self) -> tuple[Verdict, ...]:
        """Everything that speaks against the estimate, the gravest first."""
        return findings(self)

    @property
    def verdict(self) -> Verdict:
        """The gravest finding, or ok."""
        return self.findings[0]

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Give a confidence interval by Student's t with the result's degrees of freedom."""
        from scipy.special import stdtrit

        width = float(stdtrit(self.degrees_of_freedom, 0.5 + level / 2)) * self.standard_error
        return self.mean - width, self.mean + width

    def __sub__(self, other: "LLCResult") -> "LLCDifference":
        from slt_jax.estimators.difference import difference

        return difference(self, other)

    def __str__(self) -> str:
        sign = "" if self.comparable_starts else "≥ "
        lost = f", {self.num_dropped} dropped" if self.num_dropped else ""
        chains = f"{count_of_chains(self.num_chains)}{lost}"
        head = (
            f"LLC {with_error(self.mean, self.standard_error)} ({chains}, "
            f"R-hat {sign}{self.r_hat:.2f}, ESS {self.ess:.0f}; loss at w* {self.init_loss:.4f}; "
            f"verdict: {self.verdict})"
        )
        return "\n".join([head, *self._details()]) + kept_in(self.metadata)

    def _details(self) -> list[str]:
        resolution = (
            f"  nβ {self.n_beta:.4g}, γ {self.localization:.4g}: directions of curvature below "
            f"h* = {self.effective_curvature:.3g} are not seen"
        )
        lines = [resolution]
        if self.num_chains == 1:
            lines.append(f"  {SINGLE_CHAIN}")
        if math.isfinite(self.control):
            lines.append(
                f"  without data {with_error(self.control, self.control_error)}; signal "
                f"{self.signal:.2f} ± {self.signal_error:.2f}"
            )
        if math.isfinite(self.bias.step_size):
            anchor = f", anchor at most +{_percent(self.bias.anchor)}" if self.bias.anchor else ""
            lines.append(
                f"  predicted bias: step size +{_percent(self.bias.step_size)}, minibatch noise "
                f"+{_percent(self.bias.minibatch)}{anchor}"
            )
        else:
            lines.append("  control without data and biases were not measured (surroundings=False)")
        if self.adapting:
            lines.append("  the metric kept adapting: control and predicted biases are approximate")
        if self.data_refined and math.isfinite(self.first_order):
            lines.append(
                f"  the gradient at w* lowers the estimate by about {self.first_order:.3g}"
            )
        lines += [f"  also {finding}" for finding in self.findings[1:]]
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Give plain numbers, strings and lists, for JSON or an experiment tracker."""
        skipped = {"gap", "draw_weights", "per_chain", "bias", "metadata", "source"}
        values = {
            field.name: _plain(getattr(self, field.name))
            for field in dataclasses.fields(self)
            if field.name not in skipped
        }
        return values | {
            "per_chain": [float(value) for value in self.per_chain],
            "step_size_bias": _plain(self.bias.step_size),
            "minibatch_bias": _plain(self.bias.minibatch),
            "anchor_bias": _plain(self.bias.anchor),
            "num_chains": self.num_chains,
            "num_draws": self.num_draws,
            "verdict": str(self.verdict),
            "verdict_ok": self.verdict.ok,
            "metadata": dict(self.metadata),
        }

    def to_xarray(self) -> Any:
        """Give an ``xarray.Dataset`` with units on every variable and provenance in the attributes.

        Variables: llc, standard_error, llc_per_chain(chain), loss_trace(chain, draw), init_loss,
        r_hat, ess, and every other number of the result.
        """
        import xarray

        texts = {"verdict", "metadata", "per_chain"}
        numbers = {name: value for name, value in self.to_dict().items() if name not in texts}
        numbers["llc"] = numbers.pop("mean")
        variables: dict[str, Any] = {
            name: ((), np.nan if value is None else value, {"units": _UNITS.get(name, "1")})
            for name, value in numbers.items()
        }
        nats = {"units": "nats"}
        variables["llc_per_chain"] = ("chain", self.per_chain, {"units": "1"})
        variables["loss_trace"] = (("chain", "draw"), self.init_loss + self.gap, nats)
        variables["loss_gap"] = (("chain", "draw"), self.gap, nats)
        attributes = {
            name: value if isinstance(value, (str, int, float)) else str(value)
            for name, value in self.metadata.items()
        }
        return xarray.Dataset(
            variables,
            {"chain": np.arange(self.num_chains), "draw": np.arange(self.num_draws)},
            attributes | {"verdict": str(self.verdict)},
        )

    def to_tree(self) -> Any:
        """Give an ``xarray.DataTree``, for a file.

        Law: ``LLCResult.from_tree(result.to_tree()) == result``.
        """
        import xarray

        variables: dict[str, Any] = {
            name: ((), getattr(self, name), {"units": _UNITS.get(name, "1")}) for name in _NUMBERS
        }
        for name, value in self.bias._asdict().items():
            variables[f"{name}_bias"] = ((), value, {"units": "1"})
        for name, (dimensions, unit) in _ARRAYS.items():
            variables[name] = (dimensions, getattr(self, name), {"units": unit})
        variables["loss_trace"] = (_ARRAYS["gap"][0], self.init_loss + self.gap, {"units": "nats"})
        attributes = {"verdict": str(self.verdict), "metadata": json.dumps(self.metadata)}
        return xarray.DataTree(xarray.Dataset(variables, attrs=attributes))

    @classmethod
    def from_tree(cls, tree: Any) -> "LLCResult":
        """Give back the result that ``to_tree`` gave, without its run.

        Raises:
            ValueError: a tree of something else.
        """
        data = tree.to_dataset()
        biases = [f"{name}_bias" for name in BiasBudget._fields]
        missing = {*_NUMBERS, *_ARRAYS, *biases} - set(data.variables)
        if missing:
            raise ValueError(f"not the tree of an LLCResult: it lacks {sorted(missing)}")
        return cls(
            bias=BiasBudget(*(data[name].item() for name in biases)),
            metadata=json.loads(data.attrs["metadata"]),
            **{name: data[name].item() for name in _NUMBERS},
            **{name: data[name].values for name in _ARRAYS},
        )

    def __eq__(self, other: object) -> bool:
        """Tell whether all numbers and settings are equal, wherever the results came from."""
        if not isinstance(other, LLCResult):
            return NotImplemented
        arrays = (*_NUMBERS, *_ARRAYS, "bias")
        return dict(self.metadata) == dict(other.metadata) and all(
            np.array_equal(getattr(self, name), getattr(other, name), equal_nan=True)
            for name in arrays
        )

    __hash__ = None  # pyright: ignore[reportAssignmentType]


_ARRAYS = {
    "per_chain": ("chain", "1"),
    "gap": (("chain", "draw"), "nats"),
    "draw_weights": ("draw", "1"),
}
_NUMBERS = tuple(
    field.name
    for field in dataclasses.fields(LLCResult)
    if field.name not in (*_ARRAYS, "bias", "metadata", "source")
)
_UNITS = {
    "init_loss": "nats",
    "wbic": "nats",
    "distance": "weight",
    "gradient_norm": "weight",
    "noise_norm": "weight",
    "localization_norm": "weight",
    "localization": "1/weight^2",
    "effective_curvature": "nats/weight^2",
    "autocorrelation_time": "draws",
}


def _plain(value: Any) -> Any:
    """Give a JSON value: None for NaN, which JSON cannot hold."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    return float(value) if math.isfinite(value) else None


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share < 10 else "over 1000 %"


def with_error(value: float, error: float) -> str:
    """Write a value with its error, at the digits that the error leaves.

    >>> with_error(41.2871, 1.234), with_error(-1.25e-7, 3e-9)
    ('41.3 ± 1.2', '(-1.250 ± 0.030)e-7')
    """
    if not (math.isfinite(value) and math.isfinite(error) and error > 0):
        return f"{value:.4g} ± {error:.2g}"
    digits = max(1 - math.floor(math.log10(error)), 0)
    if digits > _MAX_DIGITS:
        power = math.floor(math.log10(max(abs(value), error)))
        return f"({with_error(value / 10.0**power, error / 10.0**power)})e{power}"
    return f"{value:.{digits}f} ± {error:.{digits}f}"
