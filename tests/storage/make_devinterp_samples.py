"""Make ``devinterp_samples.tar.xz`` and ``devinterp_numbers.npz`` with devinterp 2.0.1.

Run in an environment that has devinterp: ``python tests/storage/make_devinterp_samples.py``. A
language model of one matrix is sampled whole ("full"), with some of its weights ("half"), with a
step size so large that chains die ("dead"), and preconditioned, with minibatches of its own for
every chain ("adaptive"). The numbers are what devinterp makes of the samples.
"""

import shutil
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from devinterp.slt.bif import compute_bif
from devinterp.slt.llc import compute_llc
from devinterp.slt.sampling import sample
from devinterp.slt.susceptibilities import compute_susceptibilities

VOCABULARY, LENGTH = 5, 4
HERE = Path(__file__).parent


class Bigrams(torch.nn.Module):
    """Logits of the next token from a table."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(VOCABULARY, VOCABULARY))

    def forward(self, input_ids):
        return self.table[input_ids]


def loss_fn(model, input_ids):
    logits = model(input_ids)[:, :-1].transpose(1, 2)
    return torch.nn.functional.cross_entropy(logits, input_ids[:, 1:], reduction="none")


def dataset(count, seed):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(VOCABULARY, (count, LENGTH), generator=generator)
    return Dataset.from_dict({"input_ids": ids.tolist()}).with_format("torch")


OPTIONS = {
    "num_chains": 3,
    "num_draws": 20,
    "batch_size": 4,
    "num_burnin_steps": 5,
    "num_steps_bw_draws": 2,
    "num_init_loss_batches": 3,
    "n_beta": 10.0,
    "localization": 5.0,
    "device": "cpu",
    "loss_fn": loss_fn,
}
EVERY_STEP = {"num_burnin_steps": 0, "num_steps_bw_draws": 1}
OWN_BATCHES = {"match_sampling_input_ids_across_chains": False}


def sample_all(folder):
    """Sample the model in four ways; give what devinterp gives, by name."""
    torch.manual_seed(0)
    model, data = Bigrams(), dataset(12, 1)
    mask = torch.zeros(VOCABULARY, VOCABULARY)
    mask[:2] = 1
    observables = {"train": (data, 2), "probe": (dataset(8, 2), 1)}
    adaptive = {"lr": 1e-3, "sampling_method": "rmsprop_sgld"}
    runs = {
        "full": {"lr": 1e-2},
        "half": {"lr": 1e-2, "param_masks": {"table": mask}},
        "dead": {"lr": 1e38} | EVERY_STEP,
        "adaptive": adaptive | EVERY_STEP | OWN_BATCHES,
    }
    return {
        name: sample(model, data, observables, output_path=folder / name, **OPTIONS | own)
        for name, own in runs.items()
    }


def main():
    warnings.simplefilter("ignore")
    folder = Path(tempfile.mkdtemp())
    trees = sample_all(folder)
    numbers = {}
    for name, tree in trees.items():
        found = compute_llc(tree)
        numbers |= {f"{name} {part}": found[part].values for part in found.data_vars}
    for covariance in (False, True):
        for method in ("sequence", "token"):
            found = compute_bif(
                trees["full"], correlation_method=method, compute_covariance=covariance
            )
            kind = "covariance" if covariance else "correlation"
            numbers[f"bif {method} {kind}"] = found.influences.values
    both = {"full": trees["full"], "half": trees["half"]}
    found = compute_susceptibilities(both, "train", include_sampling_task=True)
    numbers["susceptibilities"] = found["susceptibilities/sus"].values[:, 0]
    np.savez_compressed(HERE / "devinterp_numbers.npz", **numbers)
    shutil.make_archive(str(HERE / "devinterp_samples"), "xztar", folder)
    print({name: numbers[f"{name} llc_per_chain"] for name in trees})


if __name__ == "__main__":
    main()
