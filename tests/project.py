"""What several tests of the project as a whole need: its files, its settings, its commands."""

import os
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import nbformat
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent


def read_settings():
    """The section of settings.ini."""
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return config["DEFAULT"]


def requirements():
    """Every requirement of settings.ini, those of the extras included."""
    settings = read_settings()
    groups = [name for name in settings if name.endswith("requirements")]
    return [Requirement(line) for group in groups for line in settings[group].split()]


def run(*command, cwd=ROOT):
    """The finished process; the test fails with what the command printed."""
    # nbdev-export does nothing where IN_TEST is set.
    environment = {name: value for name, value in os.environ.items() if name != "IN_TEST"}
    process = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert process.returncode == 0, f"{command}:\n{process.stdout}\n{process.stderr}"
    return process


def project_files():
    """The files that git tracks or would track: everything but what .gitignore names."""
    listing = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").stdout
    paths = [ROOT / name for name in listing.split("\0") if name]
    return [path for path in paths if path.is_file()]


def name_of(path):
    """The path of a file from the project's folder on."""
    return path.relative_to(ROOT).as_posix()


def notebooks(folder="nbs"):
    """(path, notebook) of every notebook under a folder of the project."""
    paths = [path for path in project_files() if path.suffix == ".ipynb"]
    paths = [path for path in paths if name_of(path).startswith(f"{folder}/")]
    assert paths, f"no notebook under {folder}/"
    return [(path, nbformat.read(path, as_version=4)) for path in paths]


def contents(folder, suffix):
    """The text of every file with this suffix, by its path from the folder on."""
    paths = (path for path in folder.rglob(f"*{suffix}") if ".ipynb_checkpoints" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_text("utf-8") for path in paths}
