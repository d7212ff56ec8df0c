"""Susceptibilities of all heads here and in devinterp 2.0.1: seconds, memory and values.

    python benchmarks/susceptibilities_vs_devinterp.py --peer-python PATH/TO/VENV/bin/python

Problems can be measured one at a time, by `--problems`; the result file keeps the others.
`--peer-python` is the Python of an environment with devinterp==2.0.1, torch and transformers. Both
sides get the same checkpoint, sampling data, probes, step size, nβ, γ, batch size, chains, burn-in
and draws (the full chain too), and measure the loss on all sampling data and all probes at every
draw; in processes of their own on the same processors, by turns. slt_jax also gives errors; the
control, which devinterp does not have, is off. It has a device of JAX per chain, as far as there
are processors, and XLA's older and cheaper compiler of small operations (`COMPILER`). Both sides
have one heap for all threads (`ARENAS`); what else ours is told is in `own_environment`, and in the
result file.

Seconds are those of the whole call: for slt_jax of the first one of a process, which compiles, of a
second one, which does not, and of the first one of another process, which reads the programs that
the first left in JAX's cache on disk. Values are compared by `slt.read_devinterp`, which gives
devinterp's samples the same errors; at εγ/2 = 0.9 neighbouring draws are hardly correlated.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np

import slt_jax as slt

HERE = Path(__file__).parent
SETTINGS = {"step-size": 1.8e-4, "n-beta": 30.0, "localization": 1e4, "batch-size": 8, "chains": 2}
WIDE = "4 layers, d = 256"
PROBLEMS = {
    "2 layers, d = 64": (
        {"layers": 2, "width": 64, "heads": 4, "training-steps": 150, "learning-rate": 3e-3},
        {"burnin": 20, "draws": 120},
    ),
    WIDE: (
        {"layers": 4, "width": 256, "heads": 4, "training-steps": 60, "learning-rate": 1e-3},
        {"burnin": 5, "draws": 30},
    ),
}
# By default XLA compiles every small operation through MLIR, which takes half as long again and
# half a gigabyte more, and gives programs that are no faster here. Small operations that read the
# same arrays become one: a sixth fewer to compile and to keep. A program is compiled in one piece:
# in several, each has a copy of what they share.
COMPILER = (
    "--xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=1 "
    "--xla_backend_extra_options=xla_cpu_use_multi_output_fusion=true "
    "--xla_cpu_parallel_codegen_split_count=1"
)
# Else glibc gives every thread a heap of its own and hardly ever returns what it frees: both sides.
ARENAS = {"MALLOC_ARENA_MAX": "1"}
# Ours alone. Buffers above a megabyte go back to the system when they are freed: a program of ours
# takes them once, devinterp takes and frees one at every operation. JAX keeps no stack of Python
# calls for every operation.
OWN = {
    "MALLOC_MMAP_THRESHOLD_": str(2**20),
    "MALLOC_TRIM_THRESHOLD_": str(2**22),
    "JAX_TRACEBACK_IN_LOCATIONS_LIMIT": "0",
}
PEER = "devinterp"
CALLS = ("first call", "second call", "first call, programs on disk")


def own_environment(problem: str, threads: int) -> dict[str, str]:
    """Give what slt_jax is told by the environment, and devinterp is not."""
    if problem != WIDE:
        return OWN | {"XLA_FLAGS": COMPILER}
    # Wide layers: operations in the order that holds least, and a thread more than there are
    # programs side by side, for what they queue for each other (see `slt.Layout`).
    scheduler = "--xla_cpu_scheduler_type=CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"
    return OWN | {"XLA_FLAGS": f"{COMPILER} {scheduler}", "NPROC": str(threads + 1)}


def measure(options: argparse.Namespace, problem: str, folder: Path) -> dict[str, Any]:
    """Train w*, run the sides by turns, and give their results and how the values compare."""
    model, counts = PROBLEMS[problem]
    shared = {"folder": folder, "threads": options.threads}
    peer = [options.peer_python, str(HERE / "peer_susceptibilities.py")]
    _run([*peer, "train"], shared | model)
    shared |= SETTINGS | counts | {"out": folder / "out.json"}
    sides = {
        f"slt_jax ({rows})": [
            *(sys.executable, str(HERE / "measure_susceptibilities.py")),
            *("--rows", rows),
        ]
        for rows in options.rows
    } | {PEER: [*peer, "measure"]}
    results: dict[str, Any] = {side: [] for side in sides}
    own = own_environment(problem, options.threads)
    for turn in range(options.turns):
        for side, command in sides.items():
            with tempfile.TemporaryDirectory() as cache:
                results[side].append(_timed(command, shared | {"seed": turn}, side, cache, own))
            print(f"{problem}: turn {turn + 1}, {side} done", flush=True)
    values = {rows: compare(folder, rows) for rows in options.rows}
    return {
        "problem": json_of(PROBLEMS[problem]),
        "conditions": conditions(options.threads, own),
        "sides": results,
        "values": values,
    }


def _timed(
    command: list[str],
    arguments: dict[str, Any],
    side: str,
    cache: str,
    environment: dict[str, str],
) -> dict[str, Any]:
    """Run one side; slt_jax again in another process, which finds its programs on disk."""
    if side == PEER:
        _run(command, arguments)
        return json.loads(arguments["out"].read_text())
    processes = []
    for calls in (2, 1):
        devices = min(arguments["chains"], arguments["threads"])
        own = arguments | {"cache": cache, "calls": calls, "devices": devices}
        _run(command, own, **environment)
        processes.append(json.loads(arguments["out"].read_text()))
    first, second = processes
    return first | {"calls": first["calls"] + second["calls"]}


def _run(command: list[str], arguments: dict[str, Any], **environment: str) -> None:
    subprocess.run(
        [*command, *(f"--{name}={value}" for name, value in arguments.items())],
        check=True,
        env=os.environ | ARENAS | environment,
    )


def compare(folder: Path, rows: str) -> dict[str, float]:
    """Compare χ of the last turn in standard errors of both sides, by data set and by token."""
    with np.load(folder / f"ours_{rows}.npz") as archive:
        ours = {name: archive[name] for name in archive.files}
    stores = folder / "samples"

    def read(name: str, full: bool) -> slt.Run:
        path = stores / f"samples_{name}.zarr"
        return slt.read_devinterp(path, sampled="sampled", full=full, component=name)

    names = [str(name) for name in ours["components"]]
    runs = (read(name, full=False) for name in names)
    theirs = slt.susceptibilities_from(read("full", full=True), runs, control=False)
    found = {}
    for kind, chi in (("", theirs.by_dataset()), ("token_", theirs)):
        error = np.hypot(ours[f"{kind}error"], chi.standard_error)
        z = (ours[f"{kind}chi"] - chi.susceptibility) / error
        label = "token" if kind else "data set"
        found[f"mean z² by {label}"] = float(np.mean(z**2))
        found[f"largest |z| by {label}"] = float(np.abs(z).max())
        found[f"entries by {label}"] = z.size
    flat = ours["token_chi"].ravel(), theirs.susceptibility.ravel()
    found["correlation over tokens"] = float(np.corrcoef(*flat)[0, 1])
    return found


def summarize(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Give the median over turns of every side, and of ratios to devinterp's within a turn."""
    peer, found = result["sides"][PEER], []
    for side, runs in result["sides"].items():
        for number, kind in enumerate(("",) if side == PEER else CALLS):
            calls = [run if side == PEER else run["calls"][number] for run in runs]
            row: dict[str, Any] = {"side": f"{side}, {kind}".rstrip(", ")}
            for field in ("seconds", "cpu_seconds", "peak_memory_bytes"):
                ratios = [p[field] / own[field] for p, own in zip(peer, calls, strict=True)]
                row[field] = statistics.median(call[field] for call in calls)
                row[f"{field} of devinterp over it"] = [min(ratios), max(ratios)]
            row["programs_compiled"] = calls[0].get("programs_compiled")
            found.append(row)
    return found


def table(summary: dict[str, Any]) -> str:
    """Write the summary as a Markdown table, ratios from the least to the largest of the turns."""
    head = ("problem", "side", "seconds", "CPU seconds", "devinterp's seconds over it")
    head += ("devinterp's CPU seconds over it", "peak MiB", "programs compiled")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for problem, rows in summary.items():
        for row in rows:
            wall, cpu = (
                "–".join(f"{ratio:.2f}" for ratio in row[f"{field} of devinterp over it"])
                for field in ("seconds", "cpu_seconds")
            )
            lines.append(
                f"| {problem} | {row['side']} | {row['seconds']:.1f} | {row['cpu_seconds']:.1f} | "
                f"{wall} | {cpu} | {row['peak_memory_bytes'] / 2**20:.0f} | "
                f"{row['programs_compiled'] if row['programs_compiled'] is not None else ''} |"
            )
    return "\n".join(lines)


def told(results: dict[str, Any]) -> str:
    """Say how the values compare, and how busy the machine was."""
    lines = []
    for problem, result in results.items():
        for rows, values in result["values"].items():
            shown = ", ".join(f"{name} {value:.3g}" for name, value in values.items())
            lines.append(f"- {problem}, slt_jax ({rows}) against devinterp: {shown}")
        loads = [run["load_average"][1][0] for run in result["sides"][PEER]]
        asked = f'--problems "{problem}" --rows {" ".join(result["values"])} --turns {len(loads)}'
        lines.append(
            f"- {problem}: measured by `{asked}` on {conditions_text(result['conditions'])}"
        )
        lines.append(f"- {problem}: load average {min(loads):.1f} to {max(loads):.1f} at the end")
        used: dict[str, str] = {}
        for runs in result["sides"].values():
            used |= runs[0]["versions"]
        lines.append(f"- {problem}: {', '.join(f'{name} {one}' for name, one in used.items())}")
    return "\n".join(lines)


def conditions(threads: int, own: dict[str, str]) -> dict[str, Any]:
    """Say on what a problem is measured, and under which settings."""
    return {
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} of "
        f"{os.cpu_count()} processors",
        "threads": threads,
        "settings": SETTINGS,
        "environment": ARENAS,
        "own environment": own,
    }


def conditions_text(found: dict[str, Any]) -> str:
    """Write the conditions of a problem as one line."""
    shared, own = (
        " ".join(f'{name}="{value}"' for name, value in found[kind].items())
        for kind in ("environment", "own environment")
    )
    return f"{found['machine']}, {found['threads']} threads; {shared}, for slt_jax also {own}"


def earlier(out: Path) -> dict[str, Any]:
    """Give the results of problems that an earlier run left in the file, as they are now posed."""
    found = json.loads(out.read_text())["raw"] if out.exists() else {}
    posed = {name: (json_of(problem), SETTINGS) for name, problem in PROBLEMS.items()}
    return {
        name: result
        for name, result in found.items()
        if posed.get(name) == (result["problem"], result["conditions"]["settings"])
    }


def json_of(value: Any) -> Any:
    """Give a value as it is read back from a JSON file."""
    return json.loads(json.dumps(value))


def main() -> None:
    """Run the problems and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rows", nargs="+", choices=("map", "vmap"), default=("map", "vmap"))
    parser.add_argument("--problems", nargs="+", choices=tuple(PROBLEMS), default=tuple(PROBLEMS))
    out = HERE / "results" / "susceptibilities_vs_devinterp.json"
    parser.add_argument("--out", type=Path, default=out)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    results = earlier(options.out)
    for problem in options.problems:
        with tempfile.TemporaryDirectory() as folder:
            results[problem] = measure(options, problem, Path(folder))
    results = {problem: results[problem] for problem in PROBLEMS if problem in results}
    summary = {problem: summarize(result) for problem, result in results.items()}
    document = {"summary": summary, "raw": results}
    options.out.write_text(json.dumps(document, indent=1) + "\n")
    command = f"`python benchmarks/{Path(__file__).name} --peer-python PATH`"
    text = f"{table(summary)}\n\n{told(results)}\n\n{command}\n"
    options.out.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
