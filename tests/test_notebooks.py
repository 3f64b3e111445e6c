"""What a reader of the notebooks sees: neat outputs, ways on, experiments that answer first."""

import ast
import json
import re
import sys

import nbformat
import pandas as pd
import papermill
import pytest
from executed import EXPERIMENT_NOTEBOOKS, executed, notebook_process
from project import ROOT, name_of, notebooks, project_files, run

from edgenes.experiments.registry import EXPERIMENTS
from edgenes.report.readme import leading_profile
from edgenes.report.verdicts import counts_sentence

LONGEST_OUTPUT = 60


def tags(cell):
    return cell.metadata.get("tags", [])


def first_text(notebook):
    return next(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def lines_on_screen(output):
    """How many lines of text an output takes."""
    data = output.get("data", {})
    texts = [output.get("text", ""), data.get("text/plain", ""), data.get("text/markdown", "")]
    return max(len(text.splitlines()) for text in texts)


def test_notebooks_are_valid_and_their_outputs_short():
    problems = []
    for path, notebook in notebooks():
        nbformat.validate(notebook)
        for number, cell in enumerate(notebook.cells):
            for output in cell.get("outputs", []):
                lines = lines_on_screen(output)
                if lines > LONGEST_OUTPUT:
                    problems.append(f"{name_of(path)}: cell {number} shows {lines} lines")
    assert not problems, "\n".join(problems)


def faults_of_output(output, may_write_to_stderr):
    """What should not be seen in a committed notebook."""
    data = output.get("data", {})
    stderr = output.text if output.get("name") == "stderr" else ""
    if data.get("text/plain", "").startswith("<Figure") and "image/png" not in data:
        yield "shows the name of a figure, not the figure"
    if output.output_type == "error":
        yield f"ends in {output.ename}"
    if "Warning" in stderr or (stderr and not may_write_to_stderr):
        yield f"writes to stderr: {stderr[:120]!r}"


def test_no_output_shows_an_error_or_a_warning():
    """Executed notebooks under results/ may hold progress on stderr, but no warning."""
    executed = [
        (path, nbformat.read(path, as_version=4))
        for path in project_files()
        if path.suffix == ".ipynb" and name_of(path).startswith("results/")
    ]
    problems = []
    for path, notebook in notebooks() + executed:
        in_results = name_of(path).startswith("results/")
        for number, cell in enumerate(notebook.cells):
            for output in cell.get("outputs", []):
                faults = faults_of_output(output, in_results)
                problems += [f"{name_of(path)}: cell {number} {fault}" for fault in faults]
    assert not problems, "\n".join(problems)


def test_notebooks_of_the_method_lead_to_their_neighbours():
    """The first cell of text links the notebook before, the one after, and the contents."""
    library = sorted((ROOT / "nbs" / "method").glob("[0-9]*.ipynb"))
    assert library
    problems = []
    for before, path, after in zip([None, *library], library, [*library[1:], None]):
        text = first_text(nbformat.read(path, as_version=4))
        navigation = next((line for line in text.splitlines() if "[contents]" in line), "")
        targets = re.findall(r"\]\(([^)]+)\)", navigation)
        expected = [near.name for near in (before, after) if near] + ["../../README.md"]
        if targets != expected:
            problems.append(f"{path.name}: {navigation!r} does not lead to {expected}")
    assert not problems, "\n".join(problems)


def test_links_between_notebooks_lead_somewhere():
    broken = []
    for path, notebook in notebooks():
        for cell in notebook.cells:
            if cell.cell_type != "markdown":
                continue
            for target in re.findall(r"\]\(([^)\s]+)\)", cell.source):
                file = target.partition("#")[0]
                if file and ":" not in file and not (path.parent / file).exists():
                    broken.append(f"{name_of(path)}: {target}")
    assert not broken, "\n".join(broken)


# ---------------------------------------------------------------- experiments


def test_every_experiment_has_a_notebook_and_every_notebook_is_an_experiment():
    names = {path.stem for path in EXPERIMENT_NOTEBOOKS}
    assert names - {"benchmark"} == set(EXPERIMENTS)


def assigned_names(code):
    """The names that a cell assigns."""
    statements = [n for n in ast.parse(code).body if isinstance(n, (ast.Assign, ast.AnnAssign))]
    names = [n for statement in statements for n in ast.walk(statement) if isinstance(n, ast.Name)]
    return {name.id for name in names if isinstance(name.ctx, ast.Store)}


@pytest.mark.parametrize("path", EXPERIMENT_NOTEBOOKS, ids=lambda path: path.stem)
def test_experiments_declare_their_parameters(path):
    notebook = nbformat.read(path, as_version=4)
    assert notebook.cells[0].cell_type == "raw"
    assert "skip_exec: true" in notebook.cells[0].source
    parameter_cells = [cell for cell in notebook.cells if "parameters" in tags(cell)]
    assert len(parameter_cells) == 1
    known = set(papermill.inspect_notebook(str(path)))
    assert known
    assert known == assigned_names(parameter_cells[0].source)
    injected = [cell for cell in notebook.cells if "injected-parameters" in tags(cell)]
    assert not injected, "papermill's cell overrides what a reader sets above it"


@pytest.fixture(scope="module")
def process():
    """It ends with the comparison: nothing in results/ was written."""
    before = run("git", "status", "--porcelain", "results").stdout
    with notebook_process() as pool:
        yield pool
    assert run("git", "status", "--porcelain", "results").stdout == before


@pytest.mark.parametrize("path", EXPERIMENT_NOTEBOOKS, ids=lambda path: path.stem)
def test_experiments_run_as_committed_without_data_and_without_training(path, process, tmp_path):
    """On the records of the repository, as when a reader opens it in JupyterLab."""
    executed(process, path, tmp_path)


@pytest.mark.parametrize("path", EXPERIMENT_NOTEBOOKS, ids=lambda path: path.stem)
def test_tables_of_an_answer_have_words_for_headers(path):
    """Before the section on how it was run, where tables are those of the result."""
    names = []
    for cell in nbformat.read(path, as_version=4).cells:
        if re.match(r"## How it was ", cell.source):
            break
        for output in cell.get("outputs", []):
            names += re.findall(
                r"<th[^>]*>([^<]*)</th>", output.get("data", {}).get("text/html", "")
            )
    assert not [name for name in names if "_" in name]


# ---------------------------------------------------------------- README


def index_notebook(language):
    return ROOT / "nbs" / f"index{language}.ipynb"


@pytest.mark.parametrize("language", ["", "_ru"])
def test_readme_is_the_index_notebook(language):
    """`make readme` writes it. Links of the notebook start from nbs/, those of README from here."""
    index = index_notebook(language)
    name = f"README{language.replace('_', '.')}.md"
    command = [sys.executable, "-m", "nbconvert", "--to", "markdown", "--no-input", "--stdout"]
    markdown = run(*command, index).stdout
    readme = (ROOT / name).read_text(encoding="utf-8")
    without_gaps = re.sub(r"\n{3,}", "\n\n", markdown)  # an output stands between blank lines
    assert readme == without_gaps.replace("](../", "]("), "run make readme"
    assert len(readme.splitlines()) <= 120
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)", readme)]
    files = [target for target in targets if target and ":" not in target]
    missing = [file for file in files if not (ROOT / file).exists()]
    assert not missing, f"{name} links to what is not there: {missing}"


def prose_of(language):
    notebook = nbformat.read(index_notebook(language), as_version=4)
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def headings(language):
    return re.findall(r"^(##?) ", prose_of(language), re.M)


def code_blocks(language):
    """The code blocks, without their comments."""
    blocks = re.findall(r"(?s)```\w+\n.*?```", prose_of(language))
    return [re.sub(r"\s*#.*", "", block) for block in blocks]


def computed_passages(language):
    notebook = json.loads(index_notebook(language).read_text("utf-8"))
    return sum(cell["cell_type"] == "code" for cell in notebook["cells"])


def test_readmes_say_the_same_in_both_languages():
    assert headings("") == headings("_ru")
    assert code_blocks("")
    assert code_blocks("") == code_blocks("_ru")
    assert computed_passages("") == computed_passages("_ru")
    for language, other in (("", "README.ru.md"), ("_ru", "README.md")):
        assert f"](../{other})" in first_text(nbformat.read(index_notebook(language), 4))


@pytest.mark.parametrize("language", ["", "_ru"])
def test_paragraphs_of_readme_are_short(language):
    prose = re.sub(r"(?s)```.*?```", "", prose_of(language))
    longest = max(re.split(r"\n\n|\n(?=[-|])", prose), key=len)
    assert len(longest) <= 500, longest


def test_readme_summary_and_report_count_the_verdicts_alike():
    folder = ROOT / "results" / leading_profile(ROOT / "results")
    counts = counts_sentence(pd.read_csv(folder / "tables" / "claims.csv"))
    shown = {
        "README.md": (ROOT / "README.md").read_text(encoding="utf-8"),
        "report.html": (folder / "report.html").read_text(encoding="utf-8"),
        "summary": (ROOT / "nbs" / "reading" / "summary.ipynb").read_text(encoding="utf-8"),
        "report": (ROOT / "nbs" / "reading" / "report.ipynb").read_text(encoding="utf-8"),
    }
    assert [name for name, text in shown.items() if counts not in text] == []
