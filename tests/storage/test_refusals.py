"""What a store will not do: go on from something else, from ruins, or past what it can read."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slt_jax as slt
from slt_jax import fingerprint
from slt_jax.fingerprint import digest_of_data
from slt_jax.identity import describe
from tests.helpers import (
    BATCH_SIZE,
    BATCHES,
    DATA,
    KERNEL,
    KEY,
    OBSERVABLES,
    PARAMS,
    PROBE,
    assert_same,
    make_posterior,
    network_loss,
    numbers,
    sample,
)
from tests.storage.interruption import sample_again

SHIFTED = {name: leaf + np.float32(1e-6) for name, leaf in PARAMS.items()}
ONE_CHANGED = (DATA[0], np.concatenate([DATA[1][:-1], DATA[1][-1:] + 1]))
NEXT_STEP_SIZE = float(np.nextafter(np.float32(1e-3), np.float32(1)))
OTHER_PROBE = slt.Probe(tuple(column[1:6] for column in DATA))

# What a call may differ in without compiling anything anew, and how the refusal names it.
OTHERS = {
    "weights": ({"posterior": make_posterior(params=SHIFTED)}, "other weights"),
    "data": ({"batches": slt.Batches(ONE_CHANGED, BATCH_SIZE)}, "other data"),
    "localization": ({"posterior": make_posterior(localization=49.0)}, "localization 50.0, not 49"),
    "n_beta": ({"posterior": make_posterior(n_beta=21.0)}, "n_beta 20.0, not 21.0"),
    "step size": ({"kernel": slt.sgld(2e-3)}, "step_size=0.001, .* not Sgld.step_size=0.002"),
    "last digit": ({"kernel": slt.sgld(NEXT_STEP_SIZE)}, "print alike but are others"),
    "key": ({"key": jax.random.key(21)}, "key 0 20, not 0 21"),
    "burn-in": ({"num_burnin_steps": 11}, "num_burnin_steps 10, not 11"),
    "thinning": ({"num_steps_bw_draws": 2}, "num_steps_bw_draws 1, not 2"),
    "probe": (
        {"observables": OBSERVABLES | {"losses": slt.LossValues(OTHER_PROBE, slt.Mean(4))}},
        r"observable losses.probe.examples.0 float32\[5,3\]",
    ),
}


@pytest.mark.parametrize(("other", "named"), OTHERS.values(), ids=OTHERS)
def test_a_call_that_differs_is_refused_and_told_in_what(complete, other, named):
    with pytest.raises(slt.StoreMismatch, match=f"was made with .*{named}"):
        sample(store=complete, progress=False, **other)
    assert complete.status.startswith("complete: 30 draws")


@pytest.mark.parametrize("estimator", [slt.llc, slt.bif, slt.loss_kernel])
def test_every_estimator_refuses_the_store_of_another_model(complete, estimator):
    options = {"num_draws": 30, "num_burnin_steps": 10, "progress": False, "store": complete}
    own = {"query": PROBE} if estimator is slt.bif else {}
    posterior = make_posterior(params=SHIFTED)
    with pytest.raises(slt.StoreMismatch, match=r"was made with .*other weights"):
        estimator(posterior, KERNEL, BATCHES, KEY, **options, **own)
    assert complete.status.startswith("complete: 30 draws")


def test_another_loss_of_the_same_name_is_refused(complete):
    def edited(params, batch):
        return 1.01 * network_loss(params, batch)

    edited.__module__, edited.__qualname__ = network_loss.__module__, network_loss.__qualname__
    with pytest.raises(slt.StoreMismatch, match=r"another loss function: at w\* it gave 0\.07"):
        sample(make_posterior(loss=edited), store=complete)


def test_another_observable_of_the_same_name_is_refused(complete):
    known = OBSERVABLES["output"].fn

    def edited(params, examples):
        return 2 * params["output"]

    edited.__module__, edited.__qualname__ = known.__module__, known.__qualname__
    other = slt.Observable(edited, PROBE, slt.Variance(batch_length=3), every=2)
    with pytest.raises(slt.StoreMismatch, match="another observable 'output'"):
        sample(store=complete, observables=OBSERVABLES | {"output": other})


def test_what_a_function_closed_over_is_part_of_it():
    def scaled(factor):
        def loss(params, batch):
            return factor * network_loss(params, batch)

        return loss

    assert describe(scaled(1.0)) == describe(scaled(1.0))
    assert describe(scaled(1.0)) != describe(scaled(2.0))
    assert describe(scaled(jnp.ones(2))) != describe(scaled(jnp.zeros(2)))


def test_descriptions_hold_no_addresses():
    posterior = make_posterior(weight_decay=0.1)
    described = describe({"posterior": posterior, "kernel": slt.sgld(lambda step: 1e-3)})
    assert not any("0x" in str(value) for value in described.values())


def test_data_are_known_by_every_row_and_weight():
    weights = np.linspace(0.5, 1.5, len(DATA[0])).astype(np.float32)
    others = [
        slt.Batches(DATA, BATCH_SIZE),
        slt.Batches(DATA, BATCH_SIZE, weights=weights),
        slt.Batches(tuple(column[::-1].copy() for column in DATA), BATCH_SIZE),
        *(
            slt.Batches((DATA[0], DATA[1] + (np.arange(len(DATA[1])) == row)), BATCH_SIZE)
            for row in range(len(DATA[1]))
        ),
    ]
    assert len({digest_of_data(batches) for batches in others}) == len(others)
    assert digest_of_data(slt.Batches(DATA, 3)) == digest_of_data(others[0])


def test_large_data_are_known_by_rows_spread_over_them(monkeypatch):
    monkeypatch.setattr(fingerprint, "_WHOLE_DATA_BYTES", 16)
    monkeypatch.setattr(fingerprint, "_SPREAD_ROWS", 5)
    read = []
    batches = slt.Batches(np.arange(101), 2)
    rows = batches.rows
    monkeypatch.setattr(batches, "rows", lambda numbers: read.append(numbers) or rows(numbers))
    digest_of_data(batches)
    assert np.concatenate(read).tolist() == [0, 25, 50, 75, 100]


def edit_attributes(store, **changes):
    path = store.path / "run.zarr" / "zarr.json"
    metadata = json.loads(path.read_text())
    metadata["attributes"] |= changes
    path.write_text(json.dumps(metadata))


def test_a_store_of_a_newer_format_is_refused(complete):
    edit_attributes(complete, format_version=2)
    with pytest.raises(slt.StoreMismatch, match=r"newer slt_jax .format 2, .* up to 1.: upgrade"):
        sample(store=complete)


def test_a_store_of_other_versions_is_used_with_a_warning(left, whole):
    attributes = json.loads((left.path / "run.zarr" / "zarr.json").read_text())["attributes"]
    versions = attributes["identity"]["versions"] | {"jax": "0.0.1"}
    edit_attributes(left, identity=attributes["identity"] | {"versions": versions})
    with pytest.warns(UserWarning, match=r"made with other versions: jax 0\.0\.1, not"):
        run = sample_again(left)
    assert_same(numbers(run), whole)
    sessions = json.loads((left.path / "run.zarr" / "zarr.json").read_text())["attributes"]
    assert [session["from_step"] for session in sessions["sessions"]] == [0, 24]
    assert sessions["sessions"][1]["versions"]["jax"] == jax.__version__


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("irreplaceable")
    with pytest.raises(slt.StoreMismatch, match=r"holds thesis\.tex and no run of slt_jax"):
        sample(store=slt.Store(tmp_path))
    assert (tmp_path / "thesis.tex").read_text() == "irreplaceable"


def test_a_root_that_cannot_be_read_is_an_error(complete):
    (complete.path / "run.zarr" / "zarr.json").write_text('{"zarr_form')
    with pytest.raises(slt.StoreDamaged, match=r"its zarr\.json is damaged"):
        sample(store=complete)


def test_two_processes_cannot_write_to_one_store(left):
    program = (
        "import fcntl, sys; file = open(sys.argv[1], 'a'); fcntl.flock(file, fcntl.LOCK_EX); "
        "print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, os.fspath(left.path / "lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(BlockingIOError, match="another process is writing to"):
            sample_again(left)
        other.stdin.close()


def test_intervals_and_paths_are_checked():
    with pytest.raises(ValueError, match="every_draws must be above 0, got 0"):
        slt.Store("x", every_draws=0)
    with pytest.raises(ValueError, match=r"every_minutes must be above 0, got -1\.0"):
        slt.Store("x", every_minutes=-1.0)


def test_a_store_is_not_a_path():
    with pytest.raises(TypeError, match=r"store must be an slt\.Store"):
        sample(store="runs/llc")
