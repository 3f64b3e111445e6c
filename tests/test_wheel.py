"""The wheel: what it holds, and how it works in an environment of its own.

That environment holds what the package requires and no more.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email import message_from_string
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from project import ROOT, contents, read_settings, requirements, run

IN_SDIST = ("settings.ini", "LICENSE", "README.md", "requirements.lock", "environment.yml")
NEEDED_TO_BUILD = ("pyproject.toml", "setup.py", "MANIFEST.in")

USE = """
import sys
import numpy as np
from sklearn.datasets import load_digits
from edgenes import EdgeNES

digits = load_digits()
images = (digits.images * 255 / 16).round().astype(np.uint8)[:200]
model = EdgeNES(members=2, candidates=2, search_steps=8, epochs=1, seed=0, verbose=0)
model.fit(images, digits.target[:200])
probabilities = model.predict_proba(images[:10])
assert probabilities.shape == (10, 10)
assert np.allclose(probabilities.sum(1), 1)
model.save(sys.argv[1])
assert (EdgeNES.load(sys.argv[1]).predict_proba(images[:10]) == probabilities).all()
"""

EVERY_MODULE = """
import importlib
import pkgutil

import edgenes

names = [module.name for module in pkgutil.walk_packages(edgenes.__path__, "edgenes.")]
names = [name for name in names if not name.endswith("__main__")]
assert len(names) > 30, names
for name in names:
    importlib.import_module(name)
"""

SECONDS = """
import time
import torch

start = time.process_time()
import edgenes
print(time.process_time() - start)
"""


def needed_distributions() -> set[str]:
    """Names of the distributions that the package requires, and what these require in turn."""
    names = set()
    open_requirements = read_settings()["requirements"].split()
    while open_requirements:
        requirement = Requirement(open_requirements.pop())
        name = canonicalize_name(requirement.name)
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if applies and name not in names:
            names.add(name)
            open_requirements += distribution(name).requires or []
    return names


def link_distribution(name: str, site: Path) -> None:
    """Links the files of an installed distribution into another environment."""
    installed = distribution(name)
    tops = {file.parts[0] for file in installed.files or []} - {"..", "__pycache__"}
    for top in tops:
        if not (site / top).exists():
            (site / top).symlink_to(Path(installed.locate_file(top)))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(sdist, wheel): the sdist is built from a checkout's files, the wheel from the sdist."""
    folder = tmp_path_factory.mktemp("built")
    for name in (*IN_SDIST, *NEEDED_TO_BUILD):
        shutil.copy(ROOT / name, folder)
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "edgenes", folder / "edgenes", ignore=ignore)
    build = "from setuptools import build_meta; build_meta.build_sdist('dist')"
    run(sys.executable, "-c", build, cwd=folder)
    [sdist] = (folder / "dist").glob("*.tar.gz")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "-w", folder]
    run(sys.executable, "-m", "pip", "wheel", *options, sdist)
    [wheel] = folder.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def environment(built, tmp_path_factory):
    """The Python of an environment with the wheel and links to `needed_distributions`.

    Nothing is downloaded.
    """
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv")
    python = folder / "venv" / "bin" / "python"
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "venv")}))
    for name in needed_distributions():
        link_distribution(name, site)
    _, wheel = built
    install = ("install", "--no-deps", "--no-index", "--no-compile", wheel)
    run(sys.executable, "-m", "pip", "--python", python, *install)
    return python


def call(*command, folder: Path) -> subprocess.CompletedProcess:
    """A command away from the checkout, without the variables of the tests' own environment."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "EDGENES"))}
    return subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )


def test_sdist_holds_what_a_build_needs(built):
    sdist, _ = built
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert set(IN_SDIST) <= names


def test_wheel_holds_the_package_and_its_metadata(built):
    _, wheel = built
    settings = read_settings()
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata_files = {
            name.split("/")[-1]: archive.read(name).decode()
            for name in names
            if ".dist-info/" in name
        }
    expected = {f"edgenes/{name}" for name in contents(ROOT / "edgenes", ".py")}
    expected |= {f"edgenes/{name}" for name in contents(ROOT / "edgenes", ".jinja2")}
    assert {name for name in names if ".dist-info/" not in name} == expected | {"edgenes/py.typed"}
    metadata = message_from_string(metadata_files["METADATA"])
    assert metadata["Version"] == settings["version"]
    assert len(metadata.get_all("Requires-Dist")) == len(requirements())
    script = settings["console_scripts"].replace("=", " = ")
    assert script in metadata_files["entry_points.txt"]


@pytest.mark.parametrize(
    "name",
    [
        "nbdev",
        "fastcore",
        "papermill",
        "nbformat",
        "IPython",
        "ipywidgets",
        "pytest",
        "hypothesis",
    ],
)
def test_environment_holds_no_development_package(environment, tmp_path, name):
    process = call(environment, "-c", f"import {name}", folder=tmp_path)
    assert process.returncode, f"{name} can be imported"


def test_the_package_is_that_of_the_wheel(environment, tmp_path):
    process = call(environment, "-c", "import edgenes; print(edgenes.__file__)", folder=tmp_path)
    assert process.stdout.startswith(str(environment.parents[1])), process


def test_every_module_imports(environment, tmp_path):
    process = call(environment, "-c", EVERY_MODULE, folder=tmp_path)
    assert process.returncode == 0, process.stderr


def test_import_is_quick(environment, tmp_path):
    """Beyond torch; in seconds of the process, so that a busy machine does not count."""
    processes = [call(environment, "-c", SECONDS, folder=tmp_path) for _ in range(3)]
    assert min(float(process.stdout) for process in processes) < 0.3


def test_estimator_fits(environment, tmp_path):
    process = call(environment, "-c", USE, tmp_path / "ensemble", folder=tmp_path)
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize("command", [(), ("fit",)])
def test_help(environment, tmp_path, command):
    process = call(environment.parent / "edgenes", *command, "--help", folder=tmp_path)
    assert process.returncode == 0, process
    assert "Usage" in process.stdout


def test_run_and_report(environment, tmp_path):
    command = environment.parent / "edgenes"
    page = tmp_path / "r" / "report.html"
    smallest = ("smoke", "--experiments", "control", "--workers", "1")
    process = call(command, "run", *smallest, "--results", "r", folder=tmp_path)
    assert process.returncode == 0, process.stderr
    assert page.exists(), process.stderr
    page.unlink()
    process = call(command, "report", "smoke", "--results", "r", folder=tmp_path)
    assert process.returncode == 0, process.stderr
    assert page.exists(), process.stderr


def test_bench(environment, tmp_path):
    """The textbook version that it compares with is part of the package."""
    process = call(environment.parent / "edgenes", "bench", "--quick", folder=tmp_path)
    assert process.returncode == 0, process.stderr
    ratios = dict(line.split(": ") for line in process.stdout.splitlines() if "_ratio: " in line)
    assert set(ratios) >= {"faithful_ratio", "sampled_ratio", "memory_ratio"}
    assert all(float(ratio) > 0 for ratio in ratios.values())
