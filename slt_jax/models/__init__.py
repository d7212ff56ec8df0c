"""Models from elsewhere, and their components by name."""

from slt_jax.models.attention import BlockwiseAttention as BlockwiseAttention
from slt_jax.models.base import Model as Model
from slt_jax.models.base import from_functions as from_functions
from slt_jax.models.components import Components as Components
from slt_jax.models.cudnn_attention import CudnnAttention as CudnnAttention
from slt_jax.models.equinox import from_equinox as from_equinox
from slt_jax.models.hf import from_hf as from_hf
from slt_jax.models.hf import save_hf as save_hf
from slt_jax.models.linen import from_linen as from_linen
from slt_jax.models.nnx import from_nnx as from_nnx
from slt_jax.models.splash_attention import SplashAttention as SplashAttention
from slt_jax.models.torchax import from_torch as from_torch
