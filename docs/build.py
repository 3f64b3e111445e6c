"""Writes the site: every notebook, the reports and the notes of the project as HTML with navigation and search.

Nothing is executed: the outputs are those that are committed. Formulas become MathML here, so that pages need neither a network nor a script to show them, and
the index of the search is a script file, so that it also works on pages that are opened from a disk."""

from __future__ import annotations

import ast
import base64
import io
import json
import os
import re
import shutil
import sys
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import jinja2
import nbformat
from bs4 import BeautifulSoup
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.exporters.templateexporter import TemplateExporter
from nbconvert.filters.highlight import Highlight2HTML
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbconvert.filters.widgetsdatatypefilter import WidgetsDataTypeFilter
from nbformat import NotebookNode
from PIL import Image
from pygments.formatters import HtmlFormatter

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
OPENING = {
    "nbs/index.ipynb": "Overview",
    "nbs/index_ru.ipynb": "Обзор (по-русски)",
}  # shown without code, like the README
FIGURES = "results/cpu/figures"  # of the profile whose records the committed experiments show


def mathml(latex: str, block: bool = False) -> str:
    "A formula as MathML. Three commands that the converter does not know are written in ones that it knows."
    latex = re.sub(
        r"\\arg(?![a-z])", r"\\operatorname{arg}", re.sub(r"\\[bB]igg?(?![a-z])", "", latex)
    )
    latex = re.sub(
        r"\\texttt\{([^}]*)\}", lambda m: r"\text{" + m[1].replace(r"\_", "_") + "}", latex
    )
    return convert(latex.strip(), display="block" if block else "inline").replace(
        "<mo>&#x0002A;</mo>", "<mo>&#x2217;</mo>"
    )  # the star of formulas, not of text


class Renderer(IPythonRenderer):
    "nbconvert's renderer of markdown, with formulas as MathML."

    def inline_math(self, body: str) -> str:
        return mathml(body)

    def block_math(self, body: str) -> str:
        return mathml(body, True)


def markdown(text: str) -> str:
    return MarkdownWithMath(renderer=Renderer(escape=False, anchor_link_text="#")).render(text)


CELL = """{% extends 'basic/index.html.j2' %}
{% block input %}<div class="input_area">{{ cell.source | highlight_code(metadata=cell.metadata) }}</div>{% endblock %}"""


class Exporter(HTMLExporter):
    "Cells as HTML without a page around them."

    def __init__(self, **options: Any):
        super().__init__(
            raw_template=CELL, exclude_input_prompt=True, exclude_output_prompt=True, **options
        )

    def default_filters(self) -> Any:
        yield from super().default_filters()
        yield from {
            "markdown2html": markdown,
            "highlight_code": Highlight2HTML(pygments_lexer="ipython3", parent=self),
            "filter_data_type": WidgetsDataTypeFilter(
                notebook_metadata=self._nb_metadata, parent=self
            ),
        }.items()

    def cells(self, nb: NotebookNode) -> str:
        "The cells; what the base class does to a whole page is left out."
        return TemplateExporter.from_notebook_node(self, nb)[0]


@dataclass
class Page:
    "A page of the site: where it comes from, where it goes (both relative, with /), and what it shows."

    source: str
    target: str
    group: str
    title: str = ""
    lead: str = ""
    body: BeautifulSoup = field(default_factory=lambda: BeautifulSoup("", "html.parser"))
    contents: list[tuple[str, str]] = field(
        default_factory=list
    )  # (anchor, heading) of the sections


def listed(root: Path) -> list[Page]:
    "All pages in the order of the navigation."

    def pages(group: str, files: Any) -> list[Page]:
        return [
            Page(
                name := p.relative_to(root).as_posix(),
                re.sub(r"\.\w+$", ".html", name.removeprefix("nbs/")),
                group,
            )
            for p in files
        ]

    nbs = root / "nbs"
    order = json.loads((HERE / "order.json").read_text(encoding="utf-8"))

    def place(p: Path) -> tuple[int, str]:
        return (order.index(p.stem) if p.stem in order else len(order), p.stem)

    library = sorted(nbs.glob("[0-9]*.ipynb"))
    start = pages("Start", [root / name for name in OPENING])
    for page, title in zip(start, OPENING.values()):
        page.title = title
    return [
        *start,
        *pages("Read", sorted((nbs / "reading").glob("*.ipynb"), key=place)),
        *pages("Library", library),
        *pages("Experiments", sorted((nbs / "experiments").glob("*.ipynb"), key=place)),
        *pages("Reports", sorted(root.glob("results/*/report.html"))),
        *pages(
            "Project", [p for p in (root / "CONTRIBUTING.md", root / "CHANGELOG.md") if p.exists()]
        ),
    ]


def shown(nb: NotebookNode, source: str) -> NotebookNode:
    "The notebook as it is to be read: without directives and front matter, every figure with its picture and alt text."
    cells = []
    for cell in nb.cells:
        if cell.cell_type == "raw":
            continue
        if cell.cell_type == "code":
            said = re.findall(r"^#\|\s*fig-alt:\s*(.+)$", cell.source, re.M)
            code = cell.source
            cell.source = (
                "" if source in OPENING else re.sub(r"^#\|.*\n?", "", code, flags=re.M).strip("\n")
            )
            pictures(cell, code, said)
            if not cell.source and not cell.outputs:
                continue
        cells.append(cell)
    return nbformat.v4.new_notebook(cells=cells, metadata=nb.metadata)


def pictures(cell: NotebookNode, code: str, said: list[str]) -> None:
    "Gives the figures of a cell their alt texts: from its `fig-alt` lines, or from the caption that is shown below."
    number = 0
    for output, below in zip(cell.outputs, [*cell.outputs[1:], NotebookNode()]):
        data = output.get("data", {})
        caption = re.fullmatch(
            r"\*(?:(\w+)\. )?(.+)\*",
            "".join(below.get("data", {}).get("text/markdown", "")).strip(),
            re.S,
        )
        if "image/png" in data:
            name = (re.search(r'figures\["(\w+)"\]', code) or [None, None])[
                1
            ]  # of an experiment: its caption is kept beside the committed figure
            kept = ROOT / FIGURES / f"{name}.json"
            text = (
                said[number]
                if number < len(said)
                else caption[2]
                if caption
                else json.loads(kept.read_text(encoding="utf-8"))["caption"]
                if kept.exists()
                else None
            )
            number += 1
            if text:
                output.setdefault("metadata", {}).setdefault("image/png", {})["alt"] = text


def only_imports(source: str) -> bool:
    try:
        body = ast.parse(source).body
    except SyntaxError:
        return False
    return bool(body) and all(isinstance(x, (ast.Import, ast.ImportFrom)) for x in body)


def from_notebook(page: Page, root: Path, exporter: Exporter) -> None:
    nb = shown(nbformat.read(root / page.source, as_version=4), page.source)
    folded = {
        c.id for c in nb.cells if c.cell_type == "code" and not c.outputs and only_imports(c.source)
    }
    html = exporter.cells(nb)
    page.body = soup = BeautifulSoup(html, "html.parser")
    for cell in soup.select("div.code_cell"):
        if cell.get("id", "").removeprefix("cell-id=") in folded:
            cell.name, (mark := soup.new_tag("summary")).string = "details", "imports"
            cell.insert(0, mark)
    for style in soup.find_all("style"):
        style.decompose()  # of tables: the site has its own
    for block in soup.select("div.output_latex"):
        block.replace_with(
            BeautifulSoup(
                mathml(block.get_text().strip().strip("$").removeprefix(r"\displaystyle"), True),
                "html.parser",
            )
        )


def from_report(page: Page, root: Path) -> None:
    soup = BeautifulSoup((root / page.source).read_text(encoding="utf-8"), "html.parser")
    page.title = soup.title.get_text()  # type: ignore[union-attr]
    for tag in soup.find_all(["style", "title", "meta"]):
        tag.decompose()
    for menu in soup.find_all("nav"):  # the page has one of its own; what leads elsewhere stays
        links = [a for a in menu.find_all("a") if not a["href"].startswith("#")]
        menu.name = "p"
        menu.clear()
        menu.extend(links)
    page.body = soup


def wide(source: str, folder: Path) -> str:
    "The width at which the labels of a PNG are as large as text, as a style: 90 pixels an inch of the figure. Nothing for what is no PNG, or says no size."
    data = (
        base64.b64decode(source.partition("base64,")[2])
        if source.startswith("data:")
        else path.read_bytes()
        if (path := folder / unquote(source)).is_file()
        else b""
    )
    if not data.startswith(b"\x89PNG"):
        return ""
    with Image.open(io.BytesIO(data)) as picture:
        dots = picture.info.get("dpi")
    return f"--wide: {90 * picture.width / dots[0]:.0f}px" if dots else ""


def finish(page: Page, root: Path) -> None:
    "Title, contents, and what wide things need: tables and figures that scroll in a box of their own."
    soup = page.body
    if head := soup.find("h1"):
        page.title = page.title or re.sub(r"\s*#$", "", head.get_text()).strip()
        if (quoted := head.find_next(["blockquote", "h2"])) and quoted.name == "blockquote":
            page.lead = quoted.get_text(" ", strip=True)
    for level in soup.find_all(["h2", "h3"]):
        link = level.find("a", class_="anchor-link")
        name = level.get_text().removesuffix("#").strip()
        level["id"] = unquote(level.get("id") or re.sub(r"\W+", "-", name))
        if link:
            link["href"], link["aria-label"] = f"#{quote(level['id'])}", f"link to {name}"
        if level.name == "h2":
            page.contents.append((level["id"], name))
    for table in soup.find_all("table"):
        table.wrap(
            soup.new_tag(
                "div",
                attrs={"class": "scroll", "tabindex": "0", "role": "region", "aria-label": "table"},
            )
        )
        del table["border"]
    for shown in [
        *soup.find_all("img"),
        *soup.select(".output_svg > svg, .output_svg > div > svg"),
    ]:  # a span, since a figure may stand in a paragraph
        if shown.name == "img":
            shown["style"] = wide(shown["src"], (root / page.source).parent)
        shown.wrap(
            soup.new_tag(
                "span",
                attrs={
                    "class": "scroll",
                    "tabindex": "0",
                    "role": "region",
                    "aria-label": "figure",
                },
            )
        )
    for block in soup.select("pre"):
        if block.get_text(strip=True):
            block["tabindex"] = "0"
        else:
            block.decompose()  # of a cell whose code is not shown


class Links:
    "Where a link of a source leads in the site; what it leads to is copied there."

    def __init__(self, root: Path, out: Path, pages: list[Page]):
        self.root, self.out = root, out
        self.pages = {p.source: p.target for p in pages} | {
            "README.md": "index.html",
            "README.ru.md": "index_ru.html",
        }
        self.folders: dict[str, str] = {}

    def target(self, source: str) -> str | None:
        "The place in the site of a file or folder of the project; None where there is no such thing."
        if source in self.pages:
            return self.pages[source]
        path = self.root / source
        if path.is_dir():
            self.folders[source] = f"{source}/index.html"
            return self.folders[source]
        if not path.is_file():
            return None
        target = source if path.suffix else f"{source}.txt"  # a browser shows a text by its ending
        (self.out / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, self.out / target)
        return target

    def rewrite(self, page: Page, link: str) -> str:
        if re.match(r"[a-z]+:|#|//", link):
            return link
        path, mark, anchor = link.partition("#")
        found = self.target(
            os.path.normpath(os.path.join(os.path.dirname(page.source), unquote(path)))
        )
        return (
            quote(os.path.relpath(found, os.path.dirname(page.target) or ".")) + mark + anchor
            if found
            else link
        )

    def apply(self, page: Page) -> None:
        for name, attribute in (("a", "href"), ("img", "src")):
            for tag in page.body.find_all(name):
                if tag.get(attribute):
                    tag[attribute] = self.rewrite(page, tag[attribute])
        for tag in page.body.find_all("img"):
            tag["loading"] = "lazy"


def sections(page: Page) -> list[dict[str, str]]:
    "What the search finds: the prose of a page, cut at its headings, and the names that its code defines."
    found = [{"h": "", "a": "", "x": ""}]
    for tag in page.body.find_all(
        ["h2", "h3", "p", "li", "td", "th", "blockquote", "figcaption", "pre"]
    ):
        if tag.name in ("h2", "h3"):
            found.append({"h": tag.get_text().removesuffix("#").strip(), "a": tag["id"], "x": ""})
        elif tag.name == "pre":
            names = re.findall(r"^\s*(?:def|class) (\w+)|^([A-Z_]{3,}) =", tag.get_text(), re.M)
            found[-1]["x"] += " ".join(a or b for a, b in names) + " "
        elif not (tag.name in ("p", "li") and tag.find_parent(["li", "td", "blockquote"])):
            found[-1]["x"] += tag.get_text(" ", strip=True) + " "
    return [{"p": page.target, "t": page.title} | s for s in found if s["h"] or s["x"].strip()]


def folder_page(source: str, root: Path) -> Page:
    page = Page(f"{source}/index", f"{source}/index.html", "", source)
    files = sorted(p for p in (root / source).iterdir() if p.is_file())
    items = "".join(f"<li><a href='{escape(p.name)}'>{escape(p.name)}</a></li>" for p in files)
    page.body = BeautifulSoup(f"<h1>{escape(source)}</h1><ul>{items}</ul>", "html.parser")
    return page


def write(page: Page, pages: list[Page], out: Path, template: jinja2.Template) -> None:
    here = os.path.dirname(page.target) or "."

    def to(target: str) -> str:
        return quote(os.path.relpath(target, here))

    groups: dict[str, list[Page]] = {}
    for p in pages:
        groups.setdefault(p.group, []).append(p)
    i = pages.index(page) if page in pages else None
    near = (
        (None, None)
        if i is None
        else (pages[i - 1] if i else None, pages[i + 1] if i + 1 < len(pages) else None)
    )
    path = out / page.target
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        template.render(
            page=page,
            groups=groups,
            to=to,
            before=near[0],
            after=near[1],
            root=to("."),
            body=str(page.body),
            language="ru" if page.target.endswith("_ru.html") else "en",
        ),
        encoding="utf-8",
    )


def build(root: Path, out: Path) -> list[Page]:
    "Writes the site of the project at `root` into the folder `out`, which is emptied first; returns its pages."
    if out.exists():
        shutil.rmtree(out)
    out.mkdir(parents=True)
    pages = listed(root)
    links, exporter = Links(root, out, pages), Exporter()
    for page in pages:
        if page.source.endswith(".ipynb"):
            from_notebook(page, root, exporter)
        elif page.source.endswith(".html"):
            from_report(page, root)
        else:
            page.body = BeautifulSoup(
                markdown((root / page.source).read_text(encoding="utf-8")), "html.parser"
            )
        finish(page, root)
        links.apply(page)
    folders = [folder_page(source, root) for source in links.folders]
    for page in folders:
        links.apply(page)
    template = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True
    ).from_string((HERE / "page.html").read_text(encoding="utf-8"))
    for page in [*pages, *folders]:
        write(page, pages, out, template)
    (out / "search.js").write_text(
        "SECTIONS = "
        + json.dumps(
            [s for p in pages for s in sections(p)], ensure_ascii=False, separators=(",", ":")
        )
        + "\n",
        encoding="utf-8",
    )
    style = (HERE / "site.css").read_text(encoding="utf-8") + HtmlFormatter(
        style="default"
    ).get_style_defs(".highlight")
    (out / "site.css").write_text(style, encoding="utf-8")
    shutil.copyfile(HERE / "site.js", out / "site.js")
    return pages


if __name__ == "__main__":
    goal = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "_site"
    print(f"wrote {len(build(ROOT, goal))} pages: open {goal.name}/index.html")
