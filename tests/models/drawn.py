"""Models with drawn weights: the components of a configuration, its weights, displacements."""

import jax.numpy as jnp
import numpy as np

from slt_jax.models.components import Components
from slt_jax.models.layout import parameter_axes, parameter_shapes


def components_of(config):
    """The components of a model of which only the configuration is there."""
    axes = {name: " ".join(letters) for name, letters in parameter_axes(config).items()}
    return Components(parameter_shapes(config), axes)


def weights_of(config, seed=0):
    """Gaussian weights, the same at every call."""
    generator = np.random.default_rng(seed)
    return {
        name: jnp.asarray(0.3 * generator.standard_normal(leaf.shape), jnp.float32)
        for name, leaf in parameter_shapes(config).items()
    }


def displacements(restriction, rows=None, size=0.05):
    """Gaussian displacements, for several rows if asked for."""
    generator = np.random.default_rng(1)
    lead = () if rows is None else (rows,)
    return tuple(
        jnp.asarray(size * generator.standard_normal((*lead, *block.size)), jnp.float32)
        for block in restriction.blocks
    )
