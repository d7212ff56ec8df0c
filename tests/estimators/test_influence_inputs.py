"""Influence of masked tokens, of runs that went wrong, and what users get wrong."""

import dataclasses
import errno
import functools
import os
import shutil
from collections import namedtuple
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slt_jax as slt
from slt_jax.estimators.loss_traces import SequenceLosses
from slt_jax.observables import GapPair
from slt_jax.run import Health
from tests.estimators.influence_regression import (
    BATCHES,
    KERNEL,
    OPTIONS,
    POSTERIOR,
    QUERY,
    TRAIN,
    run,
)
from tests.helpers import unchecked_annotations

NUM_SEQUENCES, LENGTH, WIDTH = 6, 5, 3
RNG = np.random.default_rng(2)
TOKENS = RNG.normal(size=(NUM_SEQUENCES, LENGTH, WIDTH)).astype(np.float32)
WEIGHTS = np.array(RNG.integers(0, 3, (NUM_SEQUENCES, LENGTH)), np.float32)
WEIGHTS[4] = 0  # a row of padding
SHORT = {"num_chains": 2, "num_draws": 40, "num_burnin_steps": 10, "progress": False}


def token_loss(params: Any, tokens: Any) -> jax.Array:
    """Give a loss per position, nats ``[batch, pos]``."""
    return 0.5 * jnp.sum((tokens - params["w"]) ** 2, axis=-1)


SEQUENCES = slt.Batches(TOKENS, NUM_SEQUENCES, weights=WEIGHTS)
PROBE = slt.Probe(TOKENS, WEIGHTS)
TOKEN_POSTERIOR = slt.LocalPosterior(
    token_loss, {"w": np.zeros(WIDTH, np.float32)}, n_beta=12.0, localization=2.0
)


@functools.cache
def token_run() -> slt.Run:
    observables = {
        "train": slt.LossValues(PROBE, slt.Trace()),
        "query": slt.LossValues(slt.Probe(TOKENS[:2]), slt.Trace()),
        "rows": SequenceLosses(PROBE),
        "means": slt.LossValues(PROBE, slt.Mean()),
        "thinned": slt.LossValues(PROBE, slt.Trace(), every=2),
        "matrix": slt.Observable(lambda params, x: jnp.outer(params["w"], params["w"]), PROBE),
        "square": slt.Observable(
            lambda params, x: jnp.outer(params["w"], params["w"]), PROBE, slt.Trace()
        ),
    }
    return slt.sample(
        TOKEN_POSTERIOR,
        slt.sgld(1e-2),
        SEQUENCES,
        jax.random.key(1),
        observables=observables,
        **SHORT,
    )


def test_rows_are_tokens_with_weight_or_sequences_with_any():
    tokens, sequences = (slt.bif_from(token_run(), per_token=flag) for flag in (True, False))
    assert tokens.covariance.shape == (np.count_nonzero(WEIGHTS), 2 * LENGTH)
    picks = list(zip(*np.nonzero(WEIGHTS), strict=True))
    assert list(zip(tokens.train_sequence, tokens.train_position, strict=True)) == picks
    assert sequences.train_sequence.tolist() == [0, 1, 2, 3, 5]
    assert set(sequences.train_position) == {-1}


def test_a_sequence_is_the_weighted_mean_of_its_tokens():
    tokens, sequences = (slt.bif_from(token_run(), per_token=flag) for flag in (True, False))
    share = np.array(
        [WEIGHTS[s, p] for s, p in zip(tokens.train_sequence, tokens.train_position, strict=True)]
    )
    covariance = tokens.covariance.reshape(len(share), 2, LENGTH).mean(axis=2)
    for row, sequence in enumerate(sequences.train_sequence):
        own = tokens.train_sequence == sequence
        expected = share[own] @ covariance[own] / share[own].sum()
        np.testing.assert_allclose(sequences.covariance[row], expected, rtol=1e-4, atol=1e-7)


def test_the_derivative_of_a_sequence_is_the_sum_of_those_of_its_tokens():
    """Each is −nβ/Σw times the covariance with w_t ℓ_t, the term of L_n that its weight scales."""
    tokens, sequences = (slt.bif_from(token_run(), per_token=flag) for flag in (True, False))
    derivative = tokens.derivative.reshape(-1, 2, LENGTH).mean(axis=2)
    for row, sequence in enumerate(sequences.train_sequence):
        own = tokens.train_sequence == sequence
        np.testing.assert_allclose(
            sequences.derivative[row], derivative[own].sum(axis=0), rtol=1e-4, atol=1e-7
        )
    first = -12.0 / WEIGHTS.sum() * WEIGHTS[0, tokens.train_position[0]] * tokens.covariance[0]
    np.testing.assert_allclose(tokens.derivative[0], first, rtol=1e-5)


def test_sequences_summed_on_the_device_are_those_summed_on_the_host():
    device, host = (slt.bif_from(token_run(), train=name) for name in ("rows", "train"))
    np.testing.assert_allclose(device.covariance, host.covariance, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(device.weight_factor, host.weight_factor)


def test_per_token_traces_are_needed_per_token():
    with pytest.raises(ValueError, match="one loss per example, not per token"):
        slt.bif_from(token_run(), train="rows", per_token=True)


def test_queries_find_themselves_by_content():
    """Queries 0 and 1 are examples 0 and 1; of weights the content says nothing."""
    assert slt.bif_from(token_run()).self_row.tolist() == [0, 1]
    assert slt.bif_from(run()).self_row.tolist() == [-1] * 12


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"train": "nothing"}, "the run observed"),
        ({"train": "means"}, "keeps Mean, which forgets the draws"),
        ({"train": "thinned"}, "every 2 draws and 'query' every 1"),
        ({"query": "matrix"}, "keeps Mean"),
        ({"query": "square"}, "at most one axis"),
        ({"train": "square", "query": "train"}, "at most one axis"),
        ({"block_size": 0}, "block_size"),
        ({"component": "head"}, "unknown component"),
    ],
)
def test_observables_that_give_no_influence_are_named(names, message):
    with pytest.raises(ValueError, match=message):
        slt.bif_from(token_run(), **names)


def test_quantities_cannot_be_training_rows():
    with pytest.raises(ValueError, match="losses of training examples"):
        slt.bif_from(run(), train="predictions")


def test_too_few_draws_for_an_error():
    few = slt.sample(
        TOKEN_POSTERIOR,
        slt.sgld(1e-2),
        SEQUENCES,
        jax.random.key(1),
        observables=token_run().observables,
        **(SHORT | {"num_draws": 4}),
    )
    with pytest.raises(ValueError, match="at least 8 measured draws per chain, got 4"):
        slt.bif_from(few)


def test_short_runs_and_single_chains_say_so():
    found = slt.bif_from(token_run())
    assert found.verdict.name == "too short"
    assert "the errors rest on 2 batches" in str(found)
    alone = dataclasses.replace(
        run(), health=Health(np.array([[True] + [False] * 7]), np.full((1, 8), 3))
    )
    single = slt.bif_from(alone, drop_diverged=True)
    assert single.num_chains == 1
    assert np.isnan(single.between_covariance).all()
    assert np.isfinite(single.covariance_error).all()


def test_diverged_chains_are_refused_or_dropped_with_their_history():
    broken = dataclasses.replace(
        run(), health=Health(np.array([[True] * 6 + [False] * 2]), np.full((1, 8), 3))
    )
    with pytest.raises(slt.ChainsDiverged, match=r"slt\.bif_from.*drop_diverged=True") as caught:
        slt.bif_from(broken)
    with pytest.raises(slt.ChainsDiverged, match=r"slt\.loss_kernel_from"):
        slt.loss_kernel_from(broken)
    rest = slt.bif_from(caught.value.run, drop_diverged=True)
    assert (rest.num_chains, rest.num_dropped, rest.verdict.name) == (6, 2, "diverged")
    assert "2 dropped" in str(rest)


def test_chains_in_different_regions_are_a_verdict():
    """Chains shifted apart: the covariance within stays, the part between chains is reported."""
    apart = run()
    name = "train"
    shift = np.linspace(-3, 3, 8)[:, None] * np.linspace(1, 2, 48)
    draws = [draw + shift[None].astype(np.float32) for draw in apart.totals[name]]
    moved = dataclasses.replace(apart, totals=dict(apart.totals) | {name: draws})
    found, before = slt.bif_from(moved), slt.bif_from(apart)
    assert found.verdict.name == "chains disagree"
    np.testing.assert_allclose(found.covariance, before.covariance, rtol=1e-3, atol=1e-5)
    own = slt.bif_from(moved, query="train")
    exact = shift.T @ shift / 7
    np.testing.assert_allclose(own.between_covariance, exact, atol=0.15 * exact.max())


def test_drift_is_a_verdict():
    apart = run()
    draws = [draw + np.float32(0.003 * t) for t, draw in enumerate(apart.totals["train"])]
    moved = dataclasses.replace(apart, totals=dict(apart.totals) | {"train": draws})
    assert "not stationary" in [finding.name for finding in slt.bif_from(moved).findings]


def test_losses_that_never_change_are_nan_and_noted():
    apart = run()
    draws = [
        np.concatenate([0 * draw[..., :1], draw[..., 1:]], -1) for draw in apart.totals["train"]
    ]
    still = slt.bif_from(dataclasses.replace(apart, totals=dict(apart.totals) | {"train": draws}))
    assert np.isnan(still.correlation[0]).all()
    assert np.isfinite(still.correlation[1:]).all()
    assert (still.covariance[0] == 0).all()
    assert still.verdict.name == "losses without variation"
    assert 0 not in [entry.train for entry in still.top(0, 48)]


def test_non_finite_losses_are_named():
    apart = run()
    draws = [draw.copy() for draw in apart.totals["train"]]
    draws[5][..., 2] = np.inf
    broken = dataclasses.replace(apart, totals=dict(apart.totals) | {"train": draws})
    with pytest.raises(ValueError, match="1 of 48 rows, the first of them example 2"):
        slt.bif_from(broken)


def bif(**arguments):
    return slt.bif(
        POSTERIOR, KERNEL, BATCHES, jax.random.key(0), **({"query": QUERY} | OPTIONS | arguments)
    )


def loss_kernel(**arguments):
    return slt.loss_kernel(POSTERIOR, KERNEL, BATCHES, jax.random.key(0), **(OPTIONS | arguments))


def test_examples_of_another_shape_are_refused_before_sampling():
    with pytest.raises(ValueError, match=r"'query' cannot be evaluated.*float32\[5, 7\]"):
        bif(query=(np.ones((5, 7), np.float32), np.ones(5, np.float32)))
    with pytest.raises(ValueError, match="'train' cannot be evaluated"):
        bif(train=np.ones((5, 7), np.float32))
    with unchecked_annotations(), pytest.raises(TypeError, match="query must be"):
        bif(query=None)


def test_examples_that_are_not_finite_at_the_center_are_named_before_sampling():
    inputs, targets = (column.copy() for column in QUERY)
    targets[3] = np.nan
    with pytest.raises(ValueError, match=r"'query' is not finite at w.* 1 of 12 .* of them 3"):
        bif(query=(inputs, targets))


def test_quantities_on_fresh_minibatches_are_no_query():
    with pytest.raises(ValueError, match="GapPair draws minibatches"):
        bif(query=GapPair())


def test_taken_names_and_several_components_are_refused():
    with pytest.raises(ValueError, match=r"names \['train'\] are the estimator's own"):
        bif(observables={"train": slt.LossValues(slt.Probe(TRAIN))})
    halves = {
        name: slt.Restriction([slt.Block("w", (32,), (16,), (start,))])
        for name, start in (("first", 0), ("second", 16))
    }
    with pytest.raises(ValueError, match="bif estimates one component"):
        bif(components=halves)


def test_size_is_shown_and_what_does_not_fit_is_refused(capsys, monkeypatch, tmp_path):
    class Stop(Exception):
        pass

    def stop(*arguments, **options):
        raise Stop

    monkeypatch.setattr("slt_jax.estimators.influence.sample", stop)
    with pytest.raises(Stop):
        bif(progress=True, every=4)
    shown = capsys.readouterr().err
    assert "48 + 12 rows at 8 × 250 draws" in shown
    assert "1.0 MB of traces" in shown
    with pytest.raises(ValueError, match="the traces would take"):
        bif(num_draws=10**9)
    usage = namedtuple("Usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(100))
    with pytest.raises(OSError, match="the matrices take"):
        bif(out=tmp_path / "not" / "there")


def test_a_disk_that_is_full_by_then_costs_no_draw(monkeypatch, tmp_path):
    """Room is asked for before the first entry is written: a map without it kills the process."""

    def full(file, first, size):
        assert size > 48 * 12 * 4
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    for name, estimate in (("influence", bif), ("loss_kernel", loss_kernel)):
        monkeypatch.setattr(f"slt_jax.estimators.{name}.sample", lambda *_, **__: run())
        with pytest.raises(slt.NotStored, match=r"no room for the matrices.*error\.run") as caught:
            estimate(out=tmp_path)
        assert caught.value.run is run()
        assert list(tmp_path.iterdir()) == []
