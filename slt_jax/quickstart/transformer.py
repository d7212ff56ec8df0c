"""The bundled transformer: how complex it is, head by head, and which text each head serves.

Everything comes from three runs, one of all weights and one of the heads of each layer, which a
store keeps: the same command goes on from where it was, and a complete one is read back.
"""

import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import slt_jax as slt
from slt_jax.estimators.susceptibilities import FULL_FACTOR
from slt_jax.grouping import groups
from slt_jax.models import Model, zoo
from slt_jax.models.decoder import Decoder
from slt_jax.quickstart.pages import pictures, report
from slt_jax.quickstart.reading import MANY, reading

TRAINING = "training text"
RESULTS = ("llc", "heads", "susceptibilities")


class Settings(NamedTuple):
    """The settings of a quickstart run, one posterior and kernel for the model and all heads.

    γ and ε are those of Structural Inference (Baker et al., arXiv 2504.18274), with noise averaged
    over neighbouring steps, which takes the bias of the step away. nβ is five times theirs, so that
    directions of curvature γ/nβ = 2 are seen, not only those of 10; at twice as much some
    minibatches are so stiff that the step is called too large. A lower γ shows more heads the data
    (15 of 16 have the verdict ok at nβ 100, γ 100, ε 2e-3), but lets all weights together go 2.3
    nats above w*, where χ is −0.9 to −1 of its largest size for every head and data set and tells
    no head from another. Three steps from one draw to the next leave the draws hardly correlated.
    Errors of susceptibilities want 20 batches of 5 autocorrelation times, and the full chain four
    times the draws of the others.

    ``heads`` are the names of those that are measured, None for all; ``layout`` spreads the chains
    over devices.
    """

    num_examples: int = 4096
    length: int = 64
    num_probe_rows: int = 3
    n_beta: float = 150.0
    localization: float = 300.0
    step_size: float = 1e-3
    batch_size: int = 6
    num_chains: int = 2
    num_draws: int = 120
    num_burnin_steps: int = 30
    num_steps_bw_draws: int = 3
    survey_examples: int = 512
    surroundings: bool = True
    heads: tuple[str, ...] | None = None
    layout: slt.Layout | None = None


class Measured(NamedTuple):
    """What a quickstart measures, and the text that it is measured on.

    ``scores`` are the attention scores of the heads on repeated random tokens.
    """

    llc: slt.LLCResult
    heads: slt.RefinedLLC
    susceptibilities: slt.Susceptibilities
    scores: zoo.HeadScores
    probes: Mapping[str, np.ndarray]


class Problem(NamedTuple):
    """The model, what is sampled around it, and what is measured."""

    model: Model
    posterior: slt.LocalPosterior
    kernel: slt.AbstractKernel
    batches: slt.Batches
    probes: Mapping[str, np.ndarray]


def set_up(settings: Settings) -> Problem:
    """Load the model and its text."""
    model, vocabulary = zoo.stdlib_transformer(), zoo.stdlib_vocabulary()
    rows = zoo.training_rows(vocabulary, settings.num_examples, settings.length)
    posterior = slt.LocalPosterior(
        model.loss_fn,
        model.params,
        n_beta=settings.n_beta,
        localization=settings.localization,
    )
    kernel = slt.sgld(settings.step_size, noise_averaging=True)
    probes = zoo.probe_rows(vocabulary, settings.num_probe_rows, settings.length)
    return Problem(model, posterior, kernel, slt.Batches(rows, settings.batch_size), probes)


def sample_runs(
    problem: Problem, settings: Settings, seed: int, store: slt.Store
) -> Iterator[slt.Run]:
    """Sample all weights, then the heads of each layer side by side.

    Args:
        problem: what is sampled.
        settings: of the run.
        seed: of all chains.
        store: in which every run has its place.
    """
    heads = problem.model.components.heads()
    chosen = heads if settings.heads is None else {name: heads[name] for name in settings.heads}
    key = jax.random.key(seed)
    # Its error is shared by all heads: four times the draws, and minibatches of its own.
    full_key = jax.random.fold_in(key, 1)
    yield _sample(problem, settings, full_key, store.within("all weights"), None)
    for group in groups(chosen):
        first, *_, last = group
        yield _sample(problem, settings, key, store.within(f"{first} to {last}"), group)


def _sample(
    problem: Problem,
    settings: Settings,
    key: Any,
    store: slt.Store,
    components: Mapping[str, slt.Restriction] | None,
) -> slt.Run:
    is_full = components is None
    print(f"sampling {'all weights' if is_full else ', '.join(components)} …", flush=True)
    begin = time.perf_counter()
    num_draws = settings.num_draws * (FULL_FACTOR if is_full else 1)
    observables = slt.susceptibility_observables(
        problem.posterior, problem.batches, problem.probes, num_draws, full=is_full
    )
    with warnings.catch_warnings():
        # What it says is printed below.
        warnings.filterwarnings("ignore", message="store .* reused")
        run = slt.sample(
            problem.posterior,
            problem.kernel,
            problem.batches,
            key,
            components=components,
            observables=observables,
            num_chains=settings.num_chains,
            num_draws=num_draws,
            num_burnin_steps=settings.num_burnin_steps,
            num_steps_bw_draws=settings.num_steps_bw_draws,
            survey_examples=settings.survey_examples,
            execution=slt.Execution(layout=settings.layout),
            store=store,
            progress=sys.stderr.isatty(),
        )
    print(f"  {run.metadata['store']} ({time.perf_counter() - begin:.0f} s)", flush=True)
    return run


def measure(settings: Settings, seed: int, output: Path) -> Measured:
    """Sample, estimate, and write the results.

    Args:
        settings: of the run.
        seed: of all chains.
        output: the folder that keeps the runs, under ``runs``, and the results.

    Raises:
        ChainsDiverged: chains became non-finite.
        StoreMismatch: the folder holds runs with other settings.
    """
    problem = set_up(settings)
    store = slt.Store(output)
    full_run, *runs = sample_runs(problem, settings, seed, store)
    print("estimates and controls without data …", flush=True)
    around, decoder = settings.surroundings, problem.model.loss_fn
    assert isinstance(decoder, Decoder)
    measured = Measured(
        slt.llc_from(full_run, surroundings=around),
        slt.refined_llc_from({TRAINING: runs}, trained_on=[TRAINING], surroundings=around),
        slt.susceptibilities_from(full_run, runs),
        zoo.head_scores(decoder, problem.model.params, problem.probes["repeated"]),
        problem.probes,
    )
    for name in RESULTS:
        slt.save(getattr(measured, name), output / f"{name}.zarr")
    return measured


def run(output: Path, *, seed: int = 0, settings: Settings | None = None) -> int:
    """Measure the bundled transformer, print a reading, and write results, pictures and report.

    Args:
        output: the folder to write to; made if it does not exist. A run that was interrupted goes
            on from it, and a complete one is read back.
        seed: of all chains.
        settings: None for the defaults, which take a few minutes on two cores.

    Returns:
        0, or 1 if the learning coefficient of the model is not above 0 by three standard errors.

    Raises:
        ChainsDiverged: chains became non-finite.
        StoreMismatch: the folder holds runs with other settings.
    """
    begin = time.perf_counter()
    measured = measure(Settings() if settings is None else settings, seed, output)
    sentences = reading(measured.llc, measured.heads, measured.susceptibilities, measured.scores)
    for result in (measured.llc, measured.heads, measured.susceptibilities.correlation()):
        print(f"\n{result}")
    print("\n" + "\n".join(f"- {sentence}" for sentence in sentences), flush=True)
    (output / "reading.txt").write_text("\n".join(sentences) + "\n", encoding="utf-8")
    figures = pictures(measured.llc, measured.heads, measured.susceptibilities, measured.scores)
    for name, picture in figures.items():
        picture.figure.savefig(output / f"{name}.png", dpi=150)
    page = report(sentences, figures, measured.susceptibilities, measured.probes)
    (output / "report.html").write_text(page, encoding="utf-8")
    print(f"\nReport, pictures and results: {output} ({time.perf_counter() - begin:.0f} s)")
    return int(not measured.llc.mean > MANY * measured.llc.standard_error)
