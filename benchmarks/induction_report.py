"""The tables and the picture of `induction_by_susceptibility.py`, from its result file.

python benchmarks/induction_report.py benchmarks/results/induction_by_susceptibility.json
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from provenance import told

from slt_jax.analysis.plots.style import ACCENT, FAINT, GROUP_COLORS, MUTED, new_figure, tidy

ORANGE = GROUP_COLORS[0]
LIKENESS = ("mean gap", "control", "full chain", "covariance, halves of the chains")
DRAWN = ("susceptibility", "control", "untrained")


def rows_of(report: dict[str, Any]) -> list[str]:
    """Give a row of the table of results for every kind of matrix and every seed."""
    rows = []
    for kind in report["together"]:
        for seed, one in having(report, kind):
            found = one["judged"][kind]
            repeats, first = (
                found[f"repeats against {others}"] for others in ("all others", "their first time")
            )
            cells = (
                kind,
                seed,
                f"{found['component']} ({found['cosine']:.2f})",
                f"{found['auc']:.2f} ({found['auc_choice']:.2f})",
                f"{found['auc within layer 1']:.2f}",
                f"{found['p_value']:.4f} ({found['smallest p of any heads']:.4f})",
                f"{repeats['difference']:+.2f} ({repeats['errors']:.1f})",
                f"{first['difference']:+.2f} ({first['errors']:.1f})",
                "yes" if found["holds"] else "no",
            )
            rows.append(f"| {' | '.join(cells)} |")
    return rows


def having(report: dict[str, Any], kind: str) -> list[tuple[str, dict[str, Any]]]:
    return [(seed, one) for seed, one in report["seeds"].items() if kind in one["judged"]]


def components_rows(report: dict[str, Any]) -> list[str]:
    """Give a row for the leading components of every matrix."""
    rows = []
    for kind in report["together"]:
        for seed, one in having(report, kind):
            found = one["judged"][kind]["components"]
            cells = (
                numbers(found.get(name), digits)
                for name, digits in (
                    ("explained_variance_ratio", 3),
                    ("noise_ratio", 3),
                    ("gap_correlation", 2),
                )
            )
            rows.append(f"| {kind} | {seed} | {' | '.join(cells)} |")
    return rows


def numbers(values: list[float] | None, digits: int) -> str:
    if values is None or any(math.isnan(value) for value in values):
        return "–"
    return ", ".join(f"{value:.{digits}f}" for value in values)


def heads_rows(report: dict[str, Any]) -> list[str]:
    """Give a row for the heads of every seed: labels, and the loss that they bring."""
    rows = []
    for seed, one in report["seeds"].items():
        first, again = one["repeated loss"]
        rows.append(f"| {seed} | {', '.join(one['induction heads'])} | {first:.2f} | {again:.2f} |")
    return rows


def likeness_rows(report: dict[str, Any]) -> list[str]:
    """Give a row for the settings of every seed: gaps, and what the rows look like."""
    return [
        f"| {name} | {seed} | {' | '.join(spread(found[key]) for key in LIKENESS)} |"
        for seed, one in report["seeds"].items()
        for name, found in one["likeness"].items()
    ]


def circuit_rows(report: dict[str, Any]) -> list[str]:
    """Give a row for every network: what repeats suffer, by kind of head."""
    rows = []
    for seed, one in report["seeds"].items():
        before = one["attends to the token before"]
        for name, found in one["circuits"].items():
            of_layer_0 = [head for head in found["extra"] if head.startswith("l0")]
            others = set(found["extra"]) - set(of_layer_0) - set(one["induction heads"])
            cells = (
                ranged([found["extra"][head] for head in chosen])
                for chosen in (one["induction heads"], others, of_layer_0)
            )
            tested = f"{found['auc within layer 1']:.2f} | {found['p within layer 1']:.3f}"
            worst = max(found["error"].values())
            last = f"{worst:.2f} | {tested} | {found['largest']} | {before}"
            rows.append(f"| {name} | {seed} | {' | '.join(cells)} | {last} |")
    return rows


def ranged(values: list[float]) -> str:
    return f"{min(values):+.1f} to {max(values):+.1f}"


def spread(values: list[float]) -> str:
    return f"{min(values):.3f} to {max(values):.3f}"


def summary(report: dict[str, Any]) -> str:
    """Write the report as Markdown."""
    joined = [
        f"| {kind} | {found['seeds that hold']} of {found['seeds']} | "
        f"{found['mean auc']:.2f} | {found['p (Fisher)']:.2g} |"
        for kind, found in report["together"].items()
    ]
    return f"""# Induction heads by susceptibilities

![Loadings of heads, and what repeated tokens suffer from each](induction_by_susceptibility.png)

A component is chosen on the even sequences and judged on the odd ones. In brackets: the cosine of
its loadings on the two halves; the AUC on the half it was chosen on; the smallest p that any set of
as many heads has (three components with two ends each single out up to six sets, so that p can
hardly fall below six in the number of sets); and differences in units of their errors.

{verdict(report)}

The settings, the labels and the first four of these matrices were fixed beforehand: the
susceptibilities, their control, what regression on it leaves, and the weights before training. The
others were added after a look at seed 0: the covariance alone is −Cov_C(g, ℓ̃), the own shift
E_C[ℓ̃], layer 1 its eight heads by themselves, and larger nβ two chains at other settings, chosen by
curvature.

| matrix | seed | component | AUC | in layer 1 | p | repeats − all others | − first time | holds |
|---|---|---|---|---|---|---|---|---|
{lines(rows_of(report))}

Seeds together:

| matrix | holds | mean AUC | p (Fisher) |
|---|---|---|---|
{lines(joined)}

The three leading components of all tokens: their part of the variance, how much of that is noise of
sampling, and Pearson's correlation of their loadings with the mean gap E_C[g], in proportion to
which the error of the full chain is spread over the heads.

| matrix | seed | variance | noise | correlation with E_C[g] |
|---|---|---|---|---|
{lines(components_rows(report))}

{beside(report)}

{told(report)}
"""


def beside(report: dict[str, Any]) -> str:
    """Write what is seen instead, the labels, and what the rows look like."""
    score = report["settings"]["INDUCTION_SCORE"]
    return f"""## What is seen instead

How much more than the average token the repeats suffer when a head wanders, E_C[ℓ̃]/E_C[g], with the
largest error (scatter of chains), and whether it is larger for the induction heads than for the
others of layer 1. This was found in the network of seed 0; for the other two, which were not looked
at before, p = {report["p of the circuits (Fisher)"]:.2g} by Fisher's method. Before training the
mean gaps are next to zero, and the quotient says nothing. The last columns name the head with the
largest such loss, and the one that attends the most to the token before.

So a head at either end of the circuit is seen, and no single direction can tell the induction heads
from all others: the heads of layer 0, that which attends to the token before above all, respond to
repeats as they do.

| network | seed | induction | others of layer 1 | layer 0 | error | AUC | p | largest | before |
|---|---|---|---|---|---|---|---|---|---|
{lines(circuit_rows(report))}

## What went in

The labels: heads with an induction score above {score}, and the loss of random tokens when they
come first and when they come again, in nats.

| seed | induction heads | first | again |
|---|---|---|---|
{lines(heads_rows(report))}

From the least to the largest of the heads: the mean gap E_C[g] in nats, and the correlation over
tokens of a head's susceptibilities with its control and with the full chain's mean E_full[ℓ̃], and
of its term −Cov_C(g, ℓ̃) from one half of the chains with that from the other.

| settings | seed | mean gap | with control | with the full chain | covariance, between halves |
|---|---|---|---|---|---|
{lines(likeness_rows(report))}"""


def verdict(report: dict[str, Any]) -> str:
    """Say whether the expectation holds, and what speaks for the reasons if not."""
    found, count = report["together"]["susceptibility"], len(report["seeds"])
    said = f"**The expectation holds in {found['seeds that hold']} of {count} networks.**"
    if found["seeds that hold"] == count:
        return said
    ones = [one["likeness"]["published settings"] for one in report["seeds"].values()]
    full, control, halves = (
        [value for one in ones for value in one[name]]
        for name in ("full chain", "control", "covariance, halves of the chains")
    )
    return f"""{said} What speaks for three reasons:

- The term E_C[g] E_full[ℓ̃] outweighs the others: all weights together change the loss of a token
  far more than a head does. A head's row of χ̂ is correlated with E_full[ℓ̃], which is the same for
  all heads, by {min(full):.3f} to {max(full):.3f}.
- The chains feel the localization alone: h* = γ/nβ is 10, where no curvature within a head is above
  1.1 (seed 0). A row is correlated with its control by {min(control):.3f} to {max(control):.3f}.
  Where the loss is felt (larger nβ), the noise is larger too.
- The term that is the head's own, −Cov_C(g, ℓ̃), is mostly noise for single tokens with 200 draws:
  from one half of the chains to the other it is correlated by {mean_of(halves):.2f} on average. To
  raise this to a half would take about {draws_needed(mean_of(halves)):.0f} times as many draws."""


def mean_of(values: list[float]) -> float:
    return sum(values) / len(values)


def draws_needed(correlation: float) -> float:
    """Give how many times as many draws would raise a correlation of halves to ½.

    With signal s² and noise v/n the correlation is s²/(s² + v/n), which is ½ at n = v/s².
    """
    return (1 - correlation) / correlation if correlation > 0 else math.inf


def lines(rows: list[str]) -> str:
    return "\n".join(rows)


def draw(report: dict[str, Any]) -> Figure:
    """Draw for every seed the loadings of the heads, and what repeats suffer from each."""
    seeds = report["seeds"]
    figure = new_figure(3.2 * len(seeds), 6.4)
    grid = figure.subplots(2, len(seeds), sharey="row", squeeze=False)
    for column, (seed, one) in enumerate(seeds.items()):
        _loadings(grid[0][column], one)
        grid[0][column].set_title(f"seed {seed}", loc="left", fontsize=9)
        _circuit(grid[1][column], one["circuits"]["trained"], one["induction heads"])
    grid[0][0].set_ylabel("loading of a head on the chosen component", fontsize=8)
    grid[1][0].set_ylabel("extra loss of repeats\nover the mean gap of a head", fontsize=8)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=3, frameon=False, fontsize=8)
    return figure


def _loadings(axes: Axes, one: dict[str, Any]) -> None:
    axes.axhline(0, color=FAINT, linewidth=0.8)
    names = []
    for place, kind in enumerate(kind for kind in DRAWN if kind in one["judged"]):
        found = one["judged"][kind]
        names.append(f"{kind}\nAUC {found['auc']:.2f}")
        for offset, layer, color in ((-0.22, "l0", MUTED), (0.0, "l1", ACCENT)):
            values = [
                value
                for name, value in found["loadings"].items()
                if name.startswith(layer) and name not in one["induction heads"]
            ]
            label = f"other heads of layer {layer[1]}" if place == 0 else None
            axes.plot([place + offset] * len(values), values, "o", ms=4, color=color, label=label)
        values = [found["loadings"][name] for name in one["induction heads"]]
        label = "induction heads" if place == 0 else None
        axes.plot([place + 0.22] * len(values), values, "D", ms=5, color=ORANGE, label=label)
    axes.set_xticks(range(len(names)), names, fontsize=7.5)
    axes.tick_params(axis="y", labelsize=7.5)
    tidy(axes)


def _circuit(axes: Axes, found: dict[str, Any], heads: list[str]) -> None:
    axes.axhline(0, color=FAINT, linewidth=0.8)
    for place, (name, extra) in enumerate(found["extra"].items()):
        own = name in heads
        color = ORANGE if own else MUTED if name.startswith("l0") else ACCENT
        error, marker = found["error"][name], "D" if own else "o"
        axes.errorbar(place, extra, error, fmt=marker, ms=4, color=color, linewidth=1)
    axes.set_xticks(range(len(found["extra"])), list(found["extra"]), fontsize=6.5, rotation=90)
    axes.tick_params(labelsize=7.5)
    tidy(axes)


if __name__ == "__main__":
    path = Path(sys.argv[1])
    given = json.loads(path.read_text("utf-8"))
    path.with_suffix(".md").write_text(summary(given), "utf-8")
    draw(given).savefig(path.with_suffix(".png"), dpi=110)
