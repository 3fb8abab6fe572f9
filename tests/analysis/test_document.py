"""A document as Markdown and as one HTML file."""

import base64
import html.parser

import pytest

from wcjax.analysis.document import Bullets, Files, Heading, Paragraph, Picture, Table, as_html, as_markdown

PNG, CSV = b"\x89PNG, or what stands for one", b"a,b\n1,<2>\n"
ODD = "<b>&amp; \"x\" 'y'</b> | <script>alert(1)</script>"
PARTS = [
    Heading(f"Title {ODD}", 1),
    Bullets([ODD, "second"]),
    Heading("The table of Ψ"),
    Paragraph(ODD),
    Table(["name", "accuracy (%)"], [[ODD, "94.01 ± 0.11"], ["Ψ", ""]]),
    Heading("Within", 3),
    Picture("p.png", ODD),
    Files("As CSV:", {"t.csv": ODD}),
]


class Page(html.parser.HTMLParser):
    """What a browser finds in a page: (tag, attributes) of its elements, and (tag, text) of its texts."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self.open = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert tag == self.open.pop(), "tags are nested"

    def handle_data(self, data):
        if data.strip():
            self.texts.append((self.open[-1], data))

    def attributes(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def page(tmp_path):
    (tmp_path / "p.png").write_bytes(PNG)
    (tmp_path / "t.csv").write_bytes(CSV)
    return Page(as_html(PARTS, tmp_path))


def test_names_appear_as_they_are_and_are_never_tags(page):
    shown = {tag for tag, text in page.texts if ODD in text}
    assert shown == {"title", "h1", "li", "p", "td", "figcaption"}
    assert {tag for tag, _ in page.elements}.isdisjoint({"b", "link", "iframe"})
    assert len(page.attributes("script")) == 1
    assert page.open == [], "every tag is closed"


def test_a_page_needs_no_other_file_and_sorts_its_tables(page):
    anchors = {attributes["id"] for tag, attributes in page.elements if tag in ("h1", "h2", "h3")}
    links = [x["href"] for x in page.attributes("a")]
    data = [x for x in links if not x.startswith("#")] + [x["src"] for x in page.attributes("img")]
    assert {x[1:] for x in links if x.startswith("#")} == {"the-table-of-ψ"} <= anchors
    assert [base64.b64decode(x.partition(";base64,")[2]) for x in data] == [CSV, PNG]
    assert all("src" not in attributes for tag, attributes in page.elements if tag != "img")
    assert "url(" not in "".join(text for tag, text in page.texts if tag == "style")
    assert "addEventListener" in "".join(text for tag, text in page.texts if tag == "script"), "tables can be sorted"


def test_markdown_has_the_same_parts():
    bar = ODD.replace("|", r"\|")
    assert as_markdown(PARTS).split("\n\n") == [
        f"# Title {ODD}",
        f"- {ODD}\n- second",
        "## The table of Ψ",
        ODD,
        f"| name | accuracy (%) |\n| --- | --- |\n| {bar} | 94.01 ± 0.11 |\n| Ψ |  |",
        "### Within",
        f"![{ODD}](p.png)",
        ODD,
        f"As CSV: [t.csv](t.csv) ({ODD}).\n",
    ]
