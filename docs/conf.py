"""Settings of Sphinx, which makes the site from the notebooks, the notes and the docstrings."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

project = "edgenes"
author = "The edgenes authors"
html_title = project
html_show_copyright = False

# What is read, of the whole project: in the site links lead to the same places.
root_doc = "nbs/index"
include_patterns = ["nbs/**", "docs/*.md", "docs/api/**", "CONTRIBUTING.md", "CHANGELOG.md"]
exclude_patterns = ["docs/navigation.md", "docs/_*", ".*", "_*", "build", "dist", "results"]
exclude_patterns += ["**/.ipynb_checkpoints", "**/__pycache__"]
templates_path = [str(HERE / "_templates")]
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinxcontrib.bibtex",
    "pages",  # pages.py beside this file
]

# Notebooks: outputs are shown as they are committed.
nb_execution_mode = "off"
nb_ipywidgets_js = {}  # the scripts that show widgets would come from a network
myst_enable_extensions = ["amsmath", "deflist", "dollarmath"]
myst_dmath_double_inline = True  # $$ need not begin a paragraph
myst_heading_anchors = 3
myst_heading_slug_func = "pages.heading_anchor"
nb_render_markdown_format = "myst"  # outputs in Markdown have formulas, tables and links

# Docstrings: a name between backticks is code, and classes follow the order of their source.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
autodoc_inherit_docstrings = False
maximum_signature_line_length = 88
python_use_unqualified_type_names = True

bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"

# A single file that needs no fonts and no other scripts, so that pages need no network.
mathjax_path = "tex-svg-full.js"
MATHJAX = Path(find_spec("sphinx-mathjax-offline").origin).parent / "static" / "mathjax"

html_theme = "sphinx_book_theme"
html_context = {"default_mode": "auto"}  # light or dark, as the reader's system is
html_static_path = ["_static", str(MATHJAX / mathjax_path)]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_favicon = "_static/icon.svg"
html_additional_pages = {"index": "first.html"}
html_theme_options = {
    "navbar_persistent": [],
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
}
