"""Builds the documentation site with `make docs`.

The source folder is the repository, so that links between README.md, docs and notebooks are the same here and on a
hosting site. The order of the pages is the order of the links in docs/README.md. Nothing is loaded from other hosts:
formulas become MathML, and the theme has no web fonts.
"""

import pathlib
import re
import shutil

import latex2mathml.converter
from docutils import nodes
from sphinx import addnodes

ROOT = pathlib.Path(__file__).parent.parent

project = "wcjax"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
root_doc = "README"
include_patterns = ["*.md", "docs/**", "notebooks/*.ipynb"]
html_static_path = ["site.css"]
html_css_files = ["site.css"]

html_theme = "furo"
html_title = "wcjax"
html_math_renderer = "mathml"
html_copy_source = html_show_sphinx = False

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_in_temp = nb_execution_raise_on_error = True
nb_execution_timeout = -1
nb_merge_streams = True
nb_render_markdown_format = "myst"  # with tables

default_role = "py:obj"  # `compand` in a docstring is a link if there is such a name, and code if not
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the text says what each argument is
autodoc_preserve_defaults = True  # where=is_kernel, not its address
napoleon_numpy_docstring = False


def add_tables_of_contents(app, name, source):
    """Gives the start page the sidebar: a part for each section of docs/README.md, with the pages that it links."""
    if name != root_doc:
        return
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    parts = ["```{toctree}\n:hidden:\nStart here <self>\nAll pages <docs/README>\n```"]
    for section in index.split("\n## ")[1:]:
        title, _, text = section.partition("\n")
        links = re.findall(r"\]\(([^)#\s]+\.(?:md|ipynb))\)", text)
        pages = [(ROOT / "docs" / link).resolve().relative_to(ROOT).with_suffix("").as_posix() for link in links]
        parts.append("\n".join(["```{toctree}", ":hidden:", f":caption: {title}", *pages, "```"]))
    source[0] = "\n\n".join([source[0], *parts])


def escape_bars(app, what, name, obj, options, lines):
    """Keeps |w| in docstrings, which reStructuredText would take for a substitution."""
    lines[:] = [re.sub(r"\|(?=\S)", r"\|", line) for line in lines]


def mathml(display):
    """The visitor that writes a formula as MathML."""
    before, after = {"inline": ("", ""), "block": ('<div class="math-block">', "</div>")}[display]

    def visit(translator, node):
        formula = latex2mathml.converter.convert(node.astext(), display=display)
        translator.body.append(before + formula + after)
        raise nodes.SkipNode

    return visit


def unlink_folders(app, doctree):
    """Makes links to folders of the repository plain text, because the site does not have those folders."""
    folder = pathlib.Path(doctree["source"]).parent
    for link in list(doctree.findall(addnodes.pending_xref)):
        if (folder / link["reftarget"]).is_dir():
            link.replace_self(link.children)


def add_index(app, error):
    """Makes the start page index.html as well."""
    if not error and app.builder.name == "html":
        shutil.copy(pathlib.Path(app.outdir, "README.html"), pathlib.Path(app.outdir, "index.html"))


def setup(app):
    app.connect("source-read", add_tables_of_contents)
    app.connect("autodoc-process-docstring", escape_bars, priority=100)
    app.connect("doctree-read", unlink_folders)
    app.connect("build-finished", add_index)
    app.add_html_math_renderer("mathml", (mathml("inline"), None), (mathml("block"), None))
