"""The LLC of one fixed network by slt_jax: the other half of `llc_vs_devinterp.py`.

Takes the options of `peer_devinterp.py` and `--rows vmap|map`. The first seed's seconds include all
compilation, those of the others none: every seed runs the same programs.
"""

import argparse
import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from peak_memory import peak_memory_bytes
from problems import mlp_loss, transformer_loss

import slt_jax as slt

LOSSES = {"mlp": mlp_loss, "transformer": transformer_loss}


def seed_record(
    posterior: slt.LocalPosterior, batches: slt.Batches, options: argparse.Namespace, seed: int
) -> dict[str, Any]:
    """Sample once; seconds include the survey of w*, checks and all host work."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = slt.llc(
        posterior,
        slt.sgld(options.step_size),
        batches,
        jax.random.key(seed),
        num_chains=options.chains,
        num_draws=options.draws,
        num_burnin_steps=options.burnin,
        surroundings=options.surroundings,
        execution=slt.Execution(rows=options.rows),
        progress=False,
    )
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "seed": seed,
        "llc": result.mean,
        "standard_error": result.standard_error,
        "llc_per_chain": result.per_chain.tolist(),
        "init_loss": result.init_loss,
        "verdict": str(result.verdict),
        "seconds": wall,
        "cpu_seconds": cpu,
        "chain_steps": options.chains * (options.burnin + options.draws),
    }


def load_tree(path: Path) -> Any:
    """Rebuild the nested parameters from an npz whose names are paths."""
    tree: dict[str, Any] = {}
    with np.load(path) as archive:
        for name in archive.files:
            *parents, last = name.split("/")
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = archive[name]
    return _lists(tree)


def _lists(node: Any) -> Any:
    """Turn dicts with keys 0, 1, … back into lists."""
    if not isinstance(node, dict):
        return node
    children = {name: _lists(child) for name, child in node.items()}
    if all(name.isdigit() for name in children):
        return [children[str(number)] for number in range(len(children))]
    return children


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Sample every seed, one after another, and return the content of the result file."""
    params = load_tree(options.weights)
    with np.load(options.data) as archive:
        dataset = {name: archive[name] for name in archive.files}
    posterior = slt.LocalPosterior(
        LOSSES[options.problem], params, options.n_beta, options.localization
    )
    batches = slt.Batches(dataset, options.batch_size)
    load_before, peak_before = os.getloadavg(), peak_memory_bytes()
    records = [seed_record(posterior, batches, options, seed) for seed in range(options.seeds)]
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
    return {
        "settings": settings,
        "loss_at_w_star": records[0]["init_loss"],
        "seeds": records,
        "peak_memory_bytes_before": peak_before,
        "peak_memory_bytes_after": peak_memory_bytes(),
        "load_average_before": load_before,
        "load_average_after": os.getloadavg(),
        "threads": os.cpu_count(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("slt-jax", "jax", "jaxlib", "numpy")},
        },
    }


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="LLC of one fixed network by slt_jax")
    add = parser.add_argument
    add("--problem", choices=tuple(LOSSES), required=True)
    add("--rows", choices=("vmap", "map"), required=True)
    add("--surroundings", action="store_true", help="measure curvature, control and noise as well")
    for name in ("weights", "data", "out"):
        add(f"--{name}", type=Path, required=True)
    for name in ("chains", "draws", "burnin", "batch-size", "seeds", "threads"):
        add(f"--{name}", type=int, required=True)
    for name in ("step-size", "n-beta", "localization"):
        add(f"--{name}", type=float, required=True)
    return parser.parse_args()


def main() -> None:
    """Read the command line, sample, write the result file."""
    options = parse_options()
    options.out.write_text(json.dumps(run(options), indent=1) + "\n")


if __name__ == "__main__":
    main()
