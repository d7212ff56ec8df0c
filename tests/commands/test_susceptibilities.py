"""``slt-jax susceptibilities``: a checkpoint and files of token ids become a table and a file."""

import contextlib
import dataclasses
import io

import jax
import numpy as np
import pytest
import xarray

import slt_jax as slt
from slt_jax import cli
from tests.models.references import FIXTURES

MODEL = FIXTURES / "attention_only"
OPTIONS = ["--chains", "2", "--draws", "6", "--full-draws", "8", "--burn-in", "2"]
OPTIONS += ["--batch-size", "4", "--n-beta", "5", "--localization", "20", "--step-size", "1e-3"]
OPTIONS += ["--dtype", "float32", "--no-progress"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Sampling data, and half of it as a data set of its own."""
    folder = tmp_path_factory.mktemp("data")
    ids = np.random.default_rng(0).integers(0, 50, (8, 6))
    np.save(folder / "ids.npy", ids)
    np.save(folder / "half.npy", ids[:4])
    np.save(folder / "short.npy", ids[:4, :5])
    np.save(folder / "long.npy", np.zeros((2, 41), int))
    np.save(folder / "foreign.npy", np.full((2, 6), 53))
    return folder


def susceptibilities(files, *words):
    fixed = ["--model", MODEL, "--data", files / "ids.npy", *OPTIONS]
    return cli.main(["susceptibilities", *map(str, [*fixed, *words])])


def probes(files):
    return ["--probe", f"all={files / 'ids.npy'}", "--probe", f"half={files / 'half.npy'}"]


HEADS = ("l0h1", "l1h0")


@pytest.fixture(scope="module")
def kept(files):
    """What the command printed; its store and its file lie beside the data."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert susceptibilities(files, *kept_words(files), "--out", files / "chi.nc") == 0
    return printed.getvalue()


def kept_words(files):
    heads = [word for name in HEADS for word in ("--component", name)]
    return [*probes(files), *heads, "--no-control", "--store", files / "kept"]


def test_every_head_answers_to_every_data_set_as_in_the_library(files, kept):
    model = slt.models.from_hf(MODEL, dtype="float32")
    ids = np.load(files / "ids.npy")
    expected = slt.susceptibilities(
        slt.LocalPosterior(model.loss_fn, model.params, n_beta=5.0, localization=20.0),
        slt.sgld(1e-3),
        slt.Batches(ids, 4),
        jax.random.key(0),
        components={name: model.components[name] for name in HEADS},
        probes={"all": slt.Probe(ids, batch_size=8), "half": slt.Probe(ids[:4], batch_size=4)},
        control=False,
        num_chains=2,
        num_draws=6,
        num_full_draws=8,
        num_burnin_steps=2,
        progress=False,
    )
    assert str(expected).splitlines()[0] in kept
    written, wanted = xarray.load_dataset(files / "chi.nc"), expected.to_xarray()
    assert set(written.data_vars) == set(wanted.data_vars)
    for name, values in wanted.data_vars.items():
        if values.dtype.kind == "f":
            np.testing.assert_allclose(written[name], values, rtol=2e-4, atol=1e-6, err_msg=name)
    assert written.attrs["option_n_beta"] == "5.0"


def test_the_same_command_reads_what_it_kept(files, kept, capsys):
    with pytest.warns(UserWarning, match="reused, complete since"):
        assert susceptibilities(files, *kept_words(files)) == 0
    first = kept.replace(f"Results: {files / 'chi.nc'}\n", "")
    assert capsys.readouterr().out == first.replace("sampled\n", "reused\n")


def test_a_store_of_other_settings_or_weights_is_refused(files, kept, capsys, tmp_path):
    assert susceptibilities(files, *kept_words(files), "--n-beta", "6") == 2
    assert "n_beta" in capsys.readouterr().err
    model = slt.models.from_hf(MODEL, dtype="float32")
    moved = {name: leaf + np.float32(1e-3) for name, leaf in model.params.items()}
    slt.models.save_hf(dataclasses.replace(model, params=moved), tmp_path / "other")
    assert susceptibilities(files, *kept_words(files), "--model", tmp_path / "other") == 2
    assert "other weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--probe", "ids.npy"], "NAME=FILE"),
        (["--probe", "a=x.npy", "--probe", "a=y.npy"], "two probes are called 'a'"),
        (["--probe", "a=missing.npy"], "missing.npy"),
        (["--probe", "a=missing.npy", "--out", "chi.json"], "written as .nc"),
        (["--probe", "a=missing.npy", "--component", "l9h9"], "layer 9 does not exist"),
        (["--probe", "a=long.npy"], "41 tokens do not fit the 40 that the model was made for"),
        (["--probe", "a=foreign.npy"], "input_ids 53 (sequence 0, position 0) is outside"),
        (["--probe", "a=short.npy", "--probe", "b=half.npy"], "must have examples of one shape"),
        (["--probe", "a=half.npy", "--draws", "1"], "num_draws must be at least 2"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_sampled(
    files, words, said, capsys, monkeypatch
):
    monkeypatch.chdir(files)
    assert susceptibilities(files, *words) == 2
    assert said in capsys.readouterr().err
