"""The networks of `induction_by_susceptibility.py`, their induction heads, and what is measured.

network = load(runs, seed=0)                      # trained first, if it is not there
scores = attention_scores(network)                # of its heads, from attention alone
chains = measured(network, folder / "trained.nc", PUBLISHED, control=True)   # kept in files
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import xarray as xr

import slt_jax as slt
from slt_jax.models import zoo
from slt_jax.models.zoo.text import common_tokens

NUM_DRAWS, NUM_STEPS_BW_DRAWS, BATCH_SIZE = 50, 4, 8
ROWS_PER_DATASET, LENGTH = 8, 64


class Sampling(NamedTuple):
    """nβ, γ in 1/weight², ε in weight², steps before the first draw, and chains."""

    n_beta: float
    localization: float
    step_size: float
    num_burnin_steps: int
    num_chains: int


# nβ, γ, ε and four chains as in Structural Inference (Baker et al., arXiv 2504.18274) for single
# tokens. There 100 draws of a chain follow each other directly, of which about 17 are independent
# (a chain forgets in 2/(εγ) = 7 steps); here 50 draws stand four steps apart, about 29. Batches are
# of 8 sequences instead of 16, and the noise is averaged.
PUBLISHED = Sampling(30.0, 300.0, 1e-3, 30, 4)
# By the curvature of the network of seed 0, 1.1 at most within a head and 7.5 in all (ten power
# iterations on 48 training sequences): h* = γ/nβ is 1/3 instead of 10, ε (nβ h + γ) at most 1.2.
SHARPER = Sampling(3000.0, 1000.0, 5e-5, 80, 2)
# Ten times what attention spread evenly over a hundred earlier tokens would give.
INDUCTION_SCORE = 0.1
SCORED_ROWS, SCORED_LENGTH = 16, 128
UNTRAINED = "step00000000"


class Network(NamedTuple):
    """A network and the tokens it reads."""

    model: Any
    vocabulary: zoo.Vocabulary
    seed: int


def load(runs: Path, seed: int, *, untrained: bool = False) -> Network:
    """Load one network, or its weights before the first step; train it if that was not done."""
    folder = runs / f"seed{seed}"
    if not (folder / "training.json").exists():
        command = ["-m", "slt_jax.models.zoo.train", "--out", str(folder), "--seed", str(seed)]
        subprocess.run([sys.executable, *command, "--checkpoints"], check=True)
    model = slt.models.from_hf(folder / UNTRAINED if untrained else folder)
    return Network(model, zoo.Vocabulary.load(folder / "vocabulary.json"), seed)


def attention_scores(network: Network) -> zoo.HeadScores:
    """Measure what heads attend to, on random tokens that come twice."""
    drawn = common_tokens(network.vocabulary)
    rows = zoo.repeated_tokens(drawn, SCORED_ROWS, SCORED_LENGTH, start=zoo.START, seed=0)
    return zoo.head_scores(network.model.loss_fn, network.model.params, rows)


def measured(
    network: Network, path: Path, sampling: Sampling, *, control: bool
) -> list[xr.Dataset]:
    """Give the susceptibilities of all heads, once per chain, from files or measured into them.

    Chains are runs by themselves, with minibatches and full chains of their own: what differs
    between them is the sampling error of whatever is computed from their mean.
    """
    found = []
    for chain in range(sampling.num_chains):
        own = path.with_name(f"{path.stem}_chain{chain}.nc")
        if not own.exists():
            own.parent.mkdir(parents=True, exist_ok=True)
            chi = one_chain(network, chain, sampling, control).to_xarray()
            chi.to_netcdf(own.with_suffix(".part"), engine="scipy")
            own.with_suffix(".part").rename(own)
            print(f"{own.stem}: {chi.attrs['verdict']}", flush=True)
        found.append(xr.load_dataset(own, engine="scipy"))
    return found


def one_chain(
    network: Network, chain: int, sampling: Sampling, control: bool
) -> slt.Susceptibilities:
    """Measure every head with one chain, and the full chain, with four times as many draws."""
    model, vocabulary = network.model, network.vocabulary
    rows = zoo.training_rows(vocabulary, None, LENGTH)
    return slt.susceptibilities(
        slt.LocalPosterior(
            model.loss_fn, model.params, n_beta=sampling.n_beta, localization=sampling.localization
        ),
        slt.sgld(sampling.step_size, noise_averaging=True),
        slt.Batches(rows, BATCH_SIZE),
        jax.random.fold_in(jax.random.key(network.seed), chain),
        components=model.components.heads(),
        probes=zoo.probe_rows(vocabulary, ROWS_PER_DATASET, LENGTH),
        num_chains=1,
        num_burnin_steps=sampling.num_burnin_steps,
        num_draws=NUM_DRAWS,
        num_steps_bw_draws=NUM_STEPS_BW_DRAWS,
        control=control,
        progress=False,
    )


def averaged(chains: Sequence[xr.Dataset]) -> xr.Dataset:
    """Give the mean over chains, errors from those of each.

    >>> one = xr.Dataset({"susceptibility": ("token", [1.0]), "standard_error": ("token", [2.0])})
    >>> averaged([one, one, one, one])["standard_error"].item()
    1.0
    """
    stacked = xr.concat(chains, "chain", data_vars="all", join="exact")
    errors = [name for name in stacked.data_vars if str(name).endswith("error")]
    mean = stacked.mean("chain")
    return mean.assign(
        {name: np.sqrt((stacked[name] ** 2).sum("chain")) / len(chains) for name in errors}
    )
