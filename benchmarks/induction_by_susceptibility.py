"""Does one principal component of the susceptibilities tell induction heads from other heads?

    python benchmarks/induction_by_susceptibility.py --runs RUNS --output benchmarks/results

Three networks of the architecture that comes with the library, trained from three seeds. Which of
their 16 heads are induction heads is decided first, from attention to repeated random tokens alone.
Then the susceptibility of every head to every token of five kinds of text is measured, z-scored by
head and centred by token. On the even sequences, the one of the first three principal components is
chosen that separates the induction heads the best; on the odd sequences, its counterpart must

* separate them with an area under the curve (AUC) of 0.9 or more, more than 95 % of the sets of
  heads of the same size do when they are given the same choice (an exact permutation test), and
* have scores on the tokens that repeat earlier ones that differ from the scores of all other
  tokens by more than three errors: of the choice of text, by the jackknife over sequences, and of
  sampling, from the scatter of four chains, added in squares.

The same is done for the control, the susceptibilities at nβ = 0, where nothing but the localization
holds the chains; for what is left of the susceptibilities after regression on the control, head by
head; and for the weights before the first step of training, with the same heads. Structural
Inference (Baker et al., arXiv 2504.18274) found the induction circuit in the second principal
component of a larger network of this kind.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import induction_networks as networks
import numpy as np
import xarray as xr
from induction_networks import averaged
from induction_report import draw, summary
from provenance import provenance
from scipy.stats import combine_pvalues

from slt_jax import analysis
from slt_jax.analysis.decomposition import AXIS

SEEDS = (0, 1, 2)
UNTRAINED_SEEDS, SHARPER_SEEDS = (0, 1), (0,)
# What `circuit` computes was found in the network of seed 0; the others are its test.
CONFIRMING_SEEDS = (1, 2)
PUBLISHED, SHARPER = "published settings", "larger nβ"
NUM_COMPONENTS = 3
DATASETS = ("code", "docstrings", "licences", "numbers", "repeated")
MIN_AUC, MAX_P, MIN_ERRORS = 0.9, 0.05, 3.0


def half_of(response: xr.Dataset, half: int) -> xr.Dataset:
    """Give the tokens of the even (0) or the odd (1) sequences."""
    return response.isel(token=np.flatnonzero(response["sequence"].values % 2 == half))


def components_of(response: xr.Dataset) -> xr.Dataset:
    """Give the principal components of the matrix, z-scored by head and centred by token."""
    standard = analysis.center_tokens(analysis.zscore_components(response))
    return analysis.principal_components(standard, NUM_COMPONENTS + 2)


def is_repeat(frame: xr.Dataset | xr.DataArray) -> np.ndarray:
    """Tell which tokens come the second time, after a token that does, among random tokens.

    Positions count losses: the one at p is that of token p + 1.
    """
    period = (networks.LENGTH - 1) // 2
    return (frame["dataset"].values == "repeated") & (frame["position"].values > period)


def as_control(chain: xr.Dataset) -> xr.Dataset:
    """Put the control, with its errors, where the susceptibilities are."""
    kept = {"susceptibility": chain["control"], "standard_error": chain["control_error"]}
    return xr.Dataset(kept)


def without_full(chain: xr.Dataset) -> xr.Dataset:
    """Put −Cov_C(g, ℓ̃), the term that needs no full chain, where the susceptibilities are."""
    return chain[["observable_mean"]].assign(susceptibility=chain["covariance"])


def beyond_control(chains: Sequence[xr.Dataset]) -> list[xr.Dataset]:
    """Give what the regression of the chains' mean on the control leaves, head by head."""
    mean = averaged(chains)
    x, y = (mean[name] - mean[name].mean("token") for name in ("control", "susceptibility"))
    slope = (x * y).sum("token") / (x * x).sum("token")
    kept = ["standard_error", "shared_error", "observable_mean"]
    return [
        chain[kept].assign(susceptibility=chain["susceptibility"] - slope * chain["control"])
        for chain in chains
    ]


def own_shift(chain: xr.Dataset) -> xr.Dataset:
    """Put E_C[ℓ̃], what a head's own chains do to the loss of a token, in its place."""
    whole, part = chain["susceptibility"], chain["covariance"]
    shift = chain["full_mean"] - (whole - part) / chain["observable_mean"]
    return chain[["observable_mean"]].assign(susceptibility=shift.transpose(*whole.dims))


def of_layer_1(chains: Sequence[xr.Dataset]) -> list[xr.Dataset]:
    names = chains[0]["component"].values.astype(str)
    return [chain.sel(component=np.char.startswith(names, "l1")) for chain in chains]


class Direction:
    """One direction in the space of heads, as a linear functional of the raw susceptibilities.

    Args:
        loadings: by head, of the standardised matrix.
        response: the matrix that was standardised, whose spread is each head's unit.
    """

    def __init__(self, loadings: xr.DataArray, response: xr.Dataset):
        spread = response["susceptibility"].std("token")
        self.weights = (loadings - loadings.mean("component")) / spread

    def scores(self, response: xr.Dataset) -> xr.DataArray:
        """Give the score of every token, up to a constant."""
        return xr.dot(self.weights, response["susceptibility"], dim="component")


def contrast(
    direction: Direction, chains: Sequence[xr.Dataset], among: np.ndarray | None = None
) -> dict[str, float]:
    """Compare the scores of repeats with those of all other tokens, or of others among some."""
    if among is not None:
        chains = [chain.isel(token=np.flatnonzero(among)) for chain in chains]
    chosen = is_repeat(chains[0])
    scores = [direction.scores(chain) for chain in chains]
    mean = xr.concat(scores, "chain").mean("chain").assign_coords(scores[0].coords)
    found = analysis.contrast_tokens(mean, chosen)
    own = [float(one[chosen].mean() - one[~chosen].mean()) for one in scores]
    of_sampling = float(np.std(own, ddof=1) / np.sqrt(len(own)))
    return {
        "difference": found.difference,
        "error of text": found.standard_error,
        "error of sampling": of_sampling,
        "errors": abs(found.difference) / float(np.hypot(found.standard_error, of_sampling)),
    }


def oriented(first: xr.DataArray, second: xr.DataArray, heads: Collection[str]) -> xr.DataArray:
    """Turn the second half's loadings so that the labelled heads were largest in the first's."""
    labels = np.isin(first["component"].values, list(heads))
    side = 1.0 if analysis.auc(first.values, labels) >= 0.5 else -1.0
    aligned = second.sel(component=first["component"])
    return aligned * side * np.sign(float(first.values @ aligned.values))


def smallest_p(first: xr.Dataset, second: xr.Dataset, size: int) -> float:
    """Give the smallest p that any set of so many heads has with these loadings."""
    names = first["component"].values
    found = []
    for number in range(NUM_COMPONENTS):
        order = np.argsort(first["loadings"].values[:, number])
        for chosen in (order[:size], order[-size:]):
            heads = names[chosen].tolist()
            found.append(analysis.separate(first, second, heads, num_components=NUM_COMPONENTS))
    return min(one.p_value for one in found)


def judged(chains: Sequence[xr.Dataset], heads: Collection[str]) -> dict[str, Any]:
    """Choose a component on the even sequences and judge it on the odd ones."""
    response = averaged(chains)
    odd = [half_of(chain, 1) for chain in chains]
    first, second = (components_of(half_of(response, half)) for half in (0, 1))
    found = analysis.separate(first, second, heads, num_components=NUM_COMPONENTS)
    loadings = oriented(
        first["loadings"].sel({AXIS: found.component}),
        second["loadings"].sel({AXIS: found.matched}),
        heads,
    )
    direction = Direction(loadings, half_of(response, 1))
    names = loadings["component"].values.astype(str)
    scores = direction.scores(half_of(response, 1))
    last = np.char.startswith(names, "l1")
    against_all = contrast(direction, odd)
    first_time = contrast(direction, odd, odd[0]["dataset"].values == "repeated")
    return {
        **found._asdict(),
        "smallest p of any heads": smallest_p(first, second, len(heads)),
        "auc within layer 1": analysis.auc(
            loadings.values[last], np.isin(names[last], list(heads))
        ),
        "repeats against all others": against_all,
        "repeats against their first time": first_time,
        "holds": found.auc >= MIN_AUC
        and found.p_value < MAX_P
        and against_all["errors"] > MIN_ERRORS,
        "loadings": dict(zip(names.tolist(), loadings.values.round(4).tolist(), strict=True)),
        "scores": {name: moments(scores, where) for name, where in groups(scores).items()},
        "components": leading(components_of(response)),
    }


def groups(scores: xr.DataArray) -> dict[str, np.ndarray]:
    """Give the tokens of every kind of text, random tokens parted in two."""
    dataset, again = scores["dataset"].values, is_repeat(scores)
    parts = {name: dataset == name for name in DATASETS[:-1]}
    return parts | {"random, first": (dataset == "repeated") & ~again, "random, again": again}


def moments(scores: xr.DataArray, where: np.ndarray) -> dict[str, float]:
    own = scores.values[where] - scores.values.mean()
    return {"mean": round(float(own.mean()), 4), "spread": round(float(own.std()), 4)}


def leading(components: xr.Dataset) -> dict[str, list[float]]:
    """Give what is known of the leading principal components of all tokens."""
    names = ("explained_variance_ratio", "noise_ratio", "gap_correlation")
    return {
        name: components[name].values[:NUM_COMPONENTS].round(4).tolist()
        for name in names
        if name in components
    }


def one_seed(runs: Path, work: Path, seed: int) -> dict[str, Any]:
    """Measure and judge the network of one seed, and the weights it started from."""
    network = networks.load(runs, seed)
    scores = networks.attention_scores(network)
    heads = scores.heads_above(networks.INDUCTION_SCORE)
    print(f"seed {seed}: induction heads {heads}", flush=True)
    chains = chains_of(runs, work / f"seed{seed}", network)
    return {
        "induction heads": heads,
        "induction scores": np.asarray(scores.induction, np.float64).round(4).tolist(),
        "attends to the token before": f"l0h{int(np.argmax(scores.previous[0]))}",
        "repeated loss": [scores.first_loss, scores.second_loss],
        "verdict": [chain.attrs["verdict"] for chain in chains["trained"]],
        "likeness": {
            name: like(chains[kind])
            for name, kind in ((PUBLISHED, "trained"), (SHARPER, "sharper"))
            if kind in chains
        },
        "circuits": {
            kind: circuit(chains[kind], heads)
            for kind in ("trained", "untrained")
            if kind in chains
        },
        "judged": {name: judged(kind, heads) for name, kind in matrices_of(chains).items()},
    }


def chains_of(runs: Path, folder: Path, network: networks.Network) -> dict[str, list[xr.Dataset]]:
    """Measure a network, or read what was measured: the kind of measurement → its chains."""

    def of(kind: str, given: networks.Network, sampling: networks.Sampling, control: bool = True):
        return networks.measured(given, folder / f"{kind}.nc", sampling, control=control)

    found = {"trained": of("trained", network, networks.PUBLISHED)}
    if network.seed in UNTRAINED_SEEDS:
        before = networks.load(runs, network.seed, untrained=True)
        found["untrained"] = of("untrained", before, networks.PUBLISHED, control=False)
    if network.seed in SHARPER_SEEDS:
        found["sharper"] = of("sharper", network, networks.SHARPER)
    return found


def matrices_of(chains: dict[str, list[xr.Dataset]]) -> dict[str, list[xr.Dataset]]:
    """Give what is analysed, first what was planned before anything was measured."""
    trained, sharper = chains["trained"], chains.get("sharper")
    matrices = {
        "susceptibility": trained,
        "control": [as_control(chain) for chain in trained],
        "beyond control": beyond_control(trained),
    }
    if "untrained" in chains:
        matrices["untrained"] = chains["untrained"]
    matrices |= {
        "covariance alone": [without_full(chain) for chain in trained],
        "own shift": [own_shift(chain) for chain in trained],
        "layer 1": of_layer_1(trained),
        "layer 1, control": of_layer_1([as_control(chain) for chain in trained]),
    }
    if sharper is not None:
        matrices[SHARPER] = sharper
        matrices[f"{SHARPER}, covariance alone"] = [without_full(chain) for chain in sharper]
    return matrices


def circuit(chains: Sequence[xr.Dataset], heads: Collection[str]) -> dict[str, Any]:
    """Give how much more than the average token the repeats suffer when a head wanders.

    That is E_C[ℓ̃]/E_C[g], the mean over repeats, by head, with the scatter of chains; and whether
    it is larger for the induction heads than for the other heads of their layer.
    """
    shifts = [own_shift(chain) for chain in chains]
    chosen = np.flatnonzero(is_repeat(shifts[0]))
    values = np.stack(
        [
            one["susceptibility"].isel(token=chosen).mean("token") / one["observable_mean"]
            for one in shifts
        ]
    )
    names = shifts[0]["component"].values.astype(str)
    mean, error = values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(len(values))
    last = np.char.startswith(names, "l1")
    own = np.isin(names, list(heads))
    area = analysis.auc(mean[last], own[last])
    others = [
        analysis.auc(mean[last], np.isin(np.arange(last.sum()), subset))
        for subset in itertools.combinations(range(last.sum()), int(own.sum()))
    ]
    return {
        "extra": dict(zip(names.tolist(), mean.round(3).tolist(), strict=True)),
        "error": dict(zip(names.tolist(), error.round(3).tolist(), strict=True)),
        "largest": str(names[np.argmax(mean)]),
        "auc within layer 1": area,
        "p within layer 1": float(np.mean([other >= area for other in others])),
    }


def like(chains: Sequence[xr.Dataset]) -> dict[str, list[float]]:
    """Give, by head, the mean gap in nats and what the row of tokens is correlated with."""
    response, middle = averaged(chains), len(chains) // 2
    rows = response["susceptibility"]
    others = {"control": response["control"], "full chain": response["full_mean"]}
    found = {name: xr.corr(rows, other, "token") for name, other in others.items()}
    halves = [averaged(half)["covariance"] for half in (chains[:middle], chains[middle:])]
    found["covariance, halves of the chains"] = xr.corr(*halves, "token")
    found["mean gap"] = response["observable_mean"]
    return {name: values.values.round(4).tolist() for name, values in found.items()}


def together(seeds: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Combine the seeds: Fisher's method, which is on the safe side for p-values with few steps."""
    found = [one["judged"][kind] for one in seeds.values() if kind in one["judged"]]
    return {
        "seeds": len(found),
        "p (Fisher)": float(combine_pvalues([one["p_value"] for one in found]).pvalue),
        "mean auc": float(np.mean([one["auc"] for one in found])),
        "seeds that hold": sum(one["holds"] for one in found),
    }


def main() -> None:
    """Run the study, write ``induction_by_susceptibility.json``, ``.md`` and ``.png``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), help="networks, seed0 and so on; made if absent"
    )
    parser.add_argument("--work", type=Path, help="measured matrices (default: RUNS/measured)")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    work = options.runs / "measured" if options.work is None else options.work
    seeds = {str(seed): one_seed(options.runs, work, seed) for seed in SEEDS}
    kinds = dict.fromkeys(kind for one in seeds.values() for kind in one["judged"])
    confirming = [
        seeds[str(seed)]["circuits"]["trained"]["p within layer 1"] for seed in CONFIRMING_SEEDS
    ]
    report = provenance(networks, sys.modules[__name__]) | {
        "seeds": seeds,
        "p of the circuits (Fisher)": float(combine_pvalues(confirming).pvalue),
        "together": {kind: together(seeds, kind) for kind in kinds},
    }
    text = summary(report)
    print(text)
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "induction_by_susceptibility"
    path.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    path.with_suffix(".md").write_text(text, "utf-8")
    draw(report).savefig(path.with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    main()
