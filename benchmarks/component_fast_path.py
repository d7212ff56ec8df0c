"""Seconds per step of one attention head in a 12-layer decoder, against a step of all weights.

    taskset -c 0 python benchmarks/component_fast_path.py

Every case is a run of `slt.sample` with 4 chains that is then extended, so that what is timed is
the sampler itself: minibatches, gradients, noise, updates and what is recorded, without compiling.
The cases take turns; what is compared are medians over the turns. Beside each stands the number of
floating-point operations of a step, counted in its program. The weights are random: neither time
nor operations depend on them.

The result file holds the seconds of every turn of every case.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

import slt_jax as slt
from slt_jax.flops import count_flops
from slt_jax.models.components import Components
from slt_jax.models.config import DecoderConfig
from slt_jax.models.decoder import Decoder
from slt_jax.models.layout import parameter_axes, parameter_shapes
from slt_jax.models.norm import Norm
from slt_jax.models.rope import Rope

HERE = Path(__file__).parent
NUM_LAYERS = 12
NUM_CHAINS = 4
BATCH_SIZE = 8
LENGTH = 64
PROBE_SIZE = 32
STEPS = 3
CONFIG = DecoderConfig(
    vocab_size=512,
    width=128,
    num_layers=NUM_LAYERS,
    num_heads=4,
    num_kv_heads=4,
    head_dim=32,
    mlp_width=512,
    norm=Norm(1e-5),
    ropes=(Rope(1e4, 32),),
    rope_of_layer=(0,) * NUM_LAYERS,
)
DECODER = Decoder(CONFIG)
LAST = f"l{NUM_LAYERS - 1}h0"
# name: (component, whether the fast path is used, whether a probe is measured, bytes kept of it)
CASES = {
    "all weights": ("full", True, False, 0),
    "head of the first layer": ("l0h0", True, False, 0),
    "head of the middle layer": (f"l{NUM_LAYERS // 2}h0", True, False, 0),
    "head of the last layer": (LAST, True, False, 0),
    "head of the last layer, whole model computed": (LAST, False, False, 0),
    "head of the last layer, probe at every step": (LAST, True, True, 2**29),
    "head of the last layer, probe at every step, nothing kept": (LAST, True, True, 0),
}


def whole_model(params: Any, batch: Any) -> Any:
    """The decoder as a plain function, of which nothing is known but its losses."""
    return DECODER(params, batch)


def problem(component: str, is_fast: bool) -> slt.LocalPosterior:
    """Give the posterior of a component around random weights."""
    generator = np.random.default_rng(0)
    params = {
        name: (0.02 * generator.standard_normal(leaf.shape)).astype(np.float32)
        for name, leaf in parameter_shapes(CONFIG).items()
    }
    axes = {name: " ".join(letters) for name, letters in parameter_axes(CONFIG).items()}
    restriction = Components(params, axes)[component]
    loss = DECODER if is_fast else whole_model
    return slt.LocalPosterior(loss, params, 100.0, 100.0, restriction=restriction)


def begun(name: str) -> slt.Run:
    """Give a run of one case, compiled and warm."""
    component, is_fast, has_probe, kept = CASES[name]
    ids = np.random.default_rng(1).integers(0, CONFIG.vocab_size, (256, LENGTH)).astype(np.int32)
    probe = {"probe": slt.LossValues(slt.Probe(ids[:PROBE_SIZE]))} if has_probe else {}
    run = slt.sample(
        problem(component, is_fast),
        slt.sgld(1e-6),
        slt.Batches(ids, BATCH_SIZE),
        jax.random.key(0),
        num_chains=NUM_CHAINS,
        num_draws=STEPS,
        num_burnin_steps=0,
        survey_examples=BATCH_SIZE,
        observables=probe,
        execution=slt.Execution(steps_per_chunk=STEPS, probe_cache_bytes=kept),
        progress=False,
    )
    return slt.extend(run, STEPS, progress=False)


def seconds_per_step(run: slt.Run) -> float:
    """Extend a run by a few draws of one step each, and give the time of one."""
    start = time.perf_counter()
    slt.extend(run, STEPS, progress=False)
    return (time.perf_counter() - start) / STEPS


def operations_of_a_step(name: str) -> float:
    """Count a step of all chains: the loss at w*, gradients, noise and updates; no probes."""
    component, is_fast, _, _ = CASES[name]
    posterior, kernel = problem(component, is_fast), slt.sgld(1e-6)
    keys = jax.random.split(jax.random.key(0), NUM_CHAINS)

    def step(restriction: Any, states: Any, ids: Any) -> Any:
        target = posterior.restrict(restriction)
        batch = kernel.prepare(target, slt.Minibatch(ids))
        return jax.vmap(kernel.step, (0, None, 0, None))(keys, target, states, batch)

    state = kernel.init(posterior)
    states = jax.tree.map(lambda leaf: np.broadcast_to(leaf, (NUM_CHAINS, *leaf.shape)), state)
    ids = jax.ShapeDtypeStruct((BATCH_SIZE, LENGTH), np.int32)
    return count_flops(step, posterior.restriction, states, ids)


def summarize(turns: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    """Give medians, ranges, operations, and both as shares of a step of all weights."""
    rows = {}
    for name, seconds in turns.items():
        rows[name] = {
            "seconds_per_step": statistics.median(seconds),
            "range": [min(seconds), max(seconds)],
            "operations": None if CASES[name][2] else operations_of_a_step(name),
        }
    full = rows["all weights"]
    for row in rows.values():
        row["share_of_time"] = row["seconds_per_step"] / full["seconds_per_step"]
        counted = row["operations"]
        row["share_of_operations"] = None if counted is None else counted / full["operations"]
    return rows


def table(summary: dict[str, dict[str, Any]]) -> str:
    """Write the summary as a Markdown table."""
    lines = [
        "| what moves | ms per step, all chains | least to most | share of time | of operations |",
        "|---|---|---|---|---|",
    ]
    for name, row in summary.items():
        low, high = (1e3 * value for value in row["range"])
        share = row["share_of_operations"]
        lines.append(
            f"| {name} | {1e3 * row['seconds_per_step']:.0f} | {low:.0f} to {high:.0f} | "
            f"{row['share_of_time']:.3f} | {'' if share is None else f'{share:.3f}'} |"
        )
    return "\n".join(lines)


def provenance(options: argparse.Namespace) -> dict[str, Any]:
    """Give the command, the versions and the machine, without any path of it."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True
    ).stdout.strip()
    cores = len(os.sched_getaffinity(0))
    return {
        "command": f"taskset -c 0 python benchmarks/component_fast_path.py --turns {options.turns}",
        "commit": commit,
        "versions": {name: version(name) for name in ("jax", "jaxlib", "numpy")},
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
        "machine": f"{platform.machine()}, {cores} of {os.cpu_count()} processors used",
        "load_average": os.getloadavg(),
        "model": f"{NUM_LAYERS} layers, width {CONFIG.width}, {NUM_CHAINS} chains, minibatches of "
        f"{BATCH_SIZE} × {LENGTH} tokens, probe of {PROBE_SIZE} × {LENGTH}",
    }


def main() -> None:
    """Time the cases in turn and write the result files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "component_fast_path.json")
    options = parser.parse_args()
    about = provenance(options)
    runs = {name: begun(name) for name in CASES}
    turns: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(options.turns):
        for name, run in runs.items():
            turns[name].append(seconds_per_step(run))
    summary = summarize(turns)
    options.out.parent.mkdir(exist_ok=True)
    document = about | {"summary": summary, "seconds_per_step_of_every_turn": turns}
    options.out.write_text(json.dumps(document, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(table(summary) + "\n")
    print(table(summary))


if __name__ == "__main__":
    main()
