"""The loop, against the same chains written out step by step in NumPy."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import slt_jax as slt
from slt_jax.data import batch_key, uniform_subset
from slt_jax.noise import noise_like
from tests.helpers import (
    BATCHES,
    DATA,
    KERNEL,
    KEY,
    NUM_CHAINS,
    NUM_EXAMPLES,
    PARAMS,
    POSTERIOR,
    assert_close,
    assert_same,
    compiled_programs,
    head,
    make_posterior,
    network_loss,
    numbers,
    sample,
    unchecked_annotations,
)

STEP_SIZE, N_BETA, LOCALIZATION = 1e-3, 20.0, 50.0
NUM_BURNIN_STEPS, THINNING, NUM_DRAWS = 4, 3, 5
WEIGHTS = np.random.default_rng(0).uniform(0, 2, NUM_EXAMPLES).astype(np.float32)
OWN_BATCHES = slt.Batches(DATA, 8, weights=WEIGHTS, per_chain=True)


@jax.jit
def gap_and_gradient(params, batch, weights):
    """Σ w (ℓ(w) − ℓ(w*)) and its gradient, from the loss alone."""

    def total(params):
        return (weights * (network_loss(params, batch) - network_loss(PARAMS, batch))).sum()

    return jax.value_and_grad(total)(params)


@jax.jit
def subset(stream, step):
    return uniform_subset(jax.random.fold_in(stream, step), NUM_EXAMPLES, 8)


@jax.jit
def noise_of(row_key, step):
    target = POSTERIOR.restriction
    return noise_like(jax.random.fold_in(row_key, step), target.zeros(), target.labels)


def batch_of(batches, stream, step):
    """Examples, and weights over their fixed denominator, of one step."""
    chosen = np.asarray(subset(stream, step))
    examples = tuple(column[chosen] for column in DATA)
    if batches.weights is None:
        return examples, np.full(8, 1 / 8, np.float32)
    return examples, batches.weights[chosen] / (8 * batches.weights.mean())


def displaced(position):
    return {name: PARAMS[name] + position[name] for name in PARAMS}


def written_out(batches, chain, num_steps):
    """One chain of SGLD from its update equation; what every step reports and leads to."""
    selection = POSTERIOR.restriction.selection_hash
    row_key = jax.random.fold_in(jax.random.fold_in(KEY, selection), chain)
    stream = batch_key(KEY, "batches", jnp.int32(chain) if batches.per_chain else None)
    position = {name: np.zeros(leaf.shape, np.float32) for name, leaf in PARAMS.items()}
    for step in range(num_steps):
        examples, weights = batch_of(batches, stream, step)
        gap, gradient = gap_and_gradient(displaced(position), examples, weights)
        noise = noise_of(row_key, step)
        parts = {
            "gradient_norm": [0.5 * STEP_SIZE * N_BETA * gradient[name] for name in PARAMS],
            "localization_norm": [0.5 * STEP_SIZE * LOCALIZATION * position[n] for n in PARAMS],
            "noise_norm": [np.sqrt(STEP_SIZE) * xi for xi in noise],
        }
        position = {
            name: np.asarray(position[name] - pull - prior + xi)
            for name, pull, prior, xi in zip(PARAMS, *parts.values(), strict=True)
        }
        yield {"gap": gap} | {name: length(part) for name, part in parts.items()}, position


def length(arrays):
    return np.sqrt(sum(np.sum(np.square(array, dtype=np.float64)) for array in arrays))


@pytest.mark.parametrize("batches", [BATCHES, OWN_BATCHES], ids=["shared", "per chain, weighted"])
def test_a_run_is_what_its_equations_say(batches):
    run = sample(
        batches=batches,
        num_draws=NUM_DRAWS,
        num_burnin_steps=NUM_BURNIN_STEPS,
        num_steps_bw_draws=THINNING,
    )
    for chain in (0, NUM_CHAINS - 1):
        total = NUM_BURNIN_STEPS + NUM_DRAWS * THINNING
        reports, positions = zip(*written_out(batches, chain, total), strict=True)
        ends = range(NUM_BURNIN_STEPS + THINNING, total + 1, THINNING)
        expected = {
            name: np.asarray(
                [np.mean([report[name] for report in reports[e - THINNING : e]]) for e in ends]
            )
            for name in reports[0]
        }
        expected["distance"] = np.asarray([length(positions[e - 1].values()) for e in ends])
        found = {name: run.traces[name][0, chain] for name in expected}
        assert_close(found, expected, 1e-5)
        draws = {name: np.stack([positions[e - 1][name] for e in ends]) for name in PARAMS}
        assert_close({n: d[0, chain] for n, d in run.positions.items()}, draws, 1e-5)
        early = np.mean([report["gap"] for report in reports[:THINNING]])
        np.testing.assert_allclose(run.burnin_gap[0, chain], [early], rtol=1e-4)
    assert np.all(run.traces["acceptance"] == 1)
    assert np.all(run.traces["weight"] == 1)


def test_fresh_batches_are_those_of_their_streams():
    run = sample(num_draws=7, num_burnin_steps=0)
    found = run.statistics["fresh"].value[0]
    for number in range(3):
        for side in range(2):
            stream = batch_key(KEY, "fresh batches", jnp.int32(side))
            examples, weights = batch_of(BATCHES, stream, number)
            for chain in (0, NUM_CHAINS - 1):
                position = {n: d[0, chain, 3 * number] for n, d in run.positions.items()}
                gap, _ = gap_and_gradient(displaced(position), examples, weights)
                assert found[chain, number, side] == pytest.approx(float(gap), rel=1e-4, abs=1e-6)


def test_chains_differ_and_keys_matter():
    run, other = sample(), sample(key=jax.random.key(21))
    last = run.positions["output"][0, :, -1]
    assert len(np.unique(last)) == last.size
    assert not np.array_equal(run.traces["gap"], other.traces["gap"])
    assert_same(numbers(run), numbers(sample()))


def test_noise_has_the_variance_of_the_step():
    """χ² over 5,760 normals: a correct generator fails with probability 2e-5."""
    run = sample(make_posterior(n_beta=0.0, localization=0.0), num_burnin_steps=0)
    positions = np.concatenate(
        [draws.reshape(NUM_CHAINS, 30, -1) for draws in (d[0] for d in run.positions.values())], -1
    ).astype(np.float64)
    steps = np.diff(positions, axis=1, prepend=0) / np.sqrt(STEP_SIZE)
    square = np.sum(steps**2)
    assert stats.chi2(steps.size).cdf(square) == pytest.approx(0.5, abs=0.5 - 1e-5)
    # Neighbours in time, chain and place: correlations of 5,000 pairs beyond 0.07 are 7e-7 events.
    for first, second in (
        (steps[:, 1:], steps[:, :-1]),
        (steps[1:], steps[:-1]),
        (steps[..., 1:], steps[..., :-1]),
    ):
        assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.07


CENTERS = []


class CountingLoss(eqx.Module):
    """The loss of the network, which counts how often it is computed at w* itself."""

    def __call__(self, params, batch):
        jax.debug.callback(lambda: CENTERS.append(None))
        return network_loss(params, batch)

    def losses_at(self, params, restriction, displacement, batch):
        return network_loss(restriction.insert(params, displacement), batch)


@pytest.mark.parametrize(("size", "per_draw"), [(4, NUM_CHAINS), (8, 0)])
def test_losses_at_the_center_are_computed_once_per_chain_not_per_component(size, per_draw):
    """Of 64 examples in 8 batches they are all computed before the first step."""

    def count(num_draws):
        CENTERS.clear()
        sample(
            make_posterior(CountingLoss()),
            batches=slt.Batches(DATA, size, weights=WEIGHTS, per_chain=True),
            components={"first": head(0), "second": head(1)},
            num_draws=num_draws,
            observables=None,
            collect=None,
            execution=slt.Execution(rows="map"),
        )
        jax.effects_barrier()
        return len(CENTERS)

    assert count(25) - count(5) == 20 * per_draw


def test_dispersed_chains_start_from_the_localization():
    """χ² over 192 normals: a correct generator fails with probability 2e-5."""
    run = sample(kernel=slt.sgld(1e-12), dispersed=True, num_draws=1, num_burnin_steps=0)
    start = np.concatenate([draws.ravel() for draws in run.positions.values()]).astype(np.float64)
    square = np.sum(start**2) * LOCALIZATION
    assert stats.chi2(start.size).cdf(square) == pytest.approx(0.5, abs=0.5 - 1e-5)
    assert len(np.unique(start)) == start.size
    with pytest.raises(ValueError, match="localization above 0"):
        sample(make_posterior(localization=0.0), dispersed=True)


def test_traces_and_burnin_have_the_lengths_asked_for():
    run = sample(num_burnin_steps=11, num_steps_bw_draws=THINNING, num_draws=6)
    assert {trace.shape for trace in run.traces.values()} == {(1, NUM_CHAINS, 6)}
    assert run.burnin_gap.shape == (1, NUM_CHAINS, 3)
    assert run.step == 11 + 18
    assert int(run.carry.step) == run.step
    assert run.num_draws == 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rows": "pmap"}, '"vmap" or "map"'),
        ({"rows": "map", "rows_at_once": 0}, "rows_at_once must be at least 1"),
        ({"rows_at_once": 3}, r'some at a time, .*Execution\(rows="map", rows_at_once=3\)'),
        ({"steps_per_chunk": 0}, "steps_per_chunk must be at least 1"),
    ],
)
def test_execution_is_checked(settings, message):
    with unchecked_annotations(), pytest.raises(ValueError, match=message):
        slt.Execution(**settings)


def test_a_profile_of_one_chunk_is_written_after_compilation(tmp_path):
    folder = tmp_path / "profile"
    execution = slt.Execution(profile=folder, steps_per_chunk=10)
    seen = []
    with compiled_programs() as names:
        slt.llc(
            POSTERIOR,
            KERNEL,
            BATCHES,
            KEY,
            num_draws=30,
            num_burnin_steps=20,
            execution=execution,
            surroundings=False,
            hooks=[lambda progress: seen.append((progress.step, folder.exists(), len(names)))],
            progress=False,
        )
    (written,) = folder.rglob("*.xplane.pb")
    assert b"run_chunk" in written.read_bytes()
    # Of the first chunk of draws only, which begins at step 20.
    assert [step for step, exists, _ in seen if exists] == [30, 40, 50]
    compiled = [count for _, _, count in seen]
    assert compiled[0] == compiled[-1]


def test_extending_needs_draws_and_takes_no_other_option():
    run = sample()
    for count in (0, -3):
        with pytest.raises(ValueError, match="num_draws must be at least 1"):
            slt.extend(run, count)
    with pytest.raises(TypeError):
        slt.extend(run, 5, num_chains=3)  # pyright: ignore[reportCallIssue]


def test_smallest_step_size_is_that_of_the_kernel():
    assert sample().smallest_step_size == pytest.approx(STEP_SIZE)
    assert sample(kernel=KERNEL, num_draws=1).smallest_step_size == pytest.approx(STEP_SIZE)
