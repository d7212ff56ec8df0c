"""What no displacement changes of a loss is computed once for all rows, and for all draws."""

import collections

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slt_jax as slt

NUM_CHAINS = 3
NUM_DRAWS = 6
NUM_BURNIN = 2
EVERY = 2
CHUNK = 4
BATCH = 8
FEW = 3  # Of which there are too many to look at all of them beforehand.
PROBE = 5
COUNTS = collections.Counter()
KEY = jax.random.key(3)

GENERATOR = np.random.default_rng(5)
PARAMS = {
    "below": GENERATOR.normal(size=(3, 4)).astype(np.float32),
    "above": GENERATOR.normal(size=(4,)).astype(np.float32),
}
DATA = tuple(GENERATOR.normal(size=shape).astype(np.float32) for shape in ((32, 3), (32,)))
ABOVE = slt.Restriction.from_paths(PARAMS, ["above"])


def plain(params, batch):
    inputs, targets = batch
    return jnp.square(jnp.tanh(inputs @ params["below"]) @ params["above"] - targets)


def count(what, inputs):
    """Count executions with so many examples; a row axis counts as so many executions."""
    jax.debug.callback(lambda _: COUNTS.update([(what, len(inputs))]), inputs[0, 0])


class Layered(eqx.Module):
    """The same loss, which says what of it lies below the weights that move, and counts."""

    def __call__(self, params, batch):
        return plain(params, batch)

    def losses_prefix(self, params, restriction, examples):
        inputs, _ = examples
        if restriction.labels != ("above",):
            return None
        count("prefix", inputs)
        return {"hidden": jnp.tanh(inputs @ params["below"])}

    def losses_at(self, params, restriction, displacement, examples, prefix=None):
        inputs, targets = examples
        if prefix is None:
            count("whole", inputs)
            return plain(restriction.insert(params, displacement), examples)
        return jnp.square(prefix["hidden"] @ (params["above"] + displacement[0]) - targets)


def sampled(
    loss, execution=None, restriction=ABOVE, per_chain=False, batch_size=None, sampled_at_once=BATCH
):
    probe = slt.Probe(tuple(column[:PROBE] for column in DATA), batch_size=batch_size)
    posterior = slt.LocalPosterior(loss, PARAMS, 20.0, 50.0, restriction=restriction)
    COUNTS.clear()
    run = slt.sample(
        posterior,
        slt.sgld(1e-3),
        slt.Batches(DATA, sampled_at_once, per_chain=per_chain),
        KEY,
        num_chains=NUM_CHAINS,
        num_draws=NUM_DRAWS,
        num_burnin_steps=NUM_BURNIN,
        observables={
            "values": slt.LossValues(probe, every=EVERY),
            "mean": slt.MeanLoss(probe, every=EVERY),
        },
        execution=execution or slt.Execution(steps_per_chunk=CHUNK),
        progress=False,
    )
    jax.effects_barrier()
    return run


NUM_STEPS = NUM_BURNIN + NUM_DRAWS
NUM_CHUNKS = 1 + -(-NUM_DRAWS // CHUNK)  # a chunk ends with the burn-in
NUM_OBSERVABLES = 2


@pytest.mark.parametrize(("size", "times"), [(FEW, NUM_STEPS), (BATCH, 32 // BATCH * NUM_CHUNKS)])
@pytest.mark.parametrize("rows", ["vmap", "map"])
def test_a_prefix_is_computed_once_per_step_and_once_per_chunk_of_a_probe(rows, size, times):
    """That of small data once per chunk, batch by batch."""
    execution = slt.Execution(rows=rows, steps_per_chunk=CHUNK)
    run = sampled(Layered(), execution, sampled_at_once=size)
    # The first program looks at one batch too, and at the probes without keeping anything.
    assert COUNTS["prefix", size] == times + 1
    assert COUNTS["prefix", PROBE] == NUM_OBSERVABLES * NUM_CHUNKS
    assert COUNTS["whole", PROBE] == NUM_OBSERVABLES
    expected = sampled(plain, execution, sampled_at_once=size)
    np.testing.assert_allclose(run.traces["gap"], expected.traces["gap"], atol=2e-6)
    for name, estimate in expected.statistics.items():
        np.testing.assert_allclose(run.statistics[name].value, estimate.value, atol=2e-6)


def test_a_probe_in_batches_is_kept_whole():
    run = sampled(Layered(), batch_size=2)
    num_batches = -(-PROBE // 2)
    assert COUNTS["prefix", 2] == NUM_OBSERVABLES * NUM_CHUNKS * num_batches
    assert COUNTS["whole", 2] == NUM_OBSERVABLES * num_batches
    expected = sampled(plain, batch_size=2)
    np.testing.assert_allclose(
        run.statistics["values"].value, expected.statistics["values"].value, atol=2e-6
    )


@pytest.mark.parametrize("kept", [0, 1])
def test_no_more_is_kept_than_execution_allows(kept):
    # Of two observables of equal size, none or one fits.
    size = PROBE * len(PARAMS["above"]) * 4
    sampled(
        Layered(),
        slt.Execution(steps_per_chunk=CHUNK, probe_cache_bytes=kept * size + size // 2),
    )
    measured = (NUM_OBSERVABLES - kept) * NUM_DRAWS // EVERY
    assert COUNTS["whole", PROBE] == NUM_OBSERVABLES + measured


class Detailed(Layered):
    """It can give more where that pays: the same twice."""

    def losses_prefix_in_full(self, params, restriction, examples):
        inputs, _ = examples
        count("in full", inputs)
        hidden = jnp.tanh(inputs @ params["below"])
        return {"hidden": hidden, "again": hidden}


@pytest.mark.parametrize("in_full", [0, 1, 2])
def test_of_what_can_be_kept_the_most_that_fits_is_kept(in_full):
    # Two observables of equal size: room for all of none, of one, or of both.
    size = PROBE * len(PARAMS["above"]) * 4
    room = (2 + in_full) * size + size // 2
    run = sampled(Detailed(), slt.Execution(steps_per_chunk=CHUNK, probe_cache_bytes=room))
    assert COUNTS["in full", PROBE] == in_full * NUM_CHUNKS
    assert COUNTS["prefix", PROBE] == (NUM_OBSERVABLES - in_full) * NUM_CHUNKS
    # Of a minibatch the losses are taken only once per row.
    assert COUNTS["in full", BATCH] == 0
    expected = sampled(plain)
    np.testing.assert_allclose(
        run.statistics["values"].value, expected.statistics["values"].value, atol=2e-6
    )


def test_chains_with_batches_of_their_own_have_prefixes_of_their_own():
    run = sampled(Layered(), per_chain=True, sampled_at_once=FEW)
    assert COUNTS["prefix", FEW] == NUM_CHAINS * NUM_STEPS + 1
    expected = sampled(plain, per_chain=True, sampled_at_once=FEW)
    np.testing.assert_allclose(run.traces["gap"], expected.traces["gap"], atol=2e-6)


def test_where_all_weights_move_there_is_no_prefix():
    sampled(Layered(), restriction=slt.Restriction.full(PARAMS))
    assert not [what for what in COUNTS if what[0] == "prefix"]


def test_at_w_star_a_paired_gap_is_zero_to_the_bit():
    posterior = slt.LocalPosterior(Layered(), PARAMS, 20.0, 50.0, restriction=ABOVE)
    batch = slt.Minibatch(DATA)
    prepared = batch.with_center(posterior.center(batch))
    assert prepared.center.prefix is not None
    assert float(posterior.gap(ABOVE.zeros(), prepared)) == 0.0
