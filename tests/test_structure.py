"""The shape of the code: functions that fit a page, imports that point one way."""

import ast
import re

import nbformat
import pytest
from project import ROOT

PACKAGE = ROOT / "edgenes"
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p.name not in ("_modidx.py", "__main__.py"))
LONGEST_FUNCTION = 60

# What the modules of a layer may import beside modules of their own layer. The flat modules of the
# package are the layer "method": they follow the numbers of their notebooks.
MAY_IMPORT = {
    "method": set(),
    "estimator": {"method"},
    "study": {"method"},
    "report": {"method", "study"},
    "experiments": {"method", "study", "report"},
    "bench": {"method", "study", "report", "experiments"},
    "cli": {"method", "estimator", "study", "report", "experiments", "bench"},
}


def sources():
    """(where, code) of every code cell of the notebooks, and of every other Python file by hand."""
    for path in sorted((ROOT / "nbs").rglob("*.ipynb")):
        if ".ipynb_checkpoints" in path.parts:
            continue
        for number, cell in enumerate(nbformat.read(path, as_version=4).cells):
            if cell.cell_type == "code":
                yield f"{path.relative_to(ROOT).as_posix()}: cell {number}", cell.source
    by_hand = [*(ROOT / "tests").glob("*.py"), *(ROOT / "docs").glob("*.py"), ROOT / "setup.py"]
    for path in sorted(by_hand):
        yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")


def module_name(path):
    """The dotted name of a file of the package, without the package's own name."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def imported_modules(path):
    """The dotted names of the project's modules that a file imports, at any depth of its code."""
    package = ["edgenes", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parent = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*parent, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("edgenes."):
                yield name.removeprefix("edgenes.")


def known_module(name, modules):
    """The module that a dotted name belongs to: itself, or the module that defines it."""
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name


def import_graph():
    modules = {module_name(path) for path in MODULES} - {"__init__"}
    graph = {}
    for path in MODULES:
        name = module_name(path)
        if name == "__init__":
            continue
        targets = {known_module(target, modules) for target in imported_modules(path)}
        graph[name] = targets - {"", name, name.rpartition(".")[0]}
    return graph


def layer_of(module):
    return module.partition(".")[0] if module.partition(".")[0] in MAY_IMPORT else "method"


def test_no_function_is_longer_than_a_page():
    long_functions = []
    for where, code in sources():
        if code.startswith(("%", "!")):
            continue
        for node in ast.walk(ast.parse(code)):
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            lines = node.end_lineno - node.lineno + 1
            if lines > LONGEST_FUNCTION:
                long_functions.append(f"{where}: {node.name} has {lines} lines")
    assert not long_functions, "\n".join(long_functions)


def test_imports_follow_the_layers():
    climbing = [
        f"{module} imports {target}"
        for module, targets in import_graph().items()
        for target in targets
        if layer_of(target) != layer_of(module)
        and layer_of(target) not in MAY_IMPORT[layer_of(module)]
    ]
    assert not climbing, "\n".join(sorted(climbing))


def test_modules_of_the_method_import_only_earlier_ones():
    notebooks = sorted((ROOT / "nbs" / "method").glob("[0-9]*.ipynb"))
    order = [re.sub(r"^[0-9]+_", "", path.stem) for path in notebooks]
    graph = import_graph()
    assert {name for name in graph if layer_of(name) == "method"} == set(order)
    later = [
        f"{module} imports {target}"
        for module in order
        for target in graph[module]
        if order.index(target) > order.index(module)
    ]
    assert not later, "\n".join(later)


def test_no_circle_of_imports():
    graph = import_graph()
    finished = set()

    def visit(module, path):
        if module in path:
            pytest.fail(" -> ".join([*path[path.index(module) :], module]))
        if module in finished:
            return
        for target in sorted(graph.get(module, ())):
            visit(target, [*path, module])
        finished.add(module)

    for module in sorted(graph):
        visit(module, [])
