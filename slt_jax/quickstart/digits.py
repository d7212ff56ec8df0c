"""A second run: the more label noise a network has memorised, the more complex its solution.

Three networks of one shape learn scikit-learn's bundled handwritten digits with 0, 20 and 50 % of
the labels replaced by random ones. All three reach a training accuracy of 100 %, so the training
loss hardly tells them apart; the local learning coefficient (Lau et al., arXiv 2308.12108) does.
"""

import functools
import itertools
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

import slt_jax as slt

Digits = tuple[Float[Array, "example pixel"], Int[Array, " example"]]

NUM_PIXELS = 64
NUM_CLASSES = 10


class Settings(NamedTuple):
    """The settings of a quickstart run.

    ``weight_decay`` gives the cross-entropy a minimum at finite weights without moving it
    noticeably: the gradient of the loss at w* stays below 0.005. ``step_size`` reads the noisiest
    network within 5 % of what a third of it reads.
    """

    noise_levels: tuple[float, ...] = (0.0, 0.2, 0.5)
    hidden_units: int = 128
    num_training_steps: int = 5000
    learning_rate: float = 1e-2
    weight_decay: float = 1e-5
    localization: float = 100.0
    step_size: float = 1e-4
    batch_size: int = 64
    num_chains: int = 8
    num_draws: int = 1000
    num_burnin_steps: int = 3000
    num_steps_bw_draws: int = 5


class Measurement(NamedTuple):
    """One trained network and its learning coefficient.

    ``training_loss`` (nats) and ``accuracy`` are on the labels as given, random ones included.
    """

    noise_level: float
    training_loss: float
    accuracy: float
    result: Any


def load_digits() -> Digits:
    """Load scikit-learn's bundled digits: 1797 images of 8 × 8 pixels, white − black = 1, mean 0.

    Returns:
        float32 ``[example, pixel]`` images and int32 ``[example]`` labels 0…9.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    from sklearn import datasets

    images, labels = datasets.load_digits(return_X_y=True)
    images = (images - images.mean()) / 16
    return jnp.asarray(images, jnp.float32), jnp.asarray(labels, jnp.int32)


def randomise_labels(
    key: Key[Array, ""], labels: Int[Array, " example"], fraction: float
) -> Int[Array, " example"]:
    """Replace a fraction of the labels by uniformly random ones (which may be the right ones).

    The examples replaced at a small fraction are among those replaced at a larger one.

    >>> labels = jnp.zeros(4, jnp.int32)
    >>> randomise_labels(jax.random.key(0), labels, 0.0).tolist()
    [0, 0, 0, 0]
    """
    order_key, label_key = jax.random.split(key)
    rank = jax.random.permutation(order_key, len(labels))
    replacements = jax.random.randint(label_key, labels.shape, 0, NUM_CLASSES, labels.dtype)
    return jnp.where(rank < round(fraction * len(labels)), replacements, labels)


def initial_params(key: Key[Array, ""], hidden_units: int) -> dict[str, Array]:
    """Draw the weights of a perceptron with one hidden layer, at He's scale."""
    first_key, second_key = jax.random.split(key)
    first = jax.random.normal(first_key, (NUM_PIXELS, hidden_units))
    second = jax.random.normal(second_key, (hidden_units, NUM_CLASSES))
    return {
        "first": first * np.float32((2 / NUM_PIXELS) ** 0.5),
        "first_bias": jnp.zeros(hidden_units),
        "second": second * np.float32((2 / hidden_units) ** 0.5),
        "second_bias": jnp.zeros(NUM_CLASSES),
    }


def logits(params: dict[str, Array], images: Array) -> Array:
    """Give the network's unnormalised log probabilities, ``[example, class]``."""
    hidden = jax.nn.relu(images @ params["first"] + params["first_bias"])
    return hidden @ params["second"] + params["second_bias"]


def loss_fn(params: dict[str, Array], batch: Digits) -> Float[Array, " batch"]:
    """Give the cross-entropy of every example in nats, float32 ``[batch]``, never averaged."""
    images, labels = batch
    return optax.softmax_cross_entropy_with_integer_labels(logits(params, images), labels)


@functools.partial(jax.jit, static_argnames="settings")
def train(params: dict[str, Array], digits: Digits, settings: Settings) -> dict[str, Array]:
    """Minimise the mean loss plus a small weight decay by full-batch Adam, in one program."""
    num_steps = settings.num_training_steps
    rate = settings.learning_rate
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, rate, num_steps // 20, num_steps, 1e-3 * rate
    )
    optimizer = optax.adam(schedule)

    def objective(params: dict[str, Array]) -> Float[Array, ""]:
        decay = 0.5 * settings.weight_decay * optax.tree.norm(params, squared=True)
        return loss_fn(params, digits).mean() + decay

    def update(carry: Any, _: None) -> tuple[Any, None]:
        params, state = carry
        updates, state = optimizer.update(jax.grad(objective)(params), state)
        return (optax.apply_updates(params, updates), state), None

    start: Any = (params, optimizer.init(params))
    finish, _ = jax.lax.scan(update, start, length=num_steps)
    return finish[0]


def measure(key: Key[Array, ""], noise_level: float, settings: Settings) -> Measurement:
    """Train one network and estimate the learning coefficient of the weights it found.

    Args:
        key: labels, initial weights and chains all derive from it; the same key gives every noise
            level the same start.
        noise_level: the fraction of labels replaced, 0…1.
        settings: of the run.
    """
    label_key, params_key, chain_key = jax.random.split(key, 3)
    images, true_labels = load_digits()
    digits = images, randomise_labels(label_key, true_labels, noise_level)
    params = train(initial_params(params_key, settings.hidden_units), digits, settings)
    posterior = slt.LocalPosterior(
        loss_fn,
        params,
        n_beta=slt.default_n_beta(len(images)),
        localization=settings.localization,
    )
    result = slt.llc(
        posterior,
        slt.sgld(settings.step_size),
        slt.Batches(digits, batch_size=settings.batch_size),
        chain_key,
        num_chains=settings.num_chains,
        num_draws=settings.num_draws,
        num_burnin_steps=settings.num_burnin_steps,
        num_steps_bw_draws=settings.num_steps_bw_draws,
        progress=sys.stderr.isatty(),
    )
    accuracy = jnp.mean(jnp.argmax(logits(params, images), axis=-1) == digits[1])
    return Measurement(noise_level, float(loss_fn(params, digits).mean()), float(accuracy), result)


def format_table(measurements: Sequence[Measurement]) -> str:
    """Lay out the measurements as a table, one line per network."""
    # All chains start at w*, so R-hat is a lower bound.
    lines = ["random labels   training loss  accuracy             LLC   R-hat    ESS  verdict"]
    for noise_level, training_loss, accuracy, result in measurements:
        dataset = result.to_xarray()
        estimate = f"{result.mean:.2f} ± {result.standard_error:.2f}"
        verdict = str(result.verdict).partition(":")[0]
        lines.append(
            f"{noise_level:>13.0%}  {training_loss:>14.5f}  {accuracy:>8.1%}  {estimate:>14}"
            f"  ≥ {float(dataset['r_hat']):.2f}  {float(dataset['ess']):>5.0f}  {verdict}"
        )
    return "\n".join(lines)


def write_results(
    output: Path, seed: int, settings: Settings, measurements: Sequence[Measurement]
) -> None:
    """Write ``results.json``, ``traces.npz`` and ``llc_traces.png`` into a folder.

    Args:
        output: the folder; made if it does not exist.
        seed: of the run, stored beside the numbers.
        settings: likewise.
        measurements: one per network.
    """
    from slt_jax.analysis.plots import plot_llc_traces

    output.mkdir(parents=True, exist_ok=True)
    networks = [
        {
            "noise_level": measurement.noise_level,
            "training_loss": measurement.training_loss,
            "accuracy": measurement.accuracy,
            "llc": measurement.result.to_dict(),
        }
        for measurement in measurements
    ]
    report = {"seed": seed, "settings": settings._asdict(), "networks": networks}
    (output / "results.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    results: Mapping[str, Any] = {
        f"{measurement.noise_level:.0%} random labels": measurement.result
        for measurement in measurements
    }
    traces = {name: result.to_xarray()["loss_trace"].values for name, result in results.items()}
    np.savez_compressed(output / "traces.npz", **traces)
    plot_llc_traces(results).savefig(output / "llc_traces.png", dpi=150)


def run(output: str | Path, *, seed: int = 0, settings: Settings | None = None) -> int:
    """Train, measure, print the table and write the results.

    Args:
        output: the folder to write to; made if it does not exist.
        seed: of labels, weights and chains.
        settings: None for the defaults, which take about a minute on two cores.

    Returns:
        0 if the learning coefficient rises with the memorised noise, 1 if not.
    """
    settings = Settings() if settings is None else settings
    key = jax.random.key(seed)
    measurements: list[Measurement] = []
    for noise_level in settings.noise_levels:
        start = time.perf_counter()
        print(f"{noise_level:.0%} random labels: training, then sampling …", flush=True)
        measurements.append(measure(key, noise_level, settings))
        print(f"{measurements[-1].result}\n({time.perf_counter() - start:.0f} s)\n", flush=True)
    write_results(Path(output), seed, settings, measurements)
    print(f"{format_table(measurements)}\n")
    estimates = [measurement.result.mean for measurement in measurements]
    rises = all(low < high for low, high in itertools.pairwise(estimates))
    if rises:
        print("The learning coefficient (LLC) rises with the noise the network has memorised.")
    else:
        print("The learning coefficient (LLC) does not rise with the noise: see the verdicts.")
    print(f"Results and picture: {output}")
    return 0 if rises else 1
