"""Does Bayesian influence foresee what retraining does? A small network on handwritten digits.

    python benchmarks/influence_on_digits.py --output benchmarks/results

A perceptron learns 640 of scikit-learn's digits: 600 as they are, 20 of these once more
(duplicates), and 20 others of these once more with a wrong label (relabelled). Every method scores
the influence of each training example on the loss of each of 100 held-out queries. Then the network
is trained again on random halves of the examples, from several initial weights, and each method is
asked to foresee the loss of the queries from the sum of its scores over the half: Spearman's rank
correlation over the halves, averaged over queries (the linear datamodeling score, LDS, of Park et
al., arXiv 2303.14186). Methods:

* BIF: −∂E[φ]/∂β = (nβ/n)·Cov(ℓ_i, φ) from SGLD (Kreer et al., arXiv 2509.26544);
* damped influence: ∇φᵀ(H + (γ/nβ)I)⁻¹∇ℓ_i/n with the Gauss–Newton H, by conjugate gradients;
* gradient similarity: ∇φᵀ∇ℓ_i, and the cosine of the two.

The noise ceiling is the rank correlation that the expected loss would reach with the averaged one,
from the agreement of initial weights with each other (Spearman–Brown). Intervals are from a
bootstrap over halves and queries. Settings were chosen on 20 other halves (`--tune`), on
which 1000 draws gave BIF an LDS between 0.82 and 0.87 for γ from 1 to 30 and nβ of 640 and 3000.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import digits_with_copies as problem
import jax
import jax.numpy as jnp
import numpy as np
from digits_with_copies import NUM_COPIES, NUM_QUERIES, Digits, Examples
from influence_picture import draw
from provenance import provenance, told
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

import slt_jax as slt

N_BETA, LOCALIZATION, STEP_SIZE, BATCH_SIZE = 640.0, 3.0, 1e-3, 160
NUM_CHAINS, NUM_DRAWS, NUM_BURNIN, NUM_STEPS_BW_DRAWS = 8, 3000, 2000, 20
NUM_BOOTSTRAPS = 2000


def local_posterior(params: Any) -> slt.LocalPosterior:
    """Give the posterior whose mode the training seeks: weight decay and loss in proportion."""
    return slt.LocalPosterior(
        problem.loss_fn,
        params,
        n_beta=N_BETA,
        localization=LOCALIZATION,
        weight_decay=N_BETA * problem.WEIGHT_DECAY,
    )


def sampled(params: Any, data: Digits, key: Any) -> slt.Run:
    """Sample around w*, keeping the losses of training examples and queries at every draw."""
    return slt.sample(
        local_posterior(params),
        slt.sgld(STEP_SIZE, noise_averaging=True),
        slt.Batches(data.train, BATCH_SIZE),
        key,
        num_chains=NUM_CHAINS,
        num_draws=NUM_DRAWS,
        num_burnin_steps=NUM_BURNIN,
        num_steps_bw_draws=NUM_STEPS_BW_DRAWS,
        observables={
            "train": slt.LossValues(slt.Probe(data.train), slt.Trace()),
            "query": slt.LossValues(slt.Probe(data.query), slt.Trace()),
        },
        progress=False,
    )


def gradients(params: Any, examples: Examples) -> np.ndarray:
    """Give the gradient of every loss, ``[example, weight]``."""
    flat, unravel = jax.flatten_util.ravel_pytree(params)

    def one(example: Any) -> jax.Array:
        single = jax.tree.map(lambda leaf: leaf[None], example)
        return jax.grad(lambda flat: problem.loss_fn(unravel(flat), single)[0])(flat)

    return np.asarray(jax.jit(jax.vmap(one))(jax.tree.map(jnp.asarray, examples)))


def scores(params: Any, data: Digits, influence: slt.BIFResult) -> dict[str, np.ndarray]:
    """Give by method how much each training example lowers each query's loss."""
    slopes, asked = gradients(params, data.train), gradients(params, data.query)
    unit = slopes / np.linalg.norm(slopes, axis=1, keepdims=True)
    damped = slt.damped_influence(
        local_posterior(params),
        slt.Batches(data.train, len(data.train[1])),
        query=data.query,
        gauss_newton=slt.GaussNewton(problem.network, problem.cross_entropy),
    )
    return {
        "BIF": -influence.derivative,
        "damped influence": -damped / len(data.train[1]),
        "gradient product": slopes @ asked.T,
        "gradient cosine": unit @ (asked / np.linalg.norm(asked, axis=1, keepdims=True)).T,
    }


def rank_correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Give Spearman's correlation of the columns of two arrays ``[subset, query]``."""
    ranks = (rankdata(array, axis=0) for array in (first, second))
    a, b = (array - array.mean(axis=0) for array in ranks)
    return np.sum(a * b, axis=0) / np.sqrt(np.sum(a**2, axis=0) * np.sum(b**2, axis=0))


def noise_ceiling(losses: np.ndarray) -> float:
    """Give the correlation of an average over seeds with the expectation, by Spearman–Brown."""
    num_seeds = losses.shape[1]
    single = np.mean(
        [
            rank_correlation(losses[:, a], losses[:, b]).mean()
            for a in range(num_seeds)
            for b in range(a)
        ]
    )
    return float(np.sqrt(num_seeds * single / (1 + (num_seeds - 1) * single)))


def evaluate(
    methods: dict[str, np.ndarray], subsets: np.ndarray, losses: np.ndarray
) -> dict[str, Any]:
    """Give the LDS of every method with intervals, and the lead of BIF over each other one."""
    inside = np.zeros((len(subsets), len(next(iter(methods.values())))))
    np.put_along_axis(inside, subsets, 1.0, axis=1)
    mean = losses.mean(axis=1)
    # A helpful example lowers the loss: the more of it is in the half, the lower the loss.
    foreseen = {name: -inside @ score for name, score in methods.items()}
    by_query = {name: rank_correlation(f, mean) for name, f in foreseen.items()}
    values = {name: lds.mean() for name, lds in by_query.items()}
    drawn = bootstrap(foreseen, mean)
    leads = {name: drawn["BIF"] - drawn[name] for name in methods if name != "BIF"}
    return {
        "lds": {name: described(value, drawn[name]) for name, value in values.items()},
        "lead of BIF": {
            name: described(values["BIF"] - values[name], lead) for name, lead in leads.items()
        },
        "noise ceiling": noise_ceiling(losses),
        "lds by query": {name: lds.round(4).tolist() for name, lds in by_query.items()},
    }


def bootstrap(foreseen: dict[str, np.ndarray], mean: np.ndarray) -> dict[str, np.ndarray]:
    """Draw halves and queries with replacement; give the LDS of every method, all on one draw."""
    rng = np.random.default_rng(0)
    num_subsets, num_queries = mean.shape
    drawn: dict[str, list[float]] = {name: [] for name in foreseen}
    for _ in range(NUM_BOOTSTRAPS):
        rows = rng.integers(num_subsets, size=num_subsets)
        columns = rng.integers(num_queries, size=num_queries)
        chosen = np.ix_(rows, columns)
        for name, array in foreseen.items():
            drawn[name].append(rank_correlation(array[chosen], mean[chosen]).mean())
    return {name: np.array(values) for name, values in drawn.items()}


def described(value: float, drawn: np.ndarray) -> dict[str, float]:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"value": float(value), "low": float(low), "high": float(high)}


def copies(data: Digits, score: np.ndarray) -> dict[str, list[int]]:
    """Give the ranks of the copies: duplicates among the helpful, relabelled among the harmful.

    The query is the original; the original itself is left out of the ranking.
    """
    ranks = []
    for offset, (original, copy) in enumerate((*data.duplicated, *data.relabelled)):
        help_given = np.array(score[:, NUM_QUERIES + offset], np.float64)
        help_given *= 1 if offset < NUM_COPIES else -1
        others = np.delete(help_given, [original, copy])
        ranks.append(1 + int(np.sum(others > help_given[copy])))
    return {"duplicates": ranks[:NUM_COPIES], "relabelled": ranks[NUM_COPIES:]}


def suspicion(data: Digits, kernel: slt.LossKernel) -> dict[str, float]:
    """Rank training examples by self-influence: do relabelled ones come first?"""
    variance = kernel.self_influence
    is_wrong = np.zeros(len(variance))
    is_wrong[data.relabelled[:, 1]] = 1
    first = np.argsort(-variance)[:NUM_COPIES]
    return {
        "area under the curve": float(roc_auc_score(is_wrong, variance)),
        f"relabelled among the first {NUM_COPIES}": float(is_wrong[first].mean()),
    }


class Clock:
    """Prints and keeps how long each part took."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self.start = time.perf_counter()

    def done(self, what: str) -> None:
        now = time.perf_counter()
        self.seconds[what], self.start = round(now - self.start, 1), now
        print(f"{what}: {self.seconds[what]} s", flush=True)


def study(options: argparse.Namespace) -> dict[str, Any]:
    """Run everything and give the report."""
    data, clock = problem.digits(options.seed), Clock()
    subset_key, train_key, chain_key = jax.random.split(
        jax.random.fold_in(jax.random.key(options.seed), int(options.tune)), 3
    )
    rng = np.random.default_rng(np.asarray(jax.random.key_data(subset_key)))
    size = len(data.train[1])
    num_subsets = 20 if options.tune else options.subsets
    subsets = np.stack([rng.permutation(size)[: size // 2] for _ in range(num_subsets)])
    losses = problem.retrained_losses(train_key, data, subsets, options.seeds)
    clock.done(f"training {num_subsets} × {options.seeds} networks on halves")
    params = jax.jit(problem.trained)(jax.random.key(options.seed + 1), data.train)
    clock.done("training w*")
    run = sampled(params, data, chain_key)
    clock.done("sampling")
    influence, kernel = slt.bif_from(run), slt.loss_kernel_from(run)
    print(influence)
    clock.done("BIF and loss kernel")
    methods = scores(params, data, influence)
    clock.done("damped influence and gradients")
    ordinary = {name: score[:, :NUM_QUERIES] for name, score in methods.items()}
    exact, estimated = ordinary["damped influence"].ravel(), ordinary["BIF"].ravel()
    return {
        **quality(params, data),
        "query loss after retraining": float(losses[:, :, :NUM_QUERIES].mean()),
        **evaluate(ordinary, subsets, losses[:, :, :NUM_QUERIES]),
        "correlation of BIF and damped influence": float(np.corrcoef(exact, estimated)[0, 1]),
        "ranks of copies": {
            **{name: copies(data, score) for name, score in methods.items()},
            "BIF, correlation": copies(data, influence.correlation),
        },
        "self-influence": suspicion(data, kernel),
        "bif": str(influence),
        "kernel": str(kernel),
        "seconds": clock.seconds,
    }


def quality(params: Any, data: Digits) -> dict[str, float]:
    """Give losses and accuracy of the network that is sampled around."""
    queries = jax.tree.map(lambda column: column[:NUM_QUERIES], data.query)
    chosen = np.argmax(problem.network(params, queries), axis=-1)
    return {
        "loss at w*": float(np.mean(problem.loss_fn(params, data.train))),
        "query loss at w*": float(np.mean(problem.loss_fn(params, queries))),
        "query accuracy at w*": float(np.mean(chosen == queries[1])),
    }


def summary(report: dict[str, Any]) -> str:
    """Write the report as Markdown."""
    result = report["result"]
    ranks = [
        f"| {name} | {first(of['duplicates'])} | {first(of['relabelled'])} |"
        for name, of in result["ranks of copies"].items()
    ]
    rows = [f"| {name} | {interval(value)} |" for name, value in result["lds"].items()]
    leads = [f"| {name} | {interval(value)} |" for name, value in result["lead of BIF"].items()]
    marks = [f"- self-influence, {name}: {v:.3f}" for name, v in result["self-influence"].items()]
    table = "\n".join(["| method | LDS |", "|---|---|", *rows])
    lead = "\n".join(["| lead of BIF over | LDS |", "|---|---|", *leads])
    found = "\n".join(marks)
    placed = "\n".join(["| method | duplicates | relabelled |", "|---|---|---|", *ranks])
    return f"""# Bayesian influence on digits

![What each method foresees of retraining, and how many copies it ranks first](\
influence_on_digits.png)

Linear datamodeling score over {report["subsets"]} halves, the retrained losses averaged over
{report["seeds"]} initial weights, {NUM_QUERIES} queries. Intervals: 95 %, bootstrap over halves and
queries. Noise ceiling: {result["noise ceiling"]:.3f}.

{table}

{lead}

How many of the copies rank first among all training examples but the query itself, and the worst
rank: duplicates of the query among the helpful, relabelled copies of it among the harmful.
Covariances, influence functions and products of gradients measure nats, so that a neighbour whose
loss is large can outrank the duplicate of an easy query; the correlation leaves the size out.

{placed}

{found}
- entrywise correlation of BIF and damped influence:
  {result["correlation of BIF and damped influence"]:.3f}
- loss at w* {result["loss at w*"]:.3f}, of the queries {result["query loss at w*"]:.3f} (accuracy
  {result["query accuracy at w*"]:.2f}), after retraining on halves
  {result["query loss after retraining"]:.3f}

```
{result["bif"]}
{result["kernel"]}
```

Seconds: {result["seconds"]}. {told(report)}
"""


def first(ranks: list[int]) -> str:
    return f"{ranks.count(1)} of {len(ranks)}, worst rank {max(ranks)}"


def interval(value: dict[str, float]) -> str:
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def main() -> None:
    """Run the study, write ``influence_on_digits.json``, ``.md``, ``.png``; print the summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--subsets", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tune", action="store_true", help="20 other halves, nothing written")
    options = parser.parse_args()
    report = {
        **provenance(problem, sys.modules[__name__]),
        "subsets": options.subsets,
        "seeds": options.seeds,
        "seed": options.seed,
        "result": study(options),
    }
    text = summary(report)
    print(text)
    if not options.tune:
        options.output.mkdir(parents=True, exist_ok=True)
        path = options.output / "influence_on_digits"
        path.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n", "utf-8")
        path.with_suffix(".md").write_text(text, "utf-8")
        draw(report["result"]).savefig(path.with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    main()
