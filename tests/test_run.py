"""The run as an object: what it prints, exports and shows to hooks."""

import equinox as eqx
import numpy as np
import pytest
import tqdm.auto

import slt_jax as slt
from tests.helpers import BATCHES, KERNEL, KEY, POSTERIOR, sample


def test_arviz_gets_draws_and_statistics():
    arviz = pytest.importorskip("arviz")
    run = sample()
    converted = run.to_arviz()
    draws = converted["posterior"]["output"]
    np.testing.assert_array_equal(draws, run.positions["output"][0])
    assert "gap" in converted["sample_stats"]
    assert "fingerprint" in converted["sample_stats"].attrs
    assert hasattr(arviz, "summary")


def test_positions_that_were_not_collected_are_an_error_that_says_how():
    run = sample(collect=None)
    with pytest.raises(ValueError, match="collect=slt"):
        _ = run.positions


def test_hooks_see_progress_and_can_stop_the_run():
    seen: list[slt.Progress] = []

    def stop_after_ten_draws(progress: slt.Progress) -> bool:
        seen.append(progress)
        return progress.num_draws >= 10

    execution = slt.Execution(steps_per_chunk=5)
    run = sample(hooks=[stop_after_ten_draws], execution=execution)
    assert run.num_draws == 10
    assert [progress.step for progress in seen] == [5, 10, 15, 20]
    assert seen[-1].gap().shape == (1, 4, 10)


def test_the_bar_shows_the_estimate_of_all_draws_so_far(monkeypatch):
    shown = []
    monkeypatch.setattr(
        tqdm.auto.tqdm, "set_postfix", lambda bar, values, refresh: shown.append(dict(values))
    )
    begun = sample(num_draws=13)
    run = slt.extend(begun, 17, progress=True, execution=slt.Execution(steps_per_chunk=5))
    gap = run.traces["gap"].astype(np.float64)
    for values, count in zip(shown, (18, 23, 28, 30), strict=True):
        assert values["chains"] == "4/4"
        assert values["LLC"] == f"{20.0 * gap[..., :count].mean():.4g}"


def test_a_snapshot_stays_valid_while_the_run_goes_on():
    """What a hook keeps can be extended later to the same numbers as the uninterrupted run."""
    kept: list[slt.Run] = []

    def keep(progress: slt.Progress) -> None:
        kept.append(progress.snapshot())

    execution = slt.Execution(steps_per_chunk=5)
    whole = sample(hooks=[keep], execution=execution)
    resumed = slt.extend(kept[3], 20, progress=False, execution=execution)
    np.testing.assert_array_equal(resumed.traces["gap"], whole.traces["gap"])


def test_same_settings_same_fingerprint_other_data_another():
    first = sample().metadata["fingerprint"]
    assert sample().metadata["fingerprint"] == first
    inputs, targets = BATCHES.dataset.rows(np.arange(BATCHES.num_examples))
    changed = slt.Batches((inputs, targets + np.float32(1)), BATCHES.batch_size)
    assert sample(batches=changed).metadata["fingerprint"] != first
    moved = sample(
        posterior=slt.LocalPosterior(
            POSTERIOR.loss_fn,
            {name: leaf + np.float32(0.5) for name, leaf in POSTERIOR.params.items()},
            n_beta=20.0,
            localization=50.0,
        )
    )
    assert moved.metadata["fingerprint"] != first


def test_what_a_loss_says_of_itself_is_in_the_metadata_and_the_fingerprint():
    class Told(eqx.Module):
        provenance: dict[str, str]

        def __call__(self, params, batch):
            return POSTERIOR.loss_fn(params, batch)

    def told(text):
        posterior = slt.LocalPosterior(Told({"attention": text}), POSTERIOR.params, 20.0, 50.0)
        return sample(posterior=posterior, num_draws=2).metadata

    first, second = told("by blocks"), told("fused")
    assert first["loss_attention"] == "by blocks"
    assert first["fingerprint"] != second["fingerprint"]


def test_progress_bar_shows_health_and_estimate(capsys):
    slt.sample(
        POSTERIOR,
        KERNEL,
        BATCHES,
        KEY,
        num_chains=4,
        num_draws=30,
        num_burnin_steps=10,
        progress=True,
        execution=slt.Execution(steps_per_chunk=5),
    )
    shown = capsys.readouterr().err
    assert "chains=4/4" in shown
    assert "LLC=" in shown


def test_printed_run_says_what_it_is():
    assert str(sample()) == (
        "Run(1 components × 4 chains, 30 draws after 10 burn-in steps; all 4 chains finite)"
    )
