"""The LLC here and in devinterp 2.0.1: seconds per chain-step, memory, value and spread.

    python benchmarks/llc_vs_devinterp.py --peer-python PATH/TO/VENV/bin/python

`--peer-python` is the Python of an environment with devinterp==2.0.1, torch and transformers. Both
sides get the same weights, data, step size, nβ, γ, batch size, chains, burn-in and draws, in a
process of their own on the same processors, one after the other. What differs is said in the
result: minibatches (devinterp replays one shuffled epoch, slt_jax draws fresh subsets) and what is
measured (a raw minibatch loss minus the loss at w*; a paired gap).

The result file holds every seed of every side; the summary is printed and is part of it.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from problems import flatten_params, mlp_problem, transformer_problem

HERE = Path(__file__).parent
PROBLEMS = {
    "mlp": (
        mlp_problem,
        {"step-size": 1e-5, "n-beta": 240.0, "localization": 3000.0, "batch-size": 64},
        {"chains": 4, "burnin": 200, "draws": 500},
    ),
    "transformer": (
        transformer_problem,
        {"step-size": 1e-5, "n-beta": 263.0, "localization": 1e4, "batch-size": 32},
        {"chains": 4, "burnin": 20, "draws": 20},
    ),
}


def sides(peer_python: str, problem: str) -> dict[str, list[str]]:
    """Give the command of every side, the first one the default of the library."""
    ours = [sys.executable, str(HERE / "measure_slt_jax.py")]
    peer = [peer_python, str(HERE / "peer_devinterp.py"), "--entry"]
    commands = {
        "slt_jax (vmap)": [*ours, "--rows", "vmap"],
        "slt_jax (map)": [*ours, "--rows", "map"],
        "devinterp (chain by chain)": [*peer, "chain"],
    }
    if problem == "transformer":
        commands["devinterp (sample)"] = [*peer, "sample"]
    return commands


def measure(options: argparse.Namespace, problem: str, folder: Path) -> dict[str, Any]:
    """Train w*, run every side on it, and give their result files by name."""
    build, settings, counts = PROBLEMS[problem]
    params, _, dataset = build()
    weights, data = folder / f"{problem}_weights.npz", folder / f"{problem}_data.npz"
    np.savez(weights, **flatten_params(params))
    np.savez(data, **dataset)
    shared = {"problem": problem, "weights": weights, "data": data, **settings, **counts}
    shared |= {"seeds": options.seeds, "threads": options.threads}
    results = {}
    for side, command in sides(options.peer_python, problem).items():
        out = folder / "result.json"
        arguments = [f"--{name}={value}" for name, value in (shared | {"out": out}).items()]
        subprocess.run([*command, *arguments], check=True)
        results[side] = json.loads(out.read_text())
        print(f"{problem}: {side} done", flush=True)
    return results


def summarize(results: dict[str, Any]) -> dict[str, Any]:
    """Reduce every side to medians, and to ratios against the fastest way through devinterp."""
    rows = {side: summarize_side(result) for side, result in results.items()}
    peer = rows["devinterp (chain by chain)"]
    for row in rows.values():
        row["speed_against_devinterp"] = (
            peer["milliseconds_per_chain_step"] / row["milliseconds_per_chain_step"]
        )
        row["memory_against_devinterp"] = row["peak_memory_mib"] / peer["peak_memory_mib"]
    return rows


def summarize_side(result: dict[str, Any]) -> dict[str, Any]:
    """Give the median time per chain-step without the first seed, memory, and λ̂ over seeds."""
    seeds = result["seeds"]
    times = [1e3 * seed["seconds"] / seed["chain_steps"] for seed in seeds]
    estimates = [seed["llc"] for seed in seeds]
    peak = result.get("peak_memory_bytes_after") or result["peak_rss_bytes_after"]["vm_hwm"]
    return {
        "milliseconds_per_chain_step": statistics.median(times[1:]),
        "milliseconds_per_chain_step_first_seed": times[0],
        "milliseconds_per_chain_step_range": [min(times[1:]), max(times[1:])],
        "peak_memory_mib": peak / 2**20,
        "llc_mean": statistics.mean(estimates),
        "llc_standard_deviation": statistics.stdev(estimates),
        "loss_at_w_star": result["loss_at_w_star"],
    }


def table(summary: dict[str, Any]) -> str:
    """Write the summary as a Markdown table."""
    lines = [
        "| problem | side | ms per chain-step | first seed | speed ratio | peak MiB | λ̂ ± SD |",
        "|---|---|---|---|---|---|---|",
    ]
    for problem, rows in summary.items():
        for side, row in rows.items():
            lines.append(
                f"| {problem} | {side} | {row['milliseconds_per_chain_step']:.3g} | "
                f"{row['milliseconds_per_chain_step_first_seed']:.3g} | "
                f"{row['speed_against_devinterp']:.2f} | {row['peak_memory_mib']:.0f} | "
                f"{row['llc_mean']:.3f} ± {row['llc_standard_deviation']:.3f} |"
            )
    return "\n".join(lines)


def provenance(options: argparse.Namespace) -> dict[str, Any]:
    """Give the command, the commit and the machine, without any path of it."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True
    ).stdout.strip()
    return {
        "command": "python benchmarks/llc_vs_devinterp.py --peer-python PYTHON "
        f"--seeds {options.seeds} --threads {options.threads}",
        "commit": commit,
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} of {os.cpu_count()} "
        "processors used",
        "system": platform.system(),
        "threads": options.threads,
    }


def without_paths(results: dict[str, Any]) -> dict[str, Any]:
    """Drop the paths of this machine from the sides' settings."""
    for result in results.values():
        for name in ("weights", "data", "out", "losses"):
            result["settings"].pop(name, None)
        for seed in result["seeds"]:
            seed.pop("loss_trace", None)
    return results


def main() -> None:
    """Run both problems and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--problems", nargs="+", choices=tuple(PROBLEMS), default=tuple(PROBLEMS))
    parser.add_argument("--out", type=Path, default=HERE / "results" / "llc_vs_devinterp.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = {problem: measure(options, problem, Path(folder)) for problem in options.problems}
    summary = {problem: summarize(sides) for problem, sides in results.items()}
    raw = {problem: without_paths(sides) for problem, sides in results.items()}
    document = provenance(options) | {"summary": summary, "raw": raw}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(document, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(table(summary) + "\n")
    print(table(summary))


if __name__ == "__main__":
    main()
