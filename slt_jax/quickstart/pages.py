"""The pictures of a quickstart, and the report that holds them."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

import slt_jax as slt
from slt_jax.analysis import TokenText, center_tokens, principal_components, zscore_components
from slt_jax.analysis.report import Fragment, Heading, Paragraph, Picture, report_page
from slt_jax.analysis.token_page import token_fragment
from slt_jax.models import zoo
from slt_jax.quickstart.reading import INDUCTION_SCORE

_NUM_SEQUENCES = 2


def pictures(
    llc: slt.LLCResult,
    heads: slt.RefinedLLC,
    chi: slt.Susceptibilities,
    scores: zoo.HeadScores,
) -> dict[str, Picture]:
    """Draw the results: name of a file → picture with its caption.

    Args:
        llc: of the whole model.
        heads: of every head.
        chi: of the same heads, by token.
        scores: attention of the heads on repeated random tokens.
    """
    from slt_jax.analysis import plots

    traces = Picture(
        plots.plot_llc_traces({"All weights": llc}),
        "The loss of the chains above the loss of the model itself: nβ times the distance is the "
        "learning coefficient.",
    )
    table = _llc_table(heads)
    refined = Picture(
        plots.plot_component_heatmap(
            *table, title="Refined learning coefficient", label="learning coefficient λ̂"
        ),
        "The learning coefficient when only one head moves, beside what the same chains read "
        "without data. The larger the difference, the more the data hold the head in place.",
    )
    induction = [name for name in scores.heads_above(INDUCTION_SCORE) if name in chi.components]
    responses = _by_dataset(chi) | {"loadings": _loadings(chi, induction)}
    return {"llc_traces": traces, "heads": refined} | responses


def _by_dataset(chi: slt.Susceptibilities) -> dict[str, Picture]:
    """Draw the matrix of heads by data sets, and its control."""
    from slt_jax.analysis import plots

    data = chi.correlation().by_dataset().to_xarray()
    titles = {
        "susceptibility": ("Susceptibilities of heads to data", "standard_error"),
        "control": ("The same without data (nβ = 0)", "control_error"),
    }
    return {
        f"{name}_by_dataset": Picture(
            plots.plot_component_heatmap(
                data[name], data[error], title=title, label="χ̂ / largest possible |χ̂|"
            ),
            _CAPTIONS[name],
        )
        for name, (title, error) in titles.items()
    }


def _loadings(chi: slt.Susceptibilities, induction: Sequence[str]) -> Picture:
    """Draw the heads in the plane of the two leading principal components over tokens."""
    from slt_jax.analysis import plots

    loadings = principal_components(center_tokens(zscore_components(chi.to_xarray())), 2)
    return Picture(
        plots.plot_loadings(
            loadings,
            highlighted=induction,
            highlight_label="heads that attend by induction",
            title="Heads by their response to tokens",
        ),
        "Principal components of the susceptibilities to single tokens, each head in standard "
        "deviations over its tokens and each token about its mean over the heads.",
    )


_CAPTIONS = {
    "susceptibility": "Blue: the head expresses the data, more of it would lower what the head "
    "costs; red: it holds the data back. Scaled to lie between −1 and 1, so that heads compare.",
    "control": "What the localization alone gives, at the scale of its own chains: nothing here "
    "was learnt.",
}


def _llc_table(heads: slt.RefinedLLC) -> tuple[xr.DataArray, xr.DataArray]:
    """Give λ̂ and its control as columns, with their errors."""
    names = ("llc", "control"), ("standard_error", "control_error")
    tables = [np.stack([heads.numbers[name][:, 0] for name in row], axis=1) for row in names]
    columns = ["with data", "without data"]
    coordinates = {"component": list(heads.components), "chains": columns}
    values, errors = (
        xr.DataArray(table, coordinates, ("component", "chains"), name="llc") for table in tables
    )
    return values, errors


def report(
    sentences: Sequence[str],
    figures: Mapping[str, Picture],
    chi: slt.Susceptibilities,
    probes: Mapping[str, np.ndarray],
) -> str:
    """Assemble the report as a single HTML page.

    Args:
        sentences: the reading.
        figures: as ``pictures`` gives them.
        chi: by token.
        probes: the text that was probed.
    """
    head, values = _most_responsive(chi)
    text = TokenText(probes, zoo.stdlib_vocabulary().decode)
    fragment = token_fragment(
        values["susceptibility"],
        text,
        label=f"χ̂ of {head} / largest possible |χ̂|",
        errors=values["standard_error"],
        num_sequences=_NUM_SEQUENCES,
    )
    blocks: list[Any] = [
        Paragraph(
            "A transformer of two layers with eight attention heads each, trained on the source of "
            "the Python standard library, and what sampling around its weights says of it."
        ),
        Heading("Reading"),
        *map(Paragraph, sentences),
        Heading("Pictures"),
        *figures.values(),
        Heading(f"Token by token: {head}"),
        Paragraph(
            "The head whose response to some token is the clearest. Blue tokens are expressed by "
            "it, red ones held back."
        ),
        Fragment(fragment),
        Heading("Numbers"),
        Fragment(f'<pre style="overflow-x:auto">{html.escape(str(chi))}</pre>'),
    ]
    return report_page("slt_jax: the bundled transformer", blocks)


def _most_responsive(chi: slt.Susceptibilities) -> tuple[str, xr.Dataset]:
    """Give the head with the largest |χ̂| in standard errors, and its values by token.

    Tokens at which a head has no scaled value, which could not be shown, do not count for it.
    """
    scaled = chi.correlation()
    z = np.abs(scaled.susceptibility) / np.maximum(scaled.standard_error, 1e-30)
    number = int(np.argmax(np.quantile(np.nan_to_num(z), 0.9, axis=1)))
    return chi.components[number], scaled.to_xarray().isel(component=number)
