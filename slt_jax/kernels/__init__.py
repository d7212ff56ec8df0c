"""Kernels: pure functions that move one chain on one device by one step."""

from slt_jax.kernels.base import AbstractKernel as AbstractKernel
from slt_jax.kernels.base import Info as Info
from slt_jax.kernels.exact import hmc as hmc
from slt_jax.kernels.exact import mala as mala
from slt_jax.kernels.exact import nuts as nuts
from slt_jax.kernels.gradients import anchored as anchored
from slt_jax.kernels.gradients import plain as plain
from slt_jax.kernels.preconditioner import adam as adam
from slt_jax.kernels.preconditioner import identity as identity
from slt_jax.kernels.preconditioner import rms as rms
from slt_jax.kernels.sghmc import sghmc as sghmc
from slt_jax.kernels.sgld import sgld as sgld
from slt_jax.kernels.sgnht import sgnht as sgnht
