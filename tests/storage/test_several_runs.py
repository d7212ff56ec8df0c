"""Estimators that make several runs: cut in any of them, controls too, and taken up again."""

import contextlib
import dataclasses
import warnings

import jax
import numpy as np
import pytest

import slt_jax as slt
from slt_jax.persistence import PLACE
from slt_jax.storage.session import Session
from tests.helpers import BATCHES, DATA, KERNEL, KEY, PARAMS, POSTERIOR, head, make_posterior
from tests.storage.interruption import Interruption

OPTIONS = {
    "components": {"first": head(0), "second": head(1)},
    "num_draws": 40,
    "num_burnin_steps": 5,
    "execution": slt.Execution(steps_per_chunk=10),
    "progress": False,
}
PROBES = {"low": tuple(column[:3] for column in DATA), "high": tuple(c[-3:] for c in DATA)}


def susceptibilities(store=None, posterior=POSTERIOR, **options):
    settings = OPTIONS | {"num_full_draws": 80, "probes": PROBES, "store": store} | options
    return slt.susceptibilities(posterior, KERNEL, BATCHES, KEY, **settings)


def refined(store=None, posterior=POSTERIOR, **options):
    settings = OPTIONS | {"surroundings": False, "store": store} | options
    datasets = {"all": BATCHES, "low": slt.Batches(tuple(c[:32] for c in DATA), 8)}
    return slt.refined_llc(posterior, KERNEL, datasets, KEY, **settings)


ESTIMATORS = {"susceptibilities": susceptibilities, "refined": refined}
RUNS = {
    "susceptibilities": ("full", "control of full", "components 0", "control of components 0"),
    "refined": ("all/components 0", "low/components 0"),
}
CUTS = [(kind, name) for kind, names in RUNS.items() for name in names]


@pytest.fixture(scope="module")
def whole():
    return {name: estimate() for name, estimate in ESTIMATORS.items()}


def interrupted_in(estimate, store, name, monkeypatch):
    """End without notice after the second checkpoint of the run of this name."""
    place, saves, save = store.within(name).path, [], Session.save

    def save_and_end(session, *arguments):
        save(session, *arguments)
        saves.extend([session.root.path] if session.root.path == place else [])
        if len(saves) == 2:
            raise Interruption

    with monkeypatch.context() as patch, contextlib.suppress(Interruption):
        patch.setattr(Session, "save", save_and_end)
        estimate(store)
        raise AssertionError(f"{name} was never saved twice")


def again(estimate, store, **options):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="store .* reused")
        return estimate(store, **options)


def without_store(result):
    """The same result, not saying where its runs are."""
    told = {name: value for name, value in result.metadata.items() if name not in PLACE}
    coarser = {}
    if isinstance(result, slt.Susceptibilities):
        coarser = {"coarser": {kind: without_store(one) for kind, one in result.coarser.items()}}
    return dataclasses.replace(result, metadata=told, **coarser)


@pytest.mark.parametrize(("kind", "name"), CUTS, ids=[name for _, name in CUTS])
def test_cut_in_any_run_it_goes_on_to_the_same_bits(whole, tmp_path, monkeypatch, kind, name):
    estimate, store = ESTIMATORS[kind], slt.Store(tmp_path, every_draws=10)
    interrupted_in(estimate, store, name, monkeypatch)
    number = RUNS[kind].index(name)
    assert store.status == f"incomplete: {number + 1} runs begun, {number} of them complete"
    with pytest.raises(slt.StoreIncomplete):
        slt.load(tmp_path)
    result = again(estimate, store)
    assert without_store(result) == whole[kind]
    assert f"kept in {len(RUNS[kind])} stores: " in str(result)
    assert f"{number} reused" in str(result) or not number
    assert "1 resumed at step" in str(result)
    assert slt.load(tmp_path) == result


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_a_complete_one_is_read_back_and_says_so(whole, tmp_path, kind):
    estimate, store = ESTIMATORS[kind], slt.Store(tmp_path)
    first = estimate(store)
    assert without_store(first) == whole[kind]
    assert store.status.startswith(f"complete: {type(first).__name__}")
    assert slt.load(tmp_path) == first
    assert str(slt.load(tmp_path)) == str(first)
    with pytest.warns(UserWarning, match="reused, complete since .*; nothing was sampled"):
        second = estimate(store)
    assert without_store(second) == whole[kind]
    assert f"{len(RUNS[kind])} reused" in str(second)
    colder = slt.LocalPosterior(POSTERIOR.loss_fn, POSTERIOR.params, n_beta=21.0, localization=50.0)
    with pytest.raises(slt.StoreMismatch, match=r"made with n_beta 20\.0, not 21\.0"):
        estimate(store, posterior=colder)
    moved = {name: leaf + np.float32(1e-6) for name, leaf in PARAMS.items()}
    with pytest.raises(slt.StoreMismatch, match="made with other weights"):
        estimate(store, posterior=make_posterior(params=moved))
    assert slt.load(tmp_path) == second


def test_the_control_is_refused_the_place_of_another(tmp_path):
    susceptibilities(slt.Store(tmp_path / "one"))
    (tmp_path / "two" / "runs").mkdir(parents=True)
    place = "runs/control of components 0"
    (tmp_path / "one" / place).rename(tmp_path / "two" / place)
    with pytest.raises(slt.StoreMismatch, match="key"):
        slt.susceptibilities(
            *(POSTERIOR, KERNEL, BATCHES, jax.random.key(21)),
            **OPTIONS | {"num_full_draws": 80, "probes": PROBES},
            store=slt.Store(tmp_path / "two"),
        )
