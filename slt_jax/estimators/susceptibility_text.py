"""How susceptibilities print: a table by data set, and what to know before reading it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from slt_jax.estimators.chains import SINGLE_CHAIN, count_of_chains
from slt_jax.estimators.result import with_error
from slt_jax.run import kept_in

if TYPE_CHECKING:
    from slt_jax.estimators.susceptibility_result import Susceptibilities

_MAX_ROWS = 24
_MAX_COLUMNS = 6


def describe(chi: "Susceptibilities", meaning: str) -> str:
    """Write a result as text: head, table by data set, and notes."""
    kinds = {"token": "tokens", "sequence": "sequences", "dataset": "data sets"}
    entries = chi.entries
    names = list(dict.fromkeys(entries.dataset.tolist()))
    head = (
        f"Susceptibilities of {len(chi.components)} components to {entries.weight.size} "
        f"{kinds[entries.kind]} of {', '.join(names)}: {meaning}"
    )
    return "\n".join([head, *_table(chi.by_dataset()), *_notes(chi)]) + kept_in(chi.metadata)


def _table(chi: "Susceptibilities") -> list[str]:
    """Write component × data set, with errors; the first rows and columns if there are many."""
    names = chi.entries.dataset.tolist()[:_MAX_COLUMNS]
    values, errors = chi.susceptibility, chi.standard_error
    rows = [["", *names]]
    for number, component in enumerate(chi.components[:_MAX_ROWS]):
        cells = [with_error(values[number, k], errors[number, k]) for k in range(len(names))]
        rows.append([component, *cells])
    widths = [max(len(row[column]) for row in rows) for column in range(len(names) + 1)]
    lines = [
        "  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    hidden = len(chi.components) - _MAX_ROWS, chi.entries.dataset.size - _MAX_COLUMNS
    if hidden[0] > 0:
        lines.append(f"  … and {hidden[0]} more components")
    if hidden[1] > 0:
        lines.append(f"  … and {hidden[1]} more data sets")
    return lines


def _notes(chi: "Susceptibilities") -> list[str]:
    lines = ["  χ < 0: the component expresses the data, χ > 0: it resists them"]
    lost = [
        name
        for name, row in zip(chi.components, chi.susceptibility, strict=True)
        if not np.isfinite(row).all()
    ]
    if lost:
        lines.append(
            f"  nan where a mean square came out negative (of {', '.join(lost)}): the noise of "
            "minibatches hides the gap. Take more draws or larger batches, or give an evaluation"
        )
    if chi.shared_error.any():
        share = np.median(chi.shared_error / np.maximum(chi.standard_error, 1e-300))
        lines.append(
            f"  the full chain's error is shared by all components: {100 * share:.0f} % of the "
            "standard error (median)"
        )
    if np.isfinite(chi.control).any() and chi.entries.weight.size > 2:
        correlation = chi.against_control().correlation
        lines.append(
            f"  without data (nβ = 0) {np.nanmedian(correlation):+.2f} correlated with it (median "
            f"over components, from {np.nanmin(correlation):+.2f} to {np.nanmax(correlation):+.2f})"
        )
    lines += [*_settings(chi.metadata), f"  verdict: {chi.verdict}"]
    return lines + [f"  also {finding}" for finding in chi.findings[1:]]


def _settings(told: Mapping[str, Any]) -> list[str]:
    if "num_draws" not in told:
        return []
    length = f"{count_of_chains(told['num_chains'])} × {told['num_draws']} draws"
    full = f"the full chain {told['num_chains']} × {told['num_full_draws']}"
    errors = f"errors from {told['num_batches']} batches of {told['batch_length']} draws"
    target = f"nβ {told['n_beta']:.4g}, γ {told['localization']:.4g}"
    alone = [f"  {SINGLE_CHAIN}"] if told["num_chains"] == 1 else []
    return [f"  {length}, {full}; {errors}; {target}", *alone]
