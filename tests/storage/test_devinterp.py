"""Samples of devinterp 2.0.1, made by ``make_devinterp_samples.py``, against its own numbers."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

import slt_jax as slt

HERE = Path(__file__).parent
N_BETA = 10.0


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("devinterp")
    with tarfile.open(HERE / "devinterp_samples.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def numbers():
    return dict(np.load(HERE / "devinterp_numbers.npz"))


def test_without_burn_in_the_learning_coefficients_are_devinterps(samples, numbers):
    run = slt.read_devinterp(samples / "adaptive")
    result = slt.llc_from(run, surroundings=False)
    np.testing.assert_allclose(result.per_chain, numbers["adaptive llc_per_chain"], rtol=1e-5)
    assert result.mean == pytest.approx(float(numbers["adaptive llc_mean"]), rel=1e-5)
    assert result.init_loss == pytest.approx(float(numbers["adaptive init_loss"]), rel=1e-6)
    found = result.to_xarray()["loss_trace"].values
    np.testing.assert_allclose(found, numbers["adaptive loss_trace"], rtol=1e-6)
    assert result.independent_chains
    assert result.adapting


def test_the_burn_in_is_left_out(samples, numbers):
    run = slt.read_devinterp(samples / "full")
    result = slt.llc_from(run, surroundings=False)
    trace, init_loss = numbers["full loss_trace"], numbers["full init_loss"]
    after = N_BETA * (trace[:, 5:].mean(axis=1) - init_loss)
    np.testing.assert_allclose(result.per_chain, after, rtol=1e-5)
    # devinterp's own number averages the burn-in too, which begins at w* itself.
    with_burnin = N_BETA * (trace.mean(axis=1) - init_loss)
    np.testing.assert_allclose(with_burnin, numbers["full llc_per_chain"], rtol=1e-5)
    burnin = trace[:, :4].reshape(3, 2, 2).mean(axis=-1) - init_loss
    np.testing.assert_allclose(run.burnin_gap[0], burnin, rtol=1e-4, atol=1e-6)
    assert result.num_draws == 20
    assert not result.independent_chains


def test_settings_are_kept_under_the_names_of_slt_jax(samples):
    run = slt.read_devinterp(samples / "adaptive", num_params=25)
    result = slt.llc_from(run, surroundings=False)
    assert (result.n_beta, result.localization) == (10.0, 5.0)
    assert result.num_params == 25
    assert result.num_survey_examples == 12
    assert run.batches.num_examples == 12
    assert run.metadata["kernel"].startswith("Sgld(step_size=0.001, preconditioner=Rms(decay=0.99")
    assert "read from samples of devinterp" in str(result)
    assert "read from samples of devinterp" in str(run)
    assert slt.read_devinterp(samples / "half").metadata["num_params"] == "unknown"


def test_a_dead_chain_is_dead(samples, numbers):
    """devinterp averages what its chains reported before they died: its number is infinite."""
    assert np.isinf(numbers["dead llc_mean"])
    run = slt.read_devinterp(samples / "dead")
    steps = numbers["dead loss_trace"]
    first_bad = np.argmin(np.isfinite(steps), axis=1)
    np.testing.assert_array_equal(run.health.alive[0], np.isfinite(steps).all(axis=1))
    # The losses on probes, measured after a step, tell of it one step before those of minibatches.
    np.testing.assert_array_equal(run.health.died_at[0], first_bad - 1)
    steps_only = slt.read_devinterp(samples / "dead", probes=[])
    np.testing.assert_array_equal(steps_only.health.died_at[0], first_bad)
    with pytest.raises(slt.ChainsDiverged, match="of 3 chains became non-finite"):
        slt.llc_from(run, surroundings=False)


def test_losses_on_probes_are_observables_of_the_run(samples):
    run = slt.read_devinterp(samples / "full")
    assert list(run.observables) == ["train", "probe"]
    losses = run.statistics["probe"].value
    assert losses.shape == (1, 3, 20, 4, 3)
    assert np.all(losses > 0)
    assert run.observables["probe"].probe.examples.shape == (4, 4)
    assert list(slt.read_devinterp(samples / "full", probes=["probe"]).observables) == ["probe"]
    with pytest.raises(slt.StoreMismatch, match=r"has the probes .* not \['code'\]"):
        slt.read_devinterp(samples / "full", probes=["code"])


def test_the_draws_are_those_of_which_devinterp_took_covariances(samples, numbers):
    """Over all draws of all chains; slt_jax's own are within chains, without autocorrelation."""
    run = slt.read_devinterp(samples / "full")
    both = [run.statistics[name].value[0] for name in ("probe", "train")]
    tokens = np.concatenate(both, axis=2).reshape(60, 12, 3).astype(np.float64)
    found = np.cov(tokens.mean(axis=-1).T)
    np.testing.assert_allclose(found, numbers["bif sequence covariance"], atol=1e-7)
    found = np.cov(tokens.reshape(60, 36).T).reshape(12, 3, 12, 3).transpose(0, 2, 1, 3)
    np.testing.assert_allclose(found, numbers["bif token covariance"], atol=1e-7)


def test_influence_is_estimated_from_them(samples):
    run = slt.read_devinterp(samples / "full")
    result = slt.bif_from(run, train="train", query="probe")
    assert result.correlation.shape == (8, 4)
    assert np.all(result.covariance_error > 0)
    tokens = slt.bif_from(run, train="train", query="probe", per_token=True)
    assert tokens.influence.shape == (24, 12)
    own = slt.bif_from(run, train="train", query="train")
    np.testing.assert_allclose(np.diag(own.correlation), 1, rtol=1e-6)
    assert "read from samples of devinterp" in str(result)


def test_susceptibilities_are_devinterps(samples, numbers):
    full = slt.read_devinterp(samples / "full", sampled="train", full=True)
    half = slt.read_devinterp(samples / "half", sampled="train", component="half")
    chi = slt.susceptibilities_from(full, half, control=False)
    assert chi.components == ("half",)
    assert "kept in 2 stores: 2 read from samples of devinterp" in str(chi)
    # devinterp's first observable is the probe, the second the sampling data.
    found = chi.to_xarray()["susceptibility"].values[0]
    np.testing.assert_allclose(found, numbers["susceptibilities"][:12], atol=1e-6)
    assert np.all(np.isnan(chi.entries.loss))
    assert np.all(chi.standard_error > 0)
    assert chi.by_dataset().susceptibility[0, 0] == pytest.approx(found.mean(), abs=1e-7)
    with pytest.raises(ValueError, match=r"hold no model: leave out .*control=False"):
        slt.susceptibilities_from(full, half)


def test_susceptibilities_need_the_sampling_data_among_the_observables(samples):
    with pytest.raises(ValueError, match=r"observables \['train', 'probe'\], and sampled='pile'"):
        slt.read_devinterp(samples / "full", sampled="pile")
    with pytest.raises(ValueError, match=r"observables \['train'\], and sampled='train'"):
        slt.read_devinterp(samples / "full", sampled="train", probes=[])


def test_what_needs_a_model_says_so(samples):
    run = slt.read_devinterp(samples / "full")
    with pytest.raises(ValueError, match=r"hold no model: leave out .*surroundings=False"):
        slt.llc_from(run)
    with pytest.raises(ValueError, match="hold no model"):
        slt.extend(run, 5, progress=False)


def test_results_of_devinterp_are_saved_like_others(samples, tmp_path):
    result = slt.llc_from(slt.read_devinterp(samples / "half"), surroundings=False)
    slt.save(result, tmp_path / "llc")
    assert slt.load(tmp_path / "llc") == result


def edit_root(path, edit):
    root = json.loads((path / "zarr.json").read_text())
    edit(root["attributes"])
    (path / "zarr.json").write_text(json.dumps(root))


@pytest.fixture
def copied(samples, tmp_path):
    with tarfile.open(HERE / "devinterp_samples.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "half"


def test_settings_of_which_no_posterior_is_known_are_warned_of(copied):
    def edit(attributes):
        attributes["metadata"]["config"]["sampler"] |= {"noise_level": 0.5, "init_noise": 0.1}

    edit_root(copied, edit)
    with (
        pytest.warns(UserWarning, match=r"noise_level was 0\.5: .* not the posterior"),
        pytest.warns(UserWarning, match=r"init_noise was 0\.1"),
    ):
        slt.read_devinterp(copied)


def test_incomplete_and_foreign_stores_are_refused(copied, tmp_path):
    edit_root(copied, lambda attributes: attributes.pop("completed"))
    with pytest.raises(slt.StoreIncomplete, match="devinterp did not complete"):
        slt.read_devinterp(copied)
    with pytest.raises(slt.StoreMismatch, match="no sample store of devinterp at"):
        slt.read_devinterp(tmp_path / "nowhere")
    run = slt.read_devinterp(tmp_path / "full")
    slt.save(slt.llc_from(run, surroundings=False), tmp_path / "llc")
    with pytest.raises(slt.StoreMismatch, match="is not a sample store of devinterp 2"):
        slt.read_devinterp(tmp_path / "llc")


def test_an_unknown_sampling_method_is_refused(copied):
    def edit(attributes):
        attributes["metadata"]["config"]["sampler"]["sampling_method"] = "sgnht"

    edit_root(copied, edit)
    with pytest.raises(ValueError, match="sampling method 'sgnht' is none of"):
        slt.read_devinterp(copied)
