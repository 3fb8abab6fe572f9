"""Every Python block of the README and of the how-to pages runs as it stands."""

import importlib.util
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
TOP = ("README.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md")
PAGES = [*(ROOT / name for name in TOP), *sorted((ROOT / "docs").rglob("*.md"))]
OPTIONAL = {"equinox": "equinox", "haiku": "dm-haiku", "safetensors": "safetensors"}  # module: what to install
NEEDED_BY = {"fine_tuning.md": ["safetensors"], "equinox.md": ["equinox"], "haiku.md": ["haiku"]}
BLOCK = re.compile(r"^(?P<skip><!-- not run -->\n+)?```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page):
    """(line number, code) of each Python block of a page that is not marked <!-- not run -->."""
    text = page.read_text(encoding="utf-8")
    return [(text.count("\n", 0, m.start("code")), m["code"]) for m in BLOCK.finditer(text) if not m["skip"]]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_the_blocks_of_a_page_run_in_order_and_share_their_names(page, tmp_path, monkeypatch):
    for module in NEEDED_BY.get(page.name, []):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{page.name} needs {module}: pip install {OPTIONAL[module]}")
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for line, code in blocks(page):
        exec(compile("\n" * line + code, str(page), "exec"), names)  # line numbers in errors are those of the page


def test_every_howto_page_has_a_block_and_a_link_from_the_readme():
    howto = sorted((ROOT / "docs" / "howto").glob("*.md"))
    assert howto
    for page in howto:
        assert blocks(page), page
        assert f"docs/howto/{page.name}" in (ROOT / "README.md").read_text(encoding="utf-8"), page


def test_the_index_of_the_docs_links_every_page():
    docs = ROOT / "docs"
    links = set(re.findall(r"\]\(([^)#\s]+)\)", (docs / "README.md").read_text(encoding="utf-8")))
    pages = {page.relative_to(docs).as_posix() for page in docs.rglob("*.md")}
    assert links == pages - {"README.md", "results/report/report.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_pages_have_the_tables_of_the_results():
    from benchmarks import report

    for page in report.PAGES:
        assert report.text(page) == page.read_text(encoding="utf-8"), "run: python -m benchmarks.report"
