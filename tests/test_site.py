"""The site: built with the options of `make site`, then read by a program and by a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Empty, Queue
from urllib.parse import unquote, urljoin, urlsplit

import nbformat
import pytest
from nbclient import NotebookClient
from project import ROOT

HARNESS = Path(__file__).with_name("site_harness.html")
NAMES_OF_CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES_OF_CHROMIUM)), None)
WIDTHS = (1280, 375)  # pixels of a desk's screen and of a phone's

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site. A warning of Sphinx is a failure here."""
    folder = tmp_path_factory.mktemp("site")
    options = ["-q", "-W", "--keep-going", "-c", "docs"]
    process = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, ".", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    shutil.rmtree(folder / ".doctrees")
    return folder


# ------------------------------------------------------------------ pages as files


class Page(HTMLParser):
    """What a page links to, shows, names and loads."""

    def __init__(self, path: Path):
        super().__init__()
        self.path = path
        self.links = []
        self.pictures = []  # (source, alt text)
        self.places = set()  # what a link with # can lead to
        self.loaded = []  # scripts, style sheets, pictures and frames
        self.language = None
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if tag == "html":
            self.language = values.get("lang")
        if "id" in values:
            self.places.add(values["id"])
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag == "img":
            self.pictures.append((values.get("src", ""), values.get("alt") or ""))
        if tag in ("script", "img", "iframe") and "src" in values:
            self.loaded.append(values["src"])
        if tag == "link" and values.get("rel") in ("stylesheet", "icon"):
            self.loaded.append(values.get("href", ""))

    def target(self, link: str) -> tuple[Path, str]:
        """The file that a link of the page leads to, and the place in it."""
        parts = urlsplit(urljoin(self.path.as_uri(), link))
        return Path(unquote(parts.path)), unquote(parts.fragment)


def is_remote(link: str) -> bool:
    return bool(re.match("(https?:)?//|mailto:", link))


def pages_of(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in sorted(site.rglob("*.html"))}


def faults(site: Path) -> list[str]:
    """What is wrong with the pages of a folder, one sentence for each fault."""
    pages = pages_of(site)
    sentences = []
    for page in pages.values():
        wrong = [*broken_links(page, pages), *bad_pictures(page), *loaded_from_a_network(page)]
        sentences += [f"{page.path.relative_to(site)}: {fault}" for fault in wrong]
    return sentences


def broken_links(page: Page, pages: dict[Path, Page]):
    for link in page.links:
        if is_remote(link):
            continue
        path, place = page.target(link)
        if not path.is_file():
            yield f"{link} leads nowhere"
        elif place and path in pages and place not in pages[path].places:
            yield f"{link} names no place of its page"


def bad_pictures(page: Page):
    for source, alt in page.pictures:
        if not source.startswith("data:") and not page.target(source)[0].is_file():
            yield f"the picture {source[:80]} is missing"
        if not alt.strip() or alt == source or "No description" in alt:
            yield f"the picture {source[:80]} has no alt text"


def loaded_from_a_network(page: Page):
    for source in page.loaded:
        if is_remote(source):
            yield f"loads {source}"


def notebook_pages() -> list[str]:
    """The page of every notebook, as a path in the site."""
    paths = sorted((ROOT / "nbs").rglob("*.ipynb"))
    notebooks = [path for path in paths if ".ipynb_checkpoints" not in path.parts]
    return [path.relative_to(ROOT).with_suffix(".html").as_posix() for path in notebooks]


def test_nothing_is_missing_or_loaded_from_a_network(site):
    assert not faults(site)


def test_faults_are_found(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.html").write_text(
        "<h2 id='here'>x</h2><a href='sub/b.html#there'>y</a><a href='#here'>z</a>"
        "<a href='none.html'>n</a><img src='p.png' alt='p.png'>"
    )
    (tmp_path / "sub" / "b.html").write_text(
        "<a href='../a.html#here'>y</a><img src='data:image/png;base64,' alt='a picture'>"
        "<script src='https://example.org/x.js'></script>"
    )
    assert faults(tmp_path) == [
        "a.html: sub/b.html#there names no place of its page",
        "a.html: none.html leads nowhere",
        "a.html: the picture p.png is missing",
        "a.html: the picture p.png has no alt text",
        "sub/b.html: loads https://example.org/x.js",
    ]


def test_every_notebook_is_in_the_navigation(site):
    for name in notebook_pages():
        page = Page(site / name)
        linked = {page.target(link)[0] for link in page.links}
        missing = [other for other in notebook_pages() if site / other not in linked]
        assert not missing, name


def test_the_first_page_leads_to_the_overview(site):
    first = Page(site / "index.html")
    assert [first.target(link)[0] for link in first.links] == [site / "nbs" / "index.html"]


def test_the_russian_page_says_its_language(site):
    assert Page(site / "nbs" / "index_ru.html").language == "ru"
    assert Page(site / "nbs" / "index.html").language == "en"


def test_every_module_has_a_page_with_its_docstrings(site):
    modules = sorted(path for path in (ROOT / "edgenes").rglob("*.py") if path.name[0] != "_")
    for path in modules:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        assert (site / "docs" / "api" / f"{module}.html").is_file(), module
    page = (site / "docs" / "api" / "edgenes.genotype.html").read_text(encoding="utf-8")
    assert 'id="edgenes.genotype.SearchSpace"' in page
    assert "intermediate nodes of a cell" in page  # a comment beside a parameter


def test_formulas_and_figures_are_no_bare_text(site):
    formulas = 0
    for path in [*site.glob("nbs/**/*.html"), *site.glob("docs/**/*.html")]:
        text = path.read_text(encoding="utf-8")
        formulas += len(re.findall(r'class="[^"]*\bmath\b', text))
        prose = re.sub(r"(?s)<(pre|code|script|style)\b.*?</\1>", "", text)
        assert "&lt;Figure size" not in prose, path.name
        assert "#| " not in text, f"{path.name} shows a directive"
        prose = re.sub(r'(?s)<(span|div) class="[^"]*\bmath\b.*?</\1>', "", prose)
        assert not re.search(r"\$[^$\n<]*[\\^_{][^$\n<]*\$|\\(begin|frac|lambda)\b", prose), (
            path.name
        )
    assert formulas > 300


def test_the_dial_can_be_saved_alone(site):
    dials = list(site.glob("results/*/dial.html"))
    assert dials
    for path in dials:
        page = Page(path)
        assert not page.links
        assert not page.loaded


def test_every_citation_is_in_the_bibliography(site):
    """`Zaidi et al. 2021` and the like are links to the list of references."""
    citation = re.compile(r"\b[A-Z][A-Za-z]+ (et al\.|and [A-Z][a-z]+),? (19|20)\d\d\b")
    references = Page(site / "docs" / "references.html").path
    cited = 0
    for name in notebook_pages():
        page = Page(site / name)
        cited += sum(page.target(link)[0] == references for link in page.links)
        notebook = nbformat.read((ROOT / name).with_suffix(".ipynb"), as_version=4)
        prose = " ".join(c.source for c in notebook.cells if c.cell_type == "markdown")
        if citation.search(prose):
            assert any("references.html#" in link for link in page.links), name
    assert cited > 10


# ------------------------------------------------------------------ pages in a browser

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # no network
    "--window-size=1400,1000",
)


def console(log: str) -> list[str]:
    """The lines that pages wrote to the console, but for the notes of the theme on its own work."""
    lines = [line.strip() for line in log.splitlines() if "CONSOLE" in line]
    return [line for line in lines if '"[PST]: ' not in line]


def opened(path: str, profile: Path) -> tuple[str, list[str]]:
    """A page that is opened from the disk: its HTML once its scripts have run, and the console."""
    options = (*FLAGS, f"--user-data-dir={profile}", "--virtual-time-budget=20000", "--dump-dom")
    process = subprocess.run(
        [CHROMIUM, *options, path],
        capture_output=True,
        text=True,
        timeout=120,
    )
    return process.stdout, console(process.stderr)


@needs_chromium
def test_formulas_are_shown_without_a_server_and_a_network(site, tmp_path):
    (page,) = site.glob("nbs/method/*_hypernetwork.html")
    html, lines = opened(page.as_uri(), tmp_path)
    assert not lines
    assert html.count("<mjx-container") > 5


@needs_chromium
def test_search_finds_without_a_server_and_a_network(site, tmp_path):
    html, lines = opened((site / "search.html").as_uri() + "?q=permutation", tmp_path)
    assert not lines
    assert "_statistics.html" in html


class Server(ThreadingHTTPServer):
    """Serves the site and the harness, and receives the report of the harness."""

    def __init__(self, site: Path, plan: dict):
        self.site = site
        self.plan = plan
        self.reports = Queue()
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(SimpleHTTPRequestHandler):
    def __init__(self, request, client, server):
        super().__init__(request, client, server, directory=str(server.site))

    def log_message(self, *_):
        pass

    def answer(self, text: str, kind: str):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(text.encode())

    def do_GET(self):
        if self.path == "/harness":
            self.answer(HARNESS.read_text(encoding="utf-8"), "text/html")
        elif self.path == "/plan":
            self.answer(json.dumps(self.server.plan), "application/json")
        elif self.path == "/favicon.ico":
            self.answer("", "image/x-icon")
        else:
            super().do_GET()

    def do_POST(self):
        length = int(self.headers["Content-Length"])
        self.server.reports.put(json.loads(self.rfile.read(length)))
        self.answer("{}", "application/json")


def browse(site: Path, plan: dict, folder: Path) -> tuple[dict | None, list[str]]:
    """What the harness reports of the site, and the console; None where it comes to no end."""
    server = Server(site, plan)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    log_path = folder / "log"
    address = f"http://127.0.0.1:{server.server_port}/harness"
    with log_path.open("w", encoding="utf-8") as log:
        browser = subprocess.Popen(
            [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'user'}", address],
            stdout=subprocess.DEVNULL,
            stderr=log,
        )
        try:
            report = server.reports.get(timeout=900)
        except Empty:
            report = None
        finally:
            browser.terminate()
            browser.wait(30)
            server.shutdown()
            server.server_close()
    return report, console(log_path.read_text(encoding="utf-8"))


@needs_chromium
def test_in_a_browser_at_two_widths(site, tmp_path):
    """No message on the console, nothing broken, and a search and a dial that work."""
    dials = sorted(path.relative_to(site).as_posix() for path in site.glob("results/*/dial.html"))
    notes = sorted(path.relative_to(site).as_posix() for path in site.glob("docs/*.html"))
    others = ["CONTRIBUTING.html", "CHANGELOG.html", "docs/api/edgenes.genotype.html"]
    pages = [*notebook_pages(), *notes, *others, *dials]
    plan = {"pages": pages, "widths": WIDTHS, "words": "permutation test"}
    report, lines = browse(site, plan, tmp_path)
    assert report is not None, f"the browser did not come to an end; console: {lines}"
    assert not lines
    assert not report["wrong"]
    for width in WIDTHS:
        assert any("_statistics.html" in link for link in report["results"][str(width)])
    assert dials
    assert len(report["dials"]) == len(dials) * len(WIDTHS)
    for name, positions in report["dials"].items():
        check_dial((site / name.split()[0]).read_text(encoding="utf-8"), positions)


def check_dial(page: str, positions: list[dict]) -> None:
    """Every position shows its caption and its cell, and labels that can be read."""
    captions = json.loads(re.search(r"const captions = (\[.*?\]);\n", page)[1])
    cells = json.loads(re.search(r"const cells = (\[.*?\]);\n", page)[1])
    assert [position["caption"] for position in positions] == captions
    assert [position["read_aloud"] for position in positions] == captions
    assert [position["cells"] for position in positions] == [[f"cell{cell}"] for cell in cells]
    assert len(set(captions)) == len(positions)
    assert len(set(cells)) > 3
    assert min(position["smallest_label"] for position in positions) >= 9  # pixels


# ------------------------------------------------------------------ the notebook of the dial


def test_the_notebook_of_the_dial_shows_a_slider(monkeypatch):
    """Executed as a reader would: the output is a widget, with the slider and the picture in it."""
    monkeypatch.chdir(ROOT / "nbs" / "report")
    notebook = nbformat.read("dial.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    last = next(i for i, cell in enumerate(cells) if "SelectionSlider" in cell.source)
    notebook.cells = cells[: last + 1]
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    kind = "application/vnd.jupyter.widget-view+json"
    outputs = [output.get("data", {}) for output in notebook.cells[-1].outputs]
    views = [data[kind]["model_id"] for data in outputs if kind in data]
    assert len(views) == 1
    models = notebook.metadata.widgets["application/vnd.jupyter.widget-state+json"]["state"]
    names = models[views[0]]["state"]["children"]
    slider, picture = [models[name.removeprefix("IPY_MODEL_")] for name in names]
    assert slider["model_name"] == "SelectionSliderModel"
    assert picture["model_name"] == "OutputModel"
    shown = picture["state"]["outputs"]
    assert any("image/svg+xml" in output.get("data", {}) for output in shown)
