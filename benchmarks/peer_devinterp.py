"""The LLC of one fixed network by devinterp 2.0.1, for the Python that has devinterp.

    python benchmarks/peer_devinterp.py --problem mlp --weights W.npz --data D.npz \
        --chains 4 --draws 200 --burnin 100 --step-size 1e-5 --n-beta 240 --localization 1000 \
        --batch-size 64 --seeds 10 --threads 2 --out result.json

Weights and data are the arrays of `benchmarks/problems.py`, written by whoever trained them. The
result holds, for every seed, the LLC, the seconds of sampling and the number of chain-steps; then
the loss at w* (it must be that of the other side), peak memory and versions.

Two ways into devinterp (`--entry`):

* `sample`: `devinterp.slt.llc.llc`, the documented call, for language models only: one column
  `input_ids`, a loss `[batch, pos-1]`. Tokens and losses of every step are written to disk, and its
  seconds include that and the loss at w*. The default for the transformer.
* `chain`: `devinterp.slt.sampler.sample_single_chain`, once per chain, which devinterp's README
  names for everything else: any batch, any loss, nothing written. The default for the MLP, which
  cannot go through `sample` (labels are a second column); for the transformer, the peer at its
  fastest.

Run it on idle cores: with more `--threads` than free ones PyTorch's workers spin in wait for each
other and a step can take ten times as long. The load average is in the result for that reason.
"""

import argparse
import json
import math
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

# Read when tqdm is imported: a progress bar for every chain would fill the caller's log.
os.environ["TQDM_DISABLE"] = "1"

import numpy as np
import torch
from datasets import Dataset
from devinterp.optim import SGMCMC
from devinterp.slt.llc import llc
from devinterp.slt.lm_loss import compute_per_token_loss
from devinterp.slt.sampler import sample_single_chain
from torch import nn
from torch.utils.data import StackDataset, default_collate
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

Arrays = dict[str, np.ndarray]
TorchBatch = dict[str, torch.Tensor]
Evaluated = tuple[torch.Tensor, dict[str, Any]]
Evaluate = Callable[[nn.Module, TorchBatch], Evaluated]

# Chains are seeded consecutively from `init_seed`: neighbouring seeds would share their noise.
SEED_SPACING = 1_000
# As in problems.py; weights do not carry them, the loss at w* tells if they differ.
ROTARY = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}


class Peer(NamedTuple):
    """A network at w*, its training set as devinterp wants it, and the unreduced loss in nats."""

    model: nn.Module
    dataset: Any
    evaluate: Evaluate


class Sampled(NamedTuple):
    """One seed: `loss_trace[chain, step]` in nats with burn-in, NaN after a chain has died."""

    loss_trace: np.ndarray
    init_loss: float
    reported_llc: float | None


class Digits(nn.Module):
    """The ReLU network, with as many layers as the weights have."""

    def __init__(self, weights: Arrays) -> None:
        super().__init__()
        count = sum(path.endswith("/kernel") for path in weights)
        self.layers = nn.ModuleList(_linear(weights, f"dense_{layer}") for layer in range(count))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits `[batch, class]` of images `[batch, pixel]`."""
        for layer in self.layers[:-1]:
            images = torch.relu(layer(images))
        return self.layers[-1](images)


def mlp_peer(weights: Arrays, data: Arrays) -> Peer:
    """The digit classifier; images go under `input_ids`, the one key the sampler insists on."""
    images, labels = torch.from_numpy(data["images"]), torch.from_numpy(data["labels"]).long()
    return Peer(Digits(weights), StackDataset(input_ids=images, label=labels), _evaluate_mlp)


def transformer_peer(weights: Arrays, data: Arrays) -> Peer:
    """The byte-level language model as `transformers` builds GPT-NeoX, nothing downloaded."""
    model_width, heads, _, _ = weights["layers/0/qkv/kernel"].shape
    config = GPTNeoXConfig(
        vocab_size=weights["embed"].shape[0],
        hidden_size=model_width,
        num_hidden_layers=sum(path.endswith("/qkv/kernel") for path in weights),
        num_attention_heads=heads,
        intermediate_size=weights["layers/0/up/kernel"].shape[1],
        max_position_embeddings=data["tokens"].shape[1],
        use_parallel_residual=False,
        rope_parameters=dict(ROTARY),
    )
    model = GPTNeoXForCausalLM(config)
    model.load_state_dict(_gpt_neox_state(weights, config.num_hidden_layers), strict=True)
    tokens = Dataset.from_dict({"input_ids": data["tokens"].astype(np.int64)})
    return Peer(model, tokens.with_format("torch"), _evaluate_transformer)


def _evaluate_mlp(model: nn.Module, batch: TorchBatch) -> Evaluated:
    logits = model(batch["input_ids"])
    return nn.functional.cross_entropy(logits, batch["label"], reduction="none"), {}


def _evaluate_transformer(model: nn.Module, batch: TorchBatch) -> Evaluated:
    return compute_per_token_loss(model, batch["input_ids"]), {}


def _linear(weights: Arrays, name: str) -> nn.Linear:
    kernel, bias = weights[f"{name}/kernel"], weights[f"{name}/bias"]
    layer = nn.Linear(*kernel.shape)
    layer.load_state_dict({"weight": _tensor(kernel.T), "bias": _tensor(bias)})
    return layer


def _gpt_neox_state(weights: Arrays, num_layers: int) -> dict[str, torch.Tensor]:
    """The weights under the names and in the layout of `GPTNeoXForCausalLM`."""
    state = {
        "gpt_neox.embed_in.weight": weights["embed"],
        "gpt_neox.final_layer_norm.weight": weights["final_norm/scale"],
        "gpt_neox.final_layer_norm.bias": weights["final_norm/bias"],
        "lm_head.weight": weights["unembed"].T,
    }
    for layer in range(num_layers):
        state |= _gpt_neox_layer(weights, f"layers/{layer}", f"gpt_neox.layers.{layer}")
    return {name: _tensor(array) for name, array in state.items()}


def _gpt_neox_layer(weights: Arrays, source: str, target: str) -> Arrays:
    norms = {"attention_norm": "input_layernorm", "feed_forward_norm": "post_attention_layernorm"}
    dense = {
        "qkv": "attention.query_key_value",
        "out": "attention.dense",
        "up": "mlp.dense_h_to_4h",
        "down": "mlp.dense_4h_to_h",
    }
    state = {}
    for ours, theirs in norms.items():
        state[f"{target}.{theirs}.weight"] = weights[f"{source}/{ours}/scale"]
        state[f"{target}.{theirs}.bias"] = weights[f"{source}/{ours}/bias"]
    for ours, theirs in dense.items():
        kernel, bias = weights[f"{source}/{ours}/kernel"], weights[f"{source}/{ours}/bias"]
        # The output axes, several for qkv, are the bias's; torch wants one of each, outputs first.
        state[f"{target}.{theirs}.weight"] = kernel.reshape(-1, bias.size).T
        state[f"{target}.{theirs}.bias"] = bias.reshape(-1)
    return state


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def full_losses(peer: Peer, batch_size: int = 256) -> np.ndarray:
    """Unreduced losses at w* of the whole training set, in order: `[N]` or `[N, pos-1]`, nats."""
    num_examples = len(peer.dataset)
    blocks = []
    with torch.no_grad():
        for start in range(0, num_examples, batch_size):
            rows = range(start, min(start + batch_size, num_examples))
            batch = default_collate([peer.dataset[row] for row in rows])
            blocks.append(peer.evaluate(peer.model, batch)[0].numpy())
    return np.concatenate(blocks)


def sample_by_chain(
    peer: Peer, options: argparse.Namespace, init_seed: int, loss_at_w_star: float
) -> Sampled:
    """One `sample_single_chain` per chain, seeded as `devinterp.slt.sampling.sample` does."""
    loss_trace = np.full((options.chains, options.burnin + options.draws), np.nan)

    def record(loss: torch.Tensor, chain: int, step: int, **_: Any) -> None:
        loss_trace[chain, step] = loss.mean().item()

    for chain in range(options.chains):
        sample_single_chain(
            ref_model=peer.model,
            dataset=peer.dataset,
            evaluate=peer.evaluate,
            param_masks={name: None for name, _ in peer.model.named_parameters()},
            num_draws=options.draws,
            num_burnin_steps=options.burnin,
            sampling_method=SGMCMC.sgld,
            sampling_method_kwargs={
                "lr": options.step_size,
                "nbeta": options.n_beta,
                "localization": options.localization,
            },
            chain=chain,
            seed=init_seed + chain,
            dataloader_seed=init_seed,
            micro_callback=record,
            batch_size=options.batch_size,
        )
    return Sampled(loss_trace, loss_at_w_star, reported_llc=None)


def sample_by_llc(
    peer: Peer, options: argparse.Namespace, init_seed: int, loss_at_w_star: float
) -> Sampled:
    """`devinterp.slt.llc.llc`, which measures the loss at w* itself."""
    del loss_at_w_star
    with tempfile.TemporaryDirectory() as folder:
        result = llc(
            model=peer.model,
            dataset=peer.dataset,
            observables={},
            lr=options.step_size,
            n_beta=options.n_beta,
            localization=options.localization,
            num_chains=options.chains,
            num_draws=options.draws,
            num_burnin_steps=options.burnin,
            batch_size=options.batch_size,
            # One epoch. The default, 32 batches, is a subset, whose error nβ multiplies.
            num_init_loss_batches=len(peer.dataset) // options.batch_size,
            init_seed=init_seed,
            device="cpu",
            output_path=Path(folder) / "samples.zarr",
        ).load()
    loss_trace = result["loss_trace"].transpose("chain", "step").values.astype(np.float64)
    return Sampled(loss_trace, float(result["init_loss"]), float(result["llc_mean"]))


def seed_record(
    peer: Peer, options: argparse.Namespace, init_seed: int, loss_at_w_star: float
) -> dict[str, Any]:
    """Sample one seed and return its part of the result file.

    `llc` leaves burn-in out. devinterp's own number averages it in: `llc_with_burnin`, and
    `llc_reported` where devinterp computed it. A chain that died is null, and so are means over it.
    """
    sample = {"chain": sample_by_chain, "sample": sample_by_llc}[options.entry]
    wall, cpu = time.perf_counter(), time.process_time()
    sampled = sample(peer, options, init_seed, loss_at_w_star)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    gap = options.n_beta * (sampled.loss_trace - sampled.init_loss)
    per_chain = gap[:, options.burnin :].mean(axis=1)
    return {
        "init_seed": init_seed,
        "llc": _number(per_chain.mean()),
        "llc_per_chain": [_number(value) for value in per_chain],
        "llc_with_burnin": _number(gap.mean()),
        "llc_reported": _number(sampled.reported_llc),
        "init_loss": sampled.init_loss,
        "loss_trace": [_number(value) for value in sampled.loss_trace.mean(axis=0)],
        "seconds": wall,
        "cpu_seconds": cpu,
        "chain_steps": int(np.isfinite(sampled.loss_trace).sum()),
    }


def _number(value: float | None) -> float | None:
    """JSON has no NaN."""
    return float(value) if value is not None and math.isfinite(value) else None


def peak_rss_bytes() -> dict[str, int]:
    """The largest resident memory of this process so far, in bytes, by the kernel's two accounts.

    On Linux `ru_maxrss` survives exec: it starts from the peak of the process that started this
    one. `vm_hwm` does not, so read that where it is there.
    """
    unit = 1 if sys.platform == "darwin" else 1024
    peaks = {"ru_maxrss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    status = Path("/proc/self/status")
    if status.exists():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        peaks["vm_hwm"] = int(fields["VmHWM"].split()[0]) * 1024
    return peaks


def load(path: Path) -> Arrays:
    """All arrays of an npz file by name."""
    with np.load(path) as archive:
        return {name: archive[name] for name in archive.files}


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Sample every seed, one after another, and return the content of the result file."""
    torch.set_num_threads(options.threads)
    build = {"mlp": mlp_peer, "transformer": transformer_peer}[options.problem]
    peer = build(load(options.weights), load(options.data))
    losses = full_losses(peer)
    loss_at_w_star = float(losses.mean(dtype=np.float64))
    if options.losses is not None:
        np.save(options.losses, losses)
    load_before, peak_before = os.getloadavg(), peak_rss_bytes()
    init_seeds = [SEED_SPACING * (seed + 1) for seed in range(options.seeds)]
    records = [seed_record(peer, options, seed, loss_at_w_star) for seed in init_seeds]
    settings = vars(options).items()
    libraries = ("torch", "devinterp", "transformers", "numpy")
    return {
        "settings": {key: str(v) if isinstance(v, Path) else v for key, v in settings},
        "loss_at_w_star": loss_at_w_star,
        "seeds": records,
        "peak_rss_bytes_before": peak_before,
        "peak_rss_bytes_after": peak_rss_bytes(),
        "load_average_before": load_before,
        "load_average_after": os.getloadavg(),
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in libraries},
        },
    }


def parse_options() -> argparse.Namespace:
    """The command line; every setting that changes the estimate has to be given."""
    parser = argparse.ArgumentParser(description="LLC of one fixed network by devinterp 2.0.1")
    add = parser.add_argument
    add("--problem", choices=("mlp", "transformer"), required=True)
    add("--entry", choices=("sample", "chain"), help="way into devinterp; default by problem")
    add("--weights", type=Path, required=True, help="npz of problems.flatten_params(params)")
    add("--data", type=Path, required=True, help="npz of the dataset's arrays")
    add("--chains", type=int, required=True)
    add("--draws", type=int, required=True, help="steps after burn-in; every step is a draw")
    add("--burnin", type=int, required=True, help="steps before the first draw")
    add("--step-size", type=float, required=True, help="ε: drift ε/2, noise √ε")
    add("--n-beta", type=float, required=True)
    add("--localization", type=float, required=True, help="γ, 1/weight²")
    add("--batch-size", type=int, required=True)
    add("--seeds", type=int, required=True, help="how many independent runs")
    add("--threads", type=int, required=True, help="torch threads")
    add("--losses", type=Path, help="npy to write the unreduced losses at w* to")
    add("--out", type=Path, required=True, help="JSON result file")
    options = parser.parse_args()
    if options.entry is None:
        options.entry = {"mlp": "chain", "transformer": "sample"}[options.problem]
    if options.problem == "mlp" and options.entry == "sample":
        parser.error("--entry sample takes language models only; use --entry chain for the MLP")
    return options


def main() -> None:
    """Read the command line, sample, write the result file."""
    options = parse_options()
    options.out.write_text(json.dumps(run(options), indent=1) + "\n")


if __name__ == "__main__":
    main()
