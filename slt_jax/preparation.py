"""From a user's arguments to a run of no steps: checks, survey of w*, first program."""

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from slt_jax._tree import is_array, on_device, split
from slt_jax._types import ChainKey, host_float, setting
from slt_jax.data import Batches
from slt_jax.examples import check_observables
from slt_jax.fingerprint import digest_of_arrays, fingerprint, name_of
from slt_jax.grouping import groups
from slt_jax.kernels.base import AbstractKernel, Info
from slt_jax.kernels.exact import Exact
from slt_jax.minibatch import Minibatch
from slt_jax.noise import stream_of
from slt_jax.observables import AbstractObservable
from slt_jax.posterior import LocalPosterior
from slt_jax.redefinition import note_use
from slt_jax.restriction import Restriction
from slt_jax.run import Execution, Health, Run, SampleOptions, Settings
from slt_jax.start import (
    SCHEDULE_STEPS,
    Start,
    check_centers,
    check_feeling,
    schedules_of,
    start,
)
from slt_jax.survey import Survey, take_survey
from slt_jax.validation import check_execution, check_loss, check_settings


def prepare(
    posterior: LocalPosterior,
    kernel: AbstractKernel,
    batches: Batches,
    key: ChainKey,
    options: SampleOptions,
) -> Run:
    """Check everything, survey w*, and give the run of no steps."""
    settings, execution = _settings(options), options.get("execution", Execution())
    check_execution(execution, settings, posterior)
    check_loss(posterior, batches)
    components, observables = _components(posterior, options), _observables(options)
    starts = None
    if options.get("components"):
        posterior, starts = _stack_components(posterior, components)
    check_observables(posterior, batches, observables)
    survey = take_survey(posterior, batches, starts, settings.survey_examples)
    if kernel.needs_anchor:
        posterior = _anchor(posterior, survey, starts)
    kernel = _frozen_after_burnin(kernel, settings)
    begun = _begin(
        posterior, kernel, batches, key, settings, components, observables, starts, survey
    )
    note_use(posterior.loss_fn)
    return Run(
        posterior=posterior,
        kernel=kernel,
        batches=batches,
        key=key,
        settings=settings,
        execution=execution,
        components=components,
        observables=observables,
        survey=survey,
        rows=begun.rows,
        carry=begun.carry,
        step=0,
        centers=begun.centers,
        metadata=_metadata(posterior, kernel, batches, key, settings, components, begun),
        **_nothing_yet(len(components), settings.num_chains),
    )


def _frozen_after_burnin(kernel: AbstractKernel, settings: Settings) -> AbstractKernel:
    """Let the kernel adapt during the burn-in, or for ever if there is none."""
    num_steps = settings.num_burnin_steps or 2**31 - 1
    return on_device(kernel.freeze_after(jax.device_put(np.int32(num_steps))))


def _anchor(posterior: LocalPosterior, survey: Survey, starts: Any) -> LocalPosterior:
    if starts is not None:
        raise ValueError("anchored gradients work for one component at a time")
    return posterior.with_anchor(survey.gradient)


def _nothing_yet(num_components: int, num_chains: int) -> dict[str, Any]:
    """Give the record of no steps: no draws, nothing summed, every chain alive."""
    shape = (num_components, num_chains)
    none = np.zeros((*shape, 0), np.float32)
    return {
        "traces": dict.fromkeys((*Info._fields, "distance"), none),
        "burnin_gap": none,
        "totals": {},
        "health": Health(np.ones(shape, bool), np.full(shape, -1)),
        "smallest_step_size": float("nan"),
    }


def _components(posterior: LocalPosterior, options: SampleOptions) -> dict[str, Restriction]:
    if options.get("dispersed") and host_float(posterior.localization) == 0:
        raise ValueError("dispersed=True starts from N(w*, I/γ): it needs a localization above 0")
    chosen = options.get("components")
    if chosen is not None and not chosen:
        raise ValueError("components is empty: name at least one, or leave it out for all weights")
    return dict(chosen or {"weights": posterior.restriction})


def _settings(options: SampleOptions) -> Settings:
    unknown = set(options) - set(SampleOptions.__annotations__)
    if unknown:
        raise TypeError(
            f"unknown options {sorted(unknown)}; there are {sorted(SampleOptions.__annotations__)}"
        )
    settings = Settings(
        num_chains=options.get("num_chains", 4),
        num_draws=options.get("num_draws", 1000),
        num_burnin_steps=options.get("num_burnin_steps", 500),
        num_steps_bw_draws=options.get("num_steps_bw_draws", 1),
        dispersed=options.get("dispersed", False),
        paired=options.get("paired", False),
        survey_examples=options.get("survey_examples"),
    )
    check_settings(settings)
    return settings


def _observables(options: SampleOptions) -> dict[str, AbstractObservable]:
    observables = on_device(dict(options.get("observables") or {}))
    for name, observable in observables.items():
        if not isinstance(observable, AbstractObservable):
            raise TypeError(f"observable {name!r} must be an slt.Observable, got {observable!r}")
    collect = options.get("collect")
    if collect is not None:
        if "positions" in observables:
            raise ValueError("the name 'positions' is taken by collect: rename the observable")
        observables["positions"] = collect
    if len({o.every for o in observables.values() if o.num_fresh}) > 1:
        raise ValueError("observables on fresh batches must share one interval `every`")
    return observables


def _stack_components(
    posterior: LocalPosterior, components: Mapping[str, Restriction]
) -> tuple[LocalPosterior, Any]:
    """Give the posterior of the first component, and the block offsets in which others differ.

    An offset that all components share stays a scalar: with a row axis on the number of a layer,
    every row would gather weights of its own and recompute what lies below.
    """
    signatures = {name: restriction.signature for name, restriction in components.items()}
    if len(set(signatures.values())) > 1:
        raise ValueError(
            f"components sampled side by side must have blocks of the same paths and sizes, got "
            f"{signatures}; sample components of different shape in separate calls"
        )
    hashes: dict[int, str] = {}
    for name, restriction in components.items():
        restriction.check(posterior.params)
        other = hashes.setdefault(restriction.selection_hash, name)
        if other != name:
            raise ValueError(f"components {other!r} and {name!r} select the same weights")
    first = next(iter(components.values()))
    starts = tuple(
        tuple(_differing(offsets) for offsets in zip(*(block.start for block in same), strict=True))
        for same in zip(*(restriction.blocks for restriction in components.values()), strict=True)
    )
    # Side by side they are as one, also in what they let the model compute once for all.
    is_level = first.is_level and len(groups(components)) == 1
    is_column = all(component.is_column for component in components.values())
    restriction = Restriction(first.blocks, is_level, is_column)
    return posterior.restrict(restriction), on_device(starts) if jax.tree.leaves(starts) else None


def _differing(offsets: Sequence[Any]) -> np.ndarray | None:
    """Give the offsets of all components, or None if they are equal."""
    return np.stack(offsets) if len({int(offset) for offset in offsets}) > 1 else None


def _begin(
    posterior: LocalPosterior,
    kernel: AbstractKernel,
    batches: Batches,
    key: ChainKey,
    settings: Settings,
    components: Mapping[str, Restriction],
    observables: dict[str, AbstractObservable],
    starts: Any,
    survey: Survey,
) -> Start:
    """Run the first program: rows, states, values at w*; refuse a loss that rounds."""
    hashes = [
        stream_of("paired") if settings.paired else restriction.selection_hash
        for restriction in components.values()
    ]
    compiled = {name: observable.compiled() for name, observable in observables.items()}
    arrays, static = split((posterior, kernel, compiled, starts))
    weight = survey.mean_weight
    examples, weights = on_device(batches.rows(np.arange(batches.batch_size)))
    begun = start(
        static,
        on_device(arrays),
        key,
        jax.device_put(np.asarray(hashes, np.int32)),
        Minibatch(examples, weights, None if weight is None else setting(weight)),
        num_chains=settings.num_chains,
        dispersed=settings.dispersed,
    )
    check_centers(begun)
    check_feeling(jax.device_get(begun.feeling))
    return begun


def _metadata(
    posterior: LocalPosterior,
    kernel: AbstractKernel,
    batches: Batches,
    key: ChainKey,
    settings: Settings,
    components: Mapping[str, Restriction],
    begun: Start,
) -> dict[str, Any]:
    """Give settings, versions and fingerprint as plain strings and numbers."""
    weight_decay, box = posterior.weight_decay, posterior.bounding_box
    values, sums = jax.device_get((begun.schedules, begun.checksums))
    described = {
        "kernel": describe(kernel, dict(zip(map(id, schedules_of(kernel)), values, strict=True))),
        "n_beta": host_float(posterior.n_beta),
        "localization": host_float(posterior.localization),
        "weight_decay": 0.0 if weight_decay is None else host_float(weight_decay),
        "bounding_box": "none" if box is None else host_float(box),
        "num_params": posterior.restriction.num_params,
        "components": list(components),
        "num_examples": batches.num_examples,
        "batch_size": batches.batch_size,
        **_loss_metadata(posterior.loss_fn),
        "batch_order": "uniform" if batches.order is None else name_of(batches.order),
        "batches": "per chain" if batches.per_chain else "shared by all chains",
        "num_chains": settings.num_chains,
        "num_burnin_steps": settings.num_burnin_steps,
        "num_steps_bw_draws": settings.num_steps_bw_draws,
        "dispersed": int(settings.dispersed),
        "paired": int(settings.paired),
        "key": " ".join(str(word) for word in jax.device_get(jax.random.key_data(key))),
    }
    described |= _digests(posterior, kernel, sums)
    selections = [restriction.selection_hash for restriction in components.values()]
    return described | {
        "fingerprint": fingerprint(described, selections, batches),
        "slt_jax": importlib.metadata.version("slt-jax"),
        "jax": jax.__version__,
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
    }


def _loss_metadata(loss_fn: Any) -> dict[str, str]:
    """Give where the loss stands, and what it says of itself (see ``LossFn``)."""
    own = getattr(loss_fn, "provenance", {})
    return {"loss": name_of(loss_fn)} | {f"loss_{name}": text for name, text in own.items()}


def _digests(posterior: LocalPosterior, kernel: AbstractKernel, sums: np.ndarray) -> dict[str, str]:
    """Hash w*, the arrays that the loss holds, and the kernel's settings to their last bit."""
    named = {"weights": posterior.params, "loss_arrays": posterior.loss_fn, "kernel_arrays": kernel}
    digests, first = {}, 0
    for name, tree in named.items():
        count = sum(is_array(leaf) for leaf in jax.tree.leaves(tree))
        digests[name] = digest_of_arrays(tree, sums[first : first + count])
        first += count
    return digests


def describe(kernel: Any, schedules: Mapping[int, np.ndarray]) -> str:
    """Write a kernel and its settings as text, such as ``Sgld(step_size=1e-05, ...)``.

    Args:
        kernel: the kernel, or a part of it.
        schedules: by identity the values of its functions of the step at ``SCHEDULE_STEPS``.
    """
    if isinstance(kernel, Exact):
        name = kernel.build.__name__.removeprefix("_build_")
        options = "".join(f", {option}={value}" for option, value in kernel.options)
        return f"{name}(step_size={host_float(kernel.step_size):.6g}{options})"
    fields = {name: value for name, value in vars(kernel).items() if name != "adaptation_steps"}
    settings = ", ".join(
        f"{name}={_describe_setting(value, schedules)}" for name, value in fields.items()
    )
    return f"{type(kernel).__name__}({settings})"


def _describe_setting(value: Any, schedules: Mapping[int, np.ndarray]) -> str:
    if isinstance(value, jax.Array):
        return f"{host_float(value):.6g}"
    if hasattr(value, "__dataclass_fields__"):
        return describe(value, schedules)
    if callable(value):
        # The values tell two schedules apart, the name of their code does not.
        shown = ", ".join(f"{number:.6g}" for number in schedules[id(value)])
        return f"schedule({shown} at steps {SCHEDULE_STEPS})"
    return str(value)
