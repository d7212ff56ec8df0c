"""The table of refined learning coefficients, where every entry has a closed form."""

import jax
import numpy as np
import pytest
from scipy.stats import t

import slt_jax as slt
from tests.estimators.blocks import (
    BATCH_SIZE,
    BATCHES,
    COMPONENTS,
    KERNEL,
    LOCALIZATION,
    N_BETA,
    PROBES,
    SAMPLED,
    WEIGHTS,
    WIDTH,
    posterior,
)
from tests.helpers import unchecked_annotations
from tests.oracles.two_chains import tempered

OTHER = PROBES["small"]
DATASETS = {"sampled": BATCHES, "small": slt.Batches(tuple(OTHER), 3)}
KEY = jax.random.key(8)


def table(**settings):
    shared = {
        "components": COMPONENTS,
        "num_draws": 500,
        "num_burnin_steps": 0,
        "survey_examples": BATCH_SIZE,
        "surroundings": False,
        "progress": False,
    }
    datasets = settings.pop("datasets", DATASETS)
    return slt.refined_llc(posterior(), KERNEL, datasets, KEY, **(shared | settings))


@pytest.fixture(scope="module")
def one():
    return table(trained_on=["sampled"])


def exact():
    """nβE[g] under the posterior of q′ around w*, which is not its minimum."""
    weights = WEIGHTS.astype(np.float64)
    answers = np.empty((len(COMPONENTS), 2))
    for column, data in enumerate((SAMPLED, OTHER)):
        loss = data.quadratics(weights).mean()
        for row in range(len(COMPONENTS)):
            own = loss.among(range(WIDTH * row, WIDTH * (row + 1)))
            mean, covariance, _ = tempered(own, N_BETA, LOCALIZATION)
            answers[row, column] = N_BETA * own.expectation(mean, covariance)[0]
    return answers


def test_every_entry_agrees_with_its_closed_form(one):
    """32 entries, by Student's t and with mean z² near 1: together 2e-4 of seeds fail."""
    z = (one.llc - exact()) / one.standard_error
    assert np.all(np.abs(z) < t.isf(0.5e-4 / z.size, one.numbers["degrees_of_freedom"]))
    assert 0.3 < np.mean(z**2) < 2.5
    assert one.llc.shape == (16, 2)
    np.testing.assert_allclose(one.per_chain.mean(axis=-1), one.llc, rtol=1e-6)


def test_an_entry_is_that_of_one_component_alone(one):
    alone = slt.llc(
        posterior().restrict(COMPONENTS["block 3"]),
        KERNEL,
        DATASETS["small"],
        KEY,
        num_draws=500,
        num_burnin_steps=0,
        survey_examples=BATCH_SIZE,
        surroundings=False,
        progress=False,
    )
    assert one.llc[3, 1] == pytest.approx(alone.mean, rel=1e-4)
    assert one.standard_error[3, 1] == pytest.approx(alone.standard_error, rel=1e-3)


def test_a_gradient_at_w_star_counts_only_on_the_data_of_training():
    """On q′ it is expected; the same weights judged on their own data are not at a minimum."""
    datasets = {"small": DATASETS["small"]}
    names = {"block 1": COMPONENTS["block 1"], "block 2": COMPONENTS["block 2"]}
    told = {
        trained: table(datasets=datasets, components=names, trained_on=trained).verdicts
        for trained in ((), ("small",))
    }
    assert not any("not at a minimum" in text for text in told[()].ravel())
    assert all("not at a minimum" in text for text in told["small",].ravel())


def test_a_file_gives_back_the_same_object(one):
    assert slt.RefinedLLC.from_tree(one.to_tree()) == one
    data = one.to_xarray()
    assert data["llc"].dims == ("component", "dataset")
    assert data["llc_per_chain"].dims == ("component", "dataset", "chain")
    assert data["dataset"].values.tolist() == ["sampled", "small"]
    with pytest.raises(ValueError, match="it lacks"):
        slt.RefinedLLC.from_tree(one.to_tree().to_dataset().drop_vars("llc"))


def test_what_it_says(one):
    text = str(one)
    assert "16 components (rows)" in text
    assert "block 15" in text
    assert "4 chains × 500 draws; nβ 40, γ 4" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"components": {}}, "name the components to measure"),
        ({"datasets": {}}, "must name at least one"),
        ({"trained_on": "sampled"}, "must be a list of names"),
        ({"trained_on": ["prose"]}, "must be a list of names"),
    ],
)
def test_bad_input(options, message):
    with unchecked_annotations(), pytest.raises((TypeError, ValueError), match=message):
        table(**options)


def test_runs_already_made_give_the_same_table(one):
    """Runs of blocks in two pieces, in another order, and no run without chains."""
    names = list(COMPONENTS)[:2]
    runs = [
        slt.sample(
            posterior(),
            KERNEL,
            BATCHES,
            KEY,
            components={name: COMPONENTS[name]},
            num_draws=500,
            num_burnin_steps=0,
            survey_examples=BATCH_SIZE,
            progress=False,
        )
        for name in reversed(names)
    ]
    found = slt.refined_llc_from({"sampled": iter(runs)}, surroundings=False)
    assert found.components == tuple(reversed(names))
    np.testing.assert_allclose(found.llc[::-1], one.llc[:2, :1], rtol=1e-4)
    with pytest.raises(ValueError, match="no component was sampled"):
        slt.refined_llc_from({})
    with pytest.raises(ValueError, match="must be a list of names"):
        slt.refined_llc_from({"sampled": runs}, trained_on=["prose"])
