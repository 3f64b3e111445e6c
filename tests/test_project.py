"""The project as a whole: notebooks and package in step, notebooks presentable, one source for every version."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from email import message_from_string
from importlib.metadata import packages_distributions
from pathlib import Path

import nbformat
import papermill
import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import edgenes

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
# The rest of edgenes/ is written by nbdev-export.
HANDWRITTEN = ("__init__.py", "__main__.py", "py.typed")
# Neither pattern matches its own text, so this file needs no exception.
MACHINE_PATH = re.compile(r"""(?:^|[\s"'`=:(\[,<]|file://)/(?:work|tmp|root|opt)/""", re.M)
REGISTRY_HOST = re.compile(
    r"pypi[.]org|pythonhosted[.]org|npmjs[.]org|download[.]pytorch[.]org|deb[.]debian[.]org"
)


def read_settings():
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return config["DEFAULT"]


def requirements():
    settings = read_settings()
    return [
        Requirement(r)
        for key in ("requirements", "dev_requirements", "scale_requirements")
        for r in settings[key].split()
    ]


def run(*command, cwd=ROOT):
    """The finished process; fails the test with what the command printed."""
    env = {
        k: v for k, v in os.environ.items() if k != "IN_TEST"
    }  # nbdev-export does nothing where IN_TEST is set
    done = subprocess.run(
        [str(c) for c in command],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done


def project_files():
    """What git tracks or would track: everything but what .gitignore names."""
    listed = run(
        "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"
    ).stdout.split("\0")
    return [p for name in listed if name and (p := ROOT / name).is_file()]


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def notebooks(folder="nbs"):
    """(path, notebook) of the notebooks under a folder of the project; at least one."""
    found = [
        p for p in project_files() if p.suffix == ".ipynb" and name_of(p).startswith(f"{folder}/")
    ]
    assert found, f"no notebook under {folder}/"
    return [(p, nbformat.read(p, as_version=4)) for p in found]


def contents(folder, suffix):
    paths = (p for p in folder.rglob(f"*{suffix}") if ".ipynb_checkpoints" not in p.parts)
    return {p.relative_to(folder).as_posix(): p.read_text(encoding="utf-8") for p in paths}


def differing(ours, theirs):
    return sorted(
        name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)
    )


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory):
    """A copy of the notebooks, exported and cleaned by nbdev's own commands; the work tree is left as it is."""
    copy = tmp_path_factory.mktemp("rebuilt")
    shutil.copy(ROOT / "pyproject.toml", copy)
    shutil.copytree(ROOT / "nbs", copy / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    (copy / "edgenes").mkdir()
    for name in HANDWRITTEN:
        if (ROOT / "edgenes" / name).exists():
            shutil.copy(ROOT / "edgenes" / name, copy / "edgenes")
    for command in ("nbdev-export", "nbdev-clean"):
        done = run(BIN / command, cwd=copy)
        assert "Failed" not in done.stderr, done.stderr
    return copy


# ---------------------------------------------------------------- notebooks and package


def test_package_is_what_the_notebooks_export(rebuilt):
    assert contents(rebuilt / "edgenes", ".py").keys() - set(HANDWRITTEN), (
        "no notebook exports anything"
    )
    stale = differing(contents(ROOT / "edgenes", ".py"), contents(rebuilt / "edgenes", ".py"))
    assert not stale, f"run nbdev-export; out of step: {stale}"


def test_notebooks_are_clean(rebuilt):
    unclean = differing(contents(ROOT / "nbs", ".ipynb"), contents(rebuilt / "nbs", ".ipynb"))
    assert not unclean, f"run nbdev-clean; unclean: {unclean}"


def test_package_is_small():
    def statements(text):
        return sum(
            isinstance(node, ast.stmt) for node in ast.walk(ast.parse(text))
        )  # unlike lines, not a matter of layout

    size = {name: statements(text) for name, text in contents(ROOT / "edgenes", ".py").items()}
    experiments = {name: size.pop(name) for name in list(size) if name.startswith("experiments/")}
    assert max(experiments.values()) < 220, experiments  # one table or figure each
    size.pop("_modidx.py", None)  # nbdev's index of names, not code
    assert (
        size.pop("benchmark.py") < 345
        and size.pop("scaling.py") < 150
        and size.pop("costs.py") < 65
    )  # measure the package
    assert (
        size.pop("fitting.py") < 250 and size.pop("estimator.py") < 290 and size.pop("app.py") < 80
    )  # use the package
    assert max(size.values()) < 345, size  # one idea a module: what grows beyond is two
    assert sum(size.values()) < 3300, size


def test_package_imports_by_name_and_only_what_it_requires():
    required = {
        canonicalize_name(Requirement(r).name) for r in read_settings()["requirements"].split()
    }
    required.add(read_settings()["lib_name"])
    providers = packages_distributions()
    problems = []
    for name, text in contents(ROOT / "edgenes", ".py").items():
        tree = ast.parse(text)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and any(a.name == "*" for a in node.names):
                problems.append(f"{name}:{node.lineno}: import *")
        for node in tree.body:
            if isinstance(node, ast.Import):
                modules = [a.name for a in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules = [node.module]
            else:
                continue
            for module in {m.partition(".")[0] for m in modules} - sys.stdlib_module_names:
                if not {canonicalize_name(d) for d in providers.get(module, [module])} & required:
                    problems.append(f"{name}:{node.lineno}: {module} is not among the requirements")
    assert not problems, "\n".join(problems)


def test_type_hints_hold():
    done = subprocess.run(
        [sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_user_sees_the_types(tmp_path):
    """What mypy says of a user's file: `EdgeNES` is looked up when it is asked for, and must be a class to a type checker nonetheless."""
    snippet = tmp_path / "mine.py"
    snippet.write_text(
        'from edgenes import EdgeNES\nfine = EdgeNES(members=3, seed=0)\nEdgeNES(members="three", nonsense=1)\nreveal_type(fine.fit("folder"))\n'
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", ROOT / "pyproject.toml", snippet],
        cwd=tmp_path,
        env=os.environ | {"MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    said = [
        line.partition("mine.py:")[2]
        for line in done.stdout.splitlines()
        if ": error: " in line or "Revealed" in line
    ]
    assert [line.partition(":")[0] for line in said] == ["3", "3", "4"], done.stdout + done.stderr
    assert (
        '"nonsense"' in said[0]
        and '"members"' in said[1]
        and "edgenes.estimator.EdgeNES" in said[2]
    ), said


def test_names_of_the_package():
    assert set(edgenes.__all__) <= set(dir(edgenes)) and "EdgeNES" in edgenes.__all__
    assert not hasattr(edgenes, "nothing")


# ---------------------------------------------------------------- what a reader of the notebooks sees


def shown_lines(output):
    """Lines of text that an output takes on the screen."""
    parts = [
        output.get("text", ""),
        *(output.get("data", {}).get(kind, "") for kind in ("text/plain", "text/markdown")),
    ]
    return max(len(part.splitlines()) for part in parts)


def test_notebooks_are_valid_and_their_cells_and_outputs_short():
    problems = []
    for path, nb in notebooks():
        nbformat.validate(nb)
        for i, cell in enumerate(nb.cells):
            if cell.cell_type == "code" and (n := len(cell.source.splitlines())) > 30:
                problems.append(f"{name_of(path)}: cell {i} has {n} lines")
            for output in cell.get("outputs", []):
                if (n := shown_lines(output)) > 60:
                    problems.append(f"{name_of(path)}: an output of cell {i} has {n} lines")
    assert not problems, "\n".join(problems)


def test_no_output_shows_an_error_or_a_warning():
    """Under results/, executed notebooks may hold progress on stderr, but no warning."""
    problems = []
    executed = [
        p for p in project_files() if p.suffix == ".ipynb" and name_of(p).startswith("results/")
    ]
    for path, nb in notebooks() + [(p, nbformat.read(p, as_version=4)) for p in executed]:
        for i, cell in enumerate(nb.cells):
            for output in cell.get("outputs", []):
                stderr = output.text if output.get("name") == "stderr" else ""
                data = output.get("data", {})
                if data.get("text/plain", "").startswith("<Figure") and "image/png" not in data:
                    problems.append(
                        f"{name_of(path)}: cell {i} shows the name of a figure, not the figure"
                    )
                if output.output_type == "error":
                    problems.append(f"{name_of(path)}: cell {i} ends in {output.ename}")
                if "Warning" in stderr or (stderr and path not in executed):
                    problems.append(f"{name_of(path)}: cell {i} writes to stderr: {stderr[:120]!r}")
    assert not problems, "\n".join(problems)


def test_notebooks_of_the_library_lead_to_their_neighbours():
    """In the first cell of text: the notebook before, the one after, and the contents."""
    library = sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))
    problems = []
    for before, path, after in zip([None, *library], library, [*library[1:], None]):
        head = next(
            c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown"
        )
        line = next((x for x in head.splitlines() if "[contents]" in x), "")
        wanted = [*(near.name for near in (before, after) if near), "../README.md"]
        if re.findall(r"\]\(([^)]+)\)", line) != wanted:
            problems.append(f"{path.name}: {line!r} does not lead to {wanted}")
    assert library and not problems, "\n".join(problems)


def test_experiments_declare_their_parameters():
    problems = []
    for path, nb in notebooks("nbs/experiments"):
        if nb.cells[0].cell_type != "raw" or "skip_exec: true" not in nb.cells[0].source:
            problems.append(
                f"{name_of(path)}: the first cell is not a raw one with `skip_exec: true`"
            )
        tagged = [c for c in nb.cells if "parameters" in c.metadata.get("tags", [])]
        if len(tagged) != 1:
            problems.append(
                f"{name_of(path)}: {len(tagged)} cells are tagged `parameters`, not one"
            )
            continue
        assigned = {
            name.id
            for node in ast.parse(tagged[0].source).body
            if isinstance(node, (ast.Assign, ast.AnnAssign))
            for name in ast.walk(node)
            if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
        }
        known = set(papermill.inspect_notebook(str(path)))
        if not known or known != assigned:
            problems.append(
                f"{name_of(path)}: papermill sees {sorted(known)}, the cell assigns {sorted(assigned)}"
            )
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("language", ["", "_ru"])
def test_readme_is_the_index_notebook(language):
    """`make readme` writes it. Links of the notebook are relative to nbs/, those of README.md to the project."""
    index, name = ROOT / "nbs" / f"index{language}.ipynb", f"README{language.replace('_', '.')}.md"
    assert index.exists(), f"{index.name}, the source of {name}, is missing"
    markdown = run(
        sys.executable, "-m", "nbconvert", "--to", "markdown", "--no-input", "--stdout", index
    ).stdout
    readme = (ROOT / name).read_text(encoding="utf-8")
    assert readme == markdown.replace("](../", "]("), "run make readme"
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)", readme)]
    broken = [link for link in links if link and ":" not in link and not (ROOT / link).exists()]
    assert not broken, f"{name} links to what is not there: {broken}"


def parts_of_readme(language):
    """Of what makes a README: headings, code blocks without their comments, the longest paragraph, and how many cells compute."""
    nb = nbformat.read(ROOT / "nbs" / f"index{language}.ipynb", as_version=4)
    prose = "\n\n".join(c.source for c in nb.cells if c.cell_type == "markdown")
    blocks = [re.sub(r"\s*#.*", "", block) for block in re.findall(r"(?s)```\w+\n.*?```", prose)]
    paragraphs = re.split(r"\n\n|\n(?=[-|])", re.sub(r"(?s)```.*?```", "", prose))
    return (
        re.findall(r"^(##?) ", prose, re.M),
        blocks,
        max(paragraphs, key=len),
        sum(c.cell_type == "code" for c in nb.cells),
    )


def test_readmes_say_the_same_in_both_languages():
    english, russian = parts_of_readme(""), parts_of_readme("_ru")
    assert english[0] == russian[0], "other sections"
    assert english[1] and english[1] == russian[1], "other commands or lines of code"
    assert english[3] == russian[3], "other numbers of computed passages"
    for language, name in (("", "README.ru.md"), ("_ru", "README.md")):
        assert (
            f"](../{name})"
            in nbformat.read(ROOT / "nbs" / f"index{language}.ipynb", as_version=4).cells[0].source
        )


@pytest.mark.parametrize("language", ["", "_ru"])
def test_paragraphs_of_readme_are_short(language):
    longest = parts_of_readme(language)[2]
    assert len(longest) <= 500, longest


# ---------------------------------------------------------------- versions and dependencies


def test_one_name_and_one_version():
    settings = read_settings()
    assert edgenes.__version__ == settings["version"]
    assert (
        re.search(r'^name = "(.+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)[1]
        == settings["lib_name"]
    )


@pytest.mark.parametrize("system", ["linux", "darwin"])
@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_lock_pins_every_requirement_once(python, system):
    where = {
        **default_environment(),
        "python_version": python,
        "python_full_version": f"{python}.9",
        "implementation_version": f"{python}.9",
        "sys_platform": system,
        "platform_system": system.capitalize(),
    }
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    version = {}
    for pin in pins:
        assert [s.operator for s in pin.specifier] == ["=="], f"not a pin: {pin}"
        if pin.marker is None or pin.marker.evaluate(where):
            name = canonicalize_name(pin.name)
            assert name not in version, f"{name} is pinned twice for Python {python}"
            version[name] = next(iter(pin.specifier)).version
    for requirement in requirements():
        if requirement.marker and not requirement.marker.evaluate(where):
            continue
        name = canonicalize_name(requirement.name)
        assert name in version, f"run make lock: {name} has no pin for Python {python}"
        assert requirement.specifier.contains(version[name]), (
            f"run make lock: {requirement}, pinned {version[name]}"
        )


def test_supported_python_is_the_same_everywhere():
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    lowest = re.search(r'^requires-python = ">=(3\.\d+)"', pyproject, re.M)[1]
    assert f"--python-version {lowest} " in makefile
    assert f"< ({lowest.replace('.', ', ')})" in makefile
    assert f'target-version = "py{lowest.replace(".", "")}"' in pyproject
    assert f'python_version = "{lowest}"' in pyproject


def test_conda_environment_installs_the_lock():
    packages = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))[
        "dependencies"
    ]
    assert [p["pip"] for p in packages if isinstance(p, dict)] == [
        ["-c requirements.lock", "-e .[dev]"]
    ]
    names = [re.split(r"[=<>]", p)[0] for p in packages if isinstance(p, str)]
    assert names == ["python", "pip"], "libraries belong in settings.ini"
    minor = int(
        re.search(r"python=3\.(\d+)", " ".join(p for p in packages if isinstance(p, str)))[1]
    )
    assert minor >= 10


def test_wheel_and_sdist_build(tmp_path):
    """The sdist is built from what a checkout holds, the wheel from the sdist."""
    for name in (
        "pyproject.toml",
        "setup.py",
        "settings.ini",
        "MANIFEST.in",
        "README.md",
        "LICENSE",
        "requirements.lock",
        "environment.yml",
    ):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(
        ROOT / "edgenes", tmp_path / "edgenes", ignore=shutil.ignore_patterns("__pycache__")
    )
    run(
        sys.executable,
        "-c",
        "from setuptools import build_meta; build_meta.build_sdist('dist')",
        cwd=tmp_path,
    )
    [sdist] = (tmp_path / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        held = {n.partition("/")[2] for n in archive.getnames()}
    assert {"settings.ini", "LICENSE", "README.md", "requirements.lock", "environment.yml"} <= held

    run(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        tmp_path,
        sdist,
    )
    [wheel] = tmp_path.glob("*.whl")
    settings = read_settings()
    with zipfile.ZipFile(wheel) as archive:
        packed = {n for n in archive.namelist() if ".dist-info/" not in n}
        info = {
            n.split("/")[-1]: archive.read(n).decode()
            for n in archive.namelist()
            if ".dist-info/" in n
        }
    assert packed == {f"edgenes/{n}" for n in contents(ROOT / "edgenes", ".py")} | {
        "edgenes/py.typed"
    }
    metadata = message_from_string(info["METADATA"])
    assert metadata["Version"] == settings["version"]
    assert len(metadata.get_all("Requires-Dist")) == len(requirements())
    assert settings["console_scripts"].replace("=", " = ") in info["entry_points.txt"]


# ---------------------------------------------------------------- what is committed


def test_no_machine_path_and_no_registry_host():
    problems = []
    for path in project_files():
        data = path.read_bytes()
        if b"\0" in data[:8192]:
            continue
        text = data.decode("utf-8")
        for pattern in (MACHINE_PATH, REGISTRY_HOST):
            problems += [f"{name_of(path)}: {m[0].strip()}" for m in pattern.finditer(text)]
    assert not problems, "\n".join(sorted(set(problems)))


@pytest.mark.parametrize(
    "text,found",
    [
        ("see /wor" + "k/x", True),
        ('"/tm' + 'p/x"', True),
        ("--at=/roo" + "t/x", True),
        ("file:///tm" + "p/x", True),
        ("results/*/work/", False),
        ("QkF/tmp/9aF", False),
        ("https://example.org/root/x", False),
    ],
)
def test_machine_paths_are_recognised(text, found):
    assert bool(MACHINE_PATH.search(text)) == found


def test_results_and_notebooks_stay_small():
    sizes = {name_of(p): p.stat().st_size for p in project_files()}
    assert sum(size for name, size in sizes.items() if name.startswith("results/")) < 40e6
    large = {name: size for name, size in sizes.items() if name.endswith(".ipynb") and size > 1.5e6}
    assert not large, f"notebooks over 1.5 MB: {large}"
