"""The site: built from the committed notebooks, then read as a browser and as a person with a phone would."""

from __future__ import annotations

import importlib.util
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

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
WIDTHS = (1280, 375)  # a desk and a phone


class Read(HTMLParser):
    "What a page links to, shows and names."

    def __init__(self, text: str):
        super().__init__()
        self.links, self.pictures, self.ids, self.loaded, self.text, self.inside = (
            [],
            [],
            set(),
            [],
            [],
            [],
        )
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if "id" in a:
            self.ids.add(a["id"])
        if tag == "a" and "href" in a:
            self.links.append(a["href"])
        if tag == "img":
            self.pictures.append((a.get("src", ""), a.get("alt")))
        if tag in ("script", "img", "iframe") and "src" in a or tag == "link":
            self.loaded.append(a.get("src", a.get("href", "")))
        if tag in ("script", "style"):
            self.inside.append(tag)

    def handle_endtag(self, tag):
        if self.inside and tag == self.inside[-1]:
            self.inside.pop()

    def handle_data(self, data):
        if not self.inside:
            self.text.append(data)


def faults(site: Path) -> list[str]:
    "Broken links, missing pictures and alt texts, and what would be loaded from elsewhere, of all pages of a folder."
    pages = {p: Read(p.read_text(encoding="utf-8")) for p in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():

        def lead(link, path=path):
            parts = urlsplit(urljoin(path.as_uri(), link))
            return Path(unquote(parts.path)), unquote(parts.fragment)

        name = path.relative_to(site)
        for link in page.links:
            if re.match("(https?|mailto):", link):
                continue
            goal, anchor = lead(link)
            if not goal.is_file():
                found.append(f"{name}: {link} leads nowhere")
            elif anchor and goal in pages and anchor not in pages[goal].ids:
                found.append(f"{name}: {link} names no place of its page")
        for source, alt in page.pictures:
            if not source.startswith("data:") and not lead(source)[0].is_file():
                found.append(f"{name}: the picture {source[:80]} is missing")
            if not (alt or "").strip() or "No description" in alt:
                found.append(f"{name}: a picture has no alt text")
        found += [f"{name}: loads {x}" for x in page.loaded if re.match("(https?:)?//", x)]
    return found


@pytest.fixture(scope="module")
def builder():
    spec = importlib.util.spec_from_file_location("site_builder", ROOT / "docs" / "build.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(builder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    builder.build(ROOT, folder)
    return folder


def sections(site: Path):
    return json.loads((site / "search.js").read_text(encoding="utf-8").removeprefix("SECTIONS = "))


def test_links_lead_somewhere_and_pictures_are_there_and_described(site):
    assert not faults(site)


def test_faults_are_found(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.html").write_text(
        "<h2 id='here'>x</h2><a href='sub/b.html#there'>y</a><a href='#here'>z</a><a href='none.html'>n</a><img src='p.png' alt='p'>"
    )
    (tmp_path / "sub" / "b.html").write_text(
        "<a href='../a.html#here'>y</a><img src='data:image/png;base64,'><script src='https://example.org/x.js'></script>"
    )
    assert [f.partition(": ")[2] for f in faults(tmp_path)] == [
        "sub/b.html#there names no place of its page",
        "none.html leads nowhere",
        "the picture p.png is missing",
        "a picture has no alt text",
        "loads https://example.org/x.js",
    ]


def test_every_notebook_is_in_the_navigation(site, builder):
    notebooks = sorted(
        p.relative_to(ROOT).as_posix()
        for p in (ROOT / "nbs").rglob("*.ipynb")
        if ".ipynb_checkpoints" not in p.parts
    )
    pages = {p.source: p.target for p in builder.listed(ROOT)}
    assert notebooks == sorted(s for s in pages if s.endswith(".ipynb"))
    assert len(set(pages.values())) == len(pages)
    for target in pages.values():
        here = site / target
        seen = {
            Path(unquote(urlsplit(urljoin(here.as_uri(), link)).path))
            for link in Read(here.read_text(encoding="utf-8")).links
        }
        assert {site / t for t in pages.values()} <= seen, target


def test_formulas_and_figures_are_shown(site):
    formulas = 0
    for path in site.rglob("*.html"):
        if path.name == "dial.html":
            continue
        page = path.read_text(encoding="utf-8")
        formulas += page.count("<math")
        bare = re.sub(r"(?s)<(pre|code|script|style)\b.*?</\1>", "", page)
        assert not re.search(r"\$[^$\n<]*[\\^_{][^$\n<]*\$|\\(begin|frac|lambda|alpha)\b", bare), (
            path.name
        )
        for formula in re.findall(r"(?s)<math.*?</math>", page):
            assert "\\" not in re.sub("<[^>]*>", "", formula), (path.name, formula)
        assert "&lt;Figure size" not in page, f"{path.name} shows the name of a figure in its place"
    assert formulas > 300


def test_figures_scroll_and_the_dial_needs_no_file_beside_it(site):
    for path in site.rglob("*.html"):
        page = path.read_text(encoding="utf-8")
        if path.name != "dial.html":
            assert page.count("<img") == page.count('aria-label="figure"'), path.name
        else:
            assert not Read(page.partition("<script")[0]).links, (
                "saved alone, the page has no report beside it"
            )


@pytest.mark.parametrize(
    "word,page",
    [
        ("permutation", "11_statistics.html"),
        ("Gumbel-softmax", "05_relaxation.html"),
        ("ensemble_metrics", "10_metrics.html"),
        ("time_budget", "22_fitting.html"),
    ],
)
def test_search_knows(site, word, page):
    assert page in {
        s["p"] for s in sections(site) if word.lower() in f"{s['t']} {s['h']} {s['x']}".lower()
    }


def test_search_leads_to_places_that_are_there(site):
    found = sections(site)
    ids = {
        page: Read((site / page).read_text(encoding="utf-8")).ids
        for page in {s["p"] for s in found}
    }
    assert all(not s["a"] or s["a"] in ids[s["p"]] for s in found)


# ---------------------------------------------------------------- in a browser

HARNESS = """<!doctype html><script>
// Shows every page in a frame of a given width, and tells the server what went wrong there.
async function look(page, width) {
  const wrong = [], frame = Object.assign(document.createElement("iframe"), {width, height: 900})
  document.body.replaceChildren(frame)
  await new Promise(done => { frame.onload = done; frame.src = page })
  const view = frame.contentWindow, seen = view.document
  view.addEventListener("error", e => wrong.push(e.message))
  const pictures = [...seen.images]
  pictures.forEach(image => { image.loading = "eager" })
  await Promise.all(pictures.map(image => image.decode().catch(() => wrong.push("picture " + image.src.slice(0, 90)))))
  const over = seen.documentElement.scrollWidth - seen.documentElement.clientWidth
  if (over > 1) wrong.push(`is ${over} pixels wider than the screen`)
  return [wrong, view]
}
async function find(view, word) {
  const box = view.document.getElementById("search"), found = view.document.getElementById("found")
  box.focus(); box.value = word; box.dispatchEvent(new Event("input"))
  for (let i = 0; i < 100 && !found.querySelector("a"); i++) await new Promise(done => setTimeout(done, 50))
  return [...found.querySelectorAll("a")].map(a => a.getAttribute("href"))
}
function turn(view) {  // every position: the line below the slider and the one cell that is to be seen change with it
  const seen = view.document, dial = seen.getElementById("dial"), lines = [], cells = []
  for (let i = 0; i <= +dial.max; i++) {
    dial.value = i; dial.dispatchEvent(new Event("input"))
    const shown = [...seen.querySelectorAll("figure")].filter(f => f.getBoundingClientRect().height > 0)
    lines.push(seen.getElementById("said").textContent)
    cells.push(shown.map(f => f.id).join())
    if (dial.getAttribute("aria-valuetext") !== lines[i]) lines[i] = "aria-valuetext differs"
  }
  const heights = [...seen.querySelectorAll("figure:not([hidden]) svg text")].map(x => x.getBoundingClientRect().height)
  return {lines, cells, smallest: Math.min(...heights)}
}
onload = async () => {
  const {pages, widths} = await (await fetch("/plan")).json(), wrong = [], hits = {}, turns = {}
  for (const width of widths) {
    for (const page of pages) {
      const [faults, view] = await look(page, width)
      wrong.push(...faults.map(f => `${page} at ${width}: ${f}`))
      if (page === "reading/errata.html") hits[width] = await find(view, "permutation test")
      if (page.endsWith("/dial.html")) try { turns[`${page} ${width}`] = turn(view) } catch (e) { wrong.push(`${page}: ${e.stack}`) }
    }
  }
  await fetch("/report", {method: "POST", body: JSON.stringify({wrong, hits, turns})})
}
</script><body></body>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_in_a_browser_at_two_widths(site, builder, tmp_path):
    """No console message, no picture that fails, nothing wider than the screen, and a search that finds."""
    pages, told = (
        [p.target for p in builder.listed(ROOT)]
        + sorted(p.relative_to(site).as_posix() for p in site.glob("results/*/dial.html")),
        Queue(),
    )

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(site))

        def log_message(self, *_):
            pass

        def answer(self, text, kind="application/json"):
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(text.encode())

        def do_GET(self):
            if self.path == "/harness":
                self.answer(HARNESS, "text/html")
            elif self.path == "/plan":
                self.answer(json.dumps({"pages": pages, "widths": WIDTHS}))
            elif self.path == "/favicon.ico":
                self.answer("", "image/x-icon")
            else:
                super().do_GET()

        def do_POST(self):
            told.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.answer("{}")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    flags = (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--enable-logging=stderr",
        f"--user-data-dir={tmp_path / 'user'}",
        "--window-size=1400,1000",
    )
    with open(tmp_path / "log", "w+", encoding="utf-8") as log:
        browser = subprocess.Popen(
            [CHROMIUM, *flags, f"http://127.0.0.1:{server.server_port}/harness"],
            stdout=subprocess.DEVNULL,
            stderr=log,
        )
        try:
            found = told.get(timeout=300)
        except Empty:
            found = None
        finally:
            browser.terminate()
            browser.wait(30)
            server.shutdown()
            server.server_close()
        log.seek(0)
        said = [line.strip() for line in log if "CONSOLE" in line]
    assert found is not None, f"the browser did not come to an end; console: {said}"
    assert not said and not found["wrong"], (said, found["wrong"])
    assert set(found["hits"]) == {str(w) for w in WIDTHS}
    for hits in found["hits"].values():
        assert any("11_statistics.html" in h for h in hits), hits
    dials = sorted(site.glob("results/*/dial.html"))
    assert dials and len(found["turns"]) == len(dials) * len(WIDTHS)
    for name, turn in found["turns"].items():
        state = json.loads(
            re.search(
                r"const state=(\[.*?\]),dial=", (site / name.split()[0]).read_text(encoding="utf-8")
            )[1]
        )
        assert [[line, f"cell{cell}"] for cell, line in state] == [
            list(x) for x in zip(turn["lines"], turn["cells"])
        ], name
        assert len(set(turn["cells"])) > 3 and len(set(turn["lines"])) == len(state), name
        assert turn["smallest"] >= 9, f"{name}: labels of {turn['smallest']} pixels"


def test_the_notebook_of_the_dial_shows_a_slider(monkeypatch):
    """Executed as a reader would: the cell's output is a widget, with the slider and the picture in it."""
    monkeypatch.chdir(ROOT / "nbs")
    nb = nbformat.read("21_dial.ipynb", as_version=4)
    cells = [c for c in nb.cells if c.cell_type == "code"]
    last = next(i for i, c in enumerate(cells) if "SelectionSlider" in c.source)
    nb.cells = [
        c for c in cells[: last + 1] if "smoke" not in c.source
    ]  # but for the trial, which trains
    NotebookClient(nb, timeout=120, kernel_name="python3").execute()
    views = [
        o.data["application/vnd.jupyter.widget-view+json"]["model_id"]
        for o in nb.cells[-1].outputs
        if "application/vnd.jupyter.widget-view+json" in o.get("data", {})
    ]
    assert len(views) == 1, nb.cells[-1].outputs
    widgets = nb.metadata.widgets["application/vnd.jupyter.widget-state+json"]["state"]
    children = [
        widgets[c.removeprefix("IPY_MODEL_")] for c in widgets[views[0]]["state"]["children"]
    ]
    assert [c["model_name"] for c in children] == ["SelectionSliderModel", "OutputModel"]
    assert any("image/svg+xml" in o.get("data", {}) for o in children[1]["state"]["outputs"]), (
        "the slider moves nothing"
    )
