"""What the site changes in its pages: notebooks without directives, links, alt texts, docments."""

from __future__ import annotations

import ast
import inspect
import json
import re
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import nbformat
from docutils import nodes
from fastcore.docments import docments
from nbformat import NotebookNode
from PIL import Image
from pybtex.database import parse_file
from sphinx import addnodes
from sphinx.application import Sphinx

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = ROOT / "results"
FIGURE_FOLDERS = [RESULTS / profile / "figures" for profile in ("cpu", "cpu-long")]
NOT_COMMITTED = ("work", "cache", "notebooks", "demo", "smoke", "again", "mine")
README_PAGES = {"README": "nbs/index", "README.ru": "nbs/index_ru"}  # written from these notebooks
RESULT_PAGES = (  # are read for what they found; their code is folded
    "nbs/reading/context",
    "nbs/reading/errata",
    "nbs/reading/own_strategy",
    "nbs/reading/own_trial",
    "nbs/reading/reanalysis",
    "nbs/reading/report",
    "nbs/reading/scaling",
    "nbs/reading/summary",
)
PIXELS_PER_INCH = 90  # at which the labels of a figure are as large as text


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx. Images and links are changed before Sphinx collects them."""
    app.connect("source-read", prepare_page)
    app.connect("doctree-read", describe_images, priority=400)
    app.connect("doctree-read", redirect_links, priority=400)
    app.connect("autodoc-process-docstring", finish_docstring)
    app.connect("autodoc-skip-member", skip_foreign)
    app.connect("html-collect-pages", list_records)
    app.connect("html-page-context", set_language)
    app.connect("build-finished", copy_results)
    app.set_html_assets_policy("always")  # titles in the navigation of any page have formulas
    shutil.rmtree(HERE / "api", ignore_errors=True)  # pages of modules that are no longer there
    return {"parallel_read_safe": True, "parallel_write_safe": True}


# ------------------------------------------------------------------ notebooks


def prepare_page(app: Sphinx, docname: str, source: list[str]) -> None:
    """Changes the text of a notebook before it is parsed."""
    if not docname.startswith("nbs/"):
        return
    notebook = nbformat.reads(source[0], as_version=4)
    overview = docname in README_PAGES.values()
    cells = [cell for cell in notebook.cells if cell.cell_type != "raw"]
    fold_code = docname in RESULT_PAGES
    for cell in cells:
        if cell.cell_type == "code":
            prepare_cell(cell, hide_code=overview, fold_code=fold_code)
            continue
        if docname.startswith("nbs/experiments/"):  # code is folded between these headings
            if cell.source.startswith("## The answer"):
                fold_code = True
            elif cell.source.startswith("## How it was"):
                fold_code = False
        cell.source = cite_sources(cell.source)
    notebook.cells = [cell for cell in cells if cell.source or cell.get("outputs")]
    if number := re.match(r"nbs/method/(\d+)_", docname):
        number_title(notebook, number[1])
    if docname == app.config.root_doc:
        navigation = (HERE / "navigation.md").read_text(encoding="utf-8")
        notebook.cells.append(nbformat.v4.new_markdown_cell(navigation))
    source[0] = nbformat.writes(notebook)


def prepare_cell(cell: NotebookNode, hide_code: bool, fold_code: bool) -> None:
    """Removes the directives of nbdev, folds imports, and gives the figures an alt text."""
    text = alt_text(cell.source)
    if text:
        cell.metadata["mystnb"] = {"image": {"alt": text}}
    cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.MULTILINE).strip("\n")
    tags = cell.metadata.setdefault("tags", [])
    if hide_code:
        tags.append("remove-input")
        if not cell.outputs:
            cell.source = ""
    elif fold_code or (not cell.outputs and has_only_imports(cell.source)):
        tags.append("hide-input")


def alt_text(source: str) -> str:
    """What the `fig-alt` line of a cell says, or the caption of the committed figure it shows."""
    if directive := re.search(r"^#\|\s*fig-alt:\s*(.+)$", source, re.MULTILINE):
        return directive[1].strip()
    if figure := re.search(r"""\bfigures?[(\[]["'](\w+)["']""", source):
        for folder in FIGURE_FOLDERS:
            sidecar = folder / f"{figure[1]}.json"
            if sidecar.is_file():
                return json.loads(sidecar.read_text(encoding="utf-8"))["caption"]
    return ""


def has_only_imports(source: str) -> bool:
    """Whether the code of a cell imports and does nothing else."""
    try:
        statements = ast.parse(source).body
    except SyntaxError:  # a cell with a magic command
        return False
    return all(isinstance(statement, ast.Import | ast.ImportFrom) for statement in statements)


def number_title(notebook: NotebookNode, number: str) -> None:
    """Puts the number of a notebook before its title, as links name it."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and cell.source.startswith("# "):
            cell.source = f"# {number} {cell.source.removeprefix('# ')}"
            return


@cache
def sources_by_citation() -> dict[str, str]:
    """Patterns such as `Liu et al.,? 2019`, with the keys of the sources they cite."""
    keys = {}
    entries = parse_file(HERE / "references.bib").entries
    for key, entry in entries.items():  # of two that are cited alike, the last is meant
        names = [" ".join(person.last_names) for person in entry.persons["author"]]
        if len(names) > 2:
            names = [f"{names[0]} et al."]
        keys[f"{re.escape(' and '.join(names))},? {entry.fields['year']}"] = key
    return keys


def cite_sources(text: str) -> str:
    """Turns the citations in a text into links to the bibliography."""
    for pattern, key in sources_by_citation().items():
        text = re.sub(rf"\b{pattern}\b", f"{{cite:alp}}`{key}`", text)
    return text


# ------------------------------------------------------------------ images


def describe_images(app: Sphinx, doctree: nodes.document) -> None:
    """Gives images their width, and those without an alt text the caption below them."""
    for image in doctree.findall(nodes.image):
        if not image.get("alt"):
            image["alt"] = caption_below(image)
        _, path = app.env.relfn2path(image["uri"], app.env.docname)
        width = width_in_pixels(Path(path))
        if width:
            image["width"] = f"{width}px"


def caption_below(image: nodes.image) -> str:
    """The text of the paragraph that follows an image, if it is in italics."""
    for node in image.findall(include_self=False, ascend=True):
        if isinstance(node, nodes.image):
            break
        if isinstance(node, nodes.paragraph):
            return node.astext() if isinstance(node[0], nodes.emphasis) else ""
    return ""


def width_in_pixels(path: Path) -> int | None:
    """The width at which a picture is read well; None for one that names no resolution."""
    if path.suffix != ".png" or not path.is_file():
        return None
    with Image.open(path) as picture:
        resolution = picture.info.get("dpi")
        return round(PIXELS_PER_INCH * picture.width / resolution[0]) if resolution else None


# ------------------------------------------------------------------ links and results


def heading_anchor(title: str) -> str:
    """The anchor of a heading in a link, as Jupyter makes it."""
    return title.strip().replace(" ", "-")


def redirect_links(app: Sphinx, doctree: nodes.document) -> None:
    """Links to README lead to the overview, and those to results to their copies in the site."""
    for link in list(doctree.findall(addnodes.pending_xref)):
        target = link["reftarget"]
        if target in README_PAGES:
            link["reftarget"] = README_PAGES[target]
        elif is_result(app, target) and target.endswith("/runs"):
            replace_link(link, f"{target}/index.html")
    for link in list(doctree.findall(addnodes.download_reference)):
        if is_result(app, link["reftarget"]):
            replace_link(link, link["reftarget"])


def is_result(app: Sphinx, target: str) -> bool:
    """Whether a link leads into results/, whose files have the same place in the site."""
    _, path = app.env.relfn2path(target, app.env.docname)
    return Path(path).is_relative_to(RESULTS)


def replace_link(link: nodes.Element, target: str) -> None:
    """Makes a plain link of a reference."""
    text = nodes.inline("", "", *link.children[0].children)
    link.replace_self(nodes.reference("", "", text, refuri=target))


def list_records(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """A page for every folder of records, since a folder itself cannot be shown."""
    for folder in sorted(RESULTS.glob("*/runs")):
        if folder.parent.name in NOT_COMMITTED:
            continue
        name = folder.relative_to(ROOT).as_posix()
        files = sorted(path.name for path in folder.glob("*.json"))
        items = "".join(f'<li><a href="{file}">{file}</a></li>' for file in files)
        body = f"<h1>{name}</h1><ul>{items}</ul>"
        yield f"{name}/index", {"title": name, "body": body}, "page.html"


def copy_results(app: Sphinx, error: Exception | None) -> None:
    """Copies the committed results into the site, at the same place."""
    if error is not None or app.builder.format != "html":
        return
    copies = Path(app.outdir) / "results"
    ignored = shutil.ignore_patterns(*NOT_COMMITTED)
    shutil.copytree(RESULTS, copies, ignore=ignored, dirs_exist_ok=True)
    for report in copies.glob("*/report.html"):
        text = report.read_text(encoding="utf-8")
        # Notebooks that a run executed stay on the machine; the site has the committed ones.
        text = text.replace('href="notebooks/', 'href="../../nbs/experiments/')
        text = re.sub(r"""(href=["']?[^"' >]+)\.ipynb\b""", r"\1.html", text)
        report.write_text(text, encoding="utf-8")


# ------------------------------------------------------------------ docstrings, language


def is_foreign(documented: Any) -> bool:
    """Whether a function, or what makes an object of a class, comes from another package."""
    maker = documented.__init__ if isinstance(documented, type) else documented
    return not getattr(maker, "__module__", "").startswith("edgenes")


def to_rst(text: str) -> str:
    """A line of a docstring, or a comment, in reStructuredText, which is stricter than Markdown."""
    text = re.sub(r"\$([^$]+)\$", r":math:`\1`", " ".join(text.split()))
    text = re.sub(r"(`[^`]+`)(\w)?", separate_plural, text)
    return text.replace("|", r"\|")


def separate_plural(match: re.Match[str]) -> str:
    """A name between backticks, kept apart from the letter after it, as in `Cell`s."""
    name, letter = match.groups()
    return f"{name}\\ {letter}" if letter else name


def skip_foreign(
    app: Sphinx,
    what: str,
    name: str,
    member: Any,
    skip: bool,
    options: Any,
) -> bool | None:
    """Leaves out the methods that a library adds to a class."""
    return True if inspect.isfunction(member) and is_foreign(member) else None


def finish_docstring(
    app: Sphinx,
    what: str,
    name: str,
    documented: Any,
    options: Any,
    lines: list[str],
) -> None:
    """Adds the comments beside the parameters of a function or class to its docstring."""
    for i, line in enumerate(lines):
        if not line.startswith(" "):  # not in an example
            lines[i] = to_rst(line)
    if what not in {"function", "method", "class"} or is_foreign(documented):
        return
    comments = docments(documented)
    fields = {f"param {parameter}": comments[parameter] for parameter in comments}
    fields["returns"] = fields.pop("param return", None)
    field_list = [f":{field}: {to_rst(text)}" for field, text in fields.items() if text]
    if field_list:
        lines += ["", *field_list, ""]


def set_language(
    app: Sphinx,
    pagename: str,
    templatename: str,
    context: dict[str, Any],
    doctree: nodes.document | None,
) -> None:
    """Tells a browser that the Russian page is in Russian."""
    if pagename.endswith("_ru"):
        context["language"] = "ru"
