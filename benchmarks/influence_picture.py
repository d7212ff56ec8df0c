"""The picture of `influence_on_digits.py`, from its result file.

python benchmarks/influence_picture.py benchmarks/results/influence_on_digits.json
"""

import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from slt_jax.analysis.plots.style import ACCENT, GREY, INK, MUTED, new_figure, tidy

METHODS = {
    "BIF": "BIF, sampled",
    "damped influence": "damped influence,\nby conjugate gradients",
    "gradient product": "gradients, product",
    "gradient cosine": "gradients, cosine",
}
RANKED = {"BIF, correlation": "BIF, correlation", "BIF": "BIF, covariance"} | {
    name: label for name, label in METHODS.items() if name != "BIF"
}


def draw(result: dict[str, Any]) -> Figure:
    """Draw what each method foresees of retraining, and how many copies it finds."""
    figure = new_figure(8.6, 3.4)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _foreseen(left, result)
    _found(right, result["ranks of copies"])
    return figure


def _foreseen(axes: Axes, result: dict[str, Any]) -> None:
    for row, name in enumerate(METHODS):
        color = ACCENT if name == "BIF" else INK
        value, spread = result["lds"][name], result["lds by query"][name]
        axes.plot(spread, [row + 0.2] * len(spread), "|", color=GREY, markersize=6, zorder=1)
        axes.plot([value["low"], value["high"]], [row, row], color=color, linewidth=2)
        axes.plot(value["value"], row, "o", color=color)
        axes.annotate(
            f"{value['value']:.3f}",
            (value["value"], row),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=color,
        )
    ceiling = result["noise ceiling"]
    axes.axvline(ceiling, color=MUTED, linestyle="--", linewidth=1)
    axes.text(ceiling - 0.01, -0.62, "noise ceiling", ha="right", fontsize=8, color=MUTED)
    axes.set_ylim(len(METHODS) - 0.5, -0.8)
    axes.set_yticks(range(len(METHODS)), list(METHODS.values()), fontsize=8)
    axes.set_xlabel("Spearman's correlation with retraining\n(ticks: single queries)", fontsize=8)
    axes.set_title("Loss after training on half of the data", loc="left", fontsize=9)
    axes.tick_params(labelsize=8)
    tidy(axes)


def _found(axes: Axes, ranks: dict[str, dict[str, list[int]]]) -> None:
    for offset, kind, color in ((-0.19, "duplicates", ACCENT), (0.19, "relabelled", "#D55E00")):
        counts = [ranks[name][kind].count(1) for name in RANKED]
        places = [row + offset for row in range(len(RANKED))]
        bars = axes.barh(places, counts, 0.36, color=color, label=kind)
        axes.bar_label(bars, fontsize=7.5, padding=2)
    axes.set_ylim(len(RANKED) - 0.5, -0.5)
    axes.set_yticks(range(len(RANKED)), list(RANKED.values()), fontsize=8)
    axes.set_xlim(0, 23)
    axes.set_xlabel("of 20 copies, how many rank first", fontsize=8)
    axes.set_title("Copies", loc="left", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0.3, 0.97), ncols=2)
    tidy(axes)


if __name__ == "__main__":
    path = Path(sys.argv[1])
    report = json.loads(path.read_text("utf-8"))
    draw(report["result"]).savefig(path.with_suffix(".png"), dpi=110)
