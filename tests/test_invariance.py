"""What must not change the numbers: cutting, resuming, company, and the death of a neighbour.

Unless a tolerance is given, equal means equal to the bit.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slt_jax as slt
from slt_jax.kernels.sgld import Sgld
from slt_jax.noise import noise_like
from slt_jax.preparation import prepare
from tests.helpers import (
    BATCHES,
    DATA,
    KERNEL,
    KEY,
    NUM_CHAINS,
    PARAMS,
    POSTERIOR,
    assert_close,
    assert_same,
    head,
    make_posterior,
    numbers,
    of_chains,
    sample,
)

SHORT = slt.Execution(steps_per_chunk=7)
SHORTER_THAN_A_DRAW = slt.Execution(steps_per_chunk=2)
ONE_BY_ONE = slt.Execution(rows="map")
HEADS = {"first": head(0), "second": head(1)}
FRAGILE = 2


# -- cutting and resuming ------------------------------------------------------------------------


def test_chunks_leave_no_trace():
    assert_same(numbers(sample(execution=SHORT)), numbers(sample()))


def test_chunks_may_be_shorter_than_a_draw():
    options = {"num_steps_bw_draws": 3, "num_draws": 9, "num_burnin_steps": 13}
    cut = sample(**options, execution=SHORTER_THAN_A_DRAW)
    assert_same(numbers(cut), numbers(sample(**options)))


def test_a_run_without_burnin_is_cut_the_same():
    options = {"num_draws": 20, "num_burnin_steps": 0}
    assert_same(numbers(sample(**options, execution=SHORT)), numbers(sample(**options)))


@pytest.mark.parametrize("first", [1, 13, 29])
def test_a_resumed_run_is_the_uninterrupted_one(first):
    begun = sample(num_draws=first)
    resumed = slt.extend(begun, 30 - first, progress=False)
    assert_same(numbers(resumed), numbers(sample(num_draws=30)))
    assert resumed.step == 40
    assert resumed.num_draws == resumed.settings.num_draws == 30


def test_a_run_can_be_resumed_with_other_chunks():
    begun = sample(num_draws=13, execution=SHORT)
    resumed = slt.extend(begun, 17, progress=False, execution=slt.Execution())
    assert_same(numbers(resumed), numbers(sample(num_draws=30)))


@pytest.mark.parametrize("stop_after", [5, 10, 12, 14], ids=["burn-in", "end", "amid", "draw"])
def test_a_run_stopped_by_a_hook_goes_on_where_it_was(stop_after):
    def stop(progress):
        return progress.step >= stop_after

    options = {"num_steps_bw_draws": 3, "execution": SHORTER_THAN_A_DRAW}
    stopped = sample(num_draws=9, hooks=[stop], **options)
    assert stop_after <= stopped.step < stop_after + 2
    resumed = slt.extend(stopped, 9 - stopped.num_draws, progress=False)
    assert_same(numbers(resumed), numbers(sample(num_draws=9, **options)))


def test_extending_twice_gives_the_same_twice_and_leaves_the_run_as_it_was():
    run = sample(num_draws=13)
    before = jax.tree.map(np.array, numbers(run))
    first = slt.extend(run, 10, progress=False)
    second = slt.extend(run, 10, progress=False)
    assert_same(numbers(first), numbers(second))
    assert_same(numbers(run), before)
    third = slt.extend(first, 7, progress=False)
    assert_same(numbers(third), numbers(sample(num_draws=30)))


# -- company -------------------------------------------------------------------------------------


def wide_problem():
    """Give weights large enough for XLA to order sums by the number of rows."""
    generator = np.random.default_rng(0)
    params = {
        "attention": 0.5 * generator.normal(size=(3, 96)).astype(np.float32),
        "output": 0.1 * generator.normal(size=96).astype(np.float32),
    }
    return make_posterior(params=params)


def sample_wide(num_chains, execution, per_chain=False):
    options = {"observables": None, "num_chains": num_chains, "execution": execution}
    return sample(wide_problem(), batches=slt.Batches(DATA, 32, per_chain=per_chain), **options)


@pytest.fixture(scope="module")
def by_number():
    """Runs of some numbers of chains, all at once and one by one."""
    at_once = {(count, "vmap"): sample_wide(count, slt.Execution()) for count in (1, 8)}
    return at_once | {(count, "map"): sample_wide(count, ONE_BY_ONE) for count in (1, 4, 8)}


@pytest.mark.parametrize("count", [1, 4])
def test_chains_one_by_one_do_not_depend_on_their_number(by_number, count):
    few, many = by_number[count, "map"], by_number[8, "map"]
    assert_same(of_chains(few, slice(None)), of_chains(many, slice(count)))


def test_a_lone_chain_with_batches_of_its_own_is_as_in_company():
    alone, many = (sample_wide(count, ONE_BY_ONE, per_chain=True) for count in (1, 3))
    assert_same(of_chains(alone, slice(None)), of_chains(many, slice(1)))


def test_chains_at_once_agree_to_rounding_and_their_noise_to_the_bit(by_number):
    alone, many = by_number[1, "vmap"], by_number[8, "vmap"]
    assert np.array_equal(alone.traces["noise_norm"], many.traces["noise_norm"][:, :1])
    assert_close(of_chains(alone, slice(None)), of_chains(many, slice(1)), 1e-6)


def test_ways_of_computing_rows_agree_to_rounding(by_number):
    at_once, one_by_one = by_number[8, "vmap"], by_number[8, "map"]
    assert_close(of_chains(at_once, slice(None)), of_chains(one_by_one, slice(None)), 1e-6)


def test_rows_computed_some_at_a_time_agree_to_rounding(by_number):
    some = sample_wide(8, slt.Execution(rows="map", rows_at_once=3))
    everything = by_number[8, "vmap"]
    assert np.array_equal(some.traces["noise_norm"], everything.traces["noise_norm"])
    assert_close(of_chains(some, slice(None)), of_chains(everything, slice(None)), 1e-6)


def test_without_a_gradient_positions_are_the_same_to_the_bit_at_any_number():
    free = make_posterior(n_beta=0.0, localization=0.0)
    draws = sample(free).positions
    alone = sample(free, observables=None, num_chains=1).positions
    for name, own in alone.items():
        assert np.array_equal(own, draws[name][:, :1])


def test_rows_are_computed_as_asked():
    asked = {
        None: slt.Execution(),
        1: slt.Execution(rows="map"),
        2: slt.Execution(rows="map", rows_at_once=2),
    }
    for together, execution in asked.items():
        assert execution.batch_of_rows == together


# -- components ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def heads():
    return sample(components=HEADS)


def of_component(run, number):
    picked = {name: trace[number] for name, trace in run.traces.items()}
    return picked | {name: draws[number] for name, draws in run.positions.items()}


def test_a_component_is_sampled_in_company_as_alone(heads):
    for number, name in enumerate(HEADS):
        alone = sample(POSTERIOR.restrict(HEADS[name]))
        assert_close(of_component(alone, 0), of_component(heads, number), 1e-6)
        noise = "noise_norm"
        assert np.array_equal(alone.traces[noise][0], heads.traces[noise][number])


def test_a_component_one_by_one_does_not_depend_on_its_company():
    together = sample(observables=None, components=HEADS, execution=ONE_BY_ONE)
    for number, name in enumerate(HEADS):
        alone = sample(observables=None, components={name: HEADS[name]}, execution=ONE_BY_ONE)
        assert_same(of_component(alone, 0), of_component(together, number))


def test_the_order_and_the_names_of_components_do_not_matter(heads):
    swapped = sample(components={"b": head(1), "a": head(0)})
    for number in range(2):
        assert_same(of_component(swapped, 1 - number), of_component(heads, number))


def test_an_alias_has_the_same_noise():
    # The first head in a layout that takes the inputs and query, key and value together.
    alias = slt.Restriction([slt.Block("attention", (9, 4), (9, 2), (0, 0))])
    assert alias.selection_hash == head(0).selection_hash
    (here,), (there,) = (noise_like(KEY, r.zeros(), r.labels) for r in (alias, head(0)))
    assert np.array_equal(here.reshape(-1), there.reshape(-1))


def test_components_have_their_own_noise_unless_they_are_paired():
    free = make_posterior(n_beta=0.0, localization=0.0)
    own, paired = (sample(free, components=HEADS, paired=flag) for flag in (False, True))
    for draws in own.positions.values():
        assert not np.any(draws[0] == draws[1])
    for draws in paired.positions.values():
        assert np.array_equal(draws[0], draws[1])
        assert len(np.unique(draws[0, :, 0])) == draws[0, :, 0].size, "chains still differ"


def test_components_resume_as_others_do(heads):
    begun = sample(components=HEADS, num_draws=13)
    assert_same(numbers(slt.extend(begun, 17, progress=False)), numbers(heads))


def part(kind, number):
    """Select queries (0), keys (1) or values (2) of a head."""
    block = slt.Block("attention", (3, 3, 2, 2), (3, 1, 1, 2), (0, kind, number, 0))
    return slt.Restriction([block])


def test_offsets_that_components_share_have_no_row_axis():
    def begun(components):
        return prepare(POSTERIOR, KERNEL, BATCHES, KEY, {"components": components})

    run = begun({"one": part(1, 0), "two": part(1, 1)})
    ((inputs, kind, number, width),) = run.rows.starts
    assert np.array_equal(number, np.repeat([0, 1], 4))
    assert inputs is None
    assert kind is None
    assert width is None
    assert [int(offset) for offset in run.posterior.restriction.blocks[0].start] == [0, 1, 0, 0]
    assert begun({"one": part(1, 0)}).rows.starts is None


def test_components_must_fit_together():
    with pytest.raises(ValueError, match="components is empty"):
        sample(components={})
    with pytest.raises(ValueError, match="same paths and sizes"):
        sample(components={"head": head(0), "all": slt.Restriction.full(PARAMS)})
    alias = slt.Restriction([slt.Block("attention", (3, 3, 2, 2), (3, 3, 1, 2), (0, 0, 0, 0))])
    with pytest.raises(ValueError, match="'one' and 'other' select the same weights"):
        sample(components={"one": head(0), "other": alias})
    unknown = slt.Restriction([slt.Block("mlp", (3, 3, 2, 2), (3, 3, 1, 2))])
    with pytest.raises(ValueError, match="unknown path 'mlp'"):
        sample(components={"one": unknown})


# -- a chain that dies ---------------------------------------------------------------------------


def is_weak(key):
    return jax.random.key_data(key)[1] % 2 == 0


class FragileSgld(Sgld):
    """SGLD that at every other step, by the key, cannot bear an output weight that has risen.

    It loses the gap or the next position. A chain that came back to life would go on.
    """

    limit_of_gap: jax.Array
    limit_of_position: jax.Array

    def step(self, key, target, state, batch):
        state_after, info = super().step(key, target, state, batch)
        risen, weak = state.position[1][FRAGILE], is_weak(key)
        gap = jnp.where(weak & (risen > self.limit_of_gap), jnp.nan, info.gap)
        lost = jnp.where(weak & (risen > self.limit_of_position), jnp.nan, 0.0)
        position = tuple(delta + lost for delta in state_after.position)
        return state_after._replace(position=position), info._replace(gap=gap)


def sample_fragile(limit_of_gap=np.inf, limit_of_position=np.inf, **options):
    limits = {
        "limit_of_gap": jnp.float32(limit_of_gap),
        "limit_of_position": jnp.float32(limit_of_position),
    }
    kernel = FragileSgld(**vars(slt.sgld(1e-3)), **limits)
    return sample(kernel=kernel, **({"num_burnin_steps": 0} | options))


@pytest.fixture(scope="module")
def healthy():
    return sample_fragile()


@pytest.fixture(scope="module", params=["limit_of_gap", "limit_of_position"])
def wounded(healthy, request):
    """A run in which the chain that rises furthest dies, and the step at which it must."""
    risen = healthy.positions["output"][0, :, :, FRAGILE]
    others, highest = np.sort(risen.max(axis=1))[-2:]
    limit = others + 0.1 * (highest - others)
    victim = int(risen.max(axis=1).argmax())
    # Step t starts from the position that step t − 1 has left, which is draw t − 1.
    keys = [jax.random.fold_in(healthy.rows.key[victim], step) for step in range(30)]
    weak = np.asarray([bool(is_weak(key)) for key in keys])
    step = 1 + int(np.argmax(weak[1:] & (risen[victim, :-1] > limit)))
    assert not weak[step:].all(), "the example would not notice a resurrection"
    return sample_fragile(**{request.param: limit}), victim, step


def test_the_example_dies_in_the_middle_of_the_run(wounded):
    _, _, step = wounded
    assert 3 < step < 27


def test_death_is_recorded_where_it_happens(wounded):
    run, victim, step = wounded
    expected = np.full((1, NUM_CHAINS), -1)
    expected[0, victim] = step
    assert np.array_equal(run.health.died_at, expected)
    assert np.array_equal(run.health.alive, expected < 0)
    assert str(run.health) == f"1 of 4 chains became non-finite (at steps {step})"


def test_the_others_live_on_as_if_nothing_had_happened(healthy, wounded):
    run, victim, _ = wounded
    others = [chain for chain in range(NUM_CHAINS) if chain != victim]
    assert_same(of_chains(run, others), of_chains(healthy, others))
    for name in ("losses", "output", "fresh"):
        for found, expected in zip(
            jax.tree.leaves(run.statistics[name].value),
            jax.tree.leaves(healthy.statistics[name].value),
            strict=True,
        ):
            assert np.array_equal(found[:, others], expected[:, others])


def test_the_dead_stay_where_they_were_and_report_nothing(healthy, wounded):
    run, victim, step = wounded
    for name, draws in run.positions.items():
        own, before = draws[0, victim], healthy.positions[name][0, victim]
        assert np.array_equal(own[:step], before[:step])
        assert np.all(own[step:] == own[step - 1])
    for name, trace in run.traces.items():
        own, before = trace[0, victim], healthy.traces[name][0, victim]
        assert np.array_equal(own[:step], before[:step])
        assert np.all(np.isnan(own[step:]))


def test_the_statistics_of_the_dead_end_with_their_lives(wounded):
    run, victim, step = wounded
    lived = run.positions["output"][0, victim, :step:2].astype(np.float64)
    found = run.statistics["output"].value[0, victim]
    np.testing.assert_allclose(found, lived.var(axis=0), rtol=1e-3)


def test_death_does_not_depend_on_resumption(wounded):
    run, _, step = wounded
    for first in (step - 2, step, step + 2):
        begun = sample(kernel=run.kernel, num_burnin_steps=0, num_draws=first)
        assert_same(numbers(slt.extend(begun, 30 - first, progress=False)), numbers(run))


def test_an_estimate_is_refused_or_leaves_out_the_whole_history(healthy, wounded):
    run, victim, _ = wounded
    with pytest.raises(slt.ChainsDiverged, match=r"1 of 4 chains.*drop_diverged=True"):
        slt.llc_from(run, surroundings=False)
    kept = slt.llc_from(run, drop_diverged=True, surroundings=False)
    everyone = slt.llc_from(healthy, surroundings=False)
    others = np.arange(NUM_CHAINS) != victim
    assert np.array_equal(kept.per_chain, everyone.per_chain[others])
    assert kept.mean == pytest.approx(everyone.per_chain[others].mean())
    assert kept.num_dropped == 1
    assert kept.verdict.name == "diverged"
    assert "not a fair sample" in str(kept.verdict)
    assert "3 chains, 1 dropped" in str(kept)
    assert kept.to_dict()["num_dropped"] == 1


def test_no_estimate_without_a_living_chain():
    run = sample_fragile(1e-3)
    assert not run.health.alive.any()
    with pytest.raises(slt.ChainsDiverged, match="no chain is left"):
        slt.llc_from(run, drop_diverged=True, surroundings=False)


def test_chains_that_run_away_are_frozen_at_finite_positions():
    run = sample(make_posterior(localization=1e5), num_burnin_steps=0)
    assert not run.health.alive.any()
    assert np.all(run.health.died_at > 3)
    for draws in run.positions.values():
        assert np.all(np.isfinite(draws))


def test_health_survives_being_extended(wounded):
    run, victim, step = wounded
    longer = slt.extend(run, 5, progress=False)
    assert longer.health.died_at[0, victim] == step
    assert np.isnan(longer.traces["gap"][0, victim, step:]).all()
