"""The project as a whole: notebooks and package in step, types and lint, what is committed."""

import ast
import re
import shutil
import subprocess
import sys
from importlib.metadata import packages_distributions

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from project import BIN, ROOT, contents, name_of, project_files, read_settings, run

import edgenes

# The rest of edgenes/ is written by nbdev-export.
HANDWRITTEN = ("__init__.py", "__main__.py", "estimator/__init__.py")
# Neither pattern matches its own text, so this file needs no exception.
MACHINE_PATH = re.compile(r"""(?:^|[\s"'`=:(\[,<]|file://)/(?:work|tmp|root|opt)/""", re.M)
REGISTRY_HOST = re.compile(
    r"pypi[.]org|pythonhosted[.]org|npmjs[.]org|download[.]pytorch[.]org|deb[.]debian[.]org"
)


def differing(ours, theirs):
    """The names whose contents differ, or that only one side has."""
    return sorted(
        name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)
    )


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory):
    """A copy of the notebooks, exported and cleaned by nbdev; the work tree stays as it is."""
    copy = tmp_path_factory.mktemp("rebuilt")
    shutil.copy(ROOT / "pyproject.toml", copy)
    shutil.copytree(ROOT / "nbs", copy / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    for name in HANDWRITTEN:
        target = copy / "edgenes" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "edgenes" / name, target)
    for command in ("nbdev-export", "nbdev-clean"):
        process = run(BIN / command, cwd=copy)
        assert "Failed" not in process.stderr, process.stderr
    return copy


# ---------------------------------------------------------------- notebooks and package


def test_package_is_what_the_notebooks_export(rebuilt):
    exported = contents(rebuilt / "edgenes", ".py")
    assert exported.keys() - set(HANDWRITTEN), "no notebook exports anything"
    stale = differing(contents(ROOT / "edgenes", ".py"), exported)
    assert not stale, f"run nbdev-export; out of step: {stale}"


def test_notebooks_are_clean(rebuilt):
    unclean = differing(contents(ROOT / "nbs", ".ipynb"), contents(rebuilt / "nbs", ".ipynb"))
    assert not unclean, f"run nbdev-clean; unclean: {unclean}"


def test_package_imports_by_name_and_only_what_it_requires():
    settings = read_settings()
    required = {
        canonicalize_name(Requirement(line).name) for line in settings["requirements"].split()
    }
    required.add(settings["lib_name"])
    providers = packages_distributions()
    problems = []
    for name, text in contents(ROOT / "edgenes", ".py").items():
        tree = ast.parse(text)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and any(a.name == "*" for a in node.names):
                problems.append(f"{name}:{node.lineno}: import *")
        for node in tree.body:
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules = [node.module]
            else:
                continue
            roots = {module.partition(".")[0] for module in modules} - sys.stdlib_module_names
            for root in roots:
                distributions = {canonicalize_name(d) for d in providers.get(root, [root])}
                if not distributions & required:
                    problems.append(f"{name}:{node.lineno}: {root} is not among the requirements")
    assert not problems, "\n".join(problems)


A_USER = """\
from edgenes import EdgeNES
fine = EdgeNES(members=3, seed=0)
EdgeNES(members="three", nonsense=1)
reveal_type(fine.fit("folder"))
"""


@pytest.fixture(scope="module")
def remarks(tmp_path_factory):
    """What mypy says of the package and of the file of a user, mine.py."""
    file = tmp_path_factory.mktemp("user") / "mine.py"
    file.write_text(A_USER)
    process = subprocess.run(
        [sys.executable, "-m", "mypy", "edgenes", file],
        cwd=ROOT,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert process.returncode == 1, process.stdout + process.stderr  # 2: mypy itself failed
    lines = process.stdout.splitlines()
    return [line for line in lines if ": error: " in line or "Revealed" in line]


def test_type_hints_hold(remarks):
    assert [remark for remark in remarks if "mine.py:" not in remark] == []


def test_a_user_sees_the_types(remarks):
    """`EdgeNES` is imported when it is first asked for, and is a class to mypy nonetheless."""
    seen = [remark.partition("mine.py:")[2] for remark in remarks if "mine.py:" in remark]
    assert [remark.partition(":")[0] for remark in seen] == ["3", "3", "4"], seen
    assert '"nonsense"' in seen[0]
    assert '"members"' in seen[1]
    assert "edgenes.estimator.estimator.EdgeNES" in seen[2]


def test_names_of_the_package():
    assert set(edgenes.__all__) <= set(dir(edgenes))
    assert "EdgeNES" in edgenes.__all__
    assert not hasattr(edgenes, "nothing")


# ---------------------------------------------------------------- what is committed


def test_no_machine_path_and_no_registry_host():
    problems = set()
    for path in project_files():
        data = path.read_bytes()
        if b"\0" in data[:8192]:
            continue
        text = data.decode("utf-8")
        for pattern in (MACHINE_PATH, REGISTRY_HOST):
            problems |= {f"{name_of(path)}: {match[0].strip()}" for match in pattern.finditer(text)}
    assert not problems, "\n".join(sorted(problems))


@pytest.mark.parametrize(
    ("text", "is_path"),
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
def test_machine_paths_are_recognised(text, is_path):
    assert bool(MACHINE_PATH.search(text)) == is_path


def test_results_and_notebooks_stay_small():
    sizes = {name_of(path): path.stat().st_size for path in project_files()}
    assert sum(size for name, size in sizes.items() if name.startswith("results/")) < 40e6
    large = {name: size for name, size in sizes.items() if name.endswith(".ipynb") and size > 1.5e6}
    assert not large, f"notebooks over 1.5 MB: {large}"
