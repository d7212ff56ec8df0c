"""The estimator: value, errors, by-products and the verdict, on a problem with known answers."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import slt_jax as slt
from slt_jax.estimators.llc import llc_from
from tests.estimators.regression import (
    BATCH_SIZE,
    BATCHES,
    DATA,
    DIMENSION,
    KEY,
    LOCALIZATION,
    N_BETA,
    NUM_EXAMPLES,
    PROBE,
    REGRESSION,
    posterior,
    run,
    squared_error,
)
from tests.oracles.discrete_laws import (
    control_variance,
    learning_coefficient,
    localized_gaussian,
    stationary_covariance,
)
from tests.oracles.gradient_noise import finite_population_noise
from tests.oracles.linear_chains import Quadratic, sgld_chain

EIGENVALUES = np.linalg.eigvalsh(REGRESSION.hessian)
OPTIONS = {"num_chains": 8, "num_draws": 600, "num_burnin_steps": 200, "progress": False}


def exact_sgld(step_size: float, n_beta: float = N_BETA) -> float:
    """Give λ̂ of SGLD on the regression, discretisation and minibatch noise included."""
    target = Quadratic(REGRESSION.hessian, n_beta, LOCALIZATION)
    noise = finite_population_noise(
        REGRESSION.hessians, REGRESSION.gradients(REGRESSION.optimum), BATCH_SIZE
    )
    covariance = stationary_covariance(sgld_chain(target, step_size), noise)
    return learning_coefficient(covariance, REGRESSION.hessian, n_beta)


@pytest.fixture(scope="module")
def result() -> slt.LLCResult:
    """Estimate once with all measurements and fixed evaluation off."""
    return slt.llc(posterior(), slt.sgld(5e-3), BATCHES, KEY, **OPTIONS)


def test_estimate_is_the_exact_law_of_the_chain(result):
    """Within 4.5 standard errors, a false alarm in 10⁵ (10⁴ for the t of few batches)."""
    assert abs(result.mean - exact_sgld(5e-3)) < 4.5 * result.standard_error
    assert result.verdict.ok, str(result)
    assert result.per_chain.mean() == pytest.approx(result.mean)


def test_standard_error_is_the_scatter_over_keys():
    """The reported error matches the scatter over 24 keys within 1.7 (fails below 1e-4)."""
    results = [
        llc_from(
            slt.sample(posterior(), slt.sgld(5e-3), BATCHES, jax.random.key(seed), **OPTIONS),
            surroundings=False,
        )
        for seed in range(24)
    ]
    scatter = np.std([r.mean for r in results], ddof=1)
    reported = np.sqrt(np.mean([r.standard_error**2 for r in results]))
    assert 1 / 1.7 < reported / scatter < 1.7
    mean = np.mean([r.mean for r in results])
    assert abs(mean - exact_sgld(5e-3)) < 4.5 * scatter / np.sqrt(24)


def test_loss_at_the_center_is_that_of_the_whole_data_set(result):
    losses = squared_error(posterior().params, DATA)
    assert result.init_loss == pytest.approx(float(losses.mean()), rel=1e-6)
    assert result.num_survey_examples == NUM_EXAMPLES


def test_predicted_biases_are_those_of_the_exact_law(result):
    """ε and minibatch bias against the Lyapunov solution; the minibatch part is an upper bound."""
    continuous = localized_gaussian(EIGENVALUES, N_BETA, LOCALIZATION)
    target = Quadratic(REGRESSION.hessian, N_BETA, LOCALIZATION)
    full_batch = finite_population_noise(
        REGRESSION.hessians, REGRESSION.gradients(REGRESSION.optimum), NUM_EXAMPLES
    )
    no_noise = learning_coefficient(
        stationary_covariance(sgld_chain(target, 5e-3), full_batch), REGRESSION.hessian, N_BETA
    )
    step_size = (no_noise - continuous) / result.mean
    minibatch = (exact_sgld(5e-3) - no_noise) / result.mean
    assert result.bias.step_size == pytest.approx(step_size, rel=0.35)
    assert 0.5 * minibatch < result.bias.minibatch < 4 * minibatch
    assert result.bias.anchor == 0.0


def test_control_is_the_reading_without_data(result):
    """λ̂₀ = ½ nβ Σ h_i/γ within 4.5 of its errors, one false alarm in 10⁵."""
    steps = np.array([OPTIONS["num_burnin_steps"] + OPTIONS["num_draws"]])
    variance = control_variance(LOCALIZATION, np.array([5e-3]), int(steps[0]))
    exact = 0.5 * N_BETA * EIGENVALUES.sum() * float(np.ravel(variance)[0])
    assert abs(result.control - exact) < 4.5 * result.control_error
    assert result.signal == pytest.approx(1 - result.mean / result.control)
    assert 0 <= result.signal <= 1


def test_second_estimator_is_half_the_sum_of_squares(result):
    """(nβ)² Var(L) = ½ Σ (nβh/a)², up to the inflated variances; within 4.5 errors."""
    target = Quadratic(REGRESSION.hessian, N_BETA, LOCALIZATION)
    noise = finite_population_noise(
        REGRESSION.hessians, REGRESSION.gradients(REGRESSION.optimum), BATCH_SIZE
    )
    sigma = stationary_covariance(sgld_chain(target, 5e-3), noise)
    exact = 0.5 * N_BETA**2 * np.trace(np.linalg.matrix_power(REGRESSION.hessian @ sigma, 2))
    assert abs(result.second_estimator - exact) < 4.5 * result.second_estimator_error
    assert result.second_estimator_error < 0.5 * exact


def test_evaluation_set_gives_the_same_number_and_the_singular_fluctuation():
    """On the whole data the gap has no batch noise; ν̂ = (nβ/2) mean_i Var(ℓ_i) in closed form."""
    result = slt.llc(
        posterior(), slt.sgld(5e-3), BATCHES, KEY, evaluation=PROBE, surroundings=False, **OPTIONS
    )
    assert abs(result.mean - exact_sgld(5e-3)) < 4.5 * result.standard_error
    target = Quadratic(REGRESSION.hessian, N_BETA, LOCALIZATION)
    noise = finite_population_noise(
        REGRESSION.hessians, REGRESSION.gradients(REGRESSION.optimum), BATCH_SIZE
    )
    sigma = stationary_covariance(sgld_chain(target, 5e-3), noise)
    inputs = REGRESSION.inputs
    residual = inputs @ REGRESSION.optimum - REGRESSION.targets
    spread = np.einsum("ni,ij,nj->n", inputs, sigma, inputs)
    exact = N_BETA / 2 * np.mean(residual**2 * spread + 0.5 * spread**2)
    assert result.singular_fluctuation == pytest.approx(exact, rel=0.15)


def test_wbic_is_given_at_its_temperature_only(result):
    assert np.isnan(result.wbic)
    warm = posterior(n_beta=slt.default_n_beta(NUM_EXAMPLES))
    at_wbic = slt.llc(warm, slt.sgld(5e-3), BATCHES, KEY, surroundings=False, **OPTIONS)
    expected = NUM_EXAMPLES * at_wbic.init_loss + np.log(NUM_EXAMPLES) * at_wbic.mean
    assert at_wbic.wbic == pytest.approx(expected, rel=1e-6)


def verdict_of(step_size: float, options: dict | None = None, **settings) -> slt.LLCResult:
    """Estimate at other settings, through the programs that are compiled already."""
    merged = OPTIONS | (options or {})
    return slt.llc(posterior(**settings), slt.sgld(step_size), BATCHES, KEY, **merged)


@pytest.mark.parametrize(
    ("name", "step_size", "settings", "options"),
    [
        ("not at a minimum", 5e-3, {"shift": 0.5}, {}),
        ("step too large", 3e-2, {}, {}),
        ("too short", 5e-3, {}, {"num_draws": 30}),
        ("too short", 2e-5, {}, {}),
        ("too short", 1e-4, {"localization": 0.01}, {"num_burnin_steps": 0}),
        ("only the localization was seen", 5e-2, {"n_beta": 0.02}, {"num_draws": 5000}),
    ],
)
def test_verdict_names_what_is_wrong(name, step_size, settings, options):
    """Each failure is built on purpose; the verdict must not be ok, and must say which it is."""
    found = verdict_of(step_size, options, **settings)
    assert not found.verdict.ok
    assert name in [finding.name for finding in found.findings], str(found)
    assert all(finding.reason and finding.advice for finding in found.findings)


def test_drift_is_found_where_chains_still_climb():
    """Without burn-in a run that starts at w* rises: it may not be called stationary."""
    climbing = verdict_of(2e-4, {"num_burnin_steps": 0}, localization=50.0)
    assert climbing.drift > 3 * climbing.drift_error
    assert "not stationary" in [finding.name for finding in climbing.findings]


def test_refined_data_notes_the_gradient_instead_of_failing_on_it():
    shifted = llc_from(run(shift=0.5), data_refined=True)
    assert "not at a minimum" not in [finding.name for finding in shifted.findings]
    assert "gradient at w*" in str(shifted)


def test_first_order_term_is_that_of_the_gradient():
    """½(nβ)² gᵀ(nβH + 2γ)(nβH + γ)⁻²g, from the curvature of 4 minibatches: within 40 %."""
    shifted = llc_from(run(shift=0.5))
    gradient = REGRESSION.hessian @ np.full(len(EIGENVALUES), 0.5)
    precision = N_BETA * REGRESSION.hessian + LOCALIZATION * np.eye(len(EIGENVALUES))
    inverse = np.linalg.inv(precision)
    middle = precision + LOCALIZATION * np.eye(len(EIGENVALUES))
    exact = 0.5 * N_BETA**2 * gradient @ middle @ inverse @ inverse @ gradient
    assert shifted.first_order == pytest.approx(exact, rel=0.4)


def test_burnin_is_left_out():
    """The first draws after a start at w* are low; with burn-in the estimate does not see them."""
    without = verdict_of(2e-4, {"num_burnin_steps": 0}, localization=50.0)
    late = run(step_size=2e-4, localization=50.0)
    n_beta = N_BETA
    early = n_beta * without.gap[:, :100].mean()
    assert early < 0.5 * n_beta * late.traces["gap"].mean()
    assert late.burnin_gap.shape[-1] == 200
    assert late.traces["gap"].shape[-1] == 600


def test_epoch_order_is_refused_without_an_evaluation_set():
    replayed = slt.Batches(DATA, BATCH_SIZE, order=slt.epoch_order(NUM_EXAMPLES, BATCH_SIZE))
    with pytest.raises(ValueError, match="evaluation=slt"):
        slt.llc(posterior(), slt.sgld(5e-3), replayed, KEY, **OPTIONS)
    with pytest.raises(ValueError, match="evaluation=slt"):
        llc_from(slt.sample(posterior(), slt.sgld(5e-3), replayed, KEY, **OPTIONS))


def test_interval_and_printed_form(result):
    low, high = result.interval()
    assert low < result.mean - 1.9 * result.standard_error
    assert high - result.mean == pytest.approx(result.mean - low)
    first = str(result).splitlines()[0]
    assert first.startswith("LLC ")
    assert "(8 chains, R-hat ≥ " in first
    assert first.endswith("verdict: ok)")


def test_dispersed_independent_chains_make_r_hat_mean_something():
    independent = slt.Batches(DATA, BATCH_SIZE, per_chain=True)
    spread = slt.llc(
        posterior(), slt.sgld(5e-3), independent, KEY, dispersed=True, surroundings=False, **OPTIONS
    )
    assert "R-hat ≥" not in str(spread)
    assert abs(spread.mean - exact_sgld(5e-3)) < 4.5 * spread.standard_error
    assert spread.r_hat < 1.05


def test_exports_hold_everything(result):
    dictionary = json.loads(json.dumps(result.to_dict()))
    assert dictionary["mean"] == result.mean
    assert dictionary["verdict"] == "ok"
    dataset = result.to_xarray()
    assert float(dataset.llc) == result.mean
    assert dataset.loss_trace.dims == ("chain", "draw")
    np.testing.assert_allclose(dataset.loss_trace.mean() - dataset.init_loss, result.gap.mean())
    assert dataset.loss_trace.attrs["units"] == "nats"
    assert all("units" in variable.attrs for variable in dataset.data_vars.values())
    assert {"fingerprint", "slt_jax", "jax", "n_beta", "kernel"} <= set(dataset.attrs)


def test_difference_is_paired_where_randomness_is_shared(result):
    warmer = slt.llc(posterior(n_beta=60.0), slt.sgld(5e-3), BATCHES, KEY, **OPTIONS)
    paired = warmer - result
    assert paired.paired
    assert paired.variance_ratio < 0.2
    assert paired.standard_error < 0.5 * np.hypot(result.standard_error, warmer.standard_error)
    exact = exact_sgld(5e-3, 60.0) - exact_sgld(5e-3)
    assert abs(paired.mean - exact) < 4.5 * paired.standard_error + 0.02


def test_difference_of_unrelated_runs_adds_the_errors(result):
    other = slt.llc(posterior(), slt.sgld(5e-3), BATCHES, jax.random.key(9), **OPTIONS)
    apart = other - result
    assert not apart.paired
    both = np.hypot(result.standard_error, other.standard_error)
    assert apart.standard_error == pytest.approx(both)
    assert abs(apart.mean) < 4.5 * both


def test_unknown_component_is_named(result):
    with pytest.raises(ValueError, match="unknown component"):
        llc_from(run(), component="head")


def test_minibatch_noise_that_makes_up_the_estimate_is_no_ok():
    """λ = 0.495, and SGLD reads about 8 because of gradient noise alone (theory of SGLD, §10.3)."""
    noise = np.sqrt(50.0) * np.random.default_rng(0).normal(size=(1024, DIMENSION))
    data = (REGRESSION.inputs[:1].repeat(1024, 0), (noise - noise.mean(0))[:, 0])
    noisy = slt.Batches(tuple(column.astype(np.float32) for column in data), BATCH_SIZE)
    found = slt.llc(posterior(), slt.sgld(5e-3), noisy, KEY, **OPTIONS)
    assert found.bias.minibatch > 1
    assert "step too large" in [finding.name for finding in found.findings]


def test_weight_decay_is_part_of_control_and_resolution():
    """A strong prior that does all the holding must not read as signal."""
    held = verdict_of(1e-4, weight_decay=1e4, localization=1.0, n_beta=1.0)
    assert held.effective_curvature == pytest.approx(10_001.0)
    assert abs(held.signal) < 3 * held.signal_error
    assert not held.verdict.ok


def test_without_localization_a_run_can_be_ok():
    free = verdict_of(5e-3, {"num_draws": 5000}, localization=0.0)
    assert "relaxation times" not in str(free)
    assert free.relaxations != free.relaxations
    assert abs(free.mean - DIMENSION / 2) < 0.3


def test_padding_of_the_evaluation_set_changes_no_number():
    weights = np.concatenate([np.ones(NUM_EXAMPLES), np.zeros(NUM_EXAMPLES)])
    padded = slt.Probe(tuple(np.concatenate([column, column]) for column in DATA), weights)
    alone, with_padding = (
        slt.llc(
            posterior(),
            slt.sgld(5e-3),
            BATCHES,
            KEY,
            evaluation=probe,
            surroundings=False,
            num_chains=8,
            num_draws=50,
            num_burnin_steps=20,
            progress=False,
        )
        for probe in (PROBE, padded)
    )
    assert with_padding.mean == pytest.approx(alone.mean, rel=1e-5)
    assert with_padding.singular_fluctuation == pytest.approx(alone.singular_fluctuation, rel=1e-4)


def test_pairing_keeps_the_error_that_lies_between_chains(result):
    """Chains with offsets of their own: the paired error may not forget their spread."""
    rng = np.random.default_rng(0)
    gap = result.gap + 0.01 * rng.normal(size=(8, 1))
    changed = {"independent_chains": True}
    first = dataclasses.replace(result, **changed)
    second = dataclasses.replace(result, gap=gap, mean=N_BETA * gap.mean(), **changed)
    spread = N_BETA * (gap - result.gap).mean(axis=1).std(ddof=1) / np.sqrt(8)
    assert (second - first).standard_error > 0.9 * spread


def test_divergence_keeps_the_run_for_going_on(result):
    broken = dataclasses.replace(
        result.run,
        health=slt.Health(np.array([[True] * 7 + [False]]), np.array([[-1] * 7 + [250]])),
    )
    with pytest.raises(slt.ChainsDiverged, match="drop_diverged=True") as caught:
        llc_from(broken)
    rest = llc_from(caught.value.run, drop_diverged=True, surroundings=False)
    assert rest.num_dropped == 1
    assert rest.num_chains == 7
    assert rest.verdict.name == "diverged"
    assert "1 dropped" in str(rest)


def test_several_components_are_refused_before_sampling():
    halves = {
        name: slt.Restriction([slt.Block("w", (DIMENSION,), (2,), (start,))])
        for name, start in (("first", 0), ("second", 2))
    }
    with pytest.raises(ValueError, match="llc estimates one component"):
        slt.llc(posterior(), slt.sgld(5e-3), BATCHES, KEY, components=halves, **OPTIONS)


def test_metropolis_judges_plain_steps_only(result):
    """Noise-averaged steps have no step-size bias, of which the acceptance would be a measure."""
    rejected = dataclasses.replace(result, mala_acceptance=0.1)
    assert rejected.verdict.name == "step too large"
    unbiased = rejected.bias._replace(step_size=0.0)
    assert dataclasses.replace(rejected, bias=unbiased).verdict.ok
