"""Susceptibilities of all heads by devinterp 2.0.1, for the Python that has devinterp.

    python benchmarks/peer_susceptibilities.py train --folder F --layers 2 --width 64 --heads 4
    python benchmarks/peer_susceptibilities.py measure --folder F --out R.json [settings]

`train` makes a checkpoint of a GPT-NeoX on bytes of Python's standard library and the data, for
both sides; `measure` calls `devinterp.slt.susceptibilities` as its documentation does.
"""

import argparse
import json
import os
import random
import shutil
import sysconfig
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Read when tqdm is imported: a progress bar for every chain would fill the caller's log.
os.environ["TQDM_DISABLE"] = "1"

import numpy as np
import torch
from datasets import Dataset
from devinterp.slt.lm_loss import compute_per_token_loss
from devinterp.slt.susceptibilities import susceptibilities
from devinterp.slt.weight_restrictions import create_param_masks
from peak_memory import peak_memory_bytes
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

CONTEXT, VOCABULARY = 64, 256
SAMPLED = "sampled"
# Training sequences, of which the first are the sampling data, then those of every probe.
NUM_TRAINED, NUM_SAMPLED, NUM_PROBE = 512, 32, 8
# With which devinterp shuffles the examples of an observable.
OBSERVABLE_SEED = 1337


def windows(count: int) -> np.ndarray:
    """Evenly spaced windows of the standard library's source, ids of bytes ``[count, pos]``."""
    modules = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    text = np.frombuffer(b"".join(module.read_bytes() for module in modules), np.uint8)
    starts = (len(text) - CONTEXT) // count * np.arange(count)
    return text[starts[:, None] + np.arange(CONTEXT)].astype(np.int64)


def datasets() -> dict[str, np.ndarray]:
    """Sampling data and probes: other code, and random bytes that repeat."""
    text = windows(NUM_TRAINED + NUM_PROBE)
    repeated = np.random.default_rng(0).integers(97, 123, (NUM_PROBE, CONTEXT // 2))
    return {
        SAMPLED: text[:NUM_SAMPLED],
        "code": text[NUM_TRAINED:],
        "repeated": np.tile(repeated, 2),
    }


def train(options: argparse.Namespace) -> None:
    """Write the checkpoint, and the data in the order in which devinterp will measure them."""
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=options.width,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        intermediate_size=4 * options.width,
        max_position_embeddings=CONTEXT,
        use_parallel_residual=True,
    )
    model, text = GPTNeoXForCausalLM(config), torch.from_numpy(windows(NUM_TRAINED + NUM_PROBE))
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate)
    for _ in range(options.training_steps):
        chosen = torch.randint(NUM_TRAINED, (16,))
        optimizer.zero_grad()
        compute_per_token_loss(model, text[chosen]).mean().backward()
        optimizer.step()
    model.save_pretrained(options.folder / "model")
    data = datasets()
    np.savez(options.folder / "given.npz", **data)
    measured = {}
    for name, ids in data.items():
        order = random.Random(OBSERVABLE_SEED).sample(range(len(ids)), len(ids))
        measured[name] = ids[order].astype(np.int32)
    np.savez(options.folder / "data.npz", **measured)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Call devinterp once for all heads; give its seconds, memory and versions."""
    model = GPTNeoXForCausalLM.from_pretrained(options.folder / "model", dtype=torch.float32)
    with np.load(options.folder / "given.npz") as archive:
        data = {name: torch_dataset(archive[name]) for name in archive.files}
    samples = options.folder / "samples"
    shutil.rmtree(samples, ignore_errors=True)
    samples.mkdir()
    load, before = os.getloadavg(), peak_memory_bytes()
    wall, cpu = time.perf_counter(), time.process_time()
    estimate(model, data, options, samples)
    return {
        "seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "peak_memory_bytes": peak_memory_bytes(),
        "peak_memory_bytes_before": before,
        "load_average": [load, os.getloadavg()],
        "versions": {name: version(name) for name in ("torch", "devinterp", "transformers")},
    }


def estimate(
    model: GPTNeoXForCausalLM,
    data: dict[str, Dataset],
    options: argparse.Namespace,
    samples: Path,
) -> None:
    """Measure all heads, one after the other, as devinterp does; its samples stay in a folder."""
    size, config = options.batch_size, model.config
    layers, heads = range(config.num_hidden_layers), range(config.num_attention_heads)
    names = [f"l{layer}h{head}" for layer in layers for head in heads]
    susceptibilities(
        model,
        data[SAMPLED],
        observables={name: (rows, len(rows) // size) for name, rows in data.items()},
        weight_restrictions={"full": None}
        | {name: create_param_masks(model, name) for name in names},
        sampling_task=SAMPLED,
        lr=options.step_size,
        n_beta=options.n_beta,
        localization=options.localization,
        num_chains=options.chains,
        num_draws=options.draws,
        num_burnin_steps=options.burnin,
        batch_size=size,
        # One epoch, so that L(w*) is that of the sampling data and not of a part of them.
        num_init_loss_batches=len(data[SAMPLED]) // size,
        init_seed=1000 * (1 + options.seed),
        device="cpu",
        output_path=samples / "samples.zarr",
    )


def torch_dataset(ids: np.ndarray) -> Dataset:
    """Give the one column that devinterp reads."""
    return Dataset.from_dict({"input_ids": ids}).with_format("torch")


def main() -> None:
    """Read the command line and do as it says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("train", "measure"))
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    names = ("layers", "width", "heads", "training-steps", "chains", "draws", "burnin")
    for name in (*names, "batch-size", "seed", "threads"):
        parser.add_argument(f"--{name}", type=int)
    for name in ("learning-rate", "step-size", "n-beta", "localization"):
        parser.add_argument(f"--{name}", type=float)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    if options.what == "train":
        train(options)
    else:
        options.out.write_text(json.dumps(measure(options)) + "\n")


if __name__ == "__main__":
    main()
