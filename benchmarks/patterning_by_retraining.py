"""Does a change of the data chosen by patterning move heads as predicted when training goes on?

    python benchmarks/patterning_by_retraining.py --output benchmarks/results

The bundled transformer. The susceptibilities of its 16 heads to five kinds of text are measured;
``slt.patterning`` then chooses, for each of three targets, the shares of training data dh to
replace by each kind. From the trained weights, training goes on with these shares and with their
opposites, on the same batches: the loss is L + Σ_j dh_j (L_j − L), so that a share may be negative.
What is compared over heads is half the difference of the refined learning coefficients nβE_C[g] of
the two networks on the sampling data, against nβR dh: with R = nβχ, which holds where the weights
that do not belong to the head may move as well, and with −(nβ)Cov_C(g, ℓ̃), the part of it in which
they stay. The theory (Wang & Murfet, arXiv 2601.13548) is linear in dh and speaks of the posterior
around the old weights; training moves all of them.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from provenance import provenance, told
from scipy.stats import pearsonr, spearmanr

import slt_jax as slt
from slt_jax.models import zoo
from slt_jax.models.zoo.text import common_tokens

# As in Structural Inference (Baker et al., arXiv 2504.18274).
N_BETA, LOCALIZATION, STEP_SIZE, BATCH_SIZE = 30.0, 300.0, 1e-3, 8
NUM_BURNIN, NUM_STEPS_BW_DRAWS = 30, 4
CHI_CHAINS, CHI_DRAWS = 4, 100
TABLE_CHAINS, TABLE_DRAWS = 2, 50
ROWS_PER_DATASET, LENGTH = 8, 64
# The largest share of the data that is replaced by one kind.
LARGEST_SHARE = 0.1
TRAINING_STEPS, LEARNING_RATE, PROBE_ROWS_PER_STEP = 800, 3e-4, 2
TRAINING_SEEDS = (0, 1)
TARGETS = {
    "induction heads": ("l1h0", "l1h5", "l1h6"),
    "previous-token head": ("l0h2",),
    "another head of layer 1": ("l1h3",),
}


def susceptibilities(model: Any, sampled: np.ndarray, kinds: Mapping[str, np.ndarray]) -> Any:
    """Measure every head against every kind of text."""
    return slt.susceptibilities(
        slt.LocalPosterior(model.loss_fn, model.params, n_beta=N_BETA, localization=LOCALIZATION),
        slt.sgld(STEP_SIZE, noise_averaging=True),
        slt.Batches(sampled, BATCH_SIZE),
        jax.random.key(0),
        components=model.components.heads(),
        probes=kinds,
        tokens=False,
        control=False,
        num_chains=CHI_CHAINS,
        num_draws=CHI_DRAWS,
        num_burnin_steps=NUM_BURNIN,
        num_steps_bw_draws=NUM_STEPS_BW_DRAWS,
    ).by_dataset()


def learning_coefficients(model: Any, params: Any, sampled: np.ndarray) -> Any:
    """Give the refined learning coefficient of every head, with the same noise for all weights."""
    table = slt.refined_llc(
        slt.LocalPosterior(model.loss_fn, params, n_beta=N_BETA, localization=LOCALIZATION),
        slt.sgld(STEP_SIZE, noise_averaging=True),
        {"sampled": slt.Batches(sampled, BATCH_SIZE)},
        jax.random.key(1),
        components=model.components.heads(),
        surroundings=False,
        num_chains=TABLE_CHAINS,
        num_draws=TABLE_DRAWS,
        num_burnin_steps=NUM_BURNIN,
        num_steps_bw_draws=NUM_STEPS_BW_DRAWS,
        progress=False,
    )
    return table.llc[:, 0]


def retrained(
    model: Any, sampled: np.ndarray, kinds: Mapping[str, np.ndarray], shares: np.ndarray, seed: int
) -> Any:
    """Go on training with these shares of the data replaced."""
    optimizer = optax.adam(optax.linear_schedule(LEARNING_RATE, 0.0, TRAINING_STEPS))
    pools = np.stack(list(kinds.values()))

    def loss(params: Any, rows: Any, texts: Any) -> Any:
        stacked = jnp.concatenate([rows, texts.reshape(-1, texts.shape[-1])])
        losses = jnp.mean(model.loss_fn(params, stacked), axis=-1)
        own = jnp.mean(losses[: len(rows)])
        others = jnp.mean(losses[len(rows) :].reshape(texts.shape[:2]), axis=1)
        return own + jnp.dot(jnp.asarray(shares, own.dtype), others - own)

    @jax.jit
    def advance(params: Any, state: Any, rows: Any, texts: Any) -> Any:
        gradient = jax.grad(loss)(params, rows, texts)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    params, state = model.params, optimizer.init(model.params)
    generator = np.random.default_rng(seed)
    for _ in range(TRAINING_STEPS):
        rows = sampled[generator.integers(0, len(sampled), BATCH_SIZE)]
        texts = pools[:, generator.integers(0, pools.shape[1], PROBE_ROWS_PER_STEP)]
        params, state = advance(params, state, rows, texts)
    return params


def compared(predicted: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """Compare a prediction with what was found, head by head."""
    rank = spearmanr(predicted, found)
    return {
        "pearson": float(pearsonr(predicted, found).statistic),
        "spearman": float(rank.statistic),
        "spearman p": float(rank.pvalue),
        "slope": float(predicted @ found / (predicted @ predicted)),
        "same sign": float(np.mean(np.sign(predicted) == np.sign(found))),
    }


def one_target(setting: Any, heads: tuple[str, ...]) -> dict[str, Any]:
    """Choose the data for one target, train with them and with their opposites, and compare."""
    model, sampled, kinds, chi, induction = setting
    chosen = slt.patterning(chi, dict.fromkeys(heads, 1.0))
    factor = LARGEST_SHARE / np.abs(chosen.change).max()
    shares = factor * chosen.change
    half, scores = [], []
    for seed in TRAINING_SEEDS:
        both = [retrained(model, sampled, kinds, sign * shares, seed) for sign in (1, -1)]
        more, less = (learning_coefficients(model, params, sampled) for params in both)
        half.append((more - less) / 2)
        more, less = (induction(params) for params in both)
        scores.append((more - less) / 2)
    found = np.mean(half, axis=0)
    predicted = N_BETA * factor * chosen.predicted
    covariance = N_BETA**2 * chi.covariance @ shares
    on_target = np.isin(chi.components, heads)
    return {
        "heads": heads,
        "shares": dict(zip(kinds, shares.tolist(), strict=True)),
        "predicted": predicted.tolist(),
        "predicted error": (N_BETA * factor * chosen.predicted_error).tolist(),
        "predicted, other weights fixed": covariance.tolist(),
        "retrained": found.tolist(),
        "retrained, by seed": np.asarray(half).tolist(),
        "between seeds": float(np.corrcoef(half)[0, 1]),
        "induction score": np.mean(scores, axis=0).ravel().tolist(),
        "against the prediction": compared(predicted, found),
        "against the prediction, other weights fixed": compared(covariance, found),
        "on target": {
            "predicted": float(predicted[on_target].mean()),
            "retrained": float(found[on_target].mean()),
            "retrained, other heads": float(found[~on_target].mean()),
            "induction score": float(np.mean(scores, axis=0).ravel()[on_target].mean()),
            "induction score, other heads": float(
                np.mean(scores, axis=0).ravel()[~on_target].mean()
            ),
        },
    }


def summary(report: Mapping[str, Any]) -> str:
    """Write the report as Markdown."""
    lines = [
        "# Patterning against training that goes on",
        "",
        "Refined learning coefficients of 16 heads after training with the shares of the data",
        f"that `slt.patterning` chose (the largest {LARGEST_SHARE}), half the difference between",
        f"these shares and their opposites, mean of {len(TRAINING_SEEDS)} orders of the batches:",
        "predicted and found for the heads of the target, found for all others. Then correlations",
        "over heads: with nβR dh, with its part in which all other weights stay, and between the",
        "orders. Last, how the attention to what followed the same token before changes in these",
        "heads and in the others.",
        "",
        "| target | shares | predicted | found | others | r (rank p) | stay | orders | induction |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, found in report["targets"].items():
        shares = ", ".join(f"{kind} {share:+.3f}" for kind, share in found["shares"].items())
        target, whole = found["on target"], found["against the prediction"]
        fixed = found["against the prediction, other weights fixed"]
        lines.append(
            f"| {name} | {shares} | {target['predicted']:+.3f} | {target['retrained']:+.3f} | "
            f"{target['retrained, other heads']:+.3f} | {whole['pearson']:+.2f} "
            f"({whole['spearman p']:.2g}) | {fixed['pearson']:+.2f} ({fixed['spearman p']:.2g}) | "
            f"{found['between seeds']:+.2f} | {target['induction score']:+.3f}, "
            f"{target['induction score, other heads']:+.3f} |"
        )
    foreseen = [
        name
        for name, found in report["targets"].items()
        if found["against the prediction"]["pearson"] > 0
        and found["against the prediction"]["spearman p"] < 0.05
    ]
    lines += ["", f"Foreseen, by a positive r with a rank p under 0.05: {foreseen or 'none'}."]
    lines += ["", "```", report["susceptibilities"], "```", ""]
    lines.append(f"{report['seconds']:.0f} s. {told(dict(report))}")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, choose, train, compare, and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for the result files")
    options = parser.parse_args()
    start = time.perf_counter()
    model, vocabulary = zoo.stdlib_transformer(), zoo.stdlib_vocabulary()
    sampled = zoo.training_rows(vocabulary, None, LENGTH)
    kinds = zoo.probe_rows(vocabulary, ROWS_PER_DATASET, LENGTH)
    repeated = zoo.repeated_tokens(common_tokens(vocabulary), 16, 128, start=zoo.START, seed=0)
    chi = susceptibilities(model, sampled, kinds)
    print(chi, flush=True)

    def induction(params: Any) -> np.ndarray:
        return np.asarray(zoo.head_scores(model.loss_fn, params, repeated).induction)

    targets = {}
    for name, heads in TARGETS.items():
        targets[name] = one_target((model, sampled, kinds, chi, induction), heads)
        print(name, json.dumps(targets[name], indent=1), flush=True)
    report = provenance(sys.modules[__name__]) | {
        "susceptibilities": str(chi),
        "components": list(chi.components),
        "targets": targets,
        "seconds": time.perf_counter() - start,
    }
    text = json.dumps(report, indent=2) + "\n"
    (options.output / "patterning_by_retraining.json").write_text(text, encoding="utf-8")
    page = options.output / "patterning_by_retraining.md"
    page.write_text(summary(report), encoding="utf-8")


if __name__ == "__main__":
    main()
