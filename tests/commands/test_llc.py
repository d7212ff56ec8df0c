"""``slt-jax llc``: a checkpoint folder and a file of token ids become numbers and a file."""

import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

import slt_jax as slt
from slt_jax import cli
from slt_jax.commands.llc import write_results
from tests.models.references import FIXTURES

MODEL = FIXTURES / "attention_only"
OPTIONS = ["--chains", "2", "--draws", "6", "--burn-in", "2", "--steps-between-draws", "2"]
OPTIONS += ["--batch-size", "4", "--n-beta", "5", "--localization", "20", "--step-size", "1e-3"]
OPTIONS += ["--preconditioner", "rms", "--seed", "3", "--no-progress", "--no-surroundings"]
SAME = {
    "num_chains": 2,
    "num_draws": 6,
    "num_burnin_steps": 2,
    "num_steps_bw_draws": 2,
    "progress": False,
}


def llc(*words):
    return cli.main(["llc", *map(str, words)])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "ids.npy"
    np.save(path, np.random.default_rng(0).integers(0, 50, (8, 6)))
    return path


@pytest.fixture(scope="module")
def model():
    return slt.models.from_hf(MODEL, dtype="float32")


@pytest.fixture(scope="module")
def problem(model, data):
    """What the options above ask for."""
    posterior = slt.LocalPosterior(model.loss_fn, model.params, n_beta=5.0, localization=20.0)
    kernel = slt.sgld(1e-3, preconditioner=slt.rms())
    return posterior, kernel, slt.Batches(np.load(data), 4), jax.random.key(3)


@pytest.fixture(scope="module")
def expected(model, problem):
    """What the library gives for two heads with the options above."""
    posterior, *rest = problem
    return {
        name: slt.llc(posterior.restrict(model.components[name]), *rest, surroundings=False, **SAME)
        for name in ("l0h1", "l1h0")
    }


def test_every_component_is_estimated_printed_and_written(data, expected, tmp_path, capsys):
    heads = [word for name in expected for word in ("--component", name)]
    words = ["--model", MODEL, "--data", data, "--dtype", "float32", *heads, *OPTIONS]
    words += ["--store", tmp_path / "kept"]
    assert llc(*words, "--out", tmp_path / "out.json") == 0
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["settings"]["data"] == str(data)
    assert written["settings"]["seed"] == 3
    assert list(written["components"]) == list(expected)
    printed = capsys.readouterr().out
    for name, result in expected.items():
        np.testing.assert_allclose(
            written["components"][name]["per_chain"], result.per_chain, rtol=1e-5
        )
        assert f"{name}: 1,048 weights, 8 sequences\n{str(result)[:12]}" in printed
    with pytest.warns(UserWarning, match="reused, complete since"):
        assert llc(*words) == 0
    assert capsys.readouterr().out.count("reused, complete since") == len(expected)
    assert llc(*words, "--n-beta", "6") == 2
    assert "made with n_beta" in capsys.readouterr().err


def test_chains_are_spread_over_devices_of_a_new_process(data, expected, tmp_path):
    """JAX gives a new process one CPU device: the option splits it before JAX is first used."""
    words = ["--model", MODEL, "--data", data, "--dtype", "float32", "--component", "l0h1"]
    words += [*OPTIONS, "--devices", "2", "--out", tmp_path / "out.json"]
    command = [sys.executable, "-m", "slt_jax", "llc", *map(str, words)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(FIXTURES.parents[2])}
    subprocess.run(command, check=True, env=environment)
    written = json.loads((tmp_path / "out.json").read_text())
    np.testing.assert_allclose(
        written["components"]["l0h1"]["per_chain"], expected["l0h1"].per_chain, rtol=1e-5
    )
    assert written["settings"]["devices"] == 2


def test_devices_that_cannot_share_the_chains(data, capsys):
    words = ["--model", MODEL, "--data", data, *OPTIONS]
    assert llc(*words, "--devices", "3") == 2
    assert "num_chains must be a multiple of 3, got 2" in capsys.readouterr().err


def test_a_head_reads_alone_what_it_reads_beside_the_others(model, problem, expected):
    heads = {f"l0h{head}": model.components.heads()[f"l0h{head}"] for head in range(4)}
    run = slt.sample(*problem, components=heads, **SAME)
    assert run.health.alive.shape == (4, 2)
    assert run.health.alive.all()
    results = {name: slt.llc_from(run, component=name, surroundings=False) for name in heads}
    assert len({result.mean for result in results.values()}) == 4
    alone, beside = expected["l0h1"], results["l0h1"]
    np.testing.assert_allclose(beside.per_chain, alone.per_chain, rtol=1e-4)
    assert beside.num_params == alone.num_params
    assert beside.distance == pytest.approx(alone.distance, rel=1e-4)


def test_netcdf(expected, tmp_path):
    import xarray

    write_results(tmp_path / "out.nc", expected, {"model": str(MODEL)})
    with xarray.open_dataset(tmp_path / "out.nc") as read:
        assert read.component.values.tolist() == ["l0h1", "l1h0"]
        np.testing.assert_allclose(read.llc, [result.mean for result in expected.values()])
        assert read.loss_gap.dims == ("component", "chain", "draw")
        assert read.verdict.values.tolist() == [str(r.verdict) for r in expected.values()]
        assert read.attrs["model"] == str(MODEL)
        assert read.llc_per_chain.attrs["units"] == "1"


def test_diverged_chains_are_named_and_fail(data, monkeypatch, capsys):
    def diverge(*arguments, **options):
        raise slt.ChainsDiverged("2 of 2 chains diverged", None)

    monkeypatch.setattr(slt, "llc", diverge)
    assert llc("--model", MODEL, "--data", data, "--component", "l0") == 1
    assert "slt-jax llc: l0: 2 of 2 chains diverged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--component", "l7"], "layer 7 does not exist: the model has layers 0 to 1"),
        (["--component", "mlp"], r"no weights are called 'mlp'; there are 'full', 'l0' to 'l1'"),
        (["--data", "nowhere.npy"], "there is no data file nowhere.npy"),
        (["--model", "./nowhere"], "nowhere is not a folder"),
        (["--out", "results.csv"], "--out results.csv: results are written as .json or .nc"),
        (["--out", "nowhere/results.nc"], "there is no folder nowhere"),
        (["--batch-size", "9"], "batch_size must be between 1 and the 8 examples there are, got 9"),
        (["--localization", "-1"], "localization must be"),
        (["--burn-in", "-1"], "num_burnin_steps"),
        (["--dtype", "int8"], "dtype must be one of float16"),
        (["--dtype", "float33"], "float33"),
    ],
)
def test_what_does_not_work_is_one_line(data, words, message, capsys):
    status = llc("--model", MODEL, "--data", data, "--no-progress", *words)
    captured = capsys.readouterr()
    assert status == 2
    assert captured.err.startswith("slt-jax llc: error: ")
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert "LLC" not in captured.out


def test_ids_of_another_tokenizer(tmp_path, capsys):
    np.save(tmp_path / "ids.npy", np.full((4, 5), 10**6))
    assert llc("--model", MODEL, "--data", tmp_path / "ids.npy") == 2
    assert "input_ids 1000000 (sequence 0, position 0) is outside the" in capsys.readouterr().err


def test_text_needs_a_tokenizer_in_the_folder(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("to be or not to be")
    assert llc("--model", MODEL, "--data", tmp_path / "text.txt") == 2
    assert "no tokenizer.json" in capsys.readouterr().err


def test_damaged_checkpoints(data, tmp_path, capsys):
    folder = shutil.copytree(MODEL, tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"short")
    assert llc("--model", folder, "--data", data) == 2
    assert "the file is truncated" in capsys.readouterr().err
    with pytest.raises(ValueError, match="the file is truncated"):
        llc("--model", folder, "--data", data, "--traceback")


@pytest.mark.parametrize("words", [["--chains", "0"], ["--draws", "many"], []])
def test_words_that_do_not_parse(words, capsys):
    with pytest.raises(SystemExit, match="2"):
        llc(*words)
    assert "usage: slt-jax llc" in capsys.readouterr().err
