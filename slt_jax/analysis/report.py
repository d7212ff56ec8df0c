"""One HTML file from headings, text, tables and pictures."""

import base64
import html
import io
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable


@runtime_checkable
class Saves(Protocol):
    """A figure: anything with ``savefig``, as matplotlib's figures have it."""

    def savefig(self, fname: Any, **options: Any) -> Any:
        """Write the figure to a file object."""
        ...


class Heading(NamedTuple):
    """A heading of a section."""

    text: str


class Paragraph(NamedTuple):
    """A paragraph of plain text; line breaks are kept."""

    text: str


class Picture(NamedTuple):
    """A figure with a caption, as pixels, or as vectors where they are few."""

    figure: Saves
    caption: str
    is_vector: bool = False


class Table(NamedTuple):
    """Rows of cells under the names of their columns; numbers are aligned to the right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""


class Fragment(NamedTuple):
    """HTML that is put in as it is, such as ``token_fragment`` gives."""

    html: str


Block: TypeAlias = Heading | Paragraph | Picture | Table | Fragment

_STYLE = """
body{font-family:system-ui,sans-serif;color:#1b1b1b;max-width:60rem;margin:2rem auto;padding:0 1rem;
line-height:1.45}
h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2rem}h3{font-size:1rem}
p.text{white-space:pre-line}
figure{margin:1rem 0}figure img{max-width:100%;height:auto}
figcaption,caption{color:#6b6b6b;font-size:.85rem;text-align:left;margin:.3rem 0}
table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums}
th,td{padding:.2rem .7rem;border-bottom:1px solid #ddd;text-align:left}td.number{text-align:right}
"""


def report_page(title: str, blocks: Sequence[Block]) -> str:
    """Assemble a report as a single web page that refers to nothing outside it.

    Args:
        title: of the page.
        blocks: its parts, in order.

    Returns:
        HTML; all text is escaped but that of a ``Fragment``, pictures are embedded.

    Raises:
        ValueError: a row of a table with another number of cells than there are columns.

    >>> text = report_page("A run", [Heading("Result"), Paragraph("λ̂ < 3")])
    >>> "<h2>Result</h2>" in text, "λ̂ &lt; 3" in text
    (True, True)
    """
    return page(title, "\n".join(_render(block) for block in blocks))


def page(title: str, body: str) -> str:
    """Put HTML into a page with a title, its style and nothing else."""
    name = html.escape(title)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{name}</title><style>{_STYLE}</style></head>\n"
        f"<body><h1>{name}</h1>\n{body}\n</body></html>\n"
    )


def _render(block: Block) -> str:
    match block:
        case Heading(text):
            return f"<h2>{html.escape(text)}</h2>"
        case Paragraph(text):
            return f'<p class="text">{html.escape(text)}</p>'
        case Picture():
            return _picture(block)
        case Table():
            return _table(block)
        case Fragment(text):
            return text


def _picture(picture: Picture) -> str:
    kind, name = ("svg", "svg+xml") if picture.is_vector else ("png", "png")
    buffer = io.BytesIO()
    picture.figure.savefig(buffer, format=kind, dpi=150)
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    caption = html.escape(picture.caption)
    return (
        f'<figure><img alt="{caption}" src="data:image/{name};base64,{encoded}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _table(table: Table) -> str:
    for row in table.rows:
        if len(row) != len(table.columns):
            raise ValueError(
                f"a row has {len(row)} cells, the table {len(table.columns)} columns: {row!r}"
            )
    head = "".join(f"<th>{html.escape(str(name))}</th>" for name in table.columns)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in table.rows)
    caption = f"<caption>{html.escape(table.caption)}</caption>" if table.caption else ""
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f'<td class="number">{value:.4g}</td>'
    kind = ' class="number"' if isinstance(value, int) else ""
    return f"<td{kind}>{html.escape(str(value))}</td>"
