"""Every Python block of the README and of the how-to pages runs as it stands."""

import doctest
import importlib
import inspect
import pkgutil
import re

import pytest

import wcjax
from tests.processes import ROOT, python

TOP = ("README.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md")
PAGES = [*(ROOT / name for name in TOP), *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^(?P<skip><!-- not run -->\n+)?```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page):
    """(line number, code) of each Python block of a page that is not marked <!-- not run -->."""
    text = page.read_text(encoding="utf-8")
    return [(text.count("\n", 0, m.start("code")), m["code"]) for m in BLOCK.finditer(text) if not m["skip"]]


WITH_BLOCKS = [page for page in PAGES if blocks(page)]
assert WITH_BLOCKS[0] == ROOT / "README.md"


@pytest.mark.long
@pytest.mark.parametrize("page", WITH_BLOCKS, ids=lambda page: page.name)
def test_the_blocks_of_a_page_run_in_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for line, code in blocks(page):
        exec(compile("\n" * line + code, str(page), "exec"), names)  # line numbers in errors are those of the page


def test_every_page_is_linked_and_its_links_lead_somewhere():
    docs, links = ROOT / "docs", {}
    for page in PAGES:
        targets = re.findall(r"\]\(([^)#\s]+)\)", page.read_text(encoding="utf-8"))
        links[page] = [(page.parent / target).resolve() for target in targets if "://" not in target]
        assert all(target.exists() for target in links[page]), page
    pages = {*PAGES, *(ROOT / "notebooks").glob("*.ipynb")} - {ROOT / "README.md", docs / "README.md"}
    assert sorted(links[docs / "README.md"]) == sorted(pages)  # each page once: the site's order
    howto = sorted((docs / "howto").glob("*.md"))
    assert howto and set(howto) <= {*links[ROOT / "README.md"]} & {*WITH_BLOCKS}


def test_the_api_page_has_every_public_name_with_a_docstring():
    packages = ("wcjax", "wcjax.config", "wcjax.data", "wcjax.exchange", "wcjax.training")
    values = (getattr(module, name) for module in map(importlib.import_module, packages) for name in module.__all__)
    public = {f"{x.__module__}.{x.__qualname__}" for x in values if callable(x)}
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    listed = [pkgutil.resolve_name(name) for name in re.findall(r"^\.\. auto\w+:: ([\w.]+)", text, re.MULTILINE)]
    assert public <= {f"{x.__module__}.{x.__qualname__}" for x in listed}
    assert all(map(inspect.getdoc, listed))


def test_import_wcjax_reaches_every_package_of_the_api_page():
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    packages = set(re.findall(r"^\.\. auto\w+:: wcjax\.(\w+)\.", text, re.MULTILINE))
    for name in packages - {"companding", "optim", "psi"}:  # these are imported at once
        assert wcjax.__getattr__(name) is importlib.import_module(f"wcjax.{name}")


@pytest.mark.parametrize("module", ["companding", "optim", "params", "reparam"])
def test_the_examples_in_docstrings_run(module):
    result = doctest.testmod(importlib.import_module(f"wcjax.{module}"))
    assert result.attempted and not result.failed


@pytest.mark.long
def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path):
    for package in ("furo", "latex2mathml", "myst_nb"):
        pytest.importorskip(package, reason="needs make docs, or pip install 'wcjax[docs]'")
    folders = ["-d", tmp_path / "doctrees", ".", tmp_path / "html"]
    python("-m", "sphinx", "-W", "--keep-going", "-c", "docs", "-D", "nb_execution_mode=off", *folders)
    pages = sorted((tmp_path / "html").rglob("*.html"))
    assert {"index.html", "search.html", "api.html", "wc_in_ten_minutes.html"} <= {page.name for page in pages}
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r"<(?:script|img|link|iframe)[^>]*(?:src|href)=\"(?:https?:)?//[^>]*>", text), page
    for sheet in (tmp_path / "html").rglob("*.css"):
        assert not re.search(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", sheet.read_text(encoding="utf-8")), sheet


def test_pages_have_the_tables_of_the_results():
    from benchmarks import report

    for page in report.PAGES:
        assert report.text(page) == page.read_text(encoding="utf-8"), "run: python -m benchmarks.report"
