"""slt_jax: a sampling engine for singular learning theory in JAX."""

import importlib
from typing import TYPE_CHECKING, Any

from slt_jax import models as models
from slt_jax import testing as testing
from slt_jax.data import Batches as Batches
from slt_jax.data import Probe as Probe
from slt_jax.data import default_n_beta as default_n_beta
from slt_jax.data import epoch_order as epoch_order
from slt_jax.devinterp import read_devinterp as read_devinterp
from slt_jax.estimators.damped_influence import GaussNewton as GaussNewton
from slt_jax.estimators.damped_influence import damped_influence as damped_influence
from slt_jax.estimators.difference import LLCDifference as LLCDifference
from slt_jax.estimators.influence import bif as bif
from slt_jax.estimators.influence import bif_from as bif_from
from slt_jax.estimators.influence_result import BIFResult as BIFResult
from slt_jax.estimators.llc import llc as llc
from slt_jax.estimators.llc import llc_from as llc_from
from slt_jax.estimators.loss_kernel import LossKernel as LossKernel
from slt_jax.estimators.loss_kernel import loss_kernel as loss_kernel
from slt_jax.estimators.loss_kernel import loss_kernel_from as loss_kernel_from
from slt_jax.estimators.patterning import Patterning as Patterning
from slt_jax.estimators.patterning import patterning as patterning
from slt_jax.estimators.refined import RefinedLLC as RefinedLLC
from slt_jax.estimators.refined import refined_llc as refined_llc
from slt_jax.estimators.refined import refined_llc_from as refined_llc_from
from slt_jax.estimators.result import LLCResult as LLCResult
from slt_jax.estimators.susceptibilities import susceptibilities as susceptibilities
from slt_jax.estimators.susceptibilities import susceptibilities_from as susceptibilities_from
from slt_jax.estimators.susceptibilities import (
    susceptibility_observables as susceptibility_observables,
)
from slt_jax.estimators.susceptibility_result import Susceptibilities as Susceptibilities
from slt_jax.estimators.verdict import Verdict as Verdict
from slt_jax.kernels import AbstractKernel as AbstractKernel
from slt_jax.kernels import Info as Info
from slt_jax.kernels import adam as adam
from slt_jax.kernels import anchored as anchored
from slt_jax.kernels import hmc as hmc
from slt_jax.kernels import identity as identity
from slt_jax.kernels import mala as mala
from slt_jax.kernels import nuts as nuts
from slt_jax.kernels import plain as plain
from slt_jax.kernels import rms as rms
from slt_jax.kernels import sghmc as sghmc
from slt_jax.kernels import sgld as sgld
from slt_jax.kernels import sgnht as sgnht
from slt_jax.minibatch import Losses as Losses
from slt_jax.minibatch import Minibatch as Minibatch
from slt_jax.models.checkpoints import Checkpoints as Checkpoints
from slt_jax.observables import LossValues as LossValues
from slt_jax.observables import MeanLoss as MeanLoss
from slt_jax.observables import Observable as Observable
from slt_jax.observables import Positions as Positions
from slt_jax.persistence import StoreDamaged as StoreDamaged
from slt_jax.persistence import StoreIncomplete as StoreIncomplete
from slt_jax.persistence import StoreMismatch as StoreMismatch
from slt_jax.placement import Layout as Layout
from slt_jax.posterior import LocalPosterior as LocalPosterior
from slt_jax.recording import NotStored as NotStored
from slt_jax.restriction import Block as Block
from slt_jax.restriction import Restriction as Restriction
from slt_jax.run import ChainsDiverged as ChainsDiverged
from slt_jax.run import Execution as Execution
from slt_jax.run import Health as Health
from slt_jax.run import Progress as Progress
from slt_jax.run import Run as Run
from slt_jax.run import SampleOptions as SampleOptions
from slt_jax.sampling import extend as extend
from slt_jax.sampling import sample as sample
from slt_jax.saving import load as load
from slt_jax.saving import save as save
from slt_jax.statistics import Covariance as Covariance
from slt_jax.statistics import Mean as Mean
from slt_jax.statistics import Trace as Trace
from slt_jax.statistics import Variance as Variance
from slt_jax.storage.store import Store as Store

if TYPE_CHECKING:
    from slt_jax import analysis as analysis

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import ``slt_jax.analysis`` when it is first used: xarray and scipy take a while."""
    if name == "analysis":
        return importlib.import_module("slt_jax.analysis")
    raise AttributeError(f"module 'slt_jax' has no attribute {name!r}")
