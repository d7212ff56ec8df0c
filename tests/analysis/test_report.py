"""Web pages: complete in themselves, escaped, and with every value where it belongs."""

import base64
import html.parser

import numpy as np
import pytest
import xarray as xr

from slt_jax.analysis import TokenText
from slt_jax.analysis.report import (
    Fragment,
    Heading,
    Paragraph,
    Picture,
    Table,
    report_page,
)
from slt_jax.analysis.token_page import token_fragment, token_page

WORDS = ["<b>", "&", '"quote"', " word", "\n", ""]
TOKENS = np.array([[3, 0, 1, 2, 4, 5], [5, 4, 3, 2, 1, 0], [0, 0, 0, 0, 0, 0]])
TEXT = TokenText({"<code>": TOKENS}, lambda ids: "".join(WORDS[number] for number in ids))


class Spans(html.parser.HTMLParser):
    """Collects the text of a page, and class, note and text of every span of a token."""

    def __init__(self, page):
        super().__init__()
        self.spans, self.tags, self.text, self.links, self.is_inside = [], [], "", [], False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        attributes = dict(attrs)
        self.links += [attributes[name] for name in ("src", "href") if name in attributes]
        self.is_inside = tag == "span"
        if self.is_inside:
            self.spans.append([attributes.get("class"), attributes.get("data-note"), ""])

    def handle_endtag(self, tag):
        self.is_inside = False

    def handle_data(self, data):
        self.text += data
        if self.is_inside:
            self.spans[-1][2] += data


class Drawing:
    """Saves its format instead of a picture."""

    def savefig(self, fname, **options):
        fname.write(options["format"].encode())


def make_values(num_sequences=3):
    sequence, position = np.divmod(np.arange(5 * num_sequences), 5)
    values = np.linspace(-1, 1, 5 * num_sequences)
    coords = {
        "dataset": ("token", np.repeat("<code>", len(values))),
        "sequence": ("token", sequence),
        "position": ("token", position),
    }
    return xr.DataArray(values, dims="token", coords=coords)


def tokens_of(page):
    parsed = Spans(page)
    return [span for span in parsed.spans if span[1] is not None]


def test_every_token_has_its_value_text_and_colour():
    values = make_values()
    spans = tokens_of(token_page(values, TEXT, title="χ", errors=0.1 + 0 * values))
    assert len(spans) == 15
    shown = {"": "∅", "\n": "⏎\n"}
    for number, (level, note, text) in enumerate(spans):
        value = float(values[number])
        word = WORDS[TOKENS[number // 5, number % 5 + 1]]
        assert text == shown.get(word, word)
        assert note.startswith(f"{value:+.3g} ± 0.1 · position {number % 5} ")
        assert level[0] == ("n" if value < 0 else "p")
        assert int(level[1:]) == pytest.approx(10 * abs(value) / 0.9857, abs=0.51)


def test_page_refers_to_nothing_outside_and_escapes_what_it_was_given():
    page = token_page(make_values(), TEXT, title="<script>", label="a < b")
    parsed = Spans(page)
    assert parsed.links == []
    assert "http" not in page
    assert not {"script", "b", "code"} & set(parsed.tags)
    assert "a < b" in parsed.text
    assert "<code>" in parsed.text


def test_tokens_without_a_value_are_not_coloured():
    values = make_values()[1:]
    values[2] = np.nan
    page = token_fragment(values, TEXT)
    assert page.count('class="missing" data-note') == 1
    assert page.count(">no value<") == 1
    assert "no value" not in token_fragment(make_values(), TEXT)
    # The first token of each sequence is not predicted, and one more was left out.
    parsed = Spans(page)
    assert (
        sum(span[1] is None and span[2] in ("<b>", "", "∅", " word") for span in parsed.spans) >= 4
    )
    assert len(tokens_of(page)) == 14


def test_only_the_first_sequences_are_shown():
    assert len(tokens_of(token_fragment(make_values(), TEXT, num_sequences=2))) == 10


def test_values_must_be_one_per_token():
    with pytest.raises(ValueError, match="one value per token"):
        token_fragment(make_values().expand_dims("component"), TEXT)
    with pytest.raises(ValueError, match="not the text that was probed"):
        token_fragment(make_values(), TEXT._replace(shift=5))


def test_report_has_its_parts_in_order():
    page = report_page(
        "A <run>",
        [
            Heading("Heads & tails"),
            Paragraph("first\nsecond"),
            Table(["head", "λ̂"], [["l0h0", 1.23456], ["<l1>", 7]], "a table"),
            Picture(Drawing(), "a <picture>"),
            Picture(Drawing(), "lines", is_vector=True),
            Fragment("<em>as it is</em>"),
        ],
    )
    parts = [
        "Heads &amp; tails",
        "first\nsecond",
        "a table",
        "1.235",
        "&lt;l1&gt;",
        "lines",
        "<em>",
    ]
    places = [page.index(part) for part in parts]
    assert places == sorted(places)
    for kind, name in (("png", "png"), ("svg", "svg+xml")):
        encoded = base64.b64encode(kind.encode()).decode()
        assert f'src="data:image/{name};base64,{encoded}"' in page
    assert all(link.startswith("data:") for link in Spans(page).links)
    assert "<title>A &lt;run&gt;</title>" in page
    with pytest.raises(ValueError, match="1 cells, the table 2 columns"):
        report_page("", [Table(["a", "b"], [["alone"]])])
