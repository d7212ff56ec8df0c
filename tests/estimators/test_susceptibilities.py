"""Susceptibilities on a posterior in blocks for which every number has a closed form.

Errors are compared over all entries of 12 independent measurements: the mean of z² scatters by
0.05 over seeds, so that its bounds are four deviations away, and the largest |z| is compared with
the quantile of Student's t that 1e-4 of seeds exceed. Together 5e-4 of seeds fail.
"""

import dataclasses

import jax
import numpy as np
import pytest
from scipy.stats import t

import slt_jax as slt
from slt_jax.estimators.chains import SINGLE_CHAIN
from slt_jax.estimators.susceptibilities import batch_length
from slt_jax.run import Health
from tests.estimators.blocks import (
    BATCH_SIZE,
    BATCHES,
    COMPONENTS,
    KERNEL,
    LOCALIZATION,
    N_BETA,
    NUM_BLOCKS,
    NUM_SEQUENCES,
    PROBES,
    SAMPLED,
    WEIGHTS,
    WIDTH,
    exact,
    matrix,
    measure,
    posterior,
)
from tests.helpers import compiled_programs, unchecked_annotations
from tests.oracles.two_chains import tempered

NUM_MEASUREMENTS, NUM_DRAWS = 12, 500
FREEDOM = NUM_DRAWS // batch_length(NUM_DRAWS) - 1


@pytest.fixture(scope="module")
def measured():
    return [measure(key=jax.random.key(seed)) for seed in range(NUM_MEASUREMENTS)]


@pytest.fixture(scope="module")
def one(measured):
    return measured[0]


def assert_calibrated(z, mean_bounds=(0.8, 1.25)):
    """Mean z² near 1 and no |z| beyond what Student's t allows in that many entries."""
    z = np.asarray(z)
    low, high = mean_bounds
    assert low < np.mean(z**2) < high
    assert np.abs(z).max() < t.isf(0.5e-4 / z.size, FREEDOM)


def deviations(measured, field, error, expected, take=lambda chi: chi):
    return [(getattr(take(chi), field) - expected) / getattr(take(chi), error) for chi in measured]


def by_dataset(values):
    """Means over the tokens of every data set, the last axis counting tokens."""
    ends = np.cumsum([data.targets.size for data in PROBES.values()])[:-1]
    return np.stack([part.mean(-1) for part in np.split(values, ends, axis=-1)], axis=-1)


def by_sequence(values):
    length = SAMPLED.targets.shape[1]
    return values.reshape(*values.shape[:-1], -1, length).mean(-1)


def test_every_token_agrees_with_the_closed_form(measured):
    z = deviations(measured, "susceptibility", "standard_error", matrix(exact()))
    assert_calibrated(z)


def test_sequences_and_data_sets_have_errors_of_their_own(measured):
    """A mean over tokens has not the mean of their errors, for they move together."""
    for take, average in (
        (slt.Susceptibilities.by_sequence, by_sequence),
        (slt.Susceptibilities.by_dataset, by_dataset),
    ):
        expected = average(matrix(exact()))
        z = deviations(measured, "susceptibility", "standard_error", expected, take)
        assert_calibrated(z)


def test_the_control_is_the_same_at_no_data(measured):
    z = deviations(measured, "control", "control_error", matrix(exact(n_beta=0.0)))
    assert_calibrated(z)


def test_means_that_are_returned_beside_it(measured):
    answers = exact()
    full = matrix(answers, "full_mean")[0]
    assert_calibrated(deviations(measured, "full_mean", "full_error", full), (0.7, 1.4))
    gaps = matrix(answers, "gap")
    z = deviations(measured, "observable_mean", "observable_error", gaps)
    assert_calibrated(z, (0.7, 1.6))


def test_the_error_of_the_full_chain_is_shared(one):
    expected = np.abs(one.observable_mean)[:, None] * one.full_error
    np.testing.assert_allclose(one.shared_error, expected)
    assert np.all(one.shared_error < one.standard_error)
    assert np.linalg.matrix_rank(one.shared_error) == 1


def test_a_wrong_sign_or_a_missing_cross_term_would_be_seen(measured):
    expected = matrix(exact())
    for mistaken in (-expected, matrix(exact(), "covariance")):
        z = deviations(measured, "susceptibility", "standard_error", mistaken)
        assert np.mean(np.square(z)) > 10


def test_one_minibatch_for_both_factors_would_be_seen(measured):
    """It would add the variance over minibatches of the gap, E_w[Var_b(ℓ_b(w) − ℓ_b(w*))]."""
    sampled, rng = SAMPLED.quadratics(WEIGHTS.astype(np.float64)), np.random.default_rng(0)
    excess = []
    for number in range(NUM_BLOCKS):
        own = sampled.among(range(WIDTH * number, WIDTH * (number + 1)))
        mean, covariance, _ = tempered(own.mean(), N_BETA, LOCALIZATION)
        draws = rng.multivariate_normal(mean, covariance, 1000)
        curved = 0.5 * np.einsum("ti,kij,tj->tk", draws, own.matrices, draws)
        gaps = by_sequence(curved + draws @ own.slopes.T)
        variance = gaps.var(axis=1, ddof=1).mean()
        excess.append(variance * (1 / BATCH_SIZE - 1 / NUM_SEQUENCES))
    shift = np.asarray(excess)[:, None] / 2
    assert np.mean([np.square(shift / chi.standard_error) for chi in measured]) > 3


def test_it_is_linear_in_the_probe(one):
    scale = np.abs(one.susceptibility).max()
    for coarse, average in ((one.by_dataset(), by_dataset), (one.by_sequence(), by_sequence)):
        np.testing.assert_allclose(
            coarse.susceptibility, average(one.susceptibility), atol=2e-6 * scale, rtol=0
        )
        np.testing.assert_allclose(coarse.entries.loss, average(one.entries.loss), rtol=1e-6)


def test_without_data_everything_is_the_control(measured):
    chi = measure(posterior=posterior(n_beta=1e-6), num_full_draws=2000)
    error = np.hypot(chi.standard_error, chi.control_error)
    z = (chi.susceptibility - chi.control) / error
    assert np.abs(z).max() < t.isf(0.5e-4 / z.size, FREEDOM)
    assert chi.verdict.name == "only the localization was seen"
    assert np.all(chi.against_control().correlation > 0.9)
    assert measured[0].verdict.ok, str(measured[0].verdict)


def test_a_data_set_measured_against_itself(one):
    """On a fixed evaluation set, the susceptibility to that very set is zero to rounding."""
    chi = measure(
        evaluation=slt.Probe(tuple(SAMPLED)),
        probes={"itself": tuple(SAMPLED), "large": tuple(PROBES["large"])},
        tokens=False,
        control=False,
    )
    datasets = chi.by_dataset()
    assert chi.entries.kind == "sequence"
    assert datasets.entries.dataset.tolist() == ["itself", "large"]
    scale = np.abs(datasets.susceptibility[:, 1]).min()
    assert np.all(np.abs(datasets.susceptibility[:, 0]) < 1e-4 * scale)
    expected = by_dataset(matrix(exact()))[:, list(PROBES).index("large")]
    z = (datasets.susceptibility[:, 1] - expected) / datasets.standard_error[:, 1]
    assert np.abs(z).max() < t.isf(0.5e-4 / z.size, FREEDOM)
    # One evaluation set has no noise of minibatches: what is left is that of the chains.
    noisy = one.by_dataset().standard_error[:, list(PROBES).index("large")]
    assert np.median(datasets.standard_error[:, 1] / noisy) < 1
    assert np.isnan(chi.control).all()


def test_one_program_serves_all_pieces(one):
    """Pieces of 4 components run one after the other: the same numbers, from one more program."""
    with compiled_programs() as names:
        chi = measure(key=jax.random.key(0), slab_bytes=150_000, control=False)
    assert sum("run_chunk" in name for name in names) == 1, names
    scale = one.susceptibility.std()
    np.testing.assert_allclose(chi.susceptibility, one.susceptibility, atol=1e-4 * scale)
    assert chi.components == tuple(COMPONENTS)


def test_other_numbers_compile_nothing(one):
    with compiled_programs() as names:
        measure(posterior=posterior(n_beta=20.0, localization=3.0), key=jax.random.key(5))
    assert names == []


def runs(num_draws=NUM_DRAWS):
    """What ``susceptibilities`` samples, by hand."""
    probes = {name: tuple(data) for name, data in PROBES.items()}
    made = []
    for full in (True, False):
        count = 4 * num_draws if full else num_draws
        observables = slt.susceptibility_observables(posterior(), BATCHES, probes, count, full=full)
        made.append(
            slt.sample(
                posterior(),
                KERNEL,
                BATCHES,
                jax.random.key(90 + full),
                observables=observables,
                components=None if full else COMPONENTS,
                num_draws=count,
                num_burnin_steps=0,
                survey_examples=BATCH_SIZE,
                progress=False,
            )
        )
    return made


@pytest.fixture(scope="module")
def made():
    return runs()


def lose(run, component, chain):
    """The same run, in which one chain counts as lost."""
    alive, died_at = run.health.alive.copy(), run.health.died_at.copy()
    alive[component, chain], died_at[component, chain] = False, 3
    return dataclasses.replace(run, health=Health(alive, died_at))


def test_from_runs_already_made(made):
    chi = slt.susceptibilities_from(*made, control=False)
    z = (chi.susceptibility - matrix(exact())) / chi.standard_error
    assert np.abs(z).max() < t.isf(0.5e-4 / z.size, FREEDOM)
    assert slt.susceptibilities_from(made[0], iter([made[1]]), control=False) == chi


def test_lost_chains_are_refused_or_dropped(made):
    full, components = made
    whole = slt.susceptibilities_from(full, components, control=False)
    lost = lose(components, 2, 1)
    with pytest.raises(slt.ChainsDiverged, match=r"1 of 68 chains .* in block 2\b") as raised:
        slt.susceptibilities_from(full, lost, control=False)
    chi = slt.susceptibilities_from(full, lost, control=False, drop_diverged=True)
    assert raised.value.result == chi
    assert chi.verdict.name == "chains dropped"
    others = np.arange(NUM_BLOCKS) != 2
    np.testing.assert_array_equal(chi.susceptibility[others], whole.susceptibility[others])
    z = (chi.susceptibility[2] - matrix(exact())[2]) / chi.standard_error[2]
    assert np.abs(z).max() < t.isf(0.5e-4 / z.size, FREEDOM)
    # The error is at least that of three independent chains, at most that of a single one.
    own = np.sqrt(chi.standard_error**2 - chi.shared_error**2)[2]
    before = np.sqrt(whole.standard_error**2 - whole.shared_error**2)[2]
    assert np.all(own > before)
    assert np.median(own / before) < 3


def test_a_component_without_chains_and_a_full_chain_without_some(made):
    full, components = made
    dead = components
    for chain in range(4):
        dead = lose(dead, 0, chain)
    with pytest.raises(slt.ChainsDiverged, match="of block 0 none is left"):
        slt.susceptibilities_from(full, dead, control=False, drop_diverged=True)
    with pytest.raises(slt.ChainsDiverged, match="full chain: 1 of 4 chains"):
        slt.susceptibilities_from(lose(full, 0, 0), components, control=False)


def test_runs_that_do_not_belong_together(made):
    full, components = made
    with pytest.raises(ValueError, match=r"did not measure .* as is needed of the full chain"):
        slt.susceptibilities_from(components, components)
    with pytest.raises(ValueError, match=r"did not measure .* as is needed of components"):
        slt.susceptibilities_from(full, dataclasses.replace(components, observables={}))
    with pytest.raises(ValueError, match="two runs have a component called 'block 0'"):
        slt.susceptibilities_from(full, [components, components], control=False)
    single = {name: trace[..., :1] for name, trace in components.traces.items()}
    with pytest.raises(ValueError, match="errors come from the scatter of draws: the run has 1"):
        slt.susceptibilities_from(full, dataclasses.replace(components, traces=single))
    other = dataclasses.replace(components, metadata=components.metadata | {"n_beta": 1.0})
    with pytest.raises(ValueError, match=r"differ in .*'n_beta': \(40\.0, 1\.0\)"):
        slt.susceptibilities_from(full, other, control=False)


def test_a_file_gives_back_the_same_object(one):
    tree = one.to_tree()
    assert slt.Susceptibilities.from_tree(tree) == one
    changed = dataclasses.replace(one, susceptibility=one.susceptibility + 1e-9)
    assert changed != one
    with pytest.raises(ValueError, match="not a tree of susceptibilities"):
        slt.Susceptibilities.from_tree(tree["token"])


def test_scales_are_said_and_comparable(one):
    scored, cosine = one.z_scored(), one.correlation()
    np.testing.assert_allclose(scored.susceptibility.mean(axis=1), 0, atol=1e-9)
    np.testing.assert_allclose(scored.susceptibility.std(axis=1), 1, rtol=1e-9)
    np.testing.assert_allclose(
        scored.by_dataset().susceptibility, by_dataset(scored.susceptibility), atol=1e-4
    )
    assert np.abs(cosine.susceptibility).max() < 1
    assert "compare tokens, not components" in str(one)
    assert "standard deviations" in str(scored)
    assert scored.to_xarray().attrs["scale"] == "z-score"
    assert cosine.to_xarray()["susceptibility"].attrs["units"] == "1"
    with pytest.raises(ValueError, match="already scaled"):
        scored.correlation()


def test_a_component_without_a_scale_is_named(one):
    normalizer = one.normalizer.copy()
    normalizer[1] = np.nan
    cosine = dataclasses.replace(one, normalizer=normalizer).correlation()
    name = one.components[1]
    assert f"mean square came out negative (of {name})" in str(cosine)
    assert "mean square" not in str(one)


def test_one_chain_says_where_its_errors_come_from(one):
    alone = dataclasses.replace(one, metadata=one.metadata | {"num_chains": 1})
    assert f"1 chain × {NUM_DRAWS} draws" in str(alone)
    assert SINGLE_CHAIN in str(alone)
    assert SINGLE_CHAIN not in str(one)


def test_what_it_exports(one):
    data = one.to_xarray()
    assert data["susceptibility"].dims == ("component", "token")
    assert data["component"].values.tolist() == list(COMPONENTS)
    counts = [data.targets.size for data in PROBES.values()]
    assert data["dataset"].values.tolist() == np.repeat(list(PROBES), counts).tolist()
    assert data["position"].values.tolist()[:4] == [0, 1, 2, 0]
    assert data["sequence"].values.tolist()[:4] == [0, 0, 0, 1]
    assert data["susceptibility"].attrs["units"] == "nats^2"
    assert one.by_sequence().to_xarray()["susceptibility"].dims == ("component", "sequence")
    assert "position" not in one.by_sequence().to_xarray().coords
    with pytest.raises(ValueError, match="no finer than 'dataset'"):
        one.by_dataset().by_sequence()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"components": None}, "name the components to measure"),
        ({"components": {"a": "l0h0"}}, "must be an slt.Restriction"),
        ({"probes": {}}, "must name at least one data set"),
        ({"probes": tuple(SAMPLED)}, "must name at least one data set"),
        ({"num_draws": 1}, "num_draws must be at least 2"),
        ({"batches_per_draw": 1}, "batches_per_draw must be at least 2"),
        ({"collect": slt.Positions()}, "keeps no runs"),
        ({"probes": {"a": SAMPLED.inputs}}, "takes one kind of examples"),
        (
            {"probes": {"a": tuple(SAMPLED), "b": tuple(leaf[:, :2] for leaf in SAMPLED)}},
            "Cut them to one length, or pad them",
        ),
        (
            {"probes": {"a": (SAMPLED.inputs, np.full_like(SAMPLED.targets, np.nan))}},
            "not finite at row 0, position",
        ),
    ],
)
def test_bad_input_is_refused_before_sampling(options, message):
    with (
        unchecked_annotations(),
        compiled_programs() as names,
        pytest.raises((ValueError, TypeError), match=message),
    ):
        measure(**options)
    assert not any("run_chunk" in name for name in names)
