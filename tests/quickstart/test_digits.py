"""The quickstart on digits, at a size that takes seconds."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slt_jax import cli
from slt_jax.analysis.plots import plot_llc_traces
from slt_jax.quickstart import digits

SMALL = digits.Settings(
    noise_levels=(0.0, 0.5),
    hidden_units=64,
    num_training_steps=2000,
    num_chains=2,
    num_draws=200,
    num_burnin_steps=500,
    num_steps_bw_draws=2,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    output = tmp_path_factory.mktemp("quickstart")
    # Optax's Adam raises a float to an integer power, which strict promotion forbids.
    with jax.numpy_dtype_promotion("standard"):
        status = digits.run(output, settings=SMALL)
    return status, output


def test_memorised_noise_raises_the_learning_coefficient(finished):
    status, output = finished
    clean, noisy = json.loads((output / "results.json").read_text(encoding="utf-8"))["networks"]
    assert status == 0
    assert clean["accuracy"] > 0.99
    assert noisy["accuracy"] > 0.95
    # About fifty times more, with errors of a few per cent: chance plays no part.
    assert noisy["llc"]["mean"] > 5 * clean["llc"]["mean"] > 0


def test_everything_announced_is_written(finished):
    _, output = finished
    assert {path.name for path in output.iterdir()} == {
        "results.json",
        "traces.npz",
        "llc_traces.png",
    }
    report = json.loads((output / "results.json").read_text(encoding="utf-8"))
    assert report["settings"]["localization"] == SMALL.localization
    with np.load(output / "traces.npz") as traces:
        assert traces["50% random labels"].shape == (SMALL.num_chains, SMALL.num_draws)


def test_randomised_labels_are_nested_and_as_many_as_asked():
    labels = jnp.zeros(1000, jnp.int32)
    some, more = (
        np.asarray(digits.randomise_labels(jax.random.key(0), labels, fraction))
        for fraction in (0.2, 0.5)
    )
    # One in ten of the replacements is the label that was there: Binomial(200, 0.1) and
    # Binomial(500, 0.1) lie outside these bounds with a probability below 1e-6.
    assert 155 <= np.sum(some != 0) <= 200
    assert 410 <= np.sum(more != 0) <= 500
    assert np.array_equal(some[some != 0], more[some != 0])


def test_command_line_passes_its_arguments_on(monkeypatch):
    calls = []
    monkeypatch.setattr(digits, "run", lambda output, *, seed: calls.append((output, seed)) or 0)
    assert cli.main(["quickstart", "digits", "--output", "somewhere", "--seed", "7"]) == 0
    assert calls == [("somewhere", 7)]


def test_plot_without_results_is_refused():
    with pytest.raises(ValueError, match="at least one result"):
        plot_llc_traces({})
