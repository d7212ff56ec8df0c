"""The control of a run: what its kernel would have drawn without data, at the same steps."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from slt_jax._tree import Static, join, on_device, split
from slt_jax._types import ChainKey, Counter, Displacement
from slt_jax.carry import Carry, Rows
from slt_jax.kernels.base import AbstractKernel, Info
from slt_jax.noise import noise_like, stream_of
from slt_jax.persistence import AbstractStore
from slt_jax.posterior import LocalPosterior
from slt_jax.run import Health, Run
from slt_jax.sampling import extend

AT_REST = 1e9
"""Steps after which a chain has forgotten where it started."""


def prior_draw(
    target: LocalPosterior,
    kernel: AbstractKernel,
    key: ChainKey,
    step_sizes: Displacement,
    step: Array,
) -> Displacement:
    """Draw where the kernel is after ``step`` steps from w* at nβ = 0, exactly (definition D6).

    Without data every weight is an AR(1) process whose law at a given step is Gaussian and known:
    there is no chain to run.

    Args:
        target: for the prior.
        kernel: whose law it is.
        key: a typed key.
        step_sizes: ε_i of every weight, in weight².
        step: how many steps, float32.
    """
    gamma = jnp.maximum(target.prior_precision, jnp.finfo(jnp.float32).tiny)
    center = target.prior_mean()
    noise = noise_like(key, center, target.restriction.labels)
    shift = tuple(
        mean + xi * jnp.sqrt(kernel.control_variance(size, gamma, step))
        for mean, xi, size in zip(center, noise, step_sizes, strict=True)
    )
    return target.clip(shift)


class PriorState(NamedTuple):
    """Position, the step sizes of the kernel that is imitated, and the number of draws so far."""

    position: Displacement
    step_sizes: Displacement
    num_draws: Counter


class PriorDraws(AbstractKernel):
    """Independent draws from the law of a kernel at nβ = 0, one for every draw of a run.

    Args:
        kernel: whose law it is.
        first_step: steps up to the first draw.
        interval: steps between draws.
    """

    kernel: AbstractKernel
    first_step: Array
    interval: Array

    def init(self, target, position=None):
        zeros = target.restriction.zeros()
        position = zeros if position is None else position
        sizes = self.kernel.step_sizes(self.kernel.init(target))
        return PriorState(position, sizes, jnp.zeros((), jnp.int32))

    def prepare(self, target, batch):
        return batch

    def step_sizes(self, state):
        return state.step_sizes

    def step(self, key, target, state, batch):
        step = self.first_step + self.interval * state.num_draws.astype(jnp.float32)
        position = prior_draw(target, self.kernel, key, state.step_sizes, step)
        zero, one = jnp.zeros((), jnp.float32), jnp.ones((), jnp.float32)
        state = PriorState(position, state.step_sizes, state.num_draws + 1)
        return state, Info(zero, zero, zero, zero, one, one)


@functools.partial(jax.jit, static_argnames=("static", "num_components"))
def _begin(
    static: Static, arrays: Any, rows: Rows, carry: Carry, *, num_components: int
) -> tuple[Rows, Carry]:
    """Give rows of their own randomness, at w*, with the mean step sizes of each component."""
    kernel: AbstractKernel = join(arrays, static)
    alive = carry.alive.reshape(num_components, -1).astype(jnp.float32)
    share = alive / jnp.maximum(alive.sum(axis=1, keepdims=True), 1.0)

    def average(sizes: Array) -> Array:
        by_chain = sizes.reshape(*alive.shape, *sizes.shape[1:])
        shaped = share.reshape(*share.shape, *(1,) * (sizes.ndim - 1))
        return jnp.repeat(jnp.sum(shaped * by_chain, axis=1), alive.shape[1], axis=0)

    sizes = tuple(average(leaf) for leaf in jax.vmap(kernel.step_sizes)(carry.state))
    num_rows = carry.alive.shape[0]
    zeros = tuple(jnp.zeros_like(leaf) for leaf in sizes)
    empty = jax.tree.map(jnp.zeros_like, carry._replace(state=None))
    keys = jax.vmap(lambda key: jax.random.fold_in(key, stream_of("control")))(rows.key)
    return rows._replace(key=keys), empty._replace(
        state=PriorState(zeros, sizes, jnp.zeros((num_rows,), jnp.int32)),
        alive=jnp.ones((num_rows,), bool),
        died_at=jnp.full((num_rows,), -1, jnp.int32),
    )


def control_of(run: Run, store: AbstractStore | None = None) -> Run:
    """Measure what a run measured at as many draws of its kernel without data (definition D6).

    The step sizes are those of the run's last states, averaged over chains: exact if they did not
    change while draws were taken, approximate otherwise.

    Args:
        run: with a localization above 0, or nothing holds the control.
        store: where to keep it.
    """
    arrays, static = split(run.kernel)
    rows, carry = _begin(
        static, on_device(arrays), run.rows, run.carry, num_components=len(run.components)
    )
    settings, dispersed = run.settings, run.settings.dispersed
    first = settings.num_burnin_steps + settings.num_steps_bw_draws
    kernel = PriorDraws(
        run.kernel,
        jax.device_put(np.float32(AT_REST if dispersed else first)),
        jax.device_put(np.float32(settings.num_steps_bw_draws)),
    )
    shape = run.health.alive.shape
    begun = dataclasses.replace(
        run,
        kernel=kernel,
        key=jax.random.fold_in(run.key, stream_of("control")),
        settings=dataclasses.replace(settings, num_burnin_steps=0, num_steps_bw_draws=1),
        rows=rows,
        carry=carry,
        step=0,
        traces={name: np.zeros((*shape, 0), np.float32) for name in run.traces},
        burnin_gap=np.zeros((*shape, 0), np.float32),
        totals={},
        health=Health(np.ones(shape, bool), np.full(shape, -1)),
    )
    return extend(begun, run.num_draws, progress=False, store=store)
