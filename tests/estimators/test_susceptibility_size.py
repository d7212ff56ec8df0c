"""The memory of susceptibilities against what is said of it before sampling starts."""

import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slt_jax as slt
from slt_jax import sampling
from slt_jax.estimators import susceptibilities as estimator

LENGTH, NUM_CHAINS = 100, 4


def loss(params, ids):
    """A table of weights that tokens look up: the model takes next to no memory, ``[n, pos]``."""
    weights = params["w"].reshape(-1)
    return 0.5 * (weights[ids % weights.size] - 1e-5 * ids.astype(jnp.float32)) ** 2


def measure(num_components, num_tokens):
    """Susceptibilities of blocks of two weights to random tokens."""
    generator = np.random.default_rng(0)
    view, size = (1, num_components, 2), (1, 1, 2)
    sampled, probe = (
        generator.integers(0, 2 * num_components, (count, LENGTH)).astype(np.int32)
        for count in (64, num_tokens // LENGTH)
    )
    posterior = slt.LocalPosterior(
        loss, {"w": np.zeros(view, np.float32)}, n_beta=30.0, localization=10.0
    )
    return slt.susceptibilities(
        posterior,
        slt.sgld(1e-3),
        slt.Batches(sampled, 16),
        jax.random.key(0),
        components={
            f"c{k}": slt.Restriction([slt.Block("w", view, size, (0, k, 0))])
            for k in range(num_components)
        },
        probes={"a": slt.Probe(probe, batch_size=len(probe))},
        num_chains=NUM_CHAINS,
        num_draws=40,
        num_full_draws=40,
        num_burnin_steps=0,
        slab_bytes=2**28,
    )


class Watch:
    """What was predicted, and the largest memory on device and host, in bytes."""

    def __init__(self, patch):
        self.predicted, self.device = None, 0
        predict, run_chunk = estimator.predict, sampling.run_chunk

        def predicting(*arguments):
            self.predicted = predict(*arguments)
            return self.predicted

        def running(*arguments, **options):
            result = jax.block_until_ready(run_chunk(*arguments, **options))
            # The chunk's carry was donated: what lives now is what lived while it ran.
            self.device = max(self.device, sum(array.nbytes for array in jax.live_arrays()))
            return result

        patch.setattr(estimator, "predict", predicting)
        patch.setattr(sampling, "run_chunk", running)

    def host(self, call):
        """Give the largest memory that a call takes on the host."""
        tracemalloc.start(1)
        try:
            call()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize(
    ("num_components", "num_tokens"),
    [(8, 10_000), pytest.param(100, 100_000, marks=pytest.mark.slow)],
)
def test_memory_is_that_predicted(num_components, num_tokens, monkeypatch, capsys):
    """Compiled programs and the tracer's own memory are not counted: the call is the second."""
    with monkeypatch.context() as patch:
        before = sum(array.nbytes for array in jax.live_arrays())
        watch = Watch(patch)
        measure(num_components, num_tokens)
        host = watch.host(lambda: measure(num_components, num_tokens))
    told = watch.predicted
    assert f"{told.host_bytes / 2**20:.0f} MiB on the host" in capsys.readouterr().err
    device = watch.device - before
    print(f"host {host / 2**20:.1f} MiB of {told.host_bytes / 2**20:.1f} predicted")
    print(f"device {device / 2**20:.1f} MiB of {told.device_bytes / 2**20:.1f} predicted")
    assert host == pytest.approx(told.host_bytes, rel=0.2)
    assert device == pytest.approx(told.device_bytes, rel=0.2)
