"""The parts of a document, and the document as Markdown and as one HTML file that contains its pictures."""

import base64
import html
import pathlib
import re
from typing import NamedTuple

from wcjax.system.files import reading


class Heading(NamedTuple):
    text: str
    level: int = 2

    def markdown(self):
        return f"{'#' * self.level} {self.text}"

    def html(self, folder):
        return f'<h{self.level} id="{_anchor(self.text)}">{html.escape(self.text)}</h{self.level}>'


class Paragraph(NamedTuple):
    text: str

    def markdown(self):
        return self.text

    def html(self, folder):
        return f"<p>{html.escape(self.text)}</p>"


class Bullets(NamedTuple):
    items: list[str]

    def markdown(self):
        return "\n".join(f"- {item}" for item in self.items)

    def html(self, folder):
        return "\n".join(["<ul>", *(f"<li>{html.escape(item)}</li>" for item in self.items), "</ul>"])


class Table(NamedTuple):
    """The reader of the HTML file can sort the rows by any column."""

    columns: list[str]
    rows: list[list[str]]

    def markdown(self):
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)

    def html(self, folder):
        head = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in self.columns)
        body = ("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in self.rows)
        # The tabindex lets the arrow keys scroll a table that is wider than the screen.
        label = html.escape(f"Table: {', '.join(self.columns)}")
        region = f'<div class="wide" role="region" tabindex="0" aria-label="{label}">'
        head_row = f"<thead><tr>{head}</tr></thead>"
        return "\n".join([region, "<table>", head_row, "<tbody>", *body, "</tbody>", "</table>", "</div>"])


class Picture(NamedTuple):
    """A PNG in the folder of the document."""

    file: str
    caption: str

    def markdown(self):
        return f"![{self.caption}]({self.file})\n\n{self.caption}"

    def html(self, folder):
        image = f'<img src="{_data_url(folder / self.file, "image/png")}" alt="">'  # the caption says what it shows
        return f"<figure>\n{image}\n<figcaption>{html.escape(self.caption)}</figcaption>\n</figure>"


class Files(NamedTuple):
    """CSV files in the folder of the document. The HTML file contains them."""

    text: str
    files: dict[str, str]  # {name: what it contains}

    def markdown(self):
        return f"{self.text} {', '.join(f'[{name}]({name}) ({what})' for name, what in self.files.items())}."

    def html(self, folder):
        links = (
            f'<a download="{html.escape(name)}" href="{_data_url(folder / name, "text/csv")}">{html.escape(name)}</a> '
            f"({html.escape(what)})"
            for name, what in self.files.items()
        )
        return f"<p>{html.escape(self.text)} {', '.join(links)}.</p>"


def as_markdown(parts) -> str:
    return "\n\n".join(part.markdown() for part in parts) + "\n"


def as_html(parts, folder) -> str:
    """One HTML page, which needs no other file and no network. Its title is the first heading.

    folder: holds the pictures and files of the parts.
    """
    title, *sections = [part for part in parts if isinstance(part, Heading) and part.level <= 2]
    links = (f'<li><a href="#{_anchor(x.text)}">{html.escape(x.text)}</a></li>' for x in sections)
    contents = "\n".join(['<nav aria-label="Contents">', "<ul>", *links, "</ul>", "</nav>"])
    first, *others = [part.html(pathlib.Path(folder)) for part in parts]
    body = "\n".join([first, contents, *others])
    return _PAGE.format(title=html.escape(title.text), style=_STYLE, body=body, script=_SCRIPT)


def _anchor(heading):
    return "-".join(re.findall(r"\w+", heading.lower()))


def _data_url(path, kind) -> str:
    with reading(path):
        return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main>
{body}
</main>
<script>
{script}</script>
</body>
</html>
"""

_STYLE = """\
:root { --text: #1f2328; --paper: #fff; --faint: #f3f5f7; --line: #d0d7de; --link: #0059b3; }
@media screen and (prefers-color-scheme: dark) {
  :root { --text: #d8dee4; --paper: #14181d; --faint: #1f252c; --line: #3d444d; --link: #6cb6ff; }
}
body { margin: 0; background: var(--paper); color: var(--text); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 72rem; margin: auto; padding: 1rem; overflow-wrap: anywhere; }
h1, h2, h3 { line-height: 1.2; margin: 2em 0 0.6em; }
h1 { margin-top: 0.5em; }
a { color: var(--link); }
p, li, figcaption { max-width: 48rem; }
.wide { overflow-x: auto; margin: 1em 0; }
table { border-collapse: collapse; font-size: 0.875rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { border-bottom: 1px solid var(--line); padding: 0.3em 0.7em; text-align: left; white-space: nowrap; }
th { background: var(--faint); vertical-align: bottom; white-space: normal; }
tbody tr:hover { background: var(--faint); }
th button { all: unset; cursor: pointer; }
th button:focus-visible, .wide:focus-visible { outline: 2px solid var(--link); }
th button::after { content: "\\2195"; margin-left: 0.4em; opacity: 0.4; }
th[aria-sort=ascending] button::after { content: "\\2191"; opacity: 1; }
th[aria-sort=descending] button::after { content: "\\2193"; opacity: 1; }
figure { margin: 1.5em 0; }
img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
@page { size: landscape; }
@media print {
  body { font-size: 10pt; }
  main { max-width: none; padding: 0; }
  nav, th button::after { display: none; }
  .wide { overflow: visible; }
  table { font-size: 8pt; }
  th, td { padding: 0.2em 0.5em; white-space: normal; }
  img { max-height: 85vh; }
  tr, figure { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
}
"""

# Clicks on the head of a column sort by it: ascending, then descending, then as in the report. Texts that begin with a
# number are sorted by that number, other texts alphabetically. Empty cells stay at the end.
_SCRIPT = """\
const NEXT = {none: "ascending", ascending: "descending", descending: "none"};
function compare(x, y) {
  const [a, b] = [parseFloat(x), parseFloat(y)];
  return isNaN(a) || isNaN(b) ? x.localeCompare(y, "en", {numeric: true}) : a - b;
}
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0], rows = [...body.rows], heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    head.ariaSort = "none";
    button.addEventListener("click", () => {
      const order = NEXT[head.ariaSort], sign = order === "descending" ? -1 : 1;
      const text = row => row.cells[column].textContent;
      for (const other of heads) other.ariaSort = "none";
      head.ariaSort = order;
      const sorted = order === "none" ? rows : [...rows].sort((p, q) =>
        (text(p) === "") - (text(q) === "") || sign * compare(text(p), text(q)));
      body.append(...sorted);
    });
  });
}
"""
