"""Text coloured by a value per token, as HTML."""

import html

import numpy as np
import xarray as xr

from slt_jax.analysis.report import page
from slt_jax.analysis.token_text import TokenText, pieces_of, places_of

_LEVELS = 10
_BLUE, _RED = (33, 102, 172), (178, 24, 43)
_RULES = """
.tokens{font-family:ui-monospace,monospace;font-size:13px;line-height:1.7;white-space:pre-wrap;
border:1px solid #ddd;border-radius:4px;padding:8px}
.tokens span{position:relative;border-radius:2px}
.tokens span[data-note]:hover{outline:1px solid #1b1b1b;cursor:default}
.tokens span[data-note]:hover::after{content:attr(data-note);position:absolute;left:0;top:1.7em;
z-index:9;background:#1b1b1b;color:#fff;padding:2px 6px;border-radius:3px;font-size:11px;
white-space:nowrap}
.missing{background:#ddd}
.legend{display:flex;flex-wrap:wrap;align-items:center;gap:8px;font-size:12px}
.legend span{white-space:nowrap}
.legend i{display:inline-block;width:220px;height:12px;border:1px solid #ddd}
"""


def token_page(
    values: xr.DataArray,
    text: TokenText,
    *,
    title: str,
    label: str = "",
    errors: xr.DataArray | None = None,
    num_sequences: int = 10,
) -> str:
    """Give a web page of the probed text, every token coloured by its value.

    Args:
        values: along ``token`` alone, with the coordinates ``dataset``, ``sequence``, ``position``.
        text: the sequences that were probed.
        title: of the page.
        label: quantity and unit, such as ``"χ of l1h6 (nats²)"``.
        errors: standard errors, shown beside the value under the pointer; None for none.
        num_sequences: of each data set, the first so many.

    Returns:
        A complete HTML page that refers to nothing outside it: blue is negative, red positive,
        white zero, grey not finite; the value, its error, position and token id appear under the
        pointer.

    Raises:
        ValueError: as ``token_fragment``.
    """
    body = token_fragment(values, text, label=label, errors=errors, num_sequences=num_sequences)
    return page(title, body)


def token_fragment(
    values: xr.DataArray,
    text: TokenText,
    *,
    label: str = "",
    errors: xr.DataArray | None = None,
    num_sequences: int = 10,
) -> str:
    """Give the same as ``token_page``, to be put into a report.

    Raises:
        ValueError: more dimensions than ``token``, or another text than was probed.
    """
    if values.dims != ("token",):
        raise ValueError(f"expected one value per token, got the dimensions {values.dims}")
    places = places_of(text, values)
    numbers = np.asarray(values.values, np.float64)
    own = np.full(len(numbers), np.nan) if errors is None else np.asarray(errors.values, np.float64)
    known = np.abs(numbers[np.isfinite(numbers)])
    limit = (float(np.quantile(known, 0.99)) if known.size else 0.0) or 1.0
    parts = [_style(), _legend(limit, label, known.size < numbers.size)]
    for name in dict.fromkeys(places.dataset.tolist()):
        parts.append(f"<h3>{html.escape(name)}</h3>")
        here = places.dataset == name
        rows = np.asarray(text.tokens[name])
        for row in np.unique(places.sequence[here])[:num_sequences]:
            chosen = np.flatnonzero(here & (places.sequence == row))
            found = {int(places.place[i]): (numbers[i], own[i]) for i in chosen}
            parts.append(_sequence(rows[row], found, text, limit))
    return "\n".join(parts)


def _sequence(
    tokens: np.ndarray, found: dict[int, tuple[float, float]], text: TokenText, limit: float
) -> str:
    pieces, number = pieces_of(tokens, text.decode)
    spans = []
    for place, index in enumerate(number.tolist()):
        shown = html.escape(pieces[index]).replace("\n", "⏎\n") or "∅"
        if place not in found:
            spans.append(f"<span>{shown}</span>")
            continue
        value, error = found[place]
        note = f"{value:+.3g}" + (f" ± {error:.1g}" if np.isfinite(error) else "")
        note += f" · position {place - text.shift} · token {int(tokens[place])}"
        level = _level(value, limit)
        spans.append(f'<span class="{level}" data-note="{html.escape(note)}">{shown}</span>')
    return f'<p class="tokens">{"".join(spans)}</p>'


def _level(value: float, limit: float) -> str:
    if not np.isfinite(value):
        return "missing"
    steps = round(_LEVELS * min(abs(value) / limit, 1.0))
    return f"{'n' if value < 0 else 'p'}{steps}"


def _mixed(color: tuple[int, int, int], level: int) -> str:
    part = level / _LEVELS
    mixed = (round(255 + part * (channel - 255)) for channel in color)
    return f"rgb({','.join(map(str, mixed))})"


def _style() -> str:
    rules = [_RULES]
    for name, color in (("n", _BLUE), ("p", _RED)):
        for level in range(_LEVELS + 1):
            ink = ";color:#fff" if level > 0.65 * _LEVELS else ""
            rules.append(f".{name}{level}{{background:{_mixed(color, level)}{ink}}}")
    return f"<style>{''.join(rules)}</style>"


def _legend(limit: float, label: str, has_missing: bool) -> str:
    ends = f"rgb{_BLUE}".replace(" ", ""), f"rgb{_RED}".replace(" ", "")
    missing = '<span class="missing">no value</span>' if has_missing else ""
    return (
        f'<div class="legend"><span>≤ −{limit:.2g}</span>'
        f'<i style="background:linear-gradient(90deg,{ends[0]},#fff,{ends[1]})"></i>'
        f"<span>≥ {limit:.2g}</span><span>{html.escape(label)}</span>"
        f"{missing}<span>(values under the pointer)</span></div>"
    )
