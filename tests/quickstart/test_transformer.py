"""The quickstart on the bundled transformer, at a size that takes seconds."""

import dataclasses

import numpy as np
import pytest

import slt_jax as slt
from slt_jax import cli
from slt_jax.models import zoo
from slt_jax.quickstart import pages, reading, transformer

HEADS = ("l1h0", "l1h1", "l1h3")
SMALL = transformer.Settings(
    num_examples=64,
    length=16,
    num_probe_rows=1,
    batch_size=4,
    n_beta=15.0,
    num_draws=8,
    num_burnin_steps=2,
    num_steps_bw_draws=1,
    survey_examples=16,
    surroundings=False,
    heads=HEADS,
)


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quickstart")
    transformer.run(folder, settings=SMALL)
    return folder


def test_everything_announced_is_written_and_can_be_read_back(output):
    pictures = {"llc_traces", "heads", "susceptibility_by_dataset", "control_by_dataset"}
    assert {path.stem for path in output.glob("*.png")} == pictures | {"loadings"}
    llc, heads, chi = (slt.load(output / f"{name}.zarr") for name in transformer.RESULTS)
    assert llc.num_draws == 4 * SMALL.num_draws
    assert heads.components == chi.components == HEADS
    assert chi.metadata["n_beta"] == heads.metadata["n_beta"] == llc.n_beta == SMALL.n_beta
    assert heads.metadata["num_draws"] == chi.metadata["num_draws"] == SMALL.num_draws
    names = ["code", "docstrings", "licences", "numbers", "repeated"]
    assert chi.by_dataset().entries.dataset.tolist() == names
    assert np.isfinite(chi.control).all()


def test_the_report_refers_to_nothing_outside_it_and_holds_the_reading(output):
    page = (output / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 5
    assert 'src="http' not in page
    first = (output / "reading.txt").read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("The learning coefficient of the model is")
    assert first in page


def test_a_second_call_reads_the_runs_back_and_says_so(output, capsys):
    before = slt.load(output / "susceptibilities.zarr")
    transformer.run(output, settings=SMALL)
    printed = capsys.readouterr().out
    assert printed.count("reused, complete since") >= 1
    assert printed.count("reused") >= 2, printed
    after = slt.load(output / "susceptibilities.zarr")
    assert np.array_equal(after.susceptibility, before.susceptibility)
    assert np.array_equal(after.control, before.control)


def test_other_settings_are_refused(output):
    with pytest.raises(slt.StoreMismatch, match="localization"):
        transformer.run(output, settings=SMALL._replace(localization=200.0))
    with pytest.raises(slt.StoreMismatch, match="key"):
        transformer.run(output, settings=SMALL, seed=1)


def test_the_command_runs_it(monkeypatch, tmp_path):
    calls = []

    def run(output, *, seed, settings):
        calls.append((output, seed, settings._replace(layout=None)))
        assert settings.layout is None or settings.layout.chain == settings.num_chains == 2
        return 0

    monkeypatch.setattr(transformer, "run", run)
    assert cli.main(["quickstart", "--output", str(tmp_path), "--seed", "7"]) == 0
    assert calls == [(tmp_path, 7, transformer.Settings())]


def made_up(values, error):
    """Susceptibilities of these sizes, with this error, of heads to repeated tokens."""
    chi = slt.Susceptibilities.of_datasets(
        {name: [value] for name, value in values.items()},
        ["repeated"],
        errors={name: [error] for name in values},
        n_beta=30.0,
    )
    return dataclasses.replace(chi, normalizer=np.ones_like(chi.susceptibility))


def test_the_reading_follows_from_the_numbers_and_their_errors():
    values = {"l1h0": -0.8, "l1h5": -0.7, "l0h0": 0.1, "l0h1": -0.1}
    for error, counted, verb in ((0.05, 2, "are set apart"), (0.3, 0, "are not set apart")):
        chi = made_up(values, error)
        (of_repeated,) = reading.of_the_data(chi)
        assert of_repeated.startswith(f"Repeated: {counted} of 4 heads express it")
        # Whichever group is the lower.
        for group in (["l1h0", "l1h5"], ["l0h0", "l0h1"]):
            (sentence,) = reading.of_induction(chi, group)
            assert verb in sentence
    (sentence,) = reading.of_induction(made_up(values, 0.05), ["l1h0", "l0h0"])
    assert "are not set apart" in sentence
    assert reading.of_induction(made_up({"l0h0": 0.1}, 0.1), []) == []


def test_heads_whose_size_is_unknown_are_left_out_by_name():
    values = {"l1h0": -0.8, "l1h5": -0.7, "l0h0": 0.1, "l0h1": -0.75}
    group = ["l1h0", "l1h5"]
    chi = made_up(values, 0.02)
    (within,) = reading.of_induction(chi, group)
    assert "are not set apart" in within
    assert "not known" not in within
    chi.normalizer[3] = np.nan
    (sentence,) = reading.of_induction(chi, group)
    assert "are set apart" in sentence
    assert "+0.10 to +0.10" in sentence
    assert "nan" not in sentence
    assert sentence.endswith("left out, of l0h1.")
    chi.normalizer[2] = np.nan
    assert reading.of_induction(chi, group) == []


def test_pictures_and_report_are_made_where_sizes_are_unknown(output):
    llc, heads, chi = (slt.load(output / f"{name}.zarr") for name in transformer.RESULTS)
    model, vocabulary = zoo.stdlib_transformer(), zoo.stdlib_vocabulary()
    probes = zoo.probe_rows(vocabulary, SMALL.num_probe_rows, SMALL.length)
    scores = zoo.head_scores(model.loss_fn, model.params, probes["repeated"])
    best, _ = pages._most_responsive(chi)
    # The clearest head loses its scale altogether, another one that of a few tokens.
    number = chi.components.index(best)
    for one in (chi, *chi.coarser.values()):
        one.normalizer[number], one.control_normalizer[number] = np.nan, np.nan
    chi.normalizer[number - 1, :3] = np.nan
    figures = pages.pictures(llc, heads, chi, scores)
    shown = [text.get_text() for text in figures["susceptibility_by_dataset"].figure.axes[0].texts]
    assert shown.count("nan") == len(chi.by_dataset().entries.dataset)
    sentences = reading.reading(llc, heads, chi, scores)
    page = pages.report(sentences, figures, chi, probes)
    assert page.count("data:image/png;base64,") == 5
    assert f"Token by token: {best}" not in page
    assert page.count('class="missing"') <= 1 + 3


def test_a_small_error_of_the_share_is_not_rounded_to_zero(output):
    llc = slt.load(output / "llc.zarr")
    for error, told in ((0.004, "28.20 ± 0.40 %"), (0.012, "28 ± 1 %")):
        own = dataclasses.replace(llc, control=1.0, control_error=0.1, signal=0.282)
        own = dataclasses.replace(own, signal_error=error)
        assert told in reading.of_the_model(own)
