"""``slt-jax bif``: a checkpoint and files of token ids become influences and a file."""

import jax
import numpy as np
import pytest
import xarray

import slt_jax as slt
from slt_jax import cli
from tests.models.references import FIXTURES

MODEL = FIXTURES / "attention_only"
OPTIONS = ["--chains", "2", "--draws", "8", "--burn-in", "2", "--batch-size", "4", "--n-beta", "5"]
OPTIONS += ["--localization", "20", "--step-size", "1e-3", "--dtype", "float32", "--no-progress"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Training sequences, two of them as queries."""
    folder = tmp_path_factory.mktemp("data")
    ids = np.random.default_rng(0).integers(0, 50, (8, 6))
    np.save(folder / "ids.npy", ids)
    np.save(folder / "query.npy", ids[:2])
    np.save(folder / "train.npy", ids[2:5])
    np.save(folder / "long.npy", np.zeros((2, 41), int))
    np.save(folder / "foreign.npy", np.full((2, 6), 53))
    return folder


def bif(files, *words):
    fixed = ["--model", MODEL, "--data", files / "ids.npy", "--query", files / "query.npy"]
    return cli.main(["bif", *map(str, [*fixed, *OPTIONS, *words])])


def library(files, component, **options):
    """What the library gives for the options above."""
    model = slt.models.from_hf(MODEL, dtype="float32")
    ids = np.load(files / "ids.npy")
    posterior = slt.LocalPosterior(model.loss_fn, model.params, n_beta=5.0, localization=20.0)
    return slt.bif(
        posterior.restrict(model.components[component]),
        slt.sgld(1e-3),
        slt.Batches(ids, 4),
        jax.random.key(0),
        query=slt.Probe(np.load(files / "query.npy"), batch_size=2),
        num_chains=2,
        num_draws=8,
        num_burnin_steps=2,
        progress=False,
        **options,
    )


def test_influences_of_tokens_are_those_of_the_library(files, tmp_path, capsys):
    words = ["--train", files / "train.npy", "--component", "l1h0", "--per-token"]
    words += ["--top", "2", "--out", tmp_path / "bif.nc"]
    train = slt.Probe(np.load(files / "train.npy"), batch_size=3)
    expected = library(files, "l1h0", train=train, per_token=True)
    assert bif(files, *words) == 0
    printed = capsys.readouterr().out
    lines = printed[printed.index("query sequence 1, position 2") :].splitlines()
    number = next(
        number
        for number, place in enumerate(
            zip(expected.query_sequence, expected.query_position, strict=True)
        )
        if place == (1, 2)
    )
    for line, entry in zip(lines[1:3], expected.top(number, 2), strict=True):
        sequence, position = (
            expected.train_sequence[entry.train],
            expected.train_position[entry.train],
        )
        assert line.startswith(f"  train sequence {sequence}, position {position}: ")
    written, wanted = xarray.load_dataset(tmp_path / "bif.nc"), expected.to_xarray()
    np.testing.assert_allclose(written["covariance"], wanted["covariance"], rtol=1e-3, atol=1e-7)
    assert written.attrs["option_seed"] == "0"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--out", "bif.csv"], "written as .nc"),
        (["--query", "missing.npy"], "missing.npy"),
        (["--draws", "4"], "at least 8 measured draws per chain, got 4"),
        (["--component", "l9h9"], "layer 9 does not exist"),
        (["--query", "long.npy"], "41 tokens do not fit the 40 that the model was made for"),
        (["--train", "foreign.npy"], "input_ids 53 (sequence 0, position 0) is outside"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_sampled(
    files, words, said, capsys, monkeypatch
):
    monkeypatch.chdir(files)
    assert bif(files, *words) == 2
    assert said in capsys.readouterr().err
