"""The wheel in an environment of its own, which holds what the package requires and nothing else."""

import os
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from test_project import ROOT, read_settings, run

USE = """
import sys
import numpy as np
from sklearn.datasets import load_digits
from edgenes import EdgeNES
digits = load_digits()
images, labels = (digits.images * 255 / 16).round().astype(np.uint8)[:200], digits.target[:200]
model = EdgeNES(members=2, candidates=2, search_steps=8, epochs=1, seed=0, verbose=0).fit(images, labels)
probs = model.predict_proba(images[:10])
assert probs.shape == (10, 10) and np.allclose(probs.sum(1), 1)
model.save(sys.argv[1])
assert (EdgeNES.load(sys.argv[1]).predict_proba(images[:10]) == probs).all()
"""
EVERY_MODULE = """
import importlib, pkgutil, edgenes
names = [m.name for m in pkgutil.walk_packages(edgenes.__path__, "edgenes.") if not m.name.endswith("__main__")]
assert len(names) > 30, names
for name in names: importlib.import_module(name)
"""
SECONDS = "import time, torch; start = time.process_time(); import edgenes; print(time.process_time() - start)"


def needed() -> set[str]:
    """Names of the distributions that the package requires, and what these require in turn."""
    found, todo = set(), read_settings()["requirements"].split()
    while todo:
        requirement = Requirement(todo.pop())
        name = canonicalize_name(requirement.name)
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        todo += distribution(name).requires or []
    return found


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A venv with links to the installed distributions of `needed`, and the wheel; nothing is downloaded."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(
        ROOT,
        folder / "source",
        ignore=lambda at, names: [
            n
            for n in names
            if Path(at) == ROOT
            and n
            not in (
                "pyproject.toml",
                "setup.py",
                "settings.ini",
                "MANIFEST.in",
                "README.md",
                "LICENSE",
                "requirements.lock",
                "environment.yml",
                "edgenes",
            )
        ],
    )
    run(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        folder,
        folder / "source",
    )
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv")
    python = folder / "venv" / "bin" / "python"
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "venv")}))
    for name in needed():
        installed = distribution(name)
        for top in {
            file.parts[0]
            for file in installed.files or []
            if file.parts[0] not in ("..", "__pycache__")
        }:
            if not (site / top).exists():
                (site / top).symlink_to(Path(installed.locate_file(top)))
    [wheel] = folder.glob("*.whl")
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--no-deps",
        "--no-index",
        "--no-compile",
        wheel,
    )
    return python


def call(*command, folder: Path) -> subprocess.CompletedProcess:
    """A command away from the checkout, without what the tests' own environment says."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "EDGENES"))}
    return subprocess.run(
        [str(c) for c in command],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )


def test_environment_holds_no_development_package(environment, tmp_path):
    for name in (
        "nbdev",
        "fastcore",
        "papermill",
        "nbformat",
        "IPython",
        "ipywidgets",
        "pytest",
        "hypothesis",
    ):
        assert call(environment, "-c", f"import {name}", folder=tmp_path).returncode, (
            f"{name} can be imported"
        )
    done = call(environment, "-c", "import edgenes; print(edgenes.__file__)", folder=tmp_path)
    assert done.stdout.startswith(str(environment.parents[1])), done


def test_every_module_imports(environment, tmp_path):
    done = call(environment, "-c", EVERY_MODULE, folder=tmp_path)
    assert done.returncode == 0, done.stderr


def test_import_is_quick(environment, tmp_path):
    """Beyond torch; processor seconds, so that a busy machine does not count."""
    assert (
        min(float(call(environment, "-c", SECONDS, folder=tmp_path).stdout) for _ in range(3)) < 0.3
    )


def test_estimator_fits(environment, tmp_path):
    done = call(environment, "-c", USE, tmp_path / "ensemble", folder=tmp_path)
    assert done.returncode == 0, done.stderr


def test_commands(environment, tmp_path):
    edgenes = environment.parent / "edgenes"
    for command in ((), ("fit",)):
        done = call(edgenes, *command, "--help", folder=tmp_path)
        assert done.returncode == 0 and "Usage" in done.stdout, done
    done = call(
        edgenes,
        "run",
        "smoke",
        "--experiments",
        "control",
        "--workers",
        "1",
        "--results",
        "r",
        folder=tmp_path,
    )
    assert done.returncode == 0 and (tmp_path / "r" / "report.html").exists(), done.stderr
    (tmp_path / "r" / "report.html").unlink()
    done = call(edgenes, "report", "smoke", "--results", "r", folder=tmp_path)
    assert done.returncode == 0 and (tmp_path / "r" / "report.html").exists(), done.stderr
    done = call(edgenes, "bench", "--quick", folder=tmp_path)  # compares with a notebook
    assert (
        done.returncode == 2
        and "run it inside a checkout of the project" in done.stderr
        and done.stderr.count("\n") == 1
    ), done
