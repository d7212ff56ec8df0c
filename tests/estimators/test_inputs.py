"""Examples that do not fit, too few chains and too few draws, for every estimator.

What a language model cannot read is in ``tests/models/test_limits.py``, what ``slt.sample`` refuses
for all of them in ``tests/test_bad_input.py``. Every loss is a function of its own, so that no
program compiled before hides one that should not have been.
"""

import jax.numpy as jnp
import numpy as np
import pytest

import slt_jax as slt
from slt_jax.estimators.chains import SINGLE_CHAIN
from tests.helpers import (
    BATCH_SIZE,
    BATCHES,
    DATA,
    KERNEL,
    KEY,
    POSTERIOR,
    compiled_programs,
    head,
    make_posterior,
    network_loss,
    unchecked_annotations,
)

COMPONENTS = {"first": head(0), "second": head(1)}
SHORT = {"num_draws": 12, "num_burnin_steps": 2, "progress": False}
FEW = tuple(column[:4] for column in DATA)
INPUTS, TARGETS = FEW


def fresh_posterior():
    def loss(params, batch):
        return network_loss(params, batch)

    return make_posterior(loss)


def susceptibilities(posterior, batches=BATCHES, examples=FEW, **options):
    own = {"components": COMPONENTS, "probes": {"probe": examples}} | SHORT
    return slt.susceptibilities(posterior, KERNEL, batches, KEY, **(own | options))


def bif(posterior, batches=BATCHES, query=FEW, **options):
    return slt.bif(posterior, KERNEL, batches, KEY, query=query, **(SHORT | options))


def loss_kernel(posterior, batches=BATCHES, **options):
    return slt.loss_kernel(posterior, KERNEL, batches, KEY, **(SHORT | options))


def llc(posterior, batches=BATCHES, **options):
    return slt.llc(posterior, KERNEL, batches, KEY, **(SHORT | {"surroundings": False} | options))


def refined_llc(posterior, batches=BATCHES, **options):
    own = {"components": COMPONENTS, "surroundings": False} | SHORT
    datasets = {"near": BATCHES, "far": batches}
    return slt.refined_llc(posterior, KERNEL, datasets, KEY, **(own | options))


def sample(posterior, observable):
    return slt.sample(posterior, KERNEL, BATCHES, KEY, observables={"watched": observable}, **SHORT)


def read_inputs(params, examples):
    return examples[0] @ params["attention"]


# -- examples unlike those that the loss takes ---------------------------------------------------

PLACES = {
    "probe": (lambda p, x: susceptibilities(p, examples=x), "probe"),
    "evaluation": (lambda p, x: susceptibilities(p, evaluation=slt.Probe(x)), "evaluation set"),
    "query": (lambda p, x: bif(p, query=x), "'query'"),
    "train": (lambda p, x: bif(p, train=x), "'train'"),
    "examples": (lambda p, x: loss_kernel(p, examples=x), "'train'"),
    "evaluation of an llc": (lambda p, x: llc(p, evaluation=slt.Probe(x)), "evaluation set"),
    "second data set": (lambda p, x: refined_llc(p, slt.Batches(x, 2)), "data set 'far'"),
    "losses": (lambda p, x: sample(p, slt.LossValues(probe=slt.Probe(x))), "'watched'"),
    "observable": (lambda p, x: sample(p, slt.Observable(read_inputs, slt.Probe(x))), "'watched'"),
}
UNFIT = {
    "wider": (np.ones((4, 7), np.float32), TARGETS),
    "structure": {"inputs": INPUTS, "targets": TARGETS},
}


@pytest.mark.parametrize("examples", UNFIT.values(), ids=UNFIT)
@pytest.mark.parametrize(("call", "place"), PLACES.values(), ids=PLACES)
def test_examples_that_do_not_fit_are_refused_before_anything_compiles(call, place, examples):
    refusal = pytest.raises((ValueError, TypeError), match=place)
    with unchecked_annotations(), compiled_programs() as names, refusal:
        call(fresh_posterior(), examples)
    assert names == []


def test_an_evaluation_set_stands_for_the_sampling_data():
    """Also where the loss would take other examples: L of other data is another L."""

    def loss(params, batch):
        return jnp.sum(jnp.tanh(batch) * params["attention"][:1, :1], axis=1)

    posterior, batches = make_posterior(loss), slt.Batches(DATA[0], BATCH_SIZE)
    for examples in (INPUTS[:, :2], INPUTS.astype(np.int32)):
        for call in (llc, susceptibilities):
            other = {} if call is llc else {"examples": INPUTS}
            with compiled_programs() as names, pytest.raises(ValueError, match="of the same kind"):
                call(posterior, batches, evaluation=slt.Probe(examples), **other)
            assert names == []


def test_an_evaluation_set_is_a_probe():
    for call in (llc, susceptibilities):
        with unchecked_annotations(), pytest.raises(TypeError, match=r"must be an slt\.Probe"):
            call(fresh_posterior(), evaluation=FEW)


def test_losses_of_an_evaluation_set_are_finite_and_count():
    broken = slt.Probe((INPUTS, np.where(np.arange(4) == 2, np.inf, TARGETS)))

    def masked(params, batch):
        losses = network_loss(params, batch)
        return slt.Losses(losses, (batch[1] < 1e6).astype(jnp.float32))

    idle = slt.Probe((INPUTS, np.full_like(TARGETS, 1e7)))
    for call in (llc, susceptibilities):
        for posterior, probe, message in (
            (fresh_posterior(), broken, "evaluation set: the loss at w. is not finite at row 2"),
            (make_posterior(masked), idle, "evaluation set has no entry of positive weight"),
        ):
            with compiled_programs() as names, pytest.raises(ValueError, match=message):
                call(posterior, evaluation=probe)
            assert set(names) <= {"jit(_losses)"}


# -- few chains, few draws -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "num_draws", "message"),
    [
        (susceptibilities, 1, "num_draws must be at least 2, and 100 or more"),
        (bif, 1, "at least 8 measured draws per chain, got 1"),
        (loss_kernel, 7, "at least 8 measured draws per chain, got 7"),
    ],
)
def test_an_error_that_cannot_be_had_is_refused(call, num_draws, message):
    with compiled_programs() as names, pytest.raises(ValueError, match=message):
        call(fresh_posterior(), num_draws=num_draws)
    assert not any("run_chunk" in name for name in names)


def one_chain(num_draws):
    """Sample one chain with the losses of all examples kept."""
    losses = slt.LossValues(slt.Probe(DATA), slt.Trace())
    options = SHORT | {"num_draws": num_draws, "num_chains": 1}
    observables = {"train": losses, "query": losses}
    return slt.sample(POSTERIOR, KERNEL, BATCHES, KEY, observables=observables, **options)


def test_where_no_error_can_be_had_there_is_none_and_it_is_said():
    run = one_chain(num_draws=1)
    result = slt.llc_from(run, surroundings=False)
    assert np.isfinite(result.mean)
    assert np.isnan([result.standard_error, *result.interval(), result.ess, result.r_hat]).all()
    assert "1 draws are too few to tell how correlated they are, and for a stand" in str(result)
    assert result.to_dict()["standard_error"] is None
    table = slt.refined_llc_from({"all": [run]}, surroundings=False)
    assert np.isnan(table.standard_error).all()
    assert "± nan *" in str(table)
    for estimator in (slt.bif_from, slt.loss_kernel_from):
        with pytest.raises(ValueError, match="at least 8 measured draws per chain, got 1"):
            estimator(run)


def test_the_error_of_one_chain_comes_from_its_draws_and_says_so():
    run = one_chain(num_draws=20)
    result = slt.llc_from(run, surroundings=False)
    table = slt.refined_llc_from({"all": [run]}, surroundings=False)
    influence, similar = slt.bif_from(run), slt.loss_kernel_from(run)
    for estimate in (result, table, influence, similar):
        assert "1 chain" in str(estimate)
        assert "1 chains" not in str(estimate)
    for estimate in (result, table, influence):
        assert SINGLE_CHAIN in str(estimate)
    assert result.standard_error > 0
    assert np.all(table.standard_error > 0)
    assert np.all(influence.covariance_error > 0)
    assert np.isnan(influence.between_covariance).all()
    assert "nan" not in str(influence)
