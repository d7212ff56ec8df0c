"""What is known at w* of all examples: the numbers that every minibatch would find for itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slt_jax as slt
from slt_jax import centers as module
from slt_jax import chunk
from slt_jax.centers import centers
from slt_jax.minibatch import Center, Minibatch
from slt_jax.models.config import DecoderConfig
from slt_jax.models.decoder import Decoder
from slt_jax.models.head_path import HeadStreams
from slt_jax.models.norm import Norm
from slt_jax.models.rope import Rope
from tests.helpers import KEY, assert_same, numbers
from tests.helpers import sample as sample_network
from tests.models.drawn import components_of, weights_of

CONFIG = DecoderConfig(
    vocab_size=13,
    width=8,
    num_layers=2,
    num_heads=2,
    num_kv_heads=2,
    head_dim=4,
    mlp_width=12,
    parallel=True,
    norm=Norm(1e-5),
    ropes=(Rope(100.0, 4),),
    rope_of_layer=(0, 0),
)
TOKENS = np.random.default_rng(0).integers(0, 13, (11, 6)).astype(np.int32)
SIZE = 4


def of_head(name="l1h1"):
    """The posterior of one head of a small decoder."""
    components = components_of(CONFIG)
    return slt.LocalPosterior(
        Decoder(CONFIG), weights_of(CONFIG), 10.0, 100.0, restriction=components[name]
    )


def test_every_example_has_the_numbers_of_a_batch_of_its_own():
    """The last batch is not full: what fills it up must not be seen."""
    posterior = of_head()
    table = centers(posterior, jnp.asarray(TOKENS), None, SIZE)
    assert isinstance(table, Center)
    assert isinstance(table.prefix, HeadStreams)
    assert table.losses.shape == (11, 5)
    chosen = np.asarray([10, 3, 0, 7])
    own = jax.jit(lambda ids: posterior.center(Minibatch(ids)))(TOKENS[chosen])
    cut = jax.tree.map(lambda leaf: leaf[chosen], table)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-6), cut, own)


def test_a_minibatch_that_brings_them_computes_nothing_again():
    posterior = of_head()
    table = centers(posterior, jnp.asarray(TOKENS), None, SIZE)
    marked = table._replace(losses=table.losses + 1)
    batch = Minibatch(jnp.asarray(TOKENS), center=marked)
    assert posterior.center(batch).losses is marked.losses
    assert posterior.center(batch).prefix is marked.prefix
    # What was left out is computed, and only that.
    partial = posterior.center(batch.with_center(marked._replace(prefix=None)))
    assert partial.losses is marked.losses
    assert isinstance(partial.prefix, HeadStreams)


def test_they_are_left_out_where_they_take_too_much_memory_or_time(monkeypatch):
    posterior, tokens = of_head(), jnp.asarray(TOKENS)
    monkeypatch.setattr(module, "_MOST_BYTES", 11 * 5 * 4)
    table = centers(posterior, tokens, None, SIZE)
    assert table is not None
    assert table.prefix is None
    monkeypatch.setattr(module, "_MOST_BYTES", 11 * 5 * 4 - 1)
    assert centers(posterior, tokens, None, SIZE) is None
    monkeypatch.setattr(module, "_MOST_BYTES", 2**20)
    monkeypatch.setattr(module, "_MOST_BATCHES", 2)
    assert centers(posterior, tokens, None, SIZE) is None
    assert centers(posterior, tokens, None, 6) is not None


OF_HEADS = {"num_chains": 2, "num_draws": 6, "num_burnin_steps": 2, "progress": False}


def sample_heads(**options):
    """A run of two heads side by side."""
    components = {name: components_of(CONFIG)[name] for name in ("l1h0", "l1h1")}
    batches = slt.Batches(TOKENS, SIZE)
    return slt.sample(
        of_head(), slt.sgld(1e-4), batches, KEY, components=components, **(OF_HEADS | options)
    )


@pytest.mark.parametrize("sample", [sample_network, sample_heads], ids=["network", "heads"])
@pytest.mark.parametrize("rows", ["vmap", "map"])
def test_a_run_has_the_same_numbers_without_them(monkeypatch, sample, rows):
    execution = slt.Execution(rows=rows)
    with_table = sample(execution=execution)
    # The limit is not an argument of the compiled programs.
    jax.clear_caches()
    monkeypatch.setattr(module, "_MOST_BATCHES", 0)
    without = sample(execution=execution)
    jax.clear_caches()
    gaps = [run.traces["gap"] for run in (with_table, without)]
    assert np.abs(gaps[1]).max() > 1e-4
    np.testing.assert_allclose(*gaps, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("rows", ["vmap", "map"])
def test_chunks_do_not_change_them(rows):
    runs = [
        sample_heads(execution=slt.Execution(rows=rows, steps_per_chunk=steps)) for steps in (1, 8)
    ]
    assert_same(*(numbers(run) for run in runs))


@pytest.mark.parametrize("kernel", [slt.sgld(1e-3), slt.hmc(1e-3, 3)])
def test_what_a_source_brings_is_what_a_run_uses(monkeypatch, kernel):
    """Losses at w* that are one nat too large make every gap one nat too small."""
    run = sample_network(kernel=kernel, num_draws=4, num_burnin_steps=0)
    jax.clear_caches()
    make = centers

    def shifted(*arguments):
        table = make(*arguments)
        return table._replace(losses=table.losses + 1)

    monkeypatch.setattr(chunk, "centers", shifted)
    other = sample_network(kernel=kernel, num_draws=4, num_burnin_steps=0)
    jax.clear_caches()
    np.testing.assert_allclose(other.traces["gap"], run.traces["gap"] - 1, atol=1e-4)
