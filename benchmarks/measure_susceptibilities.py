"""Susceptibilities of all heads by slt_jax: one side of `susceptibilities_vs_devinterp.py`.

The first call compiles, or reads what is in JAX's cache on disk; the second has another key and
compiles nothing. Each is timed.
"""

import argparse
import json
import os
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import monitoring
from peak_memory import peak_memory_bytes

import slt_jax as slt

SAMPLED = "sampled"
COMPILED = "/jax/core/compile/backend_compile_duration"


def load(options: argparse.Namespace) -> tuple[slt.models.Model, dict[str, np.ndarray]]:
    """Read the checkpoint and the data."""
    with warnings.catch_warnings():
        # Two biases that are added side by side have had equal gradients since they were zero.
        warnings.filterwarnings("ignore", message=".*hold the same weights")
        model = slt.models.from_hf(options.folder / "model")
    with np.load(options.folder / "data.npz") as archive:
        return model, {name: archive[name] for name in archive.files}


def estimate(
    model: slt.models.Model, data: dict[str, np.ndarray], options: argparse.Namespace, seed: int
) -> slt.Susceptibilities:
    """Measure all heads once."""
    sampled = data[SAMPLED]
    posterior = slt.LocalPosterior(
        model.loss_fn, model.params, n_beta=options.n_beta, localization=options.localization
    )
    return slt.susceptibilities(
        posterior,
        slt.sgld(options.step_size),
        slt.Batches(sampled, options.batch_size),
        jax.random.key(seed),
        components=model.components.heads(),
        probes={name: ids for name, ids in data.items() if name != SAMPLED},
        evaluation=slt.Probe(sampled, batch_size=options.batch_size),
        control=False,
        num_full_draws=options.draws,
        num_chains=options.chains,
        num_draws=options.draws,
        num_burnin_steps=options.burnin,
        execution=slt.Execution(rows=options.rows, layout=slt.Layout(chain=options.devices)),
        progress=False,
    )


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure; write χ by data set and by token, with errors, beside the result."""
    jax.config.update("jax_num_cpu_devices", options.devices)
    jax.config.update("jax_compilation_cache_dir", str(options.cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    model, data = load(options)
    seconds: list[float] = []
    monitoring.register_event_duration_secs_listener(
        lambda event, duration, **_: seconds.append(duration) if event == COMPILED else None
    )
    calls = []
    for call in range(options.calls):
        compiled, load_average = len(seconds), os.getloadavg()
        wall, cpu = time.perf_counter(), time.process_time()
        chi = estimate(model, data, options, 2 * options.seed + call)
        calls.append(
            {
                "seconds": time.perf_counter() - wall,
                "cpu_seconds": time.process_time() - cpu,
                "peak_memory_bytes": peak_memory_bytes(),
                "programs_compiled": len(seconds) - compiled,
                "compile_seconds": sum(seconds[compiled:]),
                "load_average": [load_average, os.getloadavg()],
            }
        )
    write_values(options, chi)
    names = ("slt-jax", "jax", "jaxlib", "numpy")
    return {"calls": calls, "versions": {name: version(name) for name in names}}


def write_values(options: argparse.Namespace, chi: slt.Susceptibilities) -> None:
    """Write χ and its errors for the comparison with devinterp's."""
    found = chi.by_dataset()
    np.savez(
        options.folder / f"ours_{options.rows}.npz",
        chi=found.susceptibility,
        error=found.standard_error,
        token_chi=chi.susceptibility,
        token_error=chi.standard_error,
        components=np.asarray(chi.components),
    )


def main() -> None:
    """Read the command line, measure, write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", choices=("map", "vmap"), required=True)
    for name in ("folder", "out", "cache"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    for name in ("calls", "chains", "draws", "burnin", "batch-size", "seed", "threads", "devices"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ("step-size", "n-beta", "localization"):
        parser.add_argument(f"--{name}", type=float, required=True)
    options = parser.parse_args()
    options.out.write_text(json.dumps(measure(options)) + "\n")


if __name__ == "__main__":
    main()
