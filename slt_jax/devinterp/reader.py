"""Runs of devinterp 2 as runs of slt_jax, for its estimators."""

import hashlib
import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from slt_jax._types import ChainKey
from slt_jax.carry import Carry, Rows
from slt_jax.data import Batches, Probe
from slt_jax.devinterp.moments import Measured, measure_probes
from slt_jax.estimators.two_chains import OBSERVABLE
from slt_jax.kernels import Info, rms, sgld
from slt_jax.kernels.sgld import Sgld
from slt_jax.observables import LossValues
from slt_jax.persistence import Place
from slt_jax.posterior import LocalPosterior
from slt_jax.preparation import describe
from slt_jax.restriction import Restriction
from slt_jax.run import Execution, Health, Run, Settings
from slt_jax.statistics import Trace
from slt_jax.storage.devinterp import Samples, identifier, read_samples
from slt_jax.survey import Survey

_NOTE = (
    "the gap is the minibatch loss minus L(w*), unpaired, on minibatches in one order over and over"
)


def read_devinterp(
    path: str | os.PathLike[str],
    *,
    probes: Sequence[str] | None = None,
    sampled: str | None = None,
    full: bool = False,
    component: str = "weights",
    num_params: int = 0,
) -> Run:
    """Read a sample store of devinterp 2 as a run, for estimators that end in ``_from``.

    What the run says is what devinterp measured, on slt_jax's terms. Its gap is the loss of a
    step's minibatch before the step, minus L(w*) on other minibatches: not paired, so that it is
    noisier than a gap of ``slt.sample``, and on minibatches that repeat one epoch's order. Draws
    begin after the burn-in, and one of them is the mean of its steps: ``compute_llc`` of devinterp
    averages the burn-in as well. A chain that died is known as dead. There is no model in the
    store: ask estimators for what needs none, as in ``slt.llc_from(run, surroundings=False)``,
    ``slt.bif_from(run, train="pile", query="code")`` or, with ``sampled`` in every store,
    ``slt.susceptibilities_from(full_run, runs, control=False)``.

    Args:
        path: the ``output_path`` of devinterp's ``sample``.
        probes: read the losses on these observables only; None for all. They become observables of
            the run, ``slt.LossValues`` with every draw kept, in nats (not relative to w*, where
            devinterp does not measure them).
        sampled: the observable that holds examples of the sampling data, which measures L at every
            draw for susceptibilities to the other probes; None if these are not asked for.
        full: whether all weights moved, for the full chain of susceptibilities.
        component: the name of the weights that moved.
        num_params: how many weights moved, which the store does not say; 0 for unknown.

    Raises:
        StoreMismatch: not a sample store of devinterp 2, or one without these probes.
        StoreIncomplete: devinterp did not complete it.
        ValueError: an unknown sampling method, no observable ``sampled`` or none besides it.
    """
    asked = probes if probes is None or sampled is None else [*probes, sampled]
    samples = read_samples(Path(path), asked)
    own, health = samples.settings, _health(samples)
    _warn(own)
    posterior, kernel, batches = _posterior(own, num_params), _kernel(own), _batches(samples)
    settings, key = _settings(own), jax.random.key(own["init_seed"])
    measured = _traces(samples)
    if sampled is not None:
        measured[OBSERVABLE] = measure_probes(samples, identifier(sampled), full, health.alive[0])
    return Run(
        posterior=posterior,
        kernel=kernel,
        batches=batches,
        key=key,
        settings=settings,
        execution=Execution(),
        components={component: posterior.restriction},
        observables={name: one.observable for name, one in measured.items()},
        survey=_survey(samples),
        rows=_rows(key, settings.num_chains),
        carry=_carry(samples, health, posterior, kernel, measured),
        step=samples.step_loss.shape[1],
        totals={name: one.total for name, one in measured.items()},
        centers={name: one.center for name, one in measured.items()},
        # What the metric of a preconditioner was, the store does not say.
        smallest_step_size=float("nan") if kernel.adapts else own["lr"],
        metadata=_metadata(path, samples, component, posterior, kernel, batches),
        health=health,
        **_record(samples, health, settings),
    )


class _Unseen(Restriction):
    """Weights that moved elsewhere: nothing is known of them, but perhaps their number."""

    count: int = eqx.field(static=True)

    def __init__(self, params: Any, count: int):
        whole = Restriction.full(params)
        super().__init__(whole.blocks, whole.is_level, whole.is_column)
        self.count = count

    @property
    def num_params(self) -> int:
        return self.count


def no_model(params: Any, examples: Any) -> Any:
    """Stand for the loss function of a run that was read from a file.

    Raises:
        ValueError: always.
    """
    raise ValueError(
        "this run was read from samples of devinterp, which hold no model: leave out what needs "
        "one (surroundings=False, control=False), or sample with slt_jax"
    )


def _posterior(own: dict[str, Any], num_params: int) -> LocalPosterior:
    params = {"unknown": np.zeros(1, np.float32)}
    return LocalPosterior(
        no_model,
        params,
        n_beta=own["n_beta"],
        localization=own["localization"],
        restriction=_Unseen(params, num_params),
        weight_decay=own["llc_weight_decay"] or None,
        bounding_box=own["bounding_box_size"],
    )


def _kernel(own: dict[str, Any]) -> Sgld:
    methods = ("sgmcmc_sgld", "rmsprop_sgld")
    if own["sampling_method"] not in methods:
        raise ValueError(f"the sampling method {own['sampling_method']!r} is none of {methods}")
    if own["sampling_method"] == "sgmcmc_sgld":
        return sgld(own["lr"])
    chosen = own["sampling_method_kwargs"]
    return sgld(own["lr"], rms(decay=chosen.get("alpha", 0.99), eps=chosen.get("eps", 0.1)))


def _batches(samples: Samples) -> Batches:
    """Give the sequences that were seen; the order in which they were is not that of Batches."""
    own = samples.settings
    size = own["batch_size"] * own["gradient_accumulation_steps"]
    return Batches(
        samples.sampled_ids,
        min(size, len(samples.sampled_ids)),
        per_chain=not own["match_sampling_input_ids_across_chains"],
    )


def _rows(key: ChainKey, num_chains: int) -> Rows:
    """Give keys to go on with; what devinterp's random numbers came from is not among them."""
    return Rows(jax.random.split(key, num_chains), jnp.arange(num_chains, dtype=jnp.int32), None)


def _survey(samples: Samples) -> Survey:
    own, unknown = samples.settings, np.full(1, np.nan)
    positions = samples.sampled_ids.shape[1] - 1
    micro = own["batch_size"] * own["gradient_accumulation_steps"]
    count = own["num_init_loss_batches"] * micro
    return Survey(samples.init_loss, (), unknown, unknown, unknown, float(positions), count, False)


def _traces(samples: Samples) -> dict[str, Measured]:
    """Give the losses on all probes as observables that keep every draw."""
    kept, found = Trace(), {}
    for name, losses in samples.losses.items():
        positions = np.ones(losses.shape[2:], np.float32)
        observable = LossValues(probe=Probe(samples.input_ids[name]), statistic=kept)
        center = np.full_like(positions, np.nan), positions
        nothing = jax.device_put(np.zeros_like(losses[:, 0]))
        found[name] = Measured(observable, kept.from_series(losses[None]), center, nothing)
    return found


def _health(samples: Samples) -> Health:
    """Tell which chains reported finite losses only, on minibatches and probes."""
    own, finite = samples.settings, np.isfinite(samples.step_loss)
    # devinterp measures probes after the first step of every draw.
    draws = finite[:, own["num_burnin_steps"] :: own["num_steps_bw_draws"]]
    for losses in samples.losses.values():
        draws &= np.isfinite(losses).all(axis=(2, 3))
    alive = np.all(finite, axis=1)
    return Health(np.asarray(alive)[None], np.where(alive, -1, np.argmin(finite, axis=1))[None])


def _settings(own: dict[str, Any]) -> Settings:
    return Settings(
        num_chains=own["num_chains"],
        num_draws=own["num_draws"],
        num_burnin_steps=own["num_burnin_steps"],
        num_steps_bw_draws=own["num_steps_bw_draws"],
        dispersed=False,
        paired=False,
        survey_examples=None,
    )


def _carry(
    samples: Samples,
    health: Health,
    posterior: LocalPosterior,
    kernel: Sgld,
    measured: dict[str, Measured],
) -> Carry:
    num_chains, zero = len(samples.step_loss), jax.device_put(np.float32(0))
    return Carry(
        step=jax.device_put(np.int32(samples.step_loss.shape[1])),
        # Where the chains were, the store does not say: this state is that of a chain at w*.
        state=jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (num_chains, *leaf.shape)), kernel.init(posterior)
        ),
        alive=jax.device_put(health.alive[0]),
        died_at=jax.device_put(health.died_at[0].astype(np.int32)),
        info=Info(*(zero for _ in Info._fields)),
        partials={name: one.partial for name, one in measured.items()},
        counts={name: jax.device_put(np.int32(0)) for name in measured},
    )


def _record(samples: Samples, health: Health, settings: Settings) -> dict[str, Any]:
    """Give the traces and the gap of the burn-in; a draw is the mean of its steps."""
    gap = np.where(np.isfinite(samples.step_loss), samples.step_loss - samples.init_loss, np.nan)
    burnin, length = settings.num_burnin_steps, settings.num_steps_bw_draws

    def by_draw(steps: np.ndarray) -> np.ndarray:
        whole = steps[:, : steps.shape[1] // length * length]
        return whole.reshape(1, len(steps), -1, length).mean(axis=-1).astype(np.float32)

    draws = by_draw(gap[:, burnin:])
    unknown = np.full(draws.shape, np.nan, np.float32)
    traces = dict.fromkeys((*Info._fields, "distance"), unknown)
    dead = health.dead_draws(settings, np.arange(draws.shape[-1]))
    ones = np.where(dead, np.float32(np.nan), np.float32(1))
    return {
        "traces": traces | {"gap": draws, "acceptance": ones, "weight": ones},
        "burnin_gap": by_draw(gap[:, :burnin]),
    }


def _metadata(
    path: str | os.PathLike[str],
    samples: Samples,
    component: str,
    posterior: LocalPosterior,
    kernel: Sgld,
    batches: Batches,
) -> dict[str, Any]:
    own = samples.settings
    content = json.dumps(own, sort_keys=True).encode() + samples.step_loss.tobytes()
    shared = own["match_sampling_input_ids_across_chains"]
    return {
        "kernel": describe(kernel, {}),
        "n_beta": own["n_beta"],
        "localization": own["localization"],
        "weight_decay": own["llc_weight_decay"],
        "bounding_box": "none" if own["bounding_box_size"] is None else own["bounding_box_size"],
        "num_params": posterior.restriction.num_params or "unknown",
        "components": [component],
        "num_examples": batches.num_examples,
        "batch_size": batches.batch_size,
        "loss": "devinterp: per token, unknown",
        "batch_order": "one epoch, over and over",
        "batches": "shared by all chains" if shared else "per chain",
        "num_chains": own["num_chains"],
        "num_burnin_steps": own["num_burnin_steps"],
        "num_steps_bw_draws": own["num_steps_bw_draws"],
        "dispersed": 0,
        "paired": 0,
        "key": f"devinterp {own['init_seed']}",
        "fingerprint": hashlib.blake2b(content, digest_size=8).hexdigest(),
        "sampler": "devinterp 2",
    } | Place(os.fspath(path), "read from samples of devinterp", _NOTE).metadata


def _warn(own: dict[str, Any]) -> None:
    """Warn of settings at which no posterior was sampled that slt_jax could name."""
    if own["noise_level"] != 1:
        warnings.warn(
            f"noise_level was {own['noise_level']}: what was sampled is not the posterior at "
            f"nβ = {own['n_beta']}",
            stacklevel=3,
        )
    if own["init_noise"]:
        warnings.warn(
            f"init_noise was {own['init_noise']}: L(w*) was measured at weights with noise, not "
            "at w*",
            stacklevel=3,
        )
