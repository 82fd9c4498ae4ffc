"""One HTML file with everything in it: tables, and pictures as data. It loads nothing, runs nothing, and prints on A4.

Whatever comes from outside (notes, tags, names, settings) goes through `escape`.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 150  # sharp in print; a picture on the screen is scaled to the column
PICTURE_BYTES = 150_000  # so many pictures times this stay under the size a mail server takes

# A second fence behind `escape`: a browser loads and runs nothing here, whatever a name holds
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

STYLE = """
body { font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", Arial, sans-serif; color: #1a1a1a; background: #fff;
  max-width: 60rem; margin: 2rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 2.5rem 0 .75rem; padding-bottom: .25rem; border-bottom: 1px solid #bbb;
  overflow-wrap: anywhere; }
h3 { font-size: 1.05rem; margin: 1.75rem 0 .5rem; }
p { margin: .5rem 0; overflow-wrap: anywhere; }
.lead { font-size: 1.15rem; }
.faint { color: #555; font-size: .9rem; }
.missing { border-left: 4px solid #d55e00; padding: .25rem .75rem; background: #f6f6f6; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .75rem 0; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .9rem .25rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid #e2e2e2; }
thead th { border-bottom: 1px solid #777; vertical-align: bottom; }
td { white-space: pre-wrap; }
.facts td { overflow-wrap: anywhere; }
.number { text-align: right; }
td.number { white-space: nowrap; }
tbody th { font-weight: 600; white-space: nowrap; }
figure { margin: 1rem 0 1.5rem; break-inside: avoid; }
img { max-width: 100%; height: auto; display: block; }
figcaption { font-size: .9rem; color: #444; margin-top: .35rem; max-width: 46rem; }
code { font: .9em ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
@page { size: A4; margin: 15mm; }
@media print {
  body { font-size: 10pt; max-width: none; margin: 0; padding: 0; }
  .wide { overflow: visible; }
  .page { break-before: page; }
  h2, h3 { break-after: avoid; }
  tr { break-inside: avoid; }
  thead { display: table-header-group; }
  table { font-size: 8.5pt; }
  img { max-height: 104mm; width: auto; }
}
"""


def escape(value: object) -> str:
    return html.escape(str(value))


def page(title: str, parts: Iterable[str]) -> bytes:
    """The whole file; `parts` are HTML."""
    head = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
    head += '<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    head += f"<title>{escape(title)}</title>\n<style>{STYLE}</style>"
    body = "\n".join(parts)
    text = f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}\n</body>\n</html>\n'
    return text.encode("utf-8", "replace")  # half a surrogate pair, from a damaged name, cannot be written


def heading(text: str, level: int = 2, *, new_page: bool = False) -> str:
    return f"<h{level}{' class=page' * new_page}>{escape(text)}</h{level}>"


def paragraph(text: str, look: str = "") -> str:
    return f'<p class="{look}">{escape(text)}</p>' if look else f"<p>{escape(text)}</p>"


def table(head: Sequence[str], rows: Iterable[Sequence[object]], numbers: Sequence[str] = ()) -> str:
    """A table whose first column names its rows; those of the columns `numbers` stand at the right."""
    looks = [" class=number" if column in numbers else "" for column in head]
    titles = "".join(
        # Long names of settings break after a dot or underscore
        f"<th{look}>{escape(column).replace('.', '.<wbr>').replace('_', '_<wbr>')}</th>"
        for column, look in zip(head, looks, strict=True)
    )
    lines = []
    for first, *rest in rows:
        cells = "".join(f"<td{look}>{escape(cell)}</td>" for cell, look in zip(rest, looks[1:], strict=True))
        lines.append(f"<tr><th>{escape(first)}</th>{cells}</tr>")
    begin = f"<table><thead><tr>{titles}</tr></thead>" if any(head) else "<table class=facts>"
    return f"<div class=wide>{begin}<tbody>\n" + "\n".join(lines) + "\n</tbody></table></div>"


def picture(drawn: Figure | Image.Image, caption: str) -> str:
    """A figure or tiles with a caption, which is also what is read aloud in its place."""
    data, kind = encoded(drawn)
    width = drawn.width if isinstance(drawn, Image.Image) else round(drawn.get_figwidth() * 96)
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    image = f'<img width="{width}" alt="{escape(caption)}" src="{source}">'
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def encoded(picture: Figure | Image.Image) -> tuple[bytes, str]:
    """A PNG; of photographs, which make a large one, a JPEG."""
    drawn = _saved(picture, "png")
    if len(drawn) <= PICTURE_BYTES:
        return drawn, "png"
    for quality in (88, 70, 45):
        drawn = _saved(picture, "jpeg", quality=quality, optimize=True)
        if len(drawn) <= PICTURE_BYTES:
            break
    return drawn, "jpeg"


def _saved(picture: Figure | Image.Image, kind: str, **how: Any) -> bytes:
    drawn = io.BytesIO()
    if isinstance(picture, Image.Image):
        picture.save(drawn, kind, **how)
    else:
        picture.savefig(drawn, format=kind, dpi=DPI, pil_kwargs=how)
    return drawn.getvalue()
